"""Ten thousand agents that lose their control plane at one moment do not come back at one moment, nor renew at one."""

import random
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration

from meshwarden.agents.backoff import Backoff, asked_for
from meshwarden.certs.rotation import renew_at
from meshwarden.controlplane.publish.sessions import spread_s

AGENTS = 10_000


def busiest(moments_s: Iterable[float]) -> int:
    """How many of them fall into the second that most fall into."""
    return max(Counter(map(int, moments_s)).values())


def back_s(rng: random.Random, fleet: int, away_s: float) -> float:
    """When an agent of a fleet is back, whose control plane is away from 0 on for so long."""
    backoff = Backoff(rng)
    backoff.spread_over(spread_s(fleet))
    now_s = backoff.next_s()
    while now_s < away_s:
        now_s += backoff.next_s()
    return now_s - away_s


@pytest.mark.parametrize("away_s", [0.0, 1.0, 5.0, 20.0, 59.0, 120.0, 600.0])
def test_agents_come_back_apart(away_s: float) -> None:
    rng = random.Random(7)
    moments = [back_s(rng, AGENTS, away_s) for _ in range(AGENTS)]
    assert busiest(moments) <= 0.075 * AGENTS
    assert max(moments) <= 30.03


@pytest.mark.parametrize(("fleet", "within_s"), [(1, 1.0), (3, 1.0), (100, 1.0), (1000, 3.01)])
@pytest.mark.parametrize("away_s", [0.0, 1.0, 20.0, 600.0])
def test_a_small_fleet_comes_back_soon(fleet: int, within_s: float, away_s: float) -> None:
    rng = random.Random(7)
    assert max(back_s(rng, fleet, away_s) for _ in range(max(fleet, 500))) <= within_s
    assert max(back_s(rng, fleet, 0.0) for _ in range(500)) <= max(0.2, spread_s(fleet))


def test_agents_that_were_not_told_of_their_fleet_come_back_apart_after_a_minute() -> None:
    rng = random.Random(7)

    def untold_s() -> float:
        backoff, now_s = Backoff(rng), 0.0
        while now_s < 120.0:
            now_s += backoff.next_s()
        return now_s

    assert busiest(untold_s() for _ in range(AGENTS)) <= 0.075 * AGENTS


@pytest.mark.parametrize("said_s", [-1.0, 1e9, float("nan"), float("inf")])
def test_what_a_control_plane_says_of_its_fleet_is_believed_within_bounds(said_s: float) -> None:
    backoff = Backoff(random.Random(7))
    backoff.spread_over(said_s)
    assert all(0 <= backoff.next_s() <= 30.0 for _ in range(1000))


def test_certificates_of_one_moment_are_renewed_apart() -> None:
    rng, now = random.Random(7), datetime(2026, 1, 1, tzinfo=UTC)
    ends = now + timedelta(hours=1)
    moments = [(renew_at(now, ends, rng) - now).total_seconds() for _ in range(AGENTS)]
    assert busiest(moments) <= 0.005 * AGENTS
    assert min(moments) >= 1620
    assert max(moments) <= 1980


def test_a_success_starts_anew() -> None:
    backoff = Backoff(random.Random(7))
    for _ in range(100):
        assert backoff.next_s() <= 30.0
    backoff.reset()
    assert backoff.next_s() <= 0.2


@pytest.mark.parametrize(
    ("seconds", "least", "most"), [(0, 0, 0), (4, 4, 5), (-(1 << 62), 0, 0), ((1 << 62), 300, 375)]
)
def test_what_is_asked_for_is_waited_for_within_bounds(seconds: int, least: float, most: float) -> None:
    rng = random.Random(7)
    waits = [asked_for(Duration(seconds=seconds), rng).total_seconds() for _ in range(100)]
    assert all(least <= wait <= most for wait in waits)
    assert len(set(waits)) == (1 if least == most else 100)
