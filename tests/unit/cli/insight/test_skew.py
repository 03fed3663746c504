"""Clocks that do not agree: which are off, by how much, and what is no proof of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.cli.insight.skew import offsets_ns
from meshwarden.v1.admin_service_pb2 import TraceSpan

MS = 10**6


def span(number: int, parent: int, node: str, start_ms: int, took_ms: int, kind: str = "") -> TraceSpan:
    found = TraceSpan(span_id=str(number), parent_span_id=str(parent) if parent else "", node=node, kind=kind)
    found.start.FromMilliseconds(1_000_000 + start_ms)
    found.duration.FromMilliseconds(took_ms)
    return found


@pytest.mark.parametrize("off_ms", [-7_200_000, -900_000, -31, 41, 900_000])
def test_a_node_is_off_by_what_puts_its_spans_into_their_calls(off_ms: int) -> None:
    spans = [
        span(1, 0, "a", 0, 40, "client"),
        span(2, 1, "b", 10 + off_ms, 20, "server"),
        span(3, 2, "b", 12 + off_ms, 10, "client"),
        span(4, 3, "c", 15, 4, "server"),
    ]
    found = offsets_ns(spans)
    assert found["b"] == -off_ms * MS
    assert abs(found.get("c", 0)) <= 4 * MS, "who is called by a skewed node is held against the first"


def test_what_goes_on_after_its_call_is_not_skewed() -> None:
    late = [span(1, 0, "", 0, 10, "server"), span(2, 1, "a", 50, 10), span(3, 1, "b", 5, 500)]
    assert offsets_ns(late) == {}
    assert offsets_ns([span(1, 0, "a", 0, 10, "client"), span(2, 1, "b", 5, 500, "server")]) == {}
    assert offsets_ns([span(1, 0, "a", 0, 10, "client"), span(2, 1, "a", -5, 5, "server")]) == {}, "one clock"


def test_one_odd_span_of_many_proves_nothing() -> None:
    calls = [
        one
        for number in range(1, 10, 2)
        for one in (
            span(number, 0, "a", number * 100, 40, "client"),
            span(number + 1, number, "b", number * 100 + (10 if number > 1 else -5), 20, "server"),
        )
    ]
    assert offsets_ns(calls) == {}


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from("abc"), st.integers(0, 2**20)), max_size=20
    )
)
def test_whatever_ids_say_it_ends(spans: list[tuple[int, int, str, int]]) -> None:
    offsets_ns([span(number, parent, node, start, 5, "client") for number, parent, node, start in spans])
