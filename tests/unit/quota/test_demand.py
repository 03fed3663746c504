"""What points want, and what each gets of a bucket."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.quota.demand import Demand, portions


def told(rate: float, seconds: float, rng: random.Random, demand: Demand, begin_s: float = 0.0) -> list[float]:
    """Reports each second what came at random at that rate; what was believed after each."""
    found = []
    for number in range(int(seconds)):
        count = sum(rng.random() < rate / 1000 for _ in range(1000))
        demand.add(count, begin_s + number + 1.0, math.inf)
        found.append(demand.rate)
    return found


@pytest.mark.parametrize("rate", [1.0, 20.0, 300.0])
def test_calls_at_random_are_believed_to_be_as_many_as_they_are_on_average(rate: float) -> None:
    believed = told(rate, 400, random.Random(3), Demand(0.0))[20:]
    assert sum(believed) / len(believed) == pytest.approx(rate, rel=0.1)


def test_a_rise_is_believed_at_once_and_two_calls_in_a_moment_are_none() -> None:
    demand = Demand(0.0)
    told(2.0, 30, random.Random(3), demand)
    before = demand.rate
    demand.add(2, 30.01, math.inf)
    assert demand.rate == before
    demand.add(60, 30.3, math.inf)
    assert demand.rate > 50


def test_a_fall_is_believed_within_seconds_and_nothing_above_the_ceiling() -> None:
    demand = Demand(0.0)
    told(200.0, 20, random.Random(3), demand)
    for number in range(6):
        demand.add(0, 21.0 + number, math.inf)
    assert demand.rate < 20
    demand.add(1e9, 30.0, 50.0)
    assert demand.rate == 50


@given(st.floats(0, 1e6), st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_portions_are_all_of_an_amount_and_as_demand_is(amount: float, demands: list[float]) -> None:
    found = portions(amount, demands, [1 / len(demands)] * len(demands))
    assert sum(found) == pytest.approx(amount, rel=1e-6, abs=1e-6)
    by_demand = [got for _, got in sorted(zip(demands, found, strict=True))]
    assert by_demand == sorted(by_demand)
    if amount >= sum(demands) + 0.1 * len(demands):
        assert all(got >= wanted * (1 - 1e-9) for got, wanted in zip(found, demands, strict=True))


def test_of_nothing_nobody_gets_anything() -> None:
    assert portions(0.0, [1.0, 0.0], [0.5, 0.5]) == [0.0, 0.0]
    assert portions(5.0, [], []) == []


@given(st.floats(1, 1e6), st.floats(0, 1e6), st.lists(st.floats(0, 1e15), min_size=1, max_size=9))
def test_whatever_others_claim_half_of_an_equal_part_is_there(
    amount: float, wanted: float, claims: list[float]
) -> None:
    parts = [1 / (len(claims) + 1)] * (len(claims) + 1)
    mine, *_ = portions(amount, [wanted, *claims], parts)
    assert mine >= min(wanted, amount * parts[0] / 2) * (1 - 1e-6) - 1e-6


@given(
    st.floats(0, 1e6),
    st.lists(st.floats(0, 1e6), min_size=1, max_size=9),
    st.lists(st.floats(0, 1e15), max_size=9),
)
def test_who_is_away_is_kept_nothing_that_anybody_wants(amount: float, demands: list[float], away: list[float]) -> None:
    parts = [1 / len(demands)] * len(demands)
    alone, found = portions(amount, demands, parts), portions(amount, demands, parts, away)
    assert sum(found) <= sum(alone) * (1 + 1e-9)
    for got, was, wanted in zip(found, alone, demands, strict=True):
        assert got >= min(was, wanted) * (1 - 1e-9) - 1e-9


def test_who_is_away_is_kept_what_they_would_have_of_what_nobody_wants() -> None:
    there = portions(1000.0, [50.0, 5.0, 20.0], [1 / 3] * 3)
    assert portions(1000.0, [50.0, 20.0], [1 / 2] * 2, [5.0]) == pytest.approx([there[0], there[2]])
    # What is set aside for chance is wanted, too.
    assert portions(100.0, [97.0], [1.0], [5.0]) == pytest.approx([100.0])
