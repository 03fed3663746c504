"""Whether a change does harm: the bounds that it is judged by, and what is made of them."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.rollout import bound
from meshwarden.controlplane.rollout.judge import ALPHA, LEAST_BAD, Sample, allowed, compare, least_calls, worst
from meshwarden.v1.resources_pb2 import RolloutJudge, RolloutVerdict

GOOD, BAD, TOO_FEW, UNSURE = (
    RolloutVerdict.GOOD,
    RolloutVerdict.BAD,
    RolloutVerdict.TOO_FEW,
    RolloutVerdict.UNSURE,
)
counts = st.integers(0, 10**9).flatmap(lambda calls: st.tuples(st.just(calls), st.integers(0, calls)))
alphas = st.floats(1e-6, 0.5)


@given(counts, alphas)
def test_bounds_lie_around_what_was_seen(count: tuple[int, int], alpha: float) -> None:
    calls, bad = count
    low, high = bound.at_least(calls, bad, alpha), bound.at_most(calls, bad, alpha)
    assert 0.0 <= low <= high <= 1.0
    if calls:
        assert low <= bad / calls <= high


@given(counts, alphas, alphas)
def test_who_wants_to_be_surer_gets_wider_bounds(count: tuple[int, int], one: float, other: float) -> None:
    calls, bad = count
    sure, unsure = sorted((one, other))
    assert bound.at_least(calls, bad, sure) <= bound.at_least(calls, bad, unsure) + 1e-12
    assert bound.at_most(calls, bad, sure) >= bound.at_most(calls, bad, unsure) - 1e-12


@given(st.integers(1, 10**6), st.floats(0, 1), alphas)
def test_more_of_the_same_makes_bounds_tighter(calls: int, share: float, alpha: float) -> None:
    bad = round(calls * share)
    few = bound.at_most(calls, bad, alpha) - bound.at_least(calls, bad, alpha)
    many = bound.at_most(8 * calls, 8 * bad, alpha) - bound.at_least(8 * calls, 8 * bad, alpha)
    assert many <= few + 1e-9


@pytest.mark.parametrize("share", [0.002, 0.05, 0.3])
def test_bounds_hold_at_every_look_at_once(share: float) -> None:
    """Whoever looks after each call is misled in no more runs than was said: that is what makes them of use."""
    rng, alpha, runs, misled = random.Random(7), 0.1, 300, 0
    for _ in range(runs):
        bad, is_misled = 0, False
        for calls in range(1, 801):
            bad += rng.random() < share
            # The ratio itself, which is all that the bounds are made of.
            mixed = math.lgamma(bad + 1) + math.lgamma(calls - bad + 1) - math.lgamma(calls + 2)
            ratio = mixed - bad * math.log(share) - (calls - bad) * math.log1p(-share)
            is_misled |= ratio > -math.log(alpha)
        misled += is_misled
    assert misled <= alpha * runs
    is_out = not bound.at_least(calls, bad, alpha) <= share <= bound.at_most(calls, bad, alpha)
    assert is_out == (ratio > -math.log(alpha)), "the bounds are where the ratio says"


def test_ten_per_cent_of_errors_are_found_within_some_hundred_calls() -> None:
    unchanged = Sample(1000, 1)
    found = next(n for n in range(1, 2000) if compare(Sample(n, n // 10), unchanged, 0.01, 100).outcome == BAD)
    assert found <= 150


def test_every_call_failing_is_found_at_once_yet_not_by_a_single_fault() -> None:
    unchanged = Sample(500, 0)
    assert compare(Sample(LEAST_BAD - 1, LEAST_BAD - 1), unchanged, 0.01, 100).outcome == TOO_FEW
    assert compare(Sample(LEAST_BAD, LEAST_BAD), unchanged, 0.01, 100).outcome == BAD


def test_an_outage_that_all_have_is_not_the_changes_doing() -> None:
    found = compare(Sample(1000, 300), Sample(4000, 1200), 0.01, 100)
    assert found.outcome == UNSURE
    assert found.at_least > 0.2
    assert compare(Sample(1000, 300), Sample(4000, 400), 0.01, 100).outcome == BAD


def test_without_calls_to_compare_with_the_slo_alone_decides() -> None:
    assert compare(Sample(1000, 100), Sample(), 0.01, 100).outcome == BAD
    assert compare(Sample(1000, 100), Sample(20, 0), 0.01, 100).at_most == 1.0
    assert compare(Sample(1000, 2), Sample(), 0.01, 100).outcome == GOOD


def test_worse_than_before_and_within_the_slo_is_good() -> None:
    assert compare(Sample(10_000, 50), Sample(100_000, 0), 0.01, 100).outcome == GOOD


def test_too_few_calls_say_nothing() -> None:
    assert compare(Sample(99, 0), Sample(1000, 0), 0.01, 100).outcome == TOO_FEW
    assert compare(Sample(), Sample(), 0.01, 1).outcome == TOO_FEW
    assert compare(Sample(100, 0), Sample(1000, 0), 0.01, 100).outcome == GOOD


def test_a_good_change_is_found_bad_in_one_stage_of_a_hundred_at_most() -> None:
    rng, stages, found = random.Random(11), 150, 0
    for _ in range(stages):
        changed = unchanged = Sample()
        for _ in range(20):  # looks
            changed += Sample(25, sum(rng.random() < 0.02 for _ in range(25)))
            unchanged += Sample(100, sum(rng.random() < 0.02 for _ in range(100)))
            if compare(changed, unchanged, 0.01, 100).outcome == BAD:
                found += 1
                break
    assert found <= 2 * ALPHA * stages


@given(st.lists(st.sampled_from([GOOD, BAD, TOO_FEW, UNSURE]), min_size=1))
def test_a_stage_is_as_bad_as_its_worst_part(outcomes: list[int]) -> None:
    found = worst(outcomes)
    assert found in outcomes
    assert (found == BAD) == (BAD in outcomes)
    assert (found == GOOD) == (set(outcomes) == {GOOD})
    assert worst([]) == TOO_FEW


def test_what_a_judge_does_not_say_has_a_default() -> None:
    assert (allowed(0.01, RolloutJudge()), least_calls(RolloutJudge())) == (0.01, 100)
    assert (allowed(0.01, RolloutJudge(max_burn=10)), least_calls(RolloutJudge(min_calls=7))) == (0.1, 7)
    assert allowed(0.1, RolloutJudge(max_burn=1000)) == 1.0
