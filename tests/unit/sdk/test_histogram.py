"""Histograms of durations: what adds up, what quantiles are worth, what is refused."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.sdk.red.histogram import BOUNDS_S, LIMITS_S, bucket_of, folded, from_proto, quantiles, to_proto
from meshwarden.v1.report_pb2 import Histogram

DURATIONS_S = st.lists(st.floats(min_value=0.00011, max_value=1000.0), min_size=1, max_size=200)


def counts_of(durations_s: list[float]) -> Counter[int]:
    return Counter(map(bucket_of, durations_s))


def test_limits_grow_by_two_percent_at_most_and_include_the_bounds() -> None:
    assert set(BOUNDS_S) <= set(LIMITS_S)
    assert all(1 < high / low <= 1.0200001 for low, high in pairwise(LIMITS_S))


@given(DURATIONS_S)
def test_the_bounds_of_prometheus_are_exact(durations_s: list[float]) -> None:
    wanted = [0] * (len(BOUNDS_S) + 1)
    for duration_s in durations_s:
        wanted[next((i for i, bound in enumerate(BOUNDS_S) if duration_s <= bound), len(BOUNDS_S))] += 1
    assert folded(counts_of(durations_s)) == wanted


@given(DURATIONS_S, st.floats(min_value=0.0, max_value=1.0))
def test_a_quantile_is_off_by_one_percent_at_most(durations_s: list[float], share: float) -> None:
    ordered = sorted(durations_s)
    # The smallest duration that `share` of them do not exceed.
    rank = next(i for i in range(len(ordered)) if i + 1 >= len(ordered) * share)
    assert quantiles(counts_of(durations_s), [share]) == [pytest.approx(ordered[rank], rel=0.01)]


@given(DURATIONS_S, DURATIONS_S)
def test_histograms_add_up_as_their_durations_do(some_s: list[float], more_s: list[float]) -> None:
    assert counts_of(some_s) + counts_of(more_s) == counts_of(some_s + more_s)
    assert from_proto(to_proto(counts_of(some_s))) == counts_of(some_s)


def test_the_ends_hold_whatever_is_beyond_them() -> None:
    assert folded(counts_of([0.0, 1e-9, 1e9])) == [2, *[0] * (len(BOUNDS_S) - 1), 1]
    assert quantiles(counts_of([1e9]), [0.5, 1.0]) == [1000.0, 1000.0]
    assert quantiles(Counter(), [0.5, 1.0]) == [0.0, 0.0]


@pytest.mark.parametrize(
    "message",
    [
        Histogram(buckets=[1]),
        Histogram(counts=[1]),
        Histogram(buckets=[1, 1], counts=[1, 1]),
        Histogram(buckets=[1], counts=[0]),
        Histogram(buckets=[len(LIMITS_S) + 1], counts=[1]),
        Histogram(buckets=[2**32 - 1], counts=[2**64 - 1]),
    ],
)
def test_what_is_no_histogram_is_refused(message: Histogram) -> None:
    with pytest.raises(ValueError, match=r"bucket"):
        from_proto(message)
