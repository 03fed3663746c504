"""Who calls whom: the service graph, kept as counts of calls come in and never computed by a scan.

An edge leads from one identity to another. Both sides of a call may tell of it, each of what it saw itself: an edge
says who does, and its numbers are those of the side that saw more. A tenant has a bounded number of edges; what is
beyond them is one edge under `overflow`.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from meshwarden.controlplane.gather.call import UNKNOWN, Call
from meshwarden.controlplane.gather.ledger import Total
from meshwarden.controlplane.gather.metrics import lost, overflown
from meshwarden.controlplane.gather.outcome import CLIENT_ERROR, DENIED, LIMITED, SERVER_ERROR, outcome
from meshwarden.sdk.histogram import quantile
from meshwarden.v1.admin_service_pb2 import GraphEdge
from meshwarden.v1.report_pb2 import CallStat

HORIZON: Final = timedelta(minutes=15)
"""How far back rates and quantiles go."""
RETENTION: Final = timedelta(days=7)
"""How long an edge is kept that nobody uses."""
EDGES_PER_TENANT: Final = 2000
MAX_EDGES: Final = 100_000
_SLOT_S: Final = 15
_SLOTS: Final = int(HORIZON.total_seconds()) // _SLOT_S

Shown = Callable[[str], bool]
_Key = tuple[str, str]


@dataclass(slots=True)
class _Slot:
    """What came in within a quarter of a minute."""

    start_s: int
    outcomes: Counter[str] = field(default_factory=Counter)
    durations: Counter[int] = field(default_factory=Counter)


@dataclass(slots=True)
class _Side:
    """What one side of an edge has told."""

    total: Counter[str] = field(default_factory=Counter)
    slots: deque[_Slot] = field(default_factory=lambda: deque(maxlen=_SLOTS))

    def add(self, call: Call, at_s: int) -> None:
        slot = self._slot(at_s - at_s % _SLOT_S)
        slot.outcomes[call.outcome] += call.count
        slot.durations.update(call.durations)
        self.total[call.outcome] += call.count

    def _slot(self, start_s: int) -> _Slot:
        # What is told late may belong to one before the last.
        for slot in reversed(self.slots):
            if slot.start_s == start_s:
                return slot
            if slot.start_s < start_s:
                break
        self.slots.append(_Slot(start_s))
        return self.slots[-1]

    def since(self, start_s: int) -> tuple[Counter[str], Counter[int]]:
        """Outcomes and durations of the slots that begin at `start_s` or later."""
        outcomes: Counter[str] = Counter()
        durations: Counter[int] = Counter()
        for slot in self.slots:
            if slot.start_s >= start_s:
                outcomes.update(slot.outcomes)
                durations.update(slot.durations)
        return outcomes, durations


@dataclass(slots=True)
class _Edge:
    owner: str
    first_s: int
    last_s: int
    sides: dict[int, _Side] = field(default_factory=dict)

    def side(self, reporter: int) -> _Side:
        return self.sides.setdefault(reporter, _Side())


class Graph:
    """The edges of the mesh, as one region's control plane hears of them."""

    def __init__(
        self,
        clock: Callable[[], datetime],
        *,
        edges_per_tenant: int = EDGES_PER_TENANT,
        max_edges: int = MAX_EDGES,
    ) -> None:
        """Starts empty.

        Args:
            clock: the present, aware; for another region's edges the time of its last word.
            edges_per_tenant: how many a tenant has; the rest is one under `overflow`.
            max_edges: how many there are in all; the rest is one under `overflow`, whosever they are.
        """
        self._clock = clock
        self._edges_per_tenant, self._max_edges = edges_per_tenant, max_edges
        self._edges: dict[_Key, _Edge] = {}
        self._of_owner: Counter[str] = Counter()
        self._started_s = self._now_s()

    def add(self, calls: Iterable[Call]) -> None:
        """Takes calls as of now."""
        now_s = self._now_s()
        for call in calls:
            self._add(call, now_s)

    def add_late(self, calls: Iterable[Call]) -> None:
        """Takes calls as of the end of their minute, or of now where that is not over."""
        now_s = self._now_s()
        for call in calls:
            self._add(call, min(now_s, call.minute + 59))

    def _add(self, call: Call, at_s: int) -> None:
        edge = self._edge(call, at_s)
        edge.first_s, edge.last_s = min(edge.first_s, at_s), max(edge.last_s, at_s)
        edge.side(call.reporter).add(call, at_s)

    def recall(self, totals: Iterable[Total]) -> None:
        """Takes what was counted before this process began: it counts in all, but not in rates."""
        for total in totals:
            key = (total.source, total.destination)
            edge = self._edges.get(key)
            if edge is None:
                if len(self._edges) >= self._max_edges:
                    continue
                edge = self._edges[key] = _Edge(total.owner, total.first_s, total.last_s)
                self._of_owner[total.owner] += 1
            edge.first_s, edge.last_s = min(edge.first_s, total.first_s), max(edge.last_s, total.last_s)
            edge.side(total.reporter).total[outcome(total.status, total.decision)] += total.calls

    def edges(self, window: timedelta, shown: Shown) -> list[GraphEdge]:
        """Returns the edges that have an end in a tenant that is shown, by source and destination.

        Args:
            window: what rates and quantiles are taken over, HORIZON at most.
            shown: tells of a tenant whether the caller may see it.
        """
        now_s = self._now_s()
        self._forget(now_s - int(RETENTION.total_seconds()))
        start_s = now_s - now_s % _SLOT_S - int(min(window, HORIZON).total_seconds()) + _SLOT_S
        start_s = max(start_s, self._started_s - self._started_s % _SLOT_S)
        found = []
        for (source, destination), edge in sorted(self._edges.items()):
            if shown(source.partition("/")[0]) or shown(destination.partition("/")[0]):
                found.append(_told(source, destination, edge, start_s, max(1, now_s - start_s)))
        return found

    def _edge(self, call: Call, now_s: int) -> _Edge:
        key = (call.source, call.destination)
        if key not in self._edges and self._of_owner[call.owner] >= self._edges_per_tenant:
            call = overflown(call)
            key = (call.source, call.destination)
        edge = self._edges.get(key)
        if edge is None:
            if len(self._edges) >= self._max_edges:
                call = lost(call)
                key = (call.source, call.destination)
                if key in self._edges:
                    return self._edges[key]
            edge = self._edges[key] = _Edge(call.owner, now_s, now_s)
            self._of_owner[call.owner] += 1
        return edge

    def _forget(self, before_s: int) -> None:
        for key in [key for key, edge in self._edges.items() if edge.last_s < before_s]:
            self._of_owner[self._edges.pop(key).owner] -= 1

    def _now_s(self) -> int:
        return int(self._clock().timestamp())


