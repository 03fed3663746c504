"""What a limit surely refuses, and surely doesn't: held against a token bucket and calls spread within minutes."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.policy.bucket import is_never_refused, least_refused
from meshwarden.controlplane.policy.neutral import Rate

minutes = st.dictionaries(st.integers(0, 6).map(lambda number: number * 60), st.integers(1, 400), max_size=6)
rates = st.builds(Rate, st.integers(1, 200), st.sampled_from([1.0, 10.0, 60.0, 3600.0]), st.integers(1, 300))


def refused(calls: dict[int, int], rate: Rate, moments: list[float]) -> int:
    """How many a bucket refuses that begins full, of calls at these moments."""
    room, last, refusals = float(rate.burst), 0.0, 0
    for at_s in moments:
        room = min(float(rate.burst), room + (at_s - last) * rate.amount / rate.per_s)
        last = at_s
        if room >= 1 - 1e-9:
            room -= 1
        else:
            refusals += 1
    return refusals


def spread(calls: dict[int, int], how: str, seed: int) -> list[float]:
    rng = random.Random(seed)
    moments = []
    for minute_s, count in calls.items():
        if how == "even":
            moments += [minute_s + 60 * number / count for number in range(count)]
        elif how == "chance":
            moments += [minute_s + 60 * rng.random() for _ in range(count)]
        else:
            moments += [minute_s + (0.0 if how == "first" else 59.999)] * count
    return sorted(moments)


@given(minutes, rates, st.sampled_from(["even", "chance", "first", "last"]), st.integers(0, 9))
def test_no_spread_of_calls_contradicts_what_is_sure(calls: dict[int, int], rate: Rate, how: str, seed: int) -> None:
    found = refused(calls, rate, spread(calls, how, seed))
    assert found >= least_refused(calls, rate) - len(calls), "a part of a call is none"
    if is_never_refused(calls, rate):
        assert found == 0


@pytest.mark.parametrize(
    ("calls", "rate", "least", "never"),
    [
        ({}, Rate(1, 1.0, 1), 0, True),
        ({0: 61}, Rate(1, 1.0, 1), 0, False),
        ({0: 62}, Rate(1, 1.0, 1), 1, False),
        ({0: 10}, Rate(1, 1.0, 10), 0, True),
        ({0: 11}, Rate(1, 1.0, 10), 0, False),
        # From the end of a minute to the beginning of the next.
        ({0: 6, 60: 5}, Rate(1, 1.0, 10), 0, False),
        ({0: 6, 120: 5}, Rate(1, 1.0, 10), 0, True),
        ({0: 100, 60: 100}, Rate(60, 60.0, 10), 70, False),
    ],
)
def test_what_is_sure(calls: dict[int, int], rate: Rate, least: int, never: bool) -> None:
    assert (least_refused(calls, rate), is_never_refused(calls, rate)) == (least, never)
