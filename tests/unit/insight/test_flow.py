"""What flows from one service to another, and which services of many are shown by themselves."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.insight.flow import Flow, flows, folded
from meshwarden.controlplane.insight.fold import fold
from meshwarden.v1.admin_service_pb2 import GraphEdge

PROVEN, SAID, NONE = GraphEdge.PROVEN, GraphEdge.SAID, GraphEdge.NONE


def edge(
    region: str, sides: str, calls: float, *, errors: float = 0, denied: float = 0, p95: float = 0.1, tls: int = PROVEN
) -> GraphEdge:
    return GraphEdge(
        source="acme/web",
        destination="acme/orders",
        region=region,
        source_reports="s" in sides,
        destination_reports="d" in sides,
        calls_per_s=calls,
        errors_per_s=errors,
        denied_per_s=denied,
        p95_s=p95,
        mutual_tls=tls,  # type: ignore[arg-type]
    )


def only(*edges: GraphEdge) -> Flow:
    return flows(edges)["acme/web", "acme/orders"]


def test_calls_within_regions_add_up() -> None:
    flow = only(edge("eu", "sd", 10, errors=1), edge("us", "sd", 5, p95=0.3, tls=NONE))
    assert flow.rates == (15, 1, 0, 0)
    assert flow.durations_s[1] == pytest.approx(0.3)
    assert (flow.mutual_tls, flow.regions) == (NONE, ("eu", "us"))


def test_a_call_from_one_region_to_another_counts_once() -> None:
    """The callers' region and the called ones' have each seen the same calls, less what did not arrive."""
    flow = only(edge("eu", "s", 10, errors=2, tls=SAID), edge("us", "d", 8, denied=1))
    assert flow.rates == (10, 2, 1, 0)
    assert (flow.mutual_tls, flow.regions) == (PROVEN, ("eu", "us"))
    flow = only(edge("eu", "sd", 3), edge("eu", "s", 10, tls=SAID), edge("us", "d", 10))
    assert flow.rates[0] == 13


def test_folded_services_have_their_flows_together() -> None:
    one = Flow((1, 0, 0.5, 0), (0.1, 0.2, 0.3), SAID, ("eu",))
    other = Flow((2, 1, 0, 0), (0.2, 0.1, 0.1), PROVEN, ("us",))
    found = {("a/x", "a/y"): one, ("a/z", "b/y"): other, ("a/y", "b/y"): one, ("b/y", "b/y"): other}
    places = {"a/x": "a/*", "a/y": "a/*", "a/z": "a/*", "b/y": "b/y"}
    assert folded(found, places.__getitem__) == {
        ("a/*", "b/y"): Flow((3, 1, 0.5, 0), (0.2, 0.2, 0.3), SAID, ("eu", "us")),
        ("b/y", "b/y"): other,  # whoever calls itself is seen to, unless it is folded
    }


NAMES = st.builds(lambda tenant, number: f"t{tenant}/s{number}", st.integers(0, 12), st.integers(0, 30))


@given(st.dictionaries(NAMES, st.integers(0, 3), max_size=120), st.integers(1, 60), st.sets(NAMES, max_size=40))
def test_no_more_are_shown_than_can_be_and_each_is_somewhere(ranks: dict[str, int], most: int, shown: set[str]) -> None:
    place = fold(ranks, most, shown)
    places = {name: place(name) for name in ranks}
    assert len(set(places.values())) <= most
    if len(ranks) <= most:
        assert places == {name: name for name in ranks}
        return
    tenants = {name.partition("/")[0] for name in ranks}
    for name, at in places.items():
        assert at in (name, f"{name.partition('/')[0]}/*", "*/*")
        # Whoever is shown by itself matters at least as much as whoever of its tenant is not.
        if at != name and len(tenants) <= most:
            alone = [
                ranks[one] for one in ranks if places[one] == one and one.partition("/")[0] == name.partition("/")[0]
            ]
            assert all(rank >= ranks[name] for rank in alone)
    # As many as can be.
    if len(tenants) <= most:
        assert len(set(places.values())) == most or Counter(places.values()).most_common(1)[0][1] == 1


def test_the_small_are_shown_whole_and_who_is_shown_stays() -> None:
    ranks = {**{f"big/s{number}": 0 for number in range(50)}, "small/a": 0, "small/b": 0}
    place = fold(ranks, 10)
    assert (place("small/a"), place("small/b")) == ("small/a", "small/b")
    shown = {name for name in ranks if place(name) == name}
    assert len(shown) == 9
    ranks["big/s0"] = ranks["big/s1"] = 1  # which fail now
    again = fold(ranks, 10, shown)
    now = {name for name in ranks if again(name) == name}
    assert {"big/s0", "big/s1"} <= now
    assert len(shown - now) <= 2
    ranks["big/s0"] = ranks["big/s1"] = 0
    assert {name for name in ranks if fold(ranks, 10, now)(name) == name} == now
