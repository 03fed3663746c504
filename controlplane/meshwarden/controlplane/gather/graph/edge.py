"""An edge of the service graph: what has come in, and what there is to tell of it.

Calls are kept by slots of time, and so is the sum of the slots that are over: as time goes on it takes in some and
gives up others, so that no question adds up a whole window again. What an edge tells is worked out anew if it changed.
"""

import math
import struct
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, TypeVar

from meshwarden.controlplane.gather.call import UNKNOWN, Call
from meshwarden.controlplane.gather.graph.ledger import Total
from meshwarden.controlplane.gather.outcome import CLIENT_ERROR, DENIED, LIMITED, OUTCOMES, SERVER_ERROR, outcome
from meshwarden.sdk.red.histogram import quantiles
from meshwarden.v1.admin_service_pb2 import GraphEdge
from meshwarden.v1.report_pb2 import CallStat

HORIZON: Final = timedelta(minutes=15)
"""How far back rates and quantiles go."""
SLOT_S: Final = 15
_SLOTS: Final = int(HORIZON.total_seconds()) // SLOT_S
# When a slot begins, then its calls by what they came to; then counts of buckets, and which these are.
_HEAD: Final = struct.Struct(f"<Q{len(OUTCOMES)}Q")
_BUCKET_BYTES: Final = struct.calcsize("<QH")
_MOST: Final = 2**64 - 1
_SHARES: Final = (0.50, 0.95, 0.99)

_Key = TypeVar("_Key", str, int)


@dataclass(slots=True)
class _Counts:
    """Calls by what they came to, and by how long they took."""

    outcomes: dict[str, int] = field(default_factory=dict)
    durations: dict[int, int] = field(default_factory=dict)

    def add(self, other: "_Counts") -> None:
        _add(self.outcomes, other.outcomes)
        _add(self.durations, other.durations)

    def take(self, other: "_Counts") -> None:
        _take(self.outcomes, other.outcomes)
        _take(self.durations, other.durations)


@dataclass(slots=True)
class _Slot(_Counts):
    """What came in within a quarter of a minute."""

    start_s: int = 0

    def take_in(self, result: str, call: Call) -> None:
        self.outcomes[result] = self.outcomes.get(result, 0) + call.count
        _add(self.durations, call.durations)

    def packed(self) -> bytes:
        """The slot in few bytes: there are sixty of each side of each edge."""
        outcomes = (min(self.outcomes.get(result, 0), _MOST) for result in OUTCOMES)
        counts = (min(count, _MOST) for count in self.durations.values())
        layout = f"{len(self.durations)}Q{len(self.durations)}H"
        return _HEAD.pack(self.start_s, *outcomes) + struct.pack(f"<{layout}", *counts, *self.durations)

    @classmethod
    def unpacked(cls, content: bytes) -> "_Slot":
        start_s, *outcomes = _HEAD.unpack_from(content)
        size = (len(content) - _HEAD.size) // _BUCKET_BYTES
        numbers = struct.unpack_from(f"<{size}Q{size}H", content, _HEAD.size)
        told = {result: count for result, count in zip(OUTCOMES, outcomes, strict=True) if count}
        return cls(told, dict(zip(numbers[size:], numbers[:size], strict=True)), start_s)


def _start(packed: bytes) -> int:
    return int.from_bytes(packed[:8], "little")


