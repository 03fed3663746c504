"""Exemplars: few, the slowest buckets first, and never anybody's nonsense."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.sdk.red.exemplar import MOST, Exemplars, is_sound
from meshwarden.sdk.red.histogram import bound_of
from meshwarden.v1.report_pb2 import Exemplar

IDS = (b"\x01" * 16, b"\x02" * 8)


@given(st.lists(st.floats(0, 100), max_size=40))
def test_the_newest_of_each_of_the_slowest_buckets_stay(durations: list[float]) -> None:
    kept = Exemplars()
    for number, duration_s in enumerate(durations):
        kept.add(IDS, duration_s, number)
    newest = {bound_of(duration_s): (duration_s, number) for number, duration_s in enumerate(durations)}
    wanted = [newest[bucket] for bucket in sorted(newest, reverse=True)[:MOST]]
    found = sorted(kept.to_proto(), key=lambda one: one.duration_s, reverse=True)
    assert [(one.duration_s, one.time.seconds) for one in found] == wanted


def test_they_go_over_the_wire_and_add_up() -> None:
    one, other = Exemplars(), Exemplars()
    one.add(IDS, 0.2, 1000.5)
    other.update(one.to_proto())
    (found,) = other.to_proto()
    assert (found.trace_id, found.span_id, found.duration_s) == (*IDS, 0.2)
    assert found.time.ToJsonString() == "1970-01-01T00:16:40.500Z"


@pytest.mark.parametrize(
    "exemplar",
    [
        Exemplar(),
        Exemplar(trace_id=bytes(16), span_id=IDS[1]),
        Exemplar(trace_id=IDS[0], span_id=bytes(8)),
        Exemplar(trace_id=IDS[0] + b"x", span_id=IDS[1]),
        Exemplar(trace_id=IDS[0], span_id=IDS[1], duration_s=float("nan")),
        Exemplar(trace_id=IDS[0], span_id=IDS[1], duration_s=-1),
        Exemplar(trace_id=IDS[0], span_id=IDS[1], duration_s=1e9),
        Exemplar(trace_id=IDS[0], span_id=IDS[1], time={"seconds": -5}),  # type: ignore[arg-type]
    ],
)
def test_what_is_none_is_left_out(exemplar: Exemplar) -> None:
    kept = Exemplars()
    kept.update([exemplar])
    assert not is_sound(exemplar)
    assert kept.to_proto() == []
