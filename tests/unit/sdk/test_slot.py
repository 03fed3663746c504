"""Calls at once at one point: what a share lets run, what is told of it, and what moves while calls run."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.sdk.quota import slot
from meshwarden.sdk.quota.bucket import IDLE_S
from meshwarden.sdk.quota.limits import Limits
from meshwarden.sdk.quota.slot import Slots
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.quota_service_pb2 import Bucket, Share
from meshwarden.v1.resources_pb2 import MethodLimit, Rate, RateLimit, RatePolicySpec

POLICY, GET, CREATE = "platform/orders", "/shop.v1.Orders/Get", "/shop.v1.Orders/Create"
MOST = 8


def policy(**fields: Any) -> PolicyLimits:
    limits = [RateLimit(tenant="acme", concurrent=MOST, burst=MOST), RateLimit(tenant="*", concurrent=3, burst=3)]
    return PolicyLimits(policy=POLICY, spec=RatePolicySpec(**{"limits": limits, **fields}))


def made(**fields: Any) -> Slots:
    slots = Slots()
    slots.update(policy(**fields), 0.0)
    slots.prolong(1e9, 0.0)
    return slots


def grant(slots: Slots, number: float, tenant: str = "acme", method: str = "") -> None:
    named = Bucket(policy=POLICY, tenant=tenant, method=method, unit="concurrent")
    slots.grant([Share(bucket=named, rate=number, burst=number)], 0.0)


def run(slots: Slots, tries: int, tenant: str = "acme", method: str = GET) -> int:
    return sum(slots.take(tenant, method, 1, 0.0).allowed for _ in range(tries))


def told(slots: Slots, now_s: float = 0.0) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    return {
        (use.bucket.tenant, use.bucket.method): (use.allowed, use.denied, use.shadowed, use.in_use)
        for use in slots.report(now_s, usage=False).usages
    }


def test_one_call_runs_until_the_share_comes_and_then_as_many_as_it_says() -> None:
    slots = made()
    assert run(slots, 5) == 1
    grant(slots, 4)
    assert run(slots, 5) == 3
    slots.end("acme", GET, 0.0)
    assert run(slots, 5) == 1
    assert told(slots) == {("acme", ""): (5, 10, 0, 4)}
    for _ in range(4):
        slots.end("acme", GET, 0.0)
    assert told(slots) == {("acme", ""): (0, 0, 0, 4)}, "the most since the last time"
    assert told(slots) == {("acme", ""): (0, 0, 0, 0)}
    refused = [slots.take("globex", GET, 1, 0.0) for _ in range(2)][1]
    assert (refused.allowed, refused.level, refused.policy) == (False, "tenant", POLICY)


def test_a_share_that_shrinks_lets_calls_end_and_none_begin_and_says_so_with_the_acknowledgement() -> None:
    slots = made()
    grant(slots, 6)
    run(slots, 1)
    grant(slots, 6)
    assert run(slots, 9) == 5
    told(slots)
    grant(slots, 2)
    assert run(slots, 3) == 0
    assert told(slots)["acme", ""][3] == 6
    for left in (5, 4, 3, 2):
        slots.end("acme", GET, 0.0)
        assert run(slots, 1) == 0, f"{left} still run"
    slots.end("acme", GET, 0.0)
    assert run(slots, 3) == 1


def test_no_share_is_above_the_limit_and_none_is_in_part() -> None:
    slots = made()
    run(slots, 1)
    grant(slots, 1e12)
    assert run(slots, 20) == MOST - 1
    for _ in range(MOST):
        slots.end("acme", GET, 0.0)
    grant(slots, 2.999)
    assert run(slots, 20) == 2


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"when_away": RatePolicySpec.KEEP_LAST}, 5),
        ({"when_away": RatePolicySpec.FALLBACK, "fallback": Rate(concurrent=2, burst=2)}, 2),
        ({"when_away": RatePolicySpec.DENY}, 0),
    ],
)
def test_while_nobody_divides(fields: dict[str, Any], expected: int) -> None:
    slots = Slots()
    slots.update(policy(**fields), 0.0)
    slots.prolong(3.0, 0.0)
    assert slots.take("acme", GET, 1, 0.0).allowed
    grant(slots, 5)
    slots.end("acme", GET, 0.0)
    assert sum(slots.take("acme", GET, 1, 3.0).allowed for _ in range(20)) == expected
    assert sum(slots.take("globex", GET, 1, 3.0).allowed for _ in range(20)) == min(expected, 1 + (expected == 2))


def test_in_shadow_all_run_and_those_too_many_are_counted() -> None:
    slots = made(shadow=True)
    assert run(slots, 4) == 4
    assert told(slots) == {("acme", ""): (4, 0, 3, 4)}
    for _ in range(4):
        slots.end("acme", GET, 0.0)
    told(slots)
    assert told(slots) == {("acme", ""): (0, 0, 0, 0)}


def test_what_another_policy_refused_is_free_again_and_uncounted() -> None:
    slots = made()
    grant(slots, 1)
    run(slots, 1)
    slots.give_back("acme", GET, 1, 0.0)
    assert told(slots) == {("acme", ""): (0, 0, 0, 1)}
    assert run(slots, 2) == 1


def test_a_bucket_whose_calls_run_is_told_and_kept_however_long() -> None:
    slots = made()
    run(slots, 1)
    grant(slots, 0)
    for now_s in (100.0, 100.0 + 2 * IDLE_S):
        assert told(slots, now_s)["acme", ""][3] == 1
    slots.end("acme", GET, 1000.0)
    told(slots, 1000.0)
    assert told(slots, 1000.0 + IDLE_S) == {}
    assert not slots._tenants


LIMITS = st.sampled_from(
    [
        [],
        [RateLimit(tenant="acme", concurrent=4, burst=4)],
        [RateLimit(tenant="*", concurrent=4, burst=4)],
        [RateLimit(tenant="acme", concurrent=4, burst=4, methods=[MethodLimit(method=GET, concurrent=2, burst=2)])],
        [RateLimit(tenant="globex", concurrent=4, burst=4, methods=[MethodLimit(method=GET, concurrent=2, burst=2)])],
    ]
)


@given(
    st.lists(
        st.tuples(st.just("take"), st.sampled_from(["acme", "globex"]), st.sampled_from([GET, CREATE]))
        | st.tuples(st.just("end"), st.integers(0, 9), st.none())
        | st.tuples(st.just("limits"), LIMITS, st.none())
        | st.tuples(st.just("share"), st.integers(0, 5), st.sampled_from(["", GET])),
        max_size=60,
    )
)
def test_whatever_changes_while_calls_run_slots_in_use_are_the_calls_that_run(steps: list[Any]) -> None:
    slots, running = made(), list[tuple[str, str]]()
    for step, what, more in steps:
        if step == "take" and slots.take(what, more, 1, 0.0).allowed:
            running.append((what, more))
        elif step == "end" and running:
            slots.end(*running.pop(what % len(running)), 0.0)
        elif step == "limits":
            slots.update(PolicyLimits(policy=POLICY, spec=RatePolicySpec(limits=what)), 0.0)
        elif step == "share":
            grant(slots, what, method=more)
        for name, tenant in slots._tenants.items():
            for method, bucket in tenant.buckets():
                mine = [of for who, of in running if who == name]
                expected = sum(of == method if method else of not in tenant.methods for of in mine)
                assert slot._slot(bucket).in_use == expected
    for tenant_name, of in running:
        slots.end(tenant_name, of, 0.0)
    assert not slots._running
    assert all(slot._slot(bucket).in_use == 0 for tenant in slots._tenants.values() for _, bucket in tenant.buckets())


class Silent:
    """An agent that answers nothing."""

    def share(self, requests: Any) -> Iterator[Any]:
        """No answer to what a server has used."""
        next(requests)
        return iter(())


@pytest.fixture
def limits() -> Iterator[Limits]:
    agent: Any = Silent()
    made = Limits(agent, lambda: 100.0)
    yield made
    made.close()


def test_by_itself_a_point_has_all_slots_of_each_limit(limits: Limits) -> None:
    limits.update(ServerLimits(policies=[policy(scope=RatePolicySpec.POINT)]))
    calls = [limits.admit("acme", GET) for _ in range(20)]
    assert sum(call.decision.allowed for call in calls) == MOST
    with ThreadPoolExecutor(4) as pool:
        for call in calls:
            list(pool.map(lambda _, call=call: call.end(), range(8)))  # type: ignore[misc]
    assert sum(limits.admit("acme", GET).decision.allowed for _ in range(20)) == MOST
    refused = limits.admit("acme", GET).decision
    headers = dict(limits.refusal(refused, "acme", GET).headers)
    assert headers["ratelimit-policy"] == f'"{POLICY} tenant";q={MOST};qu="concurrent-requests";pk=:YWNtZQ==:'


def test_a_call_ends_where_it_began_whatever_the_policy_counts_by_then(limits: Limits) -> None:
    at_once = policy(scope=RatePolicySpec.POINT)
    limits.update(ServerLimits(policies=[at_once]))
    first = limits.admit("acme", GET)
    calls = RatePolicySpec(limits=[RateLimit(tenant="acme", requests=9, burst=9)], scope=RatePolicySpec.POINT)
    limits.update(ServerLimits(policies=[PolicyLimits(policy=POLICY, spec=calls)]))
    assert limits.admit("acme", GET).decision.allowed
    limits.update(ServerLimits(policies=[at_once]))
    first.end()
    assert sum(limits.admit("acme", GET).decision.allowed for _ in range(20)) == MOST


def test_tenants_that_nobody_names_can_not_grow_memory(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshwarden.sdk.quota.lease.MAX_TENANTS", 10)
    slots = Slots()
    slots.update(policy(scope=RatePolicySpec.POINT), 0.0)
    for number in range(100):
        if slots.take(f"t{number}", GET, 1, 0.0).allowed:
            slots.end(f"t{number}", GET, 0.0)
    assert len(slots._tenants) <= 12
    assert not slots._running
    assert slots.take("new", GET, 1, IDLE_S).allowed, "those that have long not called make room"


def test_metadata_that_are_none_keep_no_slot(limits: Limits) -> None:
    dear = RatePolicySpec(limits=[RateLimit(tenant="acme", cost=9, burst=9)], scope=RatePolicySpec.POINT)
    at_once = policy(scope=RatePolicySpec.POINT)
    limits.update(ServerLimits(policies=[PolicyLimits(policy="platform/cost", spec=dear), at_once]))
    for _ in range(MOST):
        unreadable: Any = [("three", "of", "them")]
        with pytest.raises(ValueError, match="unpack"):
            limits.admit("acme", GET).end(unreadable)
    limits.update(ServerLimits(policies=[at_once]))
    assert sum(limits.admit("acme", GET).decision.allowed for _ in range(20)) == MOST
