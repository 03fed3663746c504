"""The ledgers of all policies that count by hour, day or month. Pure: both clocks are passed in.

Which period it is, the wall clock says; that may be turned. So a period's ledger is known by when the period begins,
and one that is begun goes on where it was, whichever way the clock came to it: no amount is given twice. A ledger is
let go when two periods after it were begun and are over; periods as old as that are never begun again.

A policy that is deleted leaves its ledger until the period ends, and finds it when it is made again.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from meshwarden.controlplane.quota.holding import Account, Chunks, Grant
from meshwarden.controlplane.quota.leases import MAX_LEASES
from meshwarden.controlplane.quota.ledger import Ledger
from meshwarden.controlplane.quota.period import Kind, Period, period_of
from meshwarden.controlplane.quota.tree import Bucket, Level, Path, Point

PRUNE_EVERY_S: Final = 60.0
KEPT: Final = 2
"""How many ledgers before the present one are kept of a policy."""
MAX_ACCOUNTS: Final = 100_000
"""In all ledgers, each of one bucket in one period; there is nothing for the buckets of further ones."""
USE_EVERY_S: Final = 5.0
"""How often it is written what was used, where nothing was given."""


class Terms(NamedTuple):
    """What makes two periods of a policy comparable: amounts of other terms are counted anew."""

    kind: Kind
    zone: str
    unit: str


class Name(NamedTuple):
    """Which ledger: of which policy, by which terms, of the period that begins when."""

    policy: str
    terms: Terms
    start_s: float


class Write(NamedTuple):
    """A record to be written, or deleted.

    Attributes:
        name: of the ledger.
        path: whose account in it; empty for the ledger's own record.
        value: what is in it; None if it is over.
    """

    name: Name
    path: Path
    value: "Account | Book | None"


@dataclass(slots=True)
class Book:
    """What is written of one ledger.

    Attributes:
        period: when it begins and ends.
        turn: the ledger's.
        before_s: periods of these terms that begin before are over for good.
        accounts: by path.
        is_whole: whether all of it could be read; if not, nothing is given out of it.
    """

    period: Period
    turn: int
    before_s: float = 0.0
    is_whole: bool = True
    accounts: dict[Path, Account] = field(default_factory=dict)


@dataclass(slots=True)
class _Policy:
    """A policy in force.

    Attributes:
        name: of its ledger of the present period; None until there is one.
        ledger: that one.
    """

    terms: Terms
    tree: Level
    name: Name | None = None
    ledger: Ledger | None = None


class Ledgers:
    """All ledgers of whoever divides."""

    def __init__(self, books: Mapping[Name, Book], new_turn: Callable[[], int]) -> None:
        """Goes on from what is written; `new_turn` gives a number that nobody was ever given."""
        self._new_turn = new_turn
        self._books: dict[Name, Book] = dict(books)
        self._policies: dict[str, _Policy] = {}
        # What has to be written, and what of that is planned: by ledger the paths, () for its own record. And what has
        # to be deleted.
        self._unwritten: dict[Name, set[Path]] = {}
        self._planned: dict[Name, set[Path]] = {}
        self._over: list[Write] = []
        self._used_s = self._pruned_s = -math.inf
        self.presses = False
        """Whether somebody asks for more."""
        self._held_back = 0
        self.too_many = 0
        """Reports of buckets for which there was no account or no place."""

    def put(self, policy: str, terms: Terms, tree: Level) -> None:
        """Puts a policy in force, or changes it."""
        known = self._policies.get(policy)
        if known is not None and known.terms == terms:
            if known.tree == tree:
                return
            known.tree = tree
            if known.ledger is not None:
                known.ledger.change(tree)
        else:
            self.drop(policy)
            self._policies[policy] = _Policy(terms, tree)
        self.presses = True

    def drop(self, policy: str) -> None:
        """A policy is gone; what is written of it stays until its period has ended."""
        if (known := self._policies.pop(policy, None)) is not None:
            self._retire(known)

    @property
    def held_back(self) -> int:
        """How often a point was given less than it wanted since that is kept for others."""
        ledgers = (known.ledger for known in self._policies.values())
        return self._held_back + sum(ledger.held_back for ledger in ledgers if ledger is not None)

    def __contains__(self, policy: str) -> bool:
        return policy in self._policies

    def __len__(self) -> int:
        return len(self._policies)

    def hear(self, point: Point, now_s: float) -> None:
        """Notes that a point lives."""
        for known in self._policies.values():
            if known.ledger is not None:
                known.ledger.hear(point, now_s)

    def report(self, point: Point, bucket: Bucket, said: Chunks, calls: float, now_s: float, *, again: bool) -> None:
        """Takes what a point says of a bucket; see `Ledger.report`."""
        ledger = self.find(bucket.policy)
        if ledger is None:
            self.presses = True
        elif ledger.is_known(point, said, bucket.path) or self._has_room(point, ledger, bucket.path):
            self.presses |= ledger.report(point, bucket.path, said, calls, now_s, again=again)
        else:
            self.too_many += 1

    def end(self, point: Point, bucket: Bucket, said: Chunks) -> None:
        """Takes a point's last word of a bucket; see `Ledger.end`."""
        if (ledger := self.find(bucket.policy)) is not None:
            ledger.end(point, bucket.path, said)

    def leave(self, point: Point) -> None:
        """A point has ended; see `Ledger.leave`."""
        for known in self._policies.values():
            if known.ledger is not None:
                known.ledger.leave(point)

    def find(self, policy: str) -> Ledger | None:
        """A policy's ledger of the present period."""
        known = self._policies.get(policy)
        return known.ledger if known is not None else None

    def period(self, policy: str) -> Period | None:
        """When the present period of a policy began and ends."""
        known = self._policies.get(policy)
        return self._books[known.name].period if known is not None and known.name is not None else None

    def before(self, policy: str) -> Book | None:
        """What is written of the last period before the present one."""
        known = self._policies.get(policy)
        if known is None or known.name is None:
            return None
        name = known.name
        earlier = [other for other in self._alike(name) if other.start_s < name.start_s]
        return self._books[max(earlier, key=lambda other: other.start_s)] if earlier else None

    def plan(self, now_s: float, wall_s: float) -> list[Write]:
        """Charges what points ask for; returns what has to be written, after which `written` says whom to tell.

        Whoever can't write it plans again, later.
        """
        self.presses = False
        turned = [self._turn(policy, known, wall_s) for policy, known in self._policies.items()]
        if any(turned) or now_s - self._pruned_s >= PRUNE_EVERY_S:
            self._pruned_s = now_s
            self._prune(wall_s)
        with_use = now_s - self._used_s >= USE_EVERY_S
        if with_use:
            self._used_s = now_s
        for known in self._policies.values():
            if known.ledger is not None and known.name is not None:
                period = self._books[known.name].period
                known.ledger.plan(now_s, (wall_s - period.start_s) / (period.end_s - period.start_s))
                self._note(known.name, known.ledger, with_use=with_use)
        for name, paths in self._unwritten.items():
            self._planned.setdefault(name, set()).update(paths)
        self._unwritten = {}
        writes = []
        for name, paths in self._planned.items():
            book = self._books[name]
            writes += [Write(name, path, book.accounts.get(path) if path else book) for path in sorted(paths)]
        # What has moved to another account is written there before it is deleted here.
        return sorted(writes, key=lambda write: write.value is None) + self._over

    def written(self) -> list[tuple[str, int, Grant]]:
        """What is to be said now that all that was planned is written: [(policy, turn, grant)].

        What has been noted since, of a policy that is gone for one, is planned next.
        """
        self._planned, self._over = {}, []
        return [
            (policy, known.ledger.turn, grant)
            for policy, known in self._policies.items()
            if known.ledger is not None
            for grant in known.ledger.grants()
        ]

    def _note(self, name: Name, ledger: Ledger, *, with_use: bool) -> None:
        """Notes what of a ledger has to be written."""
        self._books[name].accounts = ledger.accounts
        paths, ledger.dirty = ledger.dirty, set()
        if with_use:
            paths |= ledger.aged
            ledger.aged = set()
        if paths:
            self._unwritten.setdefault(name, set()).update(paths)

    def _retire(self, known: _Policy) -> None:
        """A ledger is not the present one any more."""
        if known.ledger is not None and known.name is not None:
            self._note(known.name, known.ledger, with_use=True)
        if known.ledger is not None:
            self._held_back += known.ledger.held_back
        known.ledger = known.name = None

    def _turn(self, policy: str, known: _Policy, wall_s: float) -> bool:
        """Sees to it that a policy's ledger is the present period's; whether it was not."""
        if known.name is not None:
            period = self._books[known.name].period
            if period.start_s <= wall_s < period.end_s:
                return False
        self._retire(known)
        period = period_of(known.terms.kind, known.terms.zone, wall_s)
        name = Name(policy, known.terms, period.start_s)
        before_s = max((self._books[other].before_s for other in self._alike(name) if other != name), default=0.0)
        if period.start_s < before_s:
            return False  # it was over for good before the clock was turned back
        book = self._books.get(name)
        if book is not None and not book.is_whole:
            return False
        if book is None:
            book = self._books[name] = Book(period, self._new_turn(), before_s)
            self._unwritten.setdefault(name, set()).add(())
        known.name, known.ledger = name, Ledger(known.tree, book.turn, book.accounts)
        return True

    def _prune(self, wall_s: float) -> None:
        """Lets those ledgers go whose period is over, but for the last two of each policy in force."""
        present = {known.name for known in self._policies.values() if known.name is not None}
        kept = {name for one in present for name in sorted(self._ended(one), key=lambda name: name.start_s)[-KEPT:]}
        for name, book in list(self._books.items()):
            if book.period.end_s > wall_s or name in present or name in kept:
                continue
            for after in present.intersection(self._alike(name)):
                self._books[after].before_s = max(self._books[after].before_s, name.start_s + 1)
                self._unwritten.setdefault(after, set()).add(())
            del self._books[name]
            self._unwritten.pop(name, None)
            self._planned.pop(name, None)
            # The ledger's own record goes last: without it the others would never be found.
            self._over += [Write(name, path, None) for path in (*sorted(book.accounts), ())]

    def _ended(self, name: Name) -> list[Name]:
        return [other for other in self._alike(name) if other.start_s < name.start_s]

    def _alike(self, name: Name) -> list[Name]:
        """The ledgers of the same policy and terms."""
        return [other for other in self._books if other.policy == name.policy and other.terms == name.terms]

    def _has_room(self, point: Point, ledger: Ledger, path: Path) -> bool:
        ledgers = [known.ledger for known in self._policies.values() if known.ledger is not None]
        if sum(one.of_node.get(point.node, 0) for one in ledgers) >= MAX_LEASES:
            return False
        return path in ledger.accounts or sum(len(one.accounts) for one in self._books.values()) < MAX_ACCOUNTS
