"""The service graph as a picture: SVG by itself, or DOT for Graphviz.

Services stand in columns, each to the right of those that call it; what goes back against that order is drawn as an arc
below. Names come from tenants, so all of them are escaped. What is left out of a large mesh is said below it.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from meshwarden.controlplane.cli import render
from meshwarden.v1.admin_service_pb2 import GetGraphResponse, GraphEdge

_WIDTH: Final = 170
_HEIGHT: Final = 46
_GAP_X: Final = 320
_GAP_Y: Final = 34
_MARGIN: Final = 24
_LINE: Final = 15
# How long an edge goes straight before it ends: its label stands on that.
_STRAIGHT: Final = 200
# Edges that end at one box with a line for each; more stand closer.
_MAX_LINES: Final = 12
_FOOT: Final = 30
# Services that are drawn, but for those at the ends of edges, which all are.
_MAX_SERVICES: Final = 100
# With more edges than that only those that are not well have a label; the others have a tooltip.
_LABELLED: Final = 40
# How often columns are put in order by their neighbours.
_SWEEPS: Final = 6
# Apart for those who do not see red and green, too (Okabe and Ito, "Color Universal Design").
_STYLE: Final = """
svg{font:12px system-ui,sans-serif}
.node rect{fill:#fff;stroke:#333;stroke-width:1.2}
.node.down rect{stroke:#d55e00;stroke-dasharray:5 3}
text{fill:#222}.tenant{opacity:.7}
.edge path{fill:none;stroke:#0072b2}.edge.idle path{stroke:#999;stroke-dasharray:2 4}
.edge.failing path{stroke:#d55e00}.edge.refused path{stroke:#e69f00;stroke-dasharray:7 3}
.label{font-size:10.5px;paint-order:stroke;stroke:#fff;stroke-width:3px}
@media(prefers-color-scheme:dark){.node rect{fill:#222;stroke:#bbb}text{fill:#eee}.label{stroke:#111}}
"""
_TIP: Final = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
    'markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0 8,4 0,8z" fill="context-stroke"/></marker></defs>'
)


class Place(NamedTuple):
    """Where a service stands: the top left corner of its box."""

    x: float
    y: float


def dot(graph: GetGraphResponse) -> str:
    """Returns the graph in Graphviz' language, a cluster for each tenant."""
    lines = ["digraph mesh {", "  rankdir=LR; node [shape=box, style=rounded];"]
    services, rest = _services(graph)
    if rest:
        lines.append(f"  label={_quoted(rest)};")
    by_tenant: dict[str, list[str]] = {}
    for service in services:
        by_tenant.setdefault(service.partition("/")[0], []).append(service)
    for number, (tenant, services) in enumerate(sorted(by_tenant.items())):
        lines.append(f"  subgraph cluster_{number} {{ label={_quoted(tenant)};")
        lines += [f"    {_quoted(service)} [label={_quoted(service.partition('/')[2])}];" for service in services]
        lines.append("  }")
    lines += [
        f"  {_quoted(edge.source)} -> {_quoted(edge.destination)} [label={_quoted(label)}];"
        for edge, label in _labelled(graph)
    ]
    return "\n".join([*lines, "}"])


def svg(graph: GetGraphResponse) -> str:
    """Returns the graph as an SVG document."""
    services, rest = _services(graph)
    tall = _tall(graph)
    places = arrange(services, [(edge.source, edge.destination) for edge in graph.edges], tall)
    width = max((place.x for place in places.values()), default=0) + _WIDTH + _MARGIN
    backward = any(places[edge.source].x >= places[edge.destination].x for edge in graph.edges)
    height = max((place.y for place in places.values()), default=0) + tall + _MARGIN + (60 if backward else 0)
    foot = [f'<text class="rest" x="{_MARGIN}" y="{height + _FOOT / 2:g}">{escape(rest)}</text>'] if rest else []
    height += _FOOT * len(foot)
    down = _down(graph)
    is_labelled = len(graph.edges) <= _LABELLED
    ends = _ends(graph, places, tall)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
            f'aria-label="Who calls whom in region {escape(graph.region, {chr(34): "&quot;"})}">',
            f"<style>{_STYLE}</style>",
            _TIP,
            *(
                _drawn_edge(edge, _way(edge, places, tall, end, is_labelled), label, is_labelled)
                for (edge, label), end in zip(_labelled(graph), ends, strict=True)
            ),
            *(_drawn_node(service, place, tall, service in down) for service, place in places.items()),
            *foot,
            "</svg>",
        ]
    )


def arrange(services: Sequence[str], edges: Iterable[tuple[str, str]], tall: float = _HEIGHT) -> dict[str, Place]:
    """Returns where each service stands: callers left of whom they call, near those that they are joined to.

    Those that nothing joins to others stand below. `tall` is how high a box is.
    """
    callers: dict[str, list[str]] = {service: [] for service in services}
    called: dict[str, list[str]] = {service: [] for service in services}
    for source, destination in edges:
        if source != destination and source in callers and destination in callers:
            callers[destination].append(source)
            called[source].append(destination)
    joined = [service for service in services if callers[service] or called[service]]
    columns = _columns(joined, callers)
    for service in joined:
        if not callers[service]:  # as near as can be
            columns[service] = max(0, min(columns[other] for other in called[service]) - 1)
    by_column: dict[int, list[str]] = {}
    for service in joined:
        by_column.setdefault(columns[service], []).append(service)
    rows = _rows([by_column[column] for column in sorted(by_column)], callers, called)
    tallest = max(map(len, by_column.values()), default=0)
    places = {service: _place(columns[service], rows[service] + (tallest - 1) / 2, tall) for service in joined}
    across = max(by_column, default=7) + 1
    for number, service in enumerate(service for service in services if service not in places):
        places[service] = _place(number % across, tallest + number // across, tall)
    return places


def _place(column: float, row: float, tall: float) -> Place:
    return Place(_MARGIN + column * (_WIDTH + _GAP_X), _MARGIN + row * (tall + _GAP_Y))


def _tall(graph: GetGraphResponse) -> float:
    """How high boxes are: a line for each edge that ends at one."""
    most = max(Counter(edge.destination for edge in graph.edges).values(), default=0)
    return max(_HEIGHT, min(most, _MAX_LINES) * _LINE + 8)


def _ends(graph: GetGraphResponse, places: Mapping[str, Place], tall: float) -> list[float]:
    """How far below the top of its destination each edge ends: in the order of their sources, so that few cross."""
    into: dict[str, list[int]] = {}
    for number, edge in enumerate(graph.edges):
        into.setdefault(edge.destination, []).append(number)
    found = [0.0] * len(graph.edges)
    for numbers in into.values():
        numbers.sort(key=lambda number: (places[graph.edges[number].source].y, number))
        step = min(float(_LINE), (tall - 8) / len(numbers))
        for line, number in enumerate(numbers):
            found[number] = tall / 2 + (line - (len(numbers) - 1) / 2) * step
    return found


def _rows(
    columns: Sequence[list[str]], callers: Mapping[str, Sequence[str]], called: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Which row each service stands in, from the middle on: near those that it is joined to, so that few edges cross.

    Source: Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system structures" (1981).
    """
    rows: dict[str, float] = {}
    for column in columns:
        rows.update(_centred(column))
    for sweep in range(_SWEEPS):
        neighbours = called if sweep % 2 else callers
        for column in reversed(columns) if sweep % 2 else columns:
            column.sort(key=lambda service: _mean([rows[other] for other in neighbours[service]] or [rows[service]]))
            rows.update(_centred(column))
    return rows


def _centred(column: Sequence[str]) -> dict[str, float]:
    return {service: number - (len(column) - 1) / 2 for number, service in enumerate(column)}


def _columns(services: Sequence[str], callers: dict[str, list[str]]) -> dict[str, int]:
    """One more than that of a service's furthest caller."""
    columns: dict[str, int] = {}
    while left := [service for service in services if service not in columns]:
        # Where all wait for each other the circle is cut at its first.
        ready = [service for service in left if all(caller in columns for caller in callers[service])] or left[:1]
        for service in ready:
            columns[service] = (
                max((columns[caller] for caller in callers[service] if caller in columns), default=-1) + 1
            )
    return columns


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _services(graph: GetGraphResponse) -> tuple[list[str], str]:
    """The services that are drawn, and what is said of what is not."""
    ends = {end for edge in graph.edges for end in (edge.source, edge.destination)}
    others = {node.service for node in graph.nodes} - ends
    room = max(0, _MAX_SERVICES - len(ends))
    # Of too many those alone without a healthy endpoint: they are why one looks.
    drawn = others if not graph.omitted and len(others) <= room else others & _down(graph)
    drawn = set(sorted(drawn)[:room])
    left = len(others) - len(drawn)
    said = [
        f"{graph.omitted:,} edges that are well and used less" if graph.omitted else "",
        f"{left:,} services that no edge here leads to" if left else "",
    ]
    rest = " and ".join(filter(None, said))
    return sorted(ends.union(drawn)), f"not drawn: {rest}" if rest else ""


def _down(graph: GetGraphResponse) -> frozenset[str]:
    return frozenset(node.service for node in graph.nodes if node.endpoints and not node.healthy_endpoints)


def _drawn_node(service: str, place: Place, tall: float, down: bool) -> str:
    tenant, _, name = service.partition("/")
    x, y = place.x + 12, place.y + (tall - _HEIGHT) / 2
    return (
        f'<g class="node{" down" if down else ""}"><rect x="{place.x:g}" y="{place.y:g}" width="{_WIDTH}" '
        f'height="{tall:g}" rx="8"/><text x="{x:g}" y="{y + 20:g}">{escape(_shortened(name))}</text>'
        f'<text class="tenant" x="{x:g}" y="{y + 36:g}">{escape(_shortened(tenant))}</text></g>'
    )


def _labelled(graph: GetGraphResponse) -> Iterator[tuple[GraphEdge, str]]:
    """Each edge with its label."""
    for edge in graph.edges:
        yield edge, f"{edge.region}: {_label(edge)}" if len(graph.regions) > 1 else _label(edge)


class _Way(NamedTuple):
    """The line of an edge, and where its label is: the point, and which end of the text is there."""

    path: str
    x: float
    y: float
    anchor: str


def _way(edge: GraphEdge, places: Mapping[str, Place], tall: float, end: float, is_labelled: bool) -> _Way:
    source, destination = places[edge.source], places[edge.destination]
    x1, y1, x2, y2 = source.x + _WIDTH, source.y + tall / 2, destination.x, destination.y + end
    if x2 > x1:
        straight = x2 - (_STRAIGHT if is_labelled else _LINE)
        bend = (straight - x1) / 2
        curve = f"M{x1:g},{y1:g} C{x1 + bend:g},{y1:g} {straight - bend:g},{y2:g} {straight:g},{y2:g}"
        return _Way(f"{curve} L{x2:g},{y2:g}", x2 - _LINE, y2 - 3, "end")
    x1, y1, x2, y2 = source.x + _WIDTH / 2, source.y + tall, destination.x + _WIDTH / 2, destination.y + tall
    low = max(y1, y2) + 40
    path = f"M{x1:g},{y1:g} C{x1:g},{low:g} {x2 + 30:g},{low:g} {x2:g},{y2:g}"
    return _Way(path, (x1 + x2) / 2, low - 8 + end - tall / 2, "middle")


def _drawn_edge(edge: GraphEdge, way: _Way, label: str, is_labelled: bool) -> str:
    thick = 1 + min(4.0, math.log10(1 + edge.calls_per_s) * 1.5)
    text = f'<text class="label" x="{way.x:g}" y="{way.y:g}" text-anchor="{way.anchor}">{escape(label)}</text>'
    if not is_labelled and _state(edge) in ("fine", "idle"):
        text = ""
    title = f"{edge.source} → {edge.destination}: {label}"
    return (
        f'<g class="edge {_state(edge)}"><title>{escape(title)}</title>'
        f'<path d="{way.path}" stroke-width="{thick:.2g}" marker-end="url(#tip)"/>'
        f"{text}</g>"
    )


def _state(edge: GraphEdge) -> str:
    if edge.calls_per_s == 0:
        return "idle"
    if edge.errors_per_s > 0:
        return "failing"
    return "refused" if edge.denied_per_s + edge.limited_per_s > edge.calls_per_s / 2 else "fine"


def _label(edge: GraphEdge) -> str:
    said = [f"{edge.calls_per_s:.1f}/s", f"p99 {render.duration(edge.p99_s)}"]
    for name, rate in (("errors", edge.errors_per_s), ("denied", edge.denied_per_s), ("limited", edge.limited_per_s)):
        if rate > 0 and edge.calls_per_s > 0:
            percent = 100 * rate / edge.calls_per_s
            said.append(f"{percent:.0f}% {name}" if percent >= 1 else f"under 1% {name}")
    return ", ".join(said)


def _shortened(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
