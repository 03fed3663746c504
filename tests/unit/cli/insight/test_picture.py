"""The service graph as a picture: where services stand, and that names cannot break out of it."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.cli.insight import picture
from meshwarden.v1.admin_service_pb2 import GetGraphResponse, GraphEdge, GraphNode

NAMES = st.sampled_from([f"t{number % 3}/s{number}" for number in range(12)])
SVG = "{http://www.w3.org/2000/svg}"


def a_graph(*edges: tuple[str, str], **rates: float) -> GetGraphResponse:
    found = [GraphEdge(source=source, destination=destination, **rates) for source, destination in edges]
    return GetGraphResponse(edges=found, region="eu")


def test_callers_stand_left_of_whom_they_call() -> None:
    edges = [("a/web", "p/orders"), ("p/orders", "p/stock"), ("a/web", "p/stock")]
    places = picture.arrange(["a/web", "p/orders", "p/stock"], edges)
    assert places["a/web"].x < places["p/orders"].x < places["p/stock"].x


@given(st.lists(st.tuples(NAMES, NAMES), max_size=40))
def test_every_service_has_a_place_of_its_own_whatever_calls_what(edges: list[tuple[str, str]]) -> None:
    drawn = ElementTree.fromstring(picture.svg(a_graph(*edges)))  # noqa: S314 - our own picture
    services = {end for edge in edges for end in edge}
    boxes = {(box.get("x"), box.get("y")) for box in drawn.iter(f"{SVG}rect")}
    assert len(boxes) == len(services)


def test_a_chain_of_any_length_is_drawn() -> None:
    names = [f"t/s{number}" for number in range(1500)]
    places = picture.arrange(names, list(pairwise(names)))
    assert places[names[-1]].x > places[names[0]].x


@pytest.mark.parametrize("name", ['"/><script>alert(1)</script>', "a]]>b", "x\\", '"', "&lt;", "</svg>"])
def test_names_stay_names(name: str) -> None:
    graph = a_graph((f"acme/{name}", "platform/orders"))
    drawn = ElementTree.fromstring(picture.svg(graph))  # noqa: S314 - our own picture
    assert [element.tag for element in drawn.iter() if "script" in element.tag] == []
    assert name in {element.text for element in drawn.iter(f"{SVG}text")} or len(name) > 22
    quoted = picture.dot(graph).replace("\\\\", "").replace('\\"', "")
    assert all(line.count('"') % 2 == 0 for line in quoted.splitlines())


@pytest.mark.parametrize(
    ("rates", "state"),
    [
        ({}, "idle"),
        ({"calls_per_s": 5.0}, "fine"),
        ({"calls_per_s": 5.0, "errors_per_s": 0.1}, "failing"),
        ({"calls_per_s": 5.0, "denied_per_s": 5.0}, "refused"),
        ({"calls_per_s": 5.0, "limited_per_s": 1.0}, "fine"),
    ],
)
def test_an_edge_shows_how_it_does(rates: dict[str, float], state: str) -> None:
    drawn = ElementTree.fromstring(picture.svg(a_graph(("a/web", "p/orders"), **rates)))  # noqa: S314
    assert f"edge {state}" in {element.get("class") for element in drawn.iter(f"{SVG}g")}


def test_a_service_without_healthy_endpoints_is_marked() -> None:
    graph = a_graph(("a/web", "p/orders"))
    graph.nodes.extend([GraphNode(service="p/orders", endpoints=2), GraphNode(service="a/web")])
    drawn = ElementTree.fromstring(picture.svg(graph))  # noqa: S314
    assert len([element for element in drawn.iter(f"{SVG}g") if element.get("class") == "node down"]) == 1


def test_edges_of_several_regions_are_named_and_their_labels_lie_below_each_other() -> None:
    graph = a_graph(("a/web", "p/orders"), ("a/web", "p/orders"), calls_per_s=2.0)
    for edge, region in zip(graph.edges, ("eu", "us"), strict=True):
        edge.region = region
        graph.regions.add(region=region, own=region == "eu")
    labels = [
        label
        for label in ElementTree.fromstring(picture.svg(graph)).iter(f"{SVG}text")  # noqa: S314 - our own picture
        if label.get("class") == "label"
    ]
    assert [str(label.text).partition(":")[0] for label in labels] == ["eu", "us"]
    assert float(labels[0].get("y", 0)) + 10 < float(labels[1].get("y", 0))
    assert '"eu: 2.0/s' in picture.dot(graph)


def test_a_large_mesh_is_drawn_in_part_and_the_rest_is_counted() -> None:
    graph = a_graph(*((f"a/s{number}", "p/orders") for number in range(60)), calls_per_s=2.0)
    graph.edges[0].errors_per_s = 1.0
    graph.omitted = 4_940
    graph.nodes.extend(GraphNode(service=f"b/s{number}", endpoints=1, healthy_endpoints=1) for number in range(900))
    graph.nodes.add(service="b/down", endpoints=3)
    drawn = ElementTree.fromstring(picture.svg(graph))  # noqa: S314 - our own picture
    names = {str(element.text) for element in drawn.iter(f"{SVG}text")}
    assert len(list(drawn.iter(f"{SVG}rect"))) == 62
    assert "down" in names, "what is down is never left out for what is well"
    rest = "not drawn: 4,940 edges that are well and used less and 900 services that no edge here leads to"
    assert rest in names
    assert f'label="{rest}"' in picture.dot(graph)
    labels = [element.text for element in drawn.iter(f"{SVG}text") if element.get("class") == "label"]
    assert labels == ["2.0/s, p99 -, 50% errors"], "labels that nobody could read are tooltips"
    assert len(list(drawn.iter(f"{SVG}title"))) == 60


def test_services_that_nothing_joins_stand_below_the_others() -> None:
    places = picture.arrange(["a/alone", "a/web", "p/orders"], [("a/web", "p/orders")])
    assert places["a/alone"].y > max(places["a/web"].y, places["p/orders"].y)


def test_edges_of_a_tree_do_not_cross() -> None:
    edges = [(f"a/{caller}", f"p/{callee}") for callee, caller in enumerate("badc")]
    places = picture.arrange(sorted({end for edge in edges for end in edge}), edges)
    assert sorted(places[caller].y for caller, _ in edges) == sorted(places[callee].y for _, callee in edges)
    assert all(places[caller].y == places[callee].y for caller, callee in edges)


@pytest.mark.parametrize("callers", [1, 3, 12, 30])
def test_each_edge_has_an_end_of_its_own_and_its_label_on_that(callers: int) -> None:
    edges = [GraphEdge(source=f"a/c{number}", destination="b/s", calls_per_s=1) for number in range(callers)]
    drawn = picture.svg(GetGraphResponse(region="eu", edges=edges))
    ends = [float(y) for y in re.findall(r"L[\d.]+,([\d.]+)\"", drawn)]
    labels = [float(y) for y in re.findall(r'class="label" x="[\d.]+" y="([\d.]+)"', drawn)]
    assert len(set(ends)) == callers
    assert labels == [pytest.approx(end - 3, abs=0.1) for end in ends]
    boxes = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="170" height="([\d.]+)"', drawn)
    _, top, tall = max(tuple(map(float, box)) for box in boxes)
    assert all(top < end < top + tall for end in ends)
