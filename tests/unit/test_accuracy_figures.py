"""What the benchmark of limits computes from when calls came and were served."""

import math

import pytest
from benchmarks.accuracy_figures import Record, converged_s, over_admission, under_use


def steady(rate: float, begin_s: float, end_s: float) -> list[float]:
    return [begin_s + number / rate for number in range(int((end_s - begin_s) * rate))]


def test_what_is_even_at_once_has_converged_at_once_and_what_changes_later_has_not() -> None:
    even = steady(50, 0, 40)
    assert converged_s(Record({"a": even}, {"a": even}), 10, 31) == 0
    late = steady(50, 0, 10) + steady(5, 10, 14) + steady(50, 14, 40)
    assert 2 < converged_s(Record({"a": late}, {"a": late}), 10, 31) <= 4


def test_an_outage_that_lasts_into_the_last_third_is_no_convergence() -> None:
    served = steady(50, 0, 14) + steady(50, 28, 40)
    assert converged_s(Record({"a": served}, {"a": served}), 10, 31) == math.inf


def test_the_fullest_window_counts_and_a_limit_that_is_used_leaves_nothing() -> None:
    burst = steady(100, 0, 20) + [10.5] * 50
    assert over_admission(sorted(burst), 100, 1.0, 0, 20) == pytest.approx(50, abs=2)
    assert over_admission(steady(90, 0, 20), 100, 1.0, 0, 20) == 0
    half = Record({"a": steady(50, 0, 20)}, {"a": steady(200, 0, 20)})
    assert under_use(half, 100, 0, 20) == pytest.approx(50, abs=1)
