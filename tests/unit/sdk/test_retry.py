"""Calls that are made again: when, how often, and within which budget. Time and chance are the test's."""

import math
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.sdk.backpressure.retried import answer, timeout_of, with_timeout
from meshwarden.sdk.backpressure.retry import MOST, MOST_WAIT_S, PART, RESERVE, Budget, Retries, told_s
from meshwarden.sdk.backpressure.status_detail import KEY, limited, retry_delay_s

LATER = grpc.StatusCode.RESOURCE_EXHAUSTED
AWAY = grpc.StatusCode.UNAVAILABLE
LIMITED = ("mesh-decision", "limited")


class World:
    def __init__(self, most: int = 3, chance: float = 0.5) -> None:
        self.now_s = 100.0
        self.retries = Retries(most, lambda: self.now_s, lambda: chance)


@given(st.lists(st.booleans(), max_size=400))
def test_in_any_time_there_are_no_more_retries_than_the_reserve_and_a_tenth(steps: list[bool]) -> None:
    budget, calls, made = Budget(), [0], [0]
    for is_call in steps:
        if is_call:
            budget.call()
        calls.append(calls[-1] + is_call)
        made.append(made[-1] + (not is_call and budget.take()))
    for begin in range(0, len(calls), 7):
        for end in range(begin, len(calls), 5):
            assert made[end] - made[begin] <= RESERVE + PART * (calls[end] - calls[begin]) + 1e-6


def test_the_budget_is_used_up_and_comes_back() -> None:
    budget = Budget()
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]
    for _ in range(10):
        assert not budget.take()
        budget.call()
    assert budget.take()
    assert not budget.take()
    for _ in range(1000):
        budget.call()
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False], "no more is saved up"


@given(
    timeout_s=st.none() | st.floats(0, 60),
    code=st.sampled_from([LATER, AWAY]),
    told=st.sampled_from([("retry-after", "1"), ("retry-after", "7"), ("grpc-retry-pushback-ms", "40"), LIMITED]),
    chance=st.floats(0, 1, exclude_max=True),
    took_s=st.floats(0, 20),
)
def test_never_sooner_than_told_nor_past_the_deadline(
    timeout_s: float | None, code: grpc.StatusCode, told: tuple[str, str], chance: float, took_s: float
) -> None:
    world = World(MOST, chance)
    attempts, begun_s = world.retries.begin(timeout_s), world.now_s
    for made in range(MOST + 1):
        world.now_s += took_s
        wait_s = attempts.wait_s(code, [told])
        if wait_s is None:
            break
        assert made < MOST
        assert (told_s([told]) or 0.0) <= wait_s <= MOST_WAIT_S
        world.now_s += wait_s
        if timeout_s is not None:
            assert world.now_s < begun_s + timeout_s
            assert attempts.left_s == pytest.approx(begun_s + timeout_s - world.now_s)
    else:
        raise AssertionError("more attempts than were asked for")


@pytest.mark.parametrize(
    ("code", "trailing"),
    [
        (LATER, []),
        (grpc.StatusCode.INTERNAL, [LIMITED]),
        (grpc.StatusCode.PERMISSION_DENIED, [("retry-after", "1")]),
        (grpc.StatusCode.DEADLINE_EXCEEDED, []),
        (None, []),
        (LATER, [("mesh-decision", "throttled"), ("retry-after", "1")]),
        (LATER, [("retry-after", "3600")]),
        (AWAY, [("grpc-retry-pushback-ms", "-1")]),
        (AWAY, [("grpc-retry-pushback-ms", "soon")]),
    ],
)
def test_what_is_not_made_again(code: grpc.StatusCode | None, trailing: list[tuple[str, str]]) -> None:
    assert World().retries.begin(None).wait_s(code, trailing) is None


def test_without_a_word_the_wait_doubles() -> None:
    attempts = World(3, chance=0.0).retries.begin(None)
    assert [attempts.wait_s(AWAY, []) for _ in range(4)] == [0.1, 0.2, 0.4, None]


@pytest.mark.parametrize("most", [-1, 6])
def test_how_many_are_too_many(most: int) -> None:
    with pytest.raises(ValueError, match="give 0 to 5"):
        World(most)


@pytest.mark.parametrize(
    ("trailing", "said_s"),
    [
        ([], None),
        ([(KEY, limited(8, "m", 0.25, "acme", "d")), ("retry-after", "1")], 0.25),
        ([("retry-after", "2")], 2.0),
        ([("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")], None),
        ([("retry-after", "٣")], None),
        ([("retry-after", "9" * 400)], None),
        ([("grpc-retry-pushback-ms", "150"), ("retry-after", "9")], 0.15),
        ([("grpc-retry-pushback-ms", "")], None),
        ([("grpc-retry-pushback-ms", "-1"), ("retry-after", "9")], math.inf),
        ([(KEY, "text"), ("retry-after", b"3")], None),
    ],
)
def test_what_is_told(trailing: list[tuple[str, Any]], said_s: float | None) -> None:
    assert told_s(trailing) == said_s


@given(st.binary(max_size=200))
def test_details_of_any_bytes_do_no_harm(details: bytes) -> None:
    found = retry_delay_s(details)
    assert found is None or found >= 0


@given(st.integers(-(2**31), 2**31 - 1), st.text(max_size=50), st.integers(-315576000000, 315576000000))
def test_details_are_read_as_google_rpc_writes_them(code: int, message: str, seconds: int) -> None:
    other, retry = any_pb2.Any(), any_pb2.Any()
    other.Pack(error_details_pb2.QuotaFailure())
    retry.Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds)))
    status = status_pb2.Status(code=code, message=message, details=[other, retry])
    assert retry_delay_s(status.SerializeToString()) == max(0.0, seconds)
    assert retry_delay_s(status_pb2.Status(code=code, message=message).SerializeToString()) is None
    assert retry_delay_s(status.SerializeToString()[:-1]) is None


class Refused(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return LATER

    def trailing_metadata(self) -> Any:
        return (LIMITED, ("grpc-retry-pushback-ms", "1"))


def test_all_attempts_have_one_timeout_together() -> None:
    world, left = World(5), []

    def attempt(timeout_s: float | None) -> None:
        left.append(timeout_s)
        world.now_s += 2.0
        raise Refused

    with pytest.raises(Refused):
        answer(attempt, world.retries.begin(7.0))
    assert left == [7.0, 5.0, 3.0, 1.0]


@pytest.mark.parametrize(
    ("args", "kwargs", "timeout_s"),
    [((b"a",), {}, None), ((b"a",), {"timeout": 3.0}, 3.0), ((b"a", 3.0, ("m",)), {}, 3.0)],
)
def test_a_timeout_by_place_and_by_name(args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float | None) -> None:
    assert timeout_of(args, kwargs) == timeout_s
    given_args, given_kwargs = with_timeout(args, kwargs, 1.0)
    assert timeout_of(given_args, given_kwargs) == 1.0
    assert (given_args[:1], given_args[2:]) == (args[:1], args[2:])
