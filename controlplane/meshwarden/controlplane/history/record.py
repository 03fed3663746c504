"""One change of resources, and how the store keeps it.

    /history/<2⁶³-1 less the revision of the change before, in hexadecimal>    RevisionRecord

A change's own revision is known only once it is committed: the store has it beside the record. Each change moves one
guard (`api.change.GUARD`), whose revision before the change no other has seen: so keys are unique, and the newest comes
first.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from google.protobuf.message import DecodeError

from meshwarden.controlplane.resources.model import normalise, title
from meshwarden.controlplane.store.port import Record
from meshwarden.v1.resource_service_pb2 import Change, ResourceRef
from meshwarden.v1.resources_pb2 import Resource
from meshwarden.v1.revision_service_pb2 import Revision, RevisionChange, RevisionRecord

PREFIX: Final = "/history/"
LAST: Final = 2**63 - 1
MAX_STATES_BYTES: Final = 16 << 20
"""More than two states of a whole commit ever take."""


@dataclass(frozen=True)
class Changed:
    """The change of one resource: `before` is None if there was none, `after` if there is none any more."""

    ref: ResourceRef
    before: Resource | None
    after: Resource | None

    @property
    def action(self) -> "Change.Action.ValueType":
        """What became of it."""
        if self.before is None:
            return Change.CREATED
        return Change.DELETED if self.after is None else Change.UPDATED

    def __str__(self) -> str:
        return f"{Change.Action.Name(self.action)} {title(self.ref)}"


@dataclass(frozen=True)
class Made:
    """Who has made a change, when and why."""

    by: str
    time: datetime
    reason: str = ""
    trace_id: str = ""


def key_after(revision: int) -> str:
    """The key of the change that follows the one of a revision; no older one has a smaller key."""
    return f"{PREFIX}{LAST - revision:016x}"


def revision_before(key: str) -> int:
    """The revision of the change before the one of a key.

    Raises:
        ValueError: it is the key of none.
    """
    return LAST - int(key.removeprefix(PREFIX), 16)


def encode(changes: Sequence[Changed], made: Made) -> bytes:
    """Returns the bytes to store."""
    summary = Revision(by=made.by, reason=made.reason, trace_id=made.trace_id)
    summary.time.FromDatetime(made.time)
    states = Revision()
    for changed in changes:
        summary.changes.add(ref=changed.ref, action=changed.action)
        # Before and after lie side by side: what they have in common takes next to nothing.
        before, after = (None if one is None else normalise(one) for one in (changed.before, changed.after))
        states.changes.add(before=before, after=after)
    return RevisionRecord(summary=summary, states=zlib.compress(states.SerializeToString())).SerializeToString()


def summary_of(record: Record) -> Revision:
    """Reads a change without its resources.

    Raises:
        ValueError: it is none.
    """
    return _parse(record).summary


def whole(record: Record) -> Revision:
    """Reads a change with its resources.

    Raises:
        ValueError: it is none.
    """
    stored = _parse(record)
    found = stored.summary
    try:
        reader = zlib.decompressobj()
        body = reader.decompress(stored.states, MAX_STATES_BYTES)
        states = Revision.FromString(body)
    except (zlib.error, DecodeError) as error:
        raise ValueError(f"{record.key}: no states: {error}") from None
    if not reader.eof or len(states.changes) != len(found.changes):
        raise ValueError(f"{record.key}: not the states of {len(found.changes)} resources")
    for change, state in zip(found.changes, states.changes, strict=True):
        if state.HasField("before"):
            change.before.CopyFrom(state.before)
        if state.HasField("after"):
            change.after.CopyFrom(state.after)
    return found


def kept(revision: Revision, shown: Callable[[RevisionChange], bool]) -> Revision | None:
    """The part of a change that is shown; None if nothing is."""
    changes: Iterable[RevisionChange] = [change for change in revision.changes if shown(change)]
    if not changes:
        return None
    part = Revision()
    part.CopyFrom(revision)
    del part.changes[:]
    part.changes.extend(changes)
    return part


def _parse(record: Record) -> RevisionRecord:
    try:
        found = RevisionRecord.FromString(record.value)
    except DecodeError as error:
        raise ValueError(f"{record.key}: no change: {error}") from None
    found.summary.revision = record.revision
    return found