class _Side:
    """What one side of an edge has told."""

    __slots__ = ("_first_s", "_is_stale", "_open", "_over", "_since_s", "_sum", "_until_s", "total")

    def __init__(self) -> None:
        self.total: dict[str, int] = {}
        # The newest slot; and those before, packed, by when they begin, none twice.
        self._open: _Slot | None = None
        self._over: list[bytes] = []
        # Of the slots that are over and begin from `_since_s` on and before `_until_s`.
        self._sum, self._since_s, self._until_s = _Counts(), 0, 0
        self._first_s = math.inf
        self._is_stale = False

    def add(self, result: str, call: Call, at_s: int) -> None:
        start_s = at_s - at_s % SLOT_S
        if self._open is None or start_s > self._open.start_s:
            if self._open is not None:
                self._keep(len(self._over), self._open)
            self._open = _Slot(start_s=start_s)
        if start_s == self._open.start_s:
            self._open.take_in(result, call)
        else:
            self._add_late(result, call, start_s)
        self.total[result] = self.total.get(result, 0) + call.count

    def _add_late(self, result: str, call: Call, start_s: int) -> None:
        self._is_stale = True  # it changes what was summed
        at = bisect_left(self._over, start_s, key=_start)
        is_known = at < len(self._over) and _start(self._over[at]) == start_s
        slot = _Slot.unpacked(self._over.pop(at)) if is_known else _Slot(start_s=start_s)
        slot.take_in(result, call)
        self._keep(at, slot)

    def _keep(self, at: int, slot: _Slot) -> None:
        self._over.insert(at, slot.packed())
        if len(self._over) >= _SLOTS:
            self._is_stale = _start(self._over.pop(0)) >= self._since_s or self._is_stale

    def recent(self, start_s: int) -> Sequence[_Counts]:
        """What came in in the slots that begin at `start_s` or later, in parts that add up to it."""
        if self._is_stale or start_s < self._since_s:
            self._sum, self._since_s, self._until_s, self._is_stale = _Counts(), start_s, start_s, False
            self._first_s = math.inf
        if self._open is None:
            return ()
        if (start_s, self._open.start_s) != (self._since_s, self._until_s):
            self._move(start_s, self._open.start_s)
        if self._open.start_s < start_s:
            return ()
        return (self._sum, self._open) if self._sum.outcomes else (self._open,)

    def first_s(self) -> float:
        """When the first of the slots begins that were asked for last; infinity where there is none."""
        if self._first_s < math.inf:
            return self._first_s
        return self._open.start_s if self._open is not None and self._open.start_s >= self._since_s else math.inf

    def _move(self, since_s: int, until_s: int) -> None:
        """Makes the sum that of other slots, later ones."""
        self._first_s = math.inf
        for packed in self._over:
            begins_s = _start(packed)
            if since_s <= begins_s < self._first_s:
                self._first_s = begins_s
            if self._since_s <= begins_s < min(since_s, self._until_s):
                self._sum.take(_Slot.unpacked(packed))
            elif max(since_s, self._until_s) <= begins_s < until_s:
                self._sum.add(_Slot.unpacked(packed))
        self._since_s, self._until_s = since_s, until_s
        # In order, so that what is added to a copy of it is sorted at once.
        self._sum.durations = dict(sorted(self._sum.durations.items()))


