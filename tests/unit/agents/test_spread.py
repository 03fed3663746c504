"""Ten thousand agents that lose their control plane at one moment do not come back at one moment, nor renew at one."""

import random
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest

from meshwarden.agents.backoff import Backoff
from meshwarden.certs.rotation import renew_at

AGENTS = 10_000


def busiest(moments_s: Iterable[float]) -> int:
    """How many of them fall into the second that most fall into."""
    return max(Counter(map(int, moments_s)).values())


def back_s(rng: random.Random, away_s: float) -> float:
    """When an agent is back, whose control plane is away from 0 on for so long."""
    backoff, now_s = Backoff(rng), 0.0
    while now_s < away_s:
        now_s += backoff.next_s()
    return now_s - away_s


@pytest.mark.parametrize(("away_s", "most", "within_s"), [(20.0, 0.8, 2.0), (120.0, 0.075, 30.0), (600.0, 0.075, 30.0)])
def test_agents_come_back_apart(away_s: float, most: float, within_s: float) -> None:
    rng = random.Random(7)
    moments = [back_s(rng, away_s) for _ in range(AGENTS)]
    assert busiest(moments) <= most * AGENTS
    assert max(moments) <= within_s


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