def _told(source: str, destination: str, edge: _Edge, start_s: int, span_s: int) -> GraphEdge:
    recent = [side.since(start_s) for side in edge.sides.values()]
    outcomes = _merged([found for found, _ in recent])
    durations = max(recent, key=lambda found: found[0].total())[1]
    told = GraphEdge(
        source=source,
        destination=destination,
        calls_per_s=outcomes.total() / span_s,
        errors_per_s=outcomes[SERVER_ERROR] / span_s,
        denied_per_s=outcomes[DENIED] / span_s,
        limited_per_s=outcomes[LIMITED] / span_s,
        p50_s=quantile(durations, 0.50),
        p95_s=quantile(durations, 0.95),
        p99_s=quantile(durations, 0.99),
        source_reports=CallStat.SOURCE in edge.sides,
        destination_reports=CallStat.DESTINATION in edge.sides,
        mutual_tls=_mutual_tls(source, edge),
        outcomes=+_merged([side.total for side in edge.sides.values()]),
    )
    told.first_seen.FromSeconds(edge.first_s)
    told.last_seen.FromSeconds(edge.last_s)
    return told


def _merged(sides: Sequence[Counter[str]]) -> Counter[str]:
    """What the calls of an edge came to, each call once: as the side says that saw more.

    Whoever refused a call knows why; to the other side it was an error of the caller's.
    """
    most: Counter[str] = max(sides, key=lambda side: side.total())
    merged = most.copy()
    for refusal in (DENIED, LIMITED):
        known = max(side[refusal] for side in sides)
        moved = min(known - merged[refusal], merged[CLIENT_ERROR])
        merged[refusal] += moved
        merged[CLIENT_ERROR] -= moved
    return merged


def _mutual_tls(source: str, edge: _Edge) -> GraphEdge.MutualTls.ValueType:
    if CallStat.DESTINATION not in edge.sides:
        return GraphEdge.SAID
    return GraphEdge.NONE if source == f"{UNKNOWN}/{UNKNOWN}" else GraphEdge.PROVEN
