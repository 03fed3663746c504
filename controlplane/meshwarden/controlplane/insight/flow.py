"""What flows from one service to another, all regions' counts together; and the same with services folded. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from meshwarden.v1.admin_service_pb2 import GraphEdge

Pair = tuple[str, str]
# From the strongest to the weakest; what is not said says nothing.
_WEAKNESS: Final = {
    GraphEdge.MUTUAL_TLS_UNSPECIFIED: 0,
    GraphEdge.PROVEN: 1,
    GraphEdge.SAID: 2,
    GraphEdge.NONE: 3,
}


@dataclass(frozen=True, slots=True)
class Flow:
    """Calls from one service to another, per second, and how long they take.

    Attributes:
        rates: all calls, those that failed, were denied, were limited.
        durations_s: what 50, 95 and 99 % of them do not exceed.
        mutual_tls: of `GraphEdge.MutualTls`.
        regions: who has counted them, in order.
    """

    rates: tuple[float, float, float, float]
    durations_s: tuple[float, float, float]
    mutual_tls: GraphEdge.MutualTls.ValueType
    regions: tuple[str, ...]

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """How much it matters: what fails first, then what is refused, then what is used most."""
        calls, errors, denied, limited = self.rates
        return errors > 0, denied + limited > 0, calls


def flow_of(edge: GraphEdge) -> Flow:
    """Reads an edge, which the graph may change when it is asked again."""
    return Flow(
        (edge.calls_per_s, edge.errors_per_s, edge.denied_per_s, edge.limited_per_s),
        (edge.p50_s, edge.p95_s, edge.p99_s),
        edge.mutual_tls,
        (edge.region,),
    )


def together(flows: Iterable[Flow]) -> Flow:
    """Different calls as one: rates add up, durations are the slowest's, and trust is the weakest's."""
    found = list(flows)
    if len(found) == 1:
        return found[0]
    calls, errors, denied, limited = (sum(flow.rates[at] for flow in found) for at in range(4))
    half, most, nearly_all = (max(flow.durations_s[at] for flow in found) for at in range(3))
    weakest = max((flow.mutual_tls for flow in found), key=lambda one: _WEAKNESS.get(one, 0))
    return Flow((calls, errors, denied, limited), (half, most, nearly_all), weakest, _regions(found))


def _regions(found: Iterable[Flow]) -> tuple[str, ...]:
    return tuple(sorted({region for flow in found for region in flow.regions}))


class Sides:
    """The counts of one pair of services by region: of both sides of a call in one region, or of a side in each."""

    __slots__ = ("_both", "_called", "_callers")

    def __init__(self) -> None:
        self._both: list[Flow] = []
        self._callers: list[Flow] = []
        self._called: list[Flow] = []

    def add(self, edge: GraphEdge) -> None:
        """Takes one region's count."""
        if edge.source_reports and edge.destination_reports:
            side = self._both
        else:
            side = self._callers if edge.source_reports else self._called
        side.append(flow_of(edge))

    def flow(self) -> Flow:
        """All of it, each call once: what callers alone tell and what the called alone tell are the same calls."""
        halves = [together(side) for side in (self._callers, self._called) if side]
        if len(halves) == 2:
            more, less = sorted(halves, key=lambda flow: flow.rates[0], reverse=True)
            calls, errors, denied, limited = map(max, more.rates, less.rates)
            # Whoever is called has seen the certificate.
            proven = halves[1].mutual_tls
            halves = [
                replace(more, rates=(calls, errors, denied, limited), mutual_tls=proven, regions=_regions(halves))
            ]
        return together([*self._both, *halves])


def flows(edges: Iterable[GraphEdge]) -> dict[Pair, Flow]:
    """What edges of several regions say, {(source, destination): flow}."""
    sides: dict[Pair, Sides] = {}
    for edge in edges:
        pair = (edge.source, edge.destination)
        found = sides.get(pair)
        if found is None:
            found = sides[pair] = Sides()
        found.add(edge)
    return {pair: found.flow() for pair, found in sides.items()}


def folded(found: Mapping[Pair, Flow], place: Callable[[str], str]) -> dict[Pair, Flow]:
    """The flows between what services are folded into; what stays within one fold is no flow."""
    parts: dict[Pair, list[Flow]] = {}
    for (source, destination), flow in found.items():
        pair = place(source), place(destination)
        if pair[0] != pair[1] or pair == (source, destination):
            parts.setdefault(pair, []).append(flow)
    return {pair: together(of_pair) for pair, of_pair in parts.items()}
