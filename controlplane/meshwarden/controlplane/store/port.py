"""The store's port: revisioned records under text keys, guarded commits, watches from any revision, fenced leases.

Revisions grow with each change but are not dense: leases take some as well. A commit is one revision and reaches a
watcher as one batch.

    StoreError
      Conflict      a guard does not hold; says where each record stands
      Fenced        the lease that guards the commit is another's, or has ended
      Compacted     the history asked for is gone: read all and go on from there
      Future        the revision asked for has not been: the cursor is of another store
      TooLarge      a limit of the port is exceeded; nothing was tried
      InvalidKey    a key or prefix that no engine takes
      Unavailable   the store can't now; nothing was written
      Ambiguous     the commit may have been written, or not
      LeaseHeld     another owner holds the lease
      LeaseLost     the lease has ended or is another's
      WatchLost     the watch broke off; go on from the last batch
      Unusable      the file can't be opened: a newer format, other people's permissions
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

ANY = -1
"""Expect nothing of the record."""
ABSENT = 0
"""Expect that there is no record."""


class StoreError(Exception):
    """Any failure of a store."""


class Conflict(StoreError):
    """A guard does not hold; `actual` is {key: revision now, 0 if absent}."""

    def __init__(self, actual: Mapping[str, int]) -> None:
        self.actual = dict(actual)
        moved = ", ".join(f"{key} is at {revision or 'nothing'}" for key, revision in self.actual.items())
        super().__init__(f"the store has moved on: {moved}")


class Fenced(StoreError):
    """The lease that guards a commit is not held any more."""


class Compacted(StoreError):
    """The history before `revision` is gone."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        super().__init__(f"the history up to revision {revision} is compacted: read everything afresh")


class Future(StoreError):
    """The revision asked for is past `revision`, the newest."""

    def __init__(self, revision: int) -> None:
        self.revision = revision
        super().__init__(f"the newest revision is {revision}: the one asked for is of another store")


class TooLarge(StoreError):
    """A limit of the port is exceeded; the message names it."""


class InvalidKey(StoreError):
    """A key or prefix that no engine takes."""


class Unavailable(StoreError):
    """The store can't now; nothing was written.

    Attributes:
        wait_s: after how many seconds it is of use to try again.
    """

    wait_s = 1.0


class Ambiguous(StoreError):
    """The commit may have been written, or not: read before you try again."""


class LeaseHeld(StoreError):
    """Another owner holds the lease."""


class LeaseLost(StoreError):
    """The lease has ended, or is another's."""


class WatchLost(StoreError):
    """The watch broke off; go on from the last batch."""


class Unusable(StoreError):
    """The store can't be opened as it is; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Record:
    """A value under a key, as of its last change."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some records in the order of their keys, all as of `revision`; `next_key` is empty on the last page."""

    records: tuple[Record, ...]
    revision: int
    next_key: str


@dataclass(frozen=True, slots=True)
class Put:
    """Writes a value. `expect` guards it: ANY, ABSENT, or the revision at which the record must stand."""

    key: str
    value: bytes
    expect: int = ANY


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletes a record; with ANY it may be absent already."""

    key: str
    expect: int = ANY


@dataclass(frozen=True, slots=True)
class Check:
    """Changes nothing and only guards."""

    key: str
    expect: int


Op = Put | Delete | Check


@dataclass(frozen=True, slots=True)
class Event:
    """One change; `value` is None if the record was deleted."""

    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Batch:
    """The changes of one revision below a prefix; none makes it a bookmark: all up to `revision` has been seen."""

    revision: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """A name held by an owner.

    `token` grows with each holder. `deadline_s` is on this machine's monotonic clock; past it the lease is not ours.
    """

    name: str
    owner: str
    token: int
    ttl_s: float
    deadline_s: float


class Store(Protocol):
    """Revisioned records. Keys are text; values are bytes. Any method may raise Unavailable."""

    @property
    def incarnation(self) -> str:
        """Names this history: a restored store has another one, and cursors of the old one mean nothing in it."""

    async def get(self, key: str) -> tuple[Record | None, int]:
        """Returns the record, if any, and the store's newest revision."""

    async def range(self, prefix: str, *, start: str = "", limit: int = 500, at: int = 0) -> Page:
        """Returns the records below `prefix` from the key `start` on, as of revision `at` (0 is now).

        A page of large records may end before `limit`; where it goes on is `next_key`.

        Raises:
            Compacted: `at` is before the history that is kept.
            Future: `at` has not been.
        """

    async def commit(self, ops: Sequence[Op], *, fence: Lease | None = None) -> int:
        """Writes all of `ops` or none; returns the revision that holds them, the present one if nothing changed.

        Raises:
            Conflict: a guard does not hold.
            Fenced: `fence` is not held any more.
            TooLarge: a limit of the port is exceeded.
            Ambiguous: it may have been written.
        """

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[Batch]:
        """Yields what changes below `prefix` after revision `after`, one batch a revision, and bookmarks.

        A bookmark comes as soon as the watcher has caught up for the first time, and later whenever the store went on
        elsewhere. Close the iterator (`contextlib.aclosing`) when done.

        Raises:
            Compacted: at the first step, if changes after `after` are gone already.
            Future: at the first step, if `after` has not been.
            WatchLost: the watch broke off.
        """

    async def compact(self, revision: int) -> None:
        """Forgets the history up to `revision`; records as of then stay. Keep well behind the head.

        Raises:
            Future: `revision` has not been.
        """

    async def mark(self, has_newer: bool) -> None:
        """Says whether the last release would misread what is in the store: as long as so, it refuses to open it."""

    async def acquire(self, name: str, owner: str, ttl_s: float) -> Lease:
        """Takes a lease that is free, has ended, or is the owner's own (whose older token is fenced from then on).

        Raises:
            LeaseHeld: another owner has it.
        """

    async def renew(self, lease: Lease, *, release: bool = False) -> Lease:
        """Prolongs a lease by its ttl, or gives it up.

        Raises:
            LeaseLost: it has ended or is another's.
        """
