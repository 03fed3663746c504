"""How much more was let in than one limiter would have, from reports that come when they come."""

import random

import pytest

from meshwarden.controlplane.quota.excess import LATE_S, MAX_LEVELS, Excess
from meshwarden.controlplane.quota.tree import OTHERS, REST, Bucket, Level

POLICY, CREATE = "platform/orders", "/shop.v1.Orders/Create"
TREE = Level(
    ceiling=100,
    parts={"acme": Level(ceiling=60, parts={CREATE: Level(ceiling=10), REST: Level(ceiling=60)}), OTHERS: Level()},
)
REST_OF_ACME = Bucket(POLICY, ("acme", REST))


def judged(excess: Excess, now_s: float) -> dict[tuple[str, ...], float]:
    return excess.of_policy(POLICY, TREE, now_s + LATE_S + 1)


def test_what_keeps_to_the_limit_is_none_of_it() -> None:
    excess = Excess()
    for second in range(30):
        excess.add(REST_OF_ACME, TREE, 60, second, second + 1)
    assert judged(excess, 30) == {(): 0, ("acme",): 0}


def test_what_a_bucket_with_the_rate_and_the_burst_would_not_have_let_in_is_counted_at_each_level() -> None:
    excess = Excess()
    for second in range(10, 20):
        excess.add(REST_OF_ACME, TREE, 90, second, second + 1)
        excess.add(Bucket(POLICY, ("acme", CREATE)), TREE, 20, second, second + 1)
    # In ten seconds: 600 and a burst of 60 of the tenant's, 100 and 10 of the method's, 1000 and 100 of all.
    assert judged(excess, 20) == pytest.approx({(): 0, ("acme",): 1100 - 660, ("acme", CREATE): 200 - 110})


def test_points_that_report_each_five_seconds_are_not_taken_for_bursts() -> None:
    rng, excess = random.Random(4), Excess()
    moments = sorted(
        (at + phase, at + phase - 5) for phase in [rng.uniform(0, 5) for _ in range(6)] for at in range(10, 70, 5)
    )
    for now_s, since_s in moments:
        excess.add(REST_OF_ACME, TREE, 50, since_s, now_s)  # each 10/s
    assert judged(excess, 70) == {(): 0, ("acme",): 0}


@pytest.mark.parametrize("every_s", [0.1, 0.7, 1.0, 4.9])
def test_how_often_points_report_makes_no_difference(every_s: float) -> None:
    excess, now_s = Excess(), 100.0
    for _ in range(int(20 / every_s)):
        excess.add(REST_OF_ACME, TREE, 80 * every_s, now_s, now_s + every_s)
        now_s += every_s
    passed_s = now_s - 100
    assert judged(excess, now_s)["acme",] == pytest.approx(20 * passed_s - 60, rel=0.05)


def test_a_limit_that_was_not_used_has_its_burst_again() -> None:
    excess = Excess()
    for begun_s in (0, 100):
        excess.add(REST_OF_ACME, TREE, 120, begun_s, begun_s + 0.5)
    assert judged(excess, 101)["acme",] == 0


def test_memory_is_bounded_and_a_policy_that_is_gone_is_forgotten() -> None:
    excess, tree = Excess(), Level(parts={OTHERS: Level(ceiling=1)})
    for number in range(MAX_LEVELS + 5):
        excess.add(Bucket(POLICY, (f"t{number}",)), tree, 9, 0, 1)
    assert len(excess.of_policy(POLICY, tree, 9)) == MAX_LEVELS
    excess.forget(POLICY)
    assert excess.of_policy(POLICY, tree, 9) == {}
    excess.add(Bucket(POLICY, ("acme",)), tree, 9, 0, 1)
    assert len(excess.of_policy(POLICY, tree, 9)) == 1
