"""A caller that holds back from a destination that refuses, and never from one that accepts. Time is the test's."""

import random
from collections import deque

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.sdk.backpressure.throttle import LEAST, MOST, PROBE_S, RECOVERED, WINDOW_S, Throttle, is_refusal

STEPS = st.lists(st.tuples(st.booleans(), st.floats(0, 30), st.floats(0, 1, exclude_max=True)), max_size=200)


class Caller:
    """A program that calls at moments of the test's, and a destination that accepts so many a second."""

    def __init__(self, per_s: float, seed: int = 1) -> None:
        self.throttle = Throttle(0.0)
        self.per_s, self.left, self.at_s = per_s, per_s, 0.0
        self._chance = random.Random(seed)
        self.sent = self.accepted = self.refused_here = 0

    def call(self, now_s: float) -> bool:
        """Whether it was made."""
        if self.throttle.on and not self.throttle.admits(now_s, self._chance.random()):
            self.refused_here += 1
            return False
        self.sent += 1
        self.left = min(max(self.per_s, 1.0), self.left + (now_s - self.at_s) * self.per_s)
        self.at_s = now_s
        if self.left >= 1:
            self.left -= 1
            self.accepted += 1
            self.throttle.accepted += 1
        else:
            self.throttle.refused(now_s)
        return True

    def run(self, begins_s: float, for_s: float, rate: float) -> None:
        for number in range(round(for_s * rate)):
            self.call(begins_s + number / rate)


@given(STEPS)
def test_where_at_least_half_are_accepted_none_is_refused_here(steps: list[tuple[bool, float, float]]) -> None:
    throttle, now_s, accepted, refused = Throttle(0.0), 0.0, deque[float](), deque[float]()
    for is_accepted, after_s, chance in steps:
        now_s += after_s
        # A slot's worth of room on each side: the window is of slots, and what is accepted lies between two looks.
        within = [
            sum(now_s - moment <= WINDOW_S - 40 for moment in accepted),
            sum(now_s - moment <= WINDOW_S + 40 for moment in refused),
        ]
        if within[0] >= within[1]:
            assert not throttle.on or throttle.admits(now_s, chance)
        if is_accepted:
            accepted.append(now_s)
            throttle.accepted += 1
        else:
            refused.append(now_s)
            throttle.refused(now_s)


@given(STEPS)
def test_some_always_go(steps: list[tuple[bool, float, float]]) -> None:
    throttle, now_s, passed_s = Throttle(0.0), 0.0, 0.0
    for _ in range(50):
        throttle.refused(0.0)
    for is_accepted, after_s, chance in steps:
        now_s += after_s
        if not throttle.on or throttle.admits(now_s, chance):
            passed_s = now_s
            if is_accepted:
                throttle.accepted += 1
            else:
                throttle.refused(now_s)
        else:
            assert chance < MOST
            assert now_s - passed_s < PROBE_S


@given(refusals=st.integers(1, 5000), spread_s=st.floats(0, 300), rest=st.integers(1, 50))
def test_after_some_that_are_accepted_in_a_row_all_go(refusals: int, spread_s: float, rest: int) -> None:
    throttle = Throttle(0.0)
    for number in range(refusals):
        throttle.refused(spread_s * number / refusals)
    throttle.accepted += RECOVERED
    for _ in range(rest):
        assert not throttle.on or throttle.admits(spread_s, 0.0)
        throttle.accepted += 1


@pytest.mark.parametrize("overload", [3, 5])
def test_an_overloaded_destination_gets_about_twice_what_it_takes(overload: int) -> None:
    caller = Caller(per_s=20.0)
    caller.run(0.0, 600.0, 20.0 * overload)
    assert 0.95 * 20 * 600 <= caller.accepted <= 20 * 601
    assert 1.7 * caller.accepted <= caller.sent <= 2.4 * caller.accepted


def test_a_destination_that_takes_nothing_gets_a_tenth() -> None:
    caller = Caller(per_s=0.0)
    caller.run(0.0, 100.0, 100.0)
    assert 0.08 * 10_000 <= caller.sent <= 0.13 * 10_000


def test_one_that_takes_all_again_has_all_again_in_seconds() -> None:
    caller = Caller(per_s=0.0)
    caller.run(0.0, 600.0, 50.0)
    caller.per_s = 1000.0
    caller.run(600.0, 10.0, 50.0)
    assert not caller.throttle.on
    before = caller.refused_here
    caller.run(610.0, 100.0, 50.0)
    assert caller.refused_here == before


def test_the_first_few_are_never_held_back() -> None:
    throttle = Throttle(0.0)
    for _ in range(LEAST - 1):
        throttle.refused(0.0)
        assert not throttle.on or throttle.admits(0.0, 0.0)
    throttle.refused(0.0)
    assert throttle.on
    assert not throttle.admits(0.0, 0.0)


def test_a_slow_caller_is_never_held_back() -> None:
    caller = Caller(per_s=0.0)
    caller.run(0.0, 300.0, 0.9)
    assert caller.refused_here == 0


def test_a_short_fault_after_two_good_minutes_holds_nobody_back() -> None:
    caller = Caller(per_s=1000.0)
    caller.run(0.0, 120.0, 10.0)
    caller.per_s, caller.left = 0.0, 0.0
    caller.run(120.0, 50.0, 10.0)
    assert caller.refused_here == 0


def test_what_was_refused_is_forgotten_after_two_minutes() -> None:
    throttle = Throttle(0.0)
    for _ in range(50):
        throttle.refused(0.0)
    assert [throttle.admits(100.0, 0.0) for _ in range(2)] == [True, False], "one a second"
    assert [throttle.admits(100.0 + WINDOW_S + 10, 0.0) for _ in range(9)] == [True] * 9
    assert not throttle.on


def test_a_day_of_accepted_calls_counts_for_two_minutes() -> None:
    throttle = Throttle(0.0)
    throttle.accepted += 864_000
    throttle.refused(86_400.0)
    refused, calls = throttle.counts()
    assert refused == 1
    assert 1100 <= calls <= 1201


@pytest.mark.parametrize(
    ("code", "trailing", "is_one"),
    [
        ("RESOURCE_EXHAUSTED", [("mesh-decision", "limited")], True),
        ("RESOURCE_EXHAUSTED", [("retry-after", "3")], True),
        ("UNAVAILABLE", [("grpc-retry-pushback-ms", "40")], True),
        ("UNAVAILABLE", [("grpc-status-details-bin", b"..type.googleapis.com/google.rpc.RetryInfo..")], True),
        # Nobody has said that it is too much: a message too large, a server that is away.
        ("RESOURCE_EXHAUSTED", [], False),
        ("UNAVAILABLE", [], False),
        ("PERMISSION_DENIED", [("mesh-decision", "denied"), ("retry-after", "3")], False),
        ("RESOURCE_EXHAUSTED", [("mesh-decision", "denied")], False),
        ("OK", [("retry-after", "3")], False),
    ],
)
def test_who_says_not_now(code: str, trailing: list[tuple[str, object]], is_one: bool) -> None:
    assert is_refusal(grpc.StatusCode[code], trailing) == is_one
