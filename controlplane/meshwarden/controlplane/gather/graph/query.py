"""What one asks the service graph: a bounded number of edges, those first that matter most.

The edges of a large mesh take a while to go through; others have their turn meanwhile.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import anyio.lowlevel

from meshwarden.controlplane.gather.graph.graph import Graph, Shown
from meshwarden.v1.admin_service_pb2 import GetGraphResponse, GraphEdge

MAX_EDGES: Final = 10_000
"""Of one answer, which has to pass through gRPC's 4 MiB with long names too."""
_MAX_BYTES: Final = 2 << 20
_AT_ONCE: Final = 500


@dataclass(frozen=True)
class Question:
    """Which edges.

    Attributes:
        window: what rates and quantiles are taken over.
        service: only edges from or to it, "<service>" or "<tenant>/<service>"; "" for all.
        limit: how many at most.
    """

    window: timedelta
    service: str = ""
    limit: int = MAX_EDGES


async def fill(answer: GetGraphResponse, graphs: Iterable[Graph], question: Question, shown: Shown) -> None:
    """Puts edges into an answer, each graph's by source and destination, and says how many it leaves out.

    Those stay that fail, then those that are refused, then those with the most calls.

    Args:
        answer: which has none yet.
        graphs: of each region.
        question: which edges.
        shown: tells of a tenant whether the caller may see it.
    """

    def edges() -> Iterator[GraphEdge]:
        for graph in graphs:
            yield from graph.edges(question.window, shown, question.service)

    # What takes long is done when it is asked for the first time.
    for number, _ in enumerate(edges(), 1):
        if number % _AT_ONCE == 0:
            await anyio.lowlevel.checkpoint()
    found = list(edges())
    kept = _first(found, question.limit)
    while sum(edge.ByteSize() for edge in kept) > _MAX_BYTES:
        kept = _first(kept, len(kept) * 3 // 4)
    answer.edges.extend(kept)
    answer.omitted = len(found) - len(kept)


def _first(edges: Sequence[GraphEdge], most: int) -> Sequence[GraphEdge]:
    """The edges that matter most, in their order."""
    if len(edges) <= most:
        return edges
    kept = heapq.nlargest(most, range(len(edges)), key=lambda number: _weight(edges[number]))
    return [edges[number] for number in sorted(kept)]


def _weight(edge: GraphEdge) -> tuple[bool, bool, float]:
    return edge.errors_per_s > 0, edge.denied_per_s + edge.limited_per_s > 0, edge.calls_per_s