class Edge:
    """Calls from one identity to another."""

    __slots__ = (
        "_is_changed",
        "_recent",
        "_sides",
        "_told",
        "_valid_s",
        "destination",
        "first_s",
        "last_s",
        "owner",
        "source",
    )

    def __init__(self, source: str, destination: str, owner: str, at_s: int, region: str) -> None:
        """Begins without calls.

        Args:
            source: the caller, `<tenant>/<service>`.
            destination: the service called, likewise.
            owner: the tenant whose share of edges it uses.
            at_s: when it was first seen.
            region: whose control plane counts it.
        """
        self.source, self.destination, self.owner = source, destination, owner
        self.first_s = self.last_s = at_s
        self._sides: dict[int, _Side] = {}
        self._told = GraphEdge(source=source, destination=destination, region=region)
        self._is_changed = True
        # For windows that begin within these seconds, both included, what is told stays as it is.
        self._valid_s: tuple[float, float] = (0, 0)
        self._recent: tuple[int, int, int, int] = (0, 0, 0, 0)

    def add(self, call: Call, at_s: int) -> None:
        """Takes calls as of `at_s`."""
        self._seen(at_s, at_s)
        self._side(call.reporter).add(call.outcome, call, at_s)

    def recall(self, total: Total) -> None:
        """Takes what was counted before this process began."""
        self._seen(total.first_s, total.last_s)
        known, result = self._side(total.reporter).total, outcome(total.status, total.decision)
        known[result] = known.get(result, 0) + total.calls

    def _seen(self, first_s: int, last_s: int) -> None:
        self.first_s, self.last_s = min(self.first_s, first_s), max(self.last_s, last_s)
        self._is_changed = True

    def _side(self, reporter: int) -> _Side:
        side = self._sides.get(reporter)
        if side is None:
            side = _Side()
            # In an order of their own: of two that saw as many, the first is told, in each region the same.
            self._sides = dict(sorted([*self._sides.items(), (reporter, side)]))
            self._told.source_reports = CallStat.SOURCE in self._sides
            self._told.destination_reports = CallStat.DESTINATION in self._sides
            self._told.mutual_tls = self._mutual_tls()
        return side

    def tell(self, start_s: int, span_s: int) -> GraphEdge:
        """Says what there is to say. The message is the edge's own, and another question changes it.

        Args:
            start_s: when the window of rates and quantiles begins, with a slot.
            span_s: how long it is.
        """
        if self._is_changed or not self._valid_s[0] <= start_s <= self._valid_s[1]:
            self._work_out(start_s)
        told = self._told
        calls, errors, denied, limited = self._recent
        if calls:
            told.calls_per_s = calls / span_s
        if errors:
            told.errors_per_s = errors / span_s
        if denied:
            told.denied_per_s = denied / span_s
        if limited:
            told.limited_per_s = limited / span_s
        return told

    def counts(self, start_s: int, reporter: int) -> tuple[Mapping[str, int], Mapping[int, int]]:
        """What a side has seen since a window began: {what calls came to: how many}, {bucket of duration: how many}."""
        side = self._sides.get(reporter)
        if side is None:
            return {}, {}
        parts = side.recent(start_s)
        return _summed([part.outcomes for part in parts]), _summed([part.durations for part in parts])

    def _work_out(self, start_s: int) -> None:
        sides = list(self._sides.values())
        parts = [side.recent(start_s) for side in sides]
        outcomes = [_summed([part.outcomes for part in of_side]) for of_side in parts]
        known = _merged(outcomes)
        # Of the side that saw more.
        most = max(range(len(parts)), key=lambda number: _calls(outcomes[number])) if len(parts) > 1 else 0
        durations = _summed([part.durations for part in parts[most]])
        told = self._told
        self._recent = (_calls(known), known.get(SERVER_ERROR, 0), known.get(DENIED, 0), known.get(LIMITED, 0))
        told.calls_per_s = told.errors_per_s = told.denied_per_s = told.limited_per_s = 0.0
        told.p50_s, told.p95_s, told.p99_s = quantiles(durations, _SHARES)
        said = told.outcomes
        said.clear()  # once the other side has seen more, it may have seen nothing of some
        for result, count in _merged([side.total for side in sides]).items():
            if count:
                said[result] = count
        told.first_seen.seconds, told.last_seen.seconds = self.first_s, self.last_s
        self._is_changed = False
        self._valid_s = (start_s, min([side.first_s() for side in sides]))

    def _mutual_tls(self) -> GraphEdge.MutualTls.ValueType:
        if CallStat.DESTINATION not in self._sides:
            return GraphEdge.SAID
        return GraphEdge.NONE if self.source == f"{UNKNOWN}/{UNKNOWN}" else GraphEdge.PROVEN


def _calls(outcomes: Mapping[str, int]) -> int:
    return sum(outcomes.values())


def _summed(parts: Sequence[Mapping[_Key, int]]) -> Mapping[_Key, int]:
    if len(parts) == 1:
        return parts[0]
    found = dict(parts[0]) if parts else {}
    for part in parts[1:]:
        _add(found, part)
    return found


def _merged(sides: Sequence[Mapping[str, int]]) -> Mapping[str, int]:
    """What the calls of an edge came to, each call once: as the side says that saw more.

    Whoever refused a call knows why; to the other side it was an error of the caller's.
    """
    if len(sides) == 1:
        return sides[0]
    most = max(sides, key=_calls)
    merged = dict(most)
    for refusal in (DENIED, LIMITED):
        known = max(side.get(refusal, 0) for side in sides)
        moved = min(known - merged.get(refusal, 0), merged.get(CLIENT_ERROR, 0))
        if moved:
            merged[refusal] = merged.get(refusal, 0) + moved
            merged[CLIENT_ERROR] -= moved
    return merged


def _add(into: dict[_Key, int], counts: Mapping[_Key, int]) -> None:
    for key, count in counts.items():
        into[key] = into.get(key, 0) + count


def _take(out_of: dict[_Key, int], counts: Mapping[_Key, int]) -> None:
    for key, count in counts.items():
        left = out_of[key] - count
        if left:
            out_of[key] = left
        else:
            del out_of[key]
