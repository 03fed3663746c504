"""Who calls whom: the service graph, kept as counts of calls come in and never computed by a scan.

An edge leads from one identity to another. Both sides of a call may tell of it, each of what it saw itself: an edge
says who does, and its numbers are those of the side that saw more. A tenant has a bounded number of edges; what is
beyond them is one edge under `overflow`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from datetime import datetime, timedelta
from functools import cache
from typing import Final, NamedTuple

from meshwarden.controlplane.gather.call import UNKNOWN, Call
from meshwarden.controlplane.gather.graph.edge import HORIZON, SLOT_S, Edge
from meshwarden.controlplane.gather.graph.ledger import Total
from meshwarden.controlplane.gather.metrics.metrics import lost, overflown
from meshwarden.v1.admin_service_pb2 import GraphEdge
from meshwarden.v1.report_pb2 import CallStat

RETENTION: Final = timedelta(days=7)
"""How long an edge is kept that nobody uses."""
EDGES_PER_TENANT: Final = 2000
MAX_EDGES: Final = 100_000
_SWEEP_S: Final = 60

Shown = Callable[[str], bool]
_Key = tuple[str, str]


class Counted(NamedTuple):
    """Calls from one service to another, as one side of them tells.

    Attributes:
        source: the caller, "<tenant>/<service>".
        destination: the service called.
        side: `CallStat.SOURCE` or `CallStat.DESTINATION`.
        span_s: over how many seconds.
        outcomes: {what they came to: how many}.
        durations: {bucket: how many}, of `meshwarden.sdk.red.histogram`.
    """

    source: str
    destination: str
    side: int
    span_s: int
    outcomes: Mapping[str, int]
    durations: Mapping[int, int]


class Graph:
    """The edges of the mesh, as one region's control plane hears of them."""

    def __init__(
        self,
        clock: Callable[[], datetime],
        *,
        region: str = UNKNOWN,
        edges_per_tenant: int = EDGES_PER_TENANT,
        max_edges: int = MAX_EDGES,
    ) -> None:
        """Starts empty.

        Args:
            clock: the present, aware; for another region's edges the time of its last word.
            region: whose control plane counts.
            edges_per_tenant: how many a tenant has; the rest is one under `overflow`.
            max_edges: how many there are in all; the rest is one under `overflow`, whosever they are.
        """
        self._clock, self._region = clock, region
        self._edges_per_tenant, self._max_edges = edges_per_tenant, max_edges
        self._edges: dict[_Key, Edge] = {}
        self._made = 0
        # By source and destination; None where it has to be made anew.
        self._ordered: list[Edge] | None = None
        self._of_owner: Counter[str] = Counter()
        self._started_s = self._swept_s = self._now_s()

    def add(self, calls: Iterable[Call]) -> list[Call]:
        """Takes calls as of now; returns those that nobody was known to make before."""
        now_s, first = self._now_s(), []
        for call in calls:
            before = self._made
            self._edge(call, now_s).add(call, now_s)
            if self._made > before:
                first.append(call)
        return first

    def add_late(self, calls: Iterable[Call]) -> None:
        """Takes calls as of the end of their minute, or of now where that is not over."""
        now_s = self._now_s()
        for call in calls:
            at_s = max(0, min(now_s, call.minute + 59))
            self._edge(call, at_s).add(call, at_s)

    def recall(self, totals: Iterable[Total]) -> None:
        """Takes what was counted before this process began: it counts in all, but not in rates."""
        for total in totals:
            edge = self._edges.get((total.source, total.destination))
            if edge is None:
                if len(self._edges) >= self._max_edges:
                    continue
                edge = self._new((total.source, total.destination), total.owner, total.last_s)
            edge.recall(total)

    def edges(self, window: timedelta, shown: Shown, service: str = "") -> Iterator[GraphEdge]:
        """Yields the edges that have an end in a tenant that is shown, by source and destination.

        A message is the graph's own: whoever keeps it copies it before the graph is asked again.

        Args:
            window: what rates and quantiles are taken over, HORIZON at most.
            shown: tells of a tenant whether the caller may see it.
            service: only edges from or to it, "<service>" or "<tenant>/<service>"; "" for all.
        """
        now_s = self._now_s()
        self._forget(now_s - int(RETENTION.total_seconds()))
        if self._ordered is None:
            self._ordered = [edge for _, edge in sorted(self._edges.items())]
        start_s, span_s = self._window(window, now_s)
        shows = cache(lambda end: shown(end.partition("/")[0]))
        means = cache(lambda end: service in ("", end, end.partition("/")[2]))
        for edge in self._ordered:
            source, destination = edge.source, edge.destination
            if (shows(source) or shows(destination)) and (means(source) or means(destination)):
                yield edge.tell(start_s, span_s)

    def counts(self, window: timedelta, destinations: Set[str]) -> Iterator[Counted]:
        """Yields what each side has seen of the calls to some services.

        Args:
            window: the time that is counted, HORIZON at most.
            destinations: the services, each "<tenant>/<service>".
        """
        start_s, span_s = self._window(window, self._now_s())
        for edge in list(self._edges.values()):
            if edge.destination in destinations:
                for side in (CallStat.SOURCE, CallStat.DESTINATION):
                    outcomes, durations = edge.counts(start_s, side)
                    if outcomes:
                        yield Counted(edge.source, edge.destination, side, span_s, outcomes, durations)

    def _window(self, window: timedelta, now_s: int) -> tuple[int, int]:
        """When a window begins, with a slot, and how many seconds of it there are."""
        start_s = now_s - now_s % SLOT_S - int(min(window, HORIZON).total_seconds()) + SLOT_S
        start_s = max(start_s, self._started_s - self._started_s % SLOT_S)
        return start_s, max(1, now_s - start_s)

    def _edge(self, call: Call, now_s: int) -> Edge:
        edge = self._edges.get((call.source, call.destination))
        if edge is not None:
            return edge
        if self._of_owner[call.owner] >= self._edges_per_tenant or len(self._edges) >= self._max_edges:
            self._make_room()
        if self._of_owner[call.owner] >= self._edges_per_tenant:
            call = overflown(call)
        if len(self._edges) >= self._max_edges and (call.source, call.destination) not in self._edges:
            call = lost(call)
        key = (call.source, call.destination)
        return self._edges.get(key) or self._new(key, call.owner, now_s)

    def _new(self, key: _Key, owner: str, at_s: int) -> Edge:
        edge = self._edges[key] = Edge(*key, owner, at_s, self._region)
        self._of_owner[owner] += 1
        self._made += 1
        self._ordered = None
        return edge

    def _make_room(self) -> None:
        """Forgets what nobody uses, though nobody asks; whoever makes up edges does not have it done for each."""
        now_s = self._now_s()
        if now_s - self._swept_s >= _SWEEP_S:
            self._swept_s = now_s
            self._forget(now_s - int(RETENTION.total_seconds()))

    def _forget(self, before_s: int) -> None:
        for key in [key for key, edge in self._edges.items() if edge.last_s < before_s]:
            self._of_owner[self._edges.pop(key).owner] -= 1
            self._ordered = None

    def _now_s(self) -> int:
        return int(self._clock().timestamp())
