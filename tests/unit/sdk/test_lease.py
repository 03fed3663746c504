"""Shares of limits at one point: what they let through, what is reported, and what holds when nobody answers."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.sdk.quota import lease
from meshwarden.sdk.quota.bucket import IDLE_S, LATELY_S, STARTER
from meshwarden.sdk.quota.lease import OFTEN_S, Leases
from meshwarden.v1.node_service_pb2 import PolicyLimits
from meshwarden.v1.quota_service_pb2 import Bucket, Share
from meshwarden.v1.resources_pb2 import MethodLimit, Rate, RateLimit, RatePolicySpec

POLICY = "platform/orders"
GET, CREATE = "/shop.v1.Orders/Get", "/shop.v1.Orders/Create"
FOR_EVER = 1e9


def spec(**fields: Any) -> RatePolicySpec:
    methods = [MethodLimit(method=CREATE, requests=100, burst=100)]
    limits = [
        RateLimit(tenant="acme", requests=1000, burst=100, methods=methods),
        RateLimit(tenant="*", requests=50, burst=50),
    ]
    return RatePolicySpec(**{"service": "orders", "limits": limits, **fields})


def made(policy: RatePolicySpec | None = None, press: Any = lambda: None) -> Leases:
    leases = Leases(press)
    leases.update(PolicyLimits(policy=POLICY, spec=policy or spec()), 0.0)
    return leases


def share(tenant: str, rate: float, burst: float, method: str = "", policy: str = POLICY) -> Share:
    return Share(bucket=Bucket(policy=policy, tenant=tenant, method=method), rate=rate, burst=burst)


def spend(leases: Leases, tenant: str, now_s: float, tries: int, method: str = GET) -> int:
    return sum(leases.take(tenant, method, 1, now_s).allowed for _ in range(tries))


def used(leases: Leases, now_s: float) -> dict[tuple[str, str], tuple[int, int, int]]:
    usages = leases.report(now_s).usages
    return {
        (u.bucket.tenant, u.bucket.method): (u.allowed, u.denied, u.shadowed) for u in usages if u.allowed or u.denied
    }


def test_a_tenants_first_calls_pass_and_ask_for_a_share_at_once() -> None:
    asked: list[int] = []
    leases = made(press=lambda: asked.append(1))
    leases.prolong(FOR_EVER, 0.0)
    assert spend(leases, "globex", 0.0, 10) == STARTER
    assert asked == [1], "once for each report"
    assert used(leases, 0.0) == {("globex", ""): (2, 8, 0)}
    assert spend(leases, "globex", 50.0, 5) == 0, "nothing fills it until its share is there"
    leases.grant([share("globex", 10, 5)], 50.0)
    assert spend(leases, "globex", 50.0, 5) == 0, "a share mints nothing"
    assert spend(leases, "globex", 50.25, 5) == 2
    assert spend(leases, "globex", 60.0, 50) == 5


@pytest.mark.parametrize("is_answered", [True, False])
def test_of_a_large_limit_a_bucket_is_opened_with_a_fiftieth(is_answered: bool) -> None:
    leases = made(spec(limits=[RateLimit(tenant="*", requests=10_000, burst=5000)]))
    if is_answered:
        leases.prolong(FOR_EVER, 0.0)
    assert spend(leases, "globex", 0.0, 1000) == 100
    assert spend(leases, "globex", 1.0, 1000) == (0 if is_answered else STARTER)


def test_a_tenant_that_no_limit_names_is_not_limited() -> None:
    leases = made(spec(limits=[RateLimit(tenant="acme", requests=1)]))
    assert spend(leases, "globex", 0.0, 10_000) == 10_000
    assert not leases.report(0.0, full=True).usages


def test_a_call_is_in_its_methods_bucket_or_in_that_of_the_rest() -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    assert spend(leases, "acme", 0.0, 9, CREATE) == spend(leases, "acme", 0.0, 9) == STARTER
    leases.grant([share("acme", 100, 100), share("acme", 1, 1, CREATE)], 0.0)
    assert spend(leases, "acme", 10.0, 5, CREATE) == 1
    assert spend(leases, "acme", 10.0, 500) == 100
    assert leases.take("acme", GET, 1, 10.0).level == "tenant"
    last = leases.take("acme", CREATE, 1, 10.5)
    assert (last.allowed, last.level, last.retry_after_s) == (False, "method", pytest.approx(0.5))
    assert used(leases, 10.5) == {("acme", ""): (102, 408, 0), ("acme", CREATE): (3, 12, 0)}


@given(
    st.lists(
        st.tuples(
            st.floats(0, 0.5),
            st.one_of(st.none(), st.tuples(st.floats(0, 100), st.floats(0, 20))),
            st.integers(0, 30),
        ),
        max_size=60,
    )
)
def test_no_run_has_more_than_its_shares_over_time_and_one_burst(steps: list[Any]) -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    now, allowed, earned, rate, most = 0.0, 0, 0.0, 0.0, STARTER
    for gap, granted, tries in steps:
        now += gap
        earned += rate * gap
        if granted is not None:
            # As the wire does it, in doubles.
            leases.grant([share("acme", *granted)], now)
            rate = granted[0] if allowed or tries or leases.report(now, full=True).held else 0.0
            most = max(most, granted[1])
        got = spend(leases, "acme", now, tries)
        allowed += got
        assert got <= max(most, 1) + 1e-6, "never more at once than the largest burst"
    assert allowed <= earned + STARTER + 1e-6 * len(steps), "what moves between points mints nothing"


def test_a_share_that_shrinks_is_obeyed_at_once() -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    spend(leases, "acme", 0.0, 1)
    leases.grant([share("acme", 1000, 1000)], 0.0)
    leases.grant([share("acme", 0, 0)], 60.0)
    assert spend(leases, "acme", 60.0, 10) == 0
    assert spend(leases, "acme", 600.0, 10) == 0


def test_no_share_is_more_than_the_limit() -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    spend(leases, "globex", 0.0, 1)
    leases.grant([share("globex", 1e300, math.inf)], 0.0)
    assert spend(leases, "globex", 100.0, 1000) == 50
    assert spend(leases, "globex", 101.0, 1000) == 50


@pytest.mark.parametrize("rate", [-1.0, -math.inf])
def test_a_negative_share_is_none(rate: float) -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    spend(leases, "globex", 0.0, 2)
    leases.grant([share("globex", rate, rate)], 0.0)
    assert spend(leases, "globex", 100.0, 10) == 0


def test_a_share_that_is_not_a_number_is_none() -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    spend(leases, "globex", 0.0, 2)
    leases.grant([share("globex", math.nan, math.nan)], 0.0)
    assert spend(leases, "globex", 100.0, 10) == 0


def test_shares_of_another_policy_and_of_unknown_buckets_are_let_go() -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    spend(leases, "acme", 0.0, 2)
    leases.grant([share("acme", 9, 9, policy="a/b"), share("nobody", 9, 9), share("acme", 9, 9, "/no/Such")], 0.0)
    assert spend(leases, "acme", 10.0, 10) == 0
    assert not leases.report(10.0, full=True).held


@pytest.mark.parametrize(
    ("policy", "passed"),
    [
        (spec(), 10),
        (spec(when_away=RatePolicySpec.DENY), 0),
        (spec(when_away=RatePolicySpec.FALLBACK, fallback=Rate(requests=3, burst=3)), 3),
    ],
)
def test_when_the_lease_runs_out_it_does_as_the_policy_says(policy: RatePolicySpec, passed: int) -> None:
    leases = made(policy)
    leases.prolong(100.0, 0.0)
    spend(leases, "acme", 0.0, 2)
    leases.grant([share("acme", 10, 10)], 0.0)
    assert spend(leases, "acme", 99.0, 100) == 10
    assert spend(leases, "acme", 110.0, 100) == passed
    leases.prolong(200.0, 110.0)
    assert spend(leases, "acme", 120.0, 100) == 10, "and as before when it is answered again"


@pytest.mark.parametrize(
    ("policy", "passed"),
    [
        (spec(), STARTER),
        (spec(when_away=RatePolicySpec.DENY), 0),
        (spec(when_away=RatePolicySpec.FALLBACK, fallback=Rate(requests=3, burst=3)), 3),
    ],
)
def test_a_point_that_never_had_a_share_has_little(policy: RatePolicySpec, passed: int) -> None:
    leases = made(policy)
    spend(leases, "acme", 0.0, 100)
    assert [spend(leases, "acme", float(now), 100) for now in (10, 11)] == [passed, passed]


def test_the_fallback_is_no_more_than_the_limit() -> None:
    policy = spec(when_away=RatePolicySpec.FALLBACK, fallback=Rate(requests=1000, burst=1000))
    leases = made(policy)
    spend(leases, "globex", 0.0, 100)
    assert spend(leases, "globex", 100.0, 1000) == 50


def test_in_shadow_nothing_is_refused_and_all_is_counted() -> None:
    leases = made(spec(shadow=True))
    leases.prolong(FOR_EVER, 0.0)
    assert spend(leases, "acme", 0.0, 10) == 10
    assert used(leases, 0.0) == {("acme", ""): (10, 0, 8)}
    assert spend(leases, "acme", 0.0, 10, CREATE) == 10
    assert used(leases, 0.0) == {("acme", CREATE): (10, 0, 8)}


def test_what_was_spent_stays_spent_under_another_limit() -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    spend(leases, "acme", 0.0, 1)
    leases.grant([share("acme", 100, 100)], 0.0)
    assert spend(leases, "acme", 10.0, 100) == 100
    lower = spec(limits=[RateLimit(tenant="acme", requests=5, burst=5)])
    leases.update(PolicyLimits(policy=POLICY, spec=lower), 10.0)
    assert spend(leases, "acme", 10.0, 100) == 0
    assert spend(leases, "acme", 20.0, 100) == 5, "the lower limit holds before its share has come"
    leases.update(PolicyLimits(policy=POLICY, spec=spec(limits=[])), 20.0)
    assert spend(leases, "acme", 20.0, 100) == 100


def test_a_full_report_has_what_may_be_used() -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    spend(leases, "acme", 0.0, 1)
    leases.grant([share("acme", 10, 20)], 0.0)
    assert list(leases.report(0.0, full=True).held) == [share("acme", 10, 20)]
    assert not leases.report(0.0).held


@pytest.mark.parametrize("away", [RatePolicySpec.KEEP_LAST, RatePolicySpec.DENY, RatePolicySpec.FALLBACK])
def test_a_full_report_has_what_is_used_again_once_it_is_answered(away: RatePolicySpec.WhenAway) -> None:
    leases = made(spec(when_away=away, fallback=Rate(requests=3, burst=3)))
    leases.prolong(100.0, 0.0)
    spend(leases, "acme", 0.0, 2)
    leases.grant([share("acme", 10, 5)], 0.0)
    spend(leases, "acme", 110.0, 1)
    spend(leases, "globex", 110.0, 1)  # which never had one
    assert [(item.bucket.tenant, item.rate) for item in leases.report(110.0, full=True).held] == [("acme", 10)]


def test_a_bucket_that_falls_silent_is_told_with_nothing_for_a_while() -> None:
    leases = made()
    spend(leases, "acme", 0.0, 1)
    assert [usage.allowed for usage in leases.report(1.0).usages] == [1]
    assert [usage.allowed for usage in leases.report(2.0).usages] == [0]
    assert not leases.report(LATELY_S).usages


def test_a_report_without_usage_keeps_it() -> None:
    leases = made()
    spend(leases, "acme", 0.0, 3)
    assert not leases.report(0.0, usage=False).usages
    assert leases.presses
    assert used(leases, 0.0) == {("acme", ""): (2, 1, 0)}
    assert not leases.presses


def test_refused_calls_press_no_more_often_than_anybody_can_use_it_but_what_is_opened_does() -> None:
    asked: list[int] = []
    leases = made(press=lambda: asked.append(1))
    leases.prolong(FOR_EVER, 0.0)
    spend(leases, "acme", 0.0, 9)
    leases.report(0.0)
    asked.clear()
    spend(leases, "acme", 0.1, 9)
    assert leases.presses
    assert not asked
    spend(leases, "globex", 0.1, 1)
    assert asked == [1]
    leases.report(0.1)
    spend(leases, "acme", 0.2 + OFTEN_S, 9)
    assert asked == [1, 1]


def test_memory_is_bounded_and_named_tenants_always_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "MAX_TENANTS", 100)
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    allowed = [leases.take(f"t{number}", f"/x/{number}", 1, 0.0).allowed for number in range(100_000)]
    assert sum(allowed) == 102
    assert leases.take("t1", GET, 1, 0.0).allowed
    assert leases.take("acme", CREATE, 1, 0.0).allowed
    assert not leases.take("other", GET, 1, 0.0).allowed
    leases.report(0.0)
    assert leases.take("other", GET, 1, IDLE_S).allowed, "those that have long not called make room"


def test_a_server_that_has_as_many_tenants_as_it_may_looks_for_idle_ones_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "MAX_TENANTS", 100)
    leases, swept = made(), list[float]()
    monkeypatch.setattr(leases, "_sweep", swept.append)
    leases.prolong(FOR_EVER, 0.0)
    for number in range(1000):
        leases.take(f"t{number}", GET, 1, number / 500)
    assert len(swept) == 2


def test_a_bucket_with_a_share_is_not_forgotten() -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    spend(leases, "globex", 0.0, 2)
    leases.report(0.0)
    leases.grant([share("globex", 1, 1)], 0.0)
    leases.report(IDLE_S)
    assert spend(leases, "globex", IDLE_S, 5) == 1, "not opened anew"


@pytest.mark.parametrize("method", [GET, CREATE])
def test_a_call_that_was_silent_until_its_bucket_was_forgotten_counts(method: str) -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    assert spend(leases, "acme", 0.0, 1, method) == 1
    leases.report(1.0)
    leases.report(2 + IDLE_S)
    assert not leases._tenants
    assert leases.charge("acme", method, 50, 99.0) > 0
    part = "" if method == GET else method
    assert used(leases, 99.0) == {("acme", part): (50, 0, 0)}
    leases.grant([share("acme", 10, 10, part)], 99.0)
    assert spend(leases, "acme", 101.0, 1, method) == 0, "it is in debt"
    assert spend(leases, "acme", 105.0, 1, method) == 1


def test_what_is_put_back_into_a_bucket_that_was_forgotten_is_gone() -> None:
    leases = made()
    leases.give_back("acme", CREATE, 50, 9.0)
    assert not leases._tenants


def spilled(leases: Leases, now_s: float) -> dict[str, float]:
    return {usage.bucket.tenant: round(usage.spilled, 6) for usage in leases.report(now_s).usages}


def test_what_a_full_bucket_cannot_hold_is_told_once() -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    assert spend(leases, "globex", 0.0, 2) == STARTER
    leases.grant([share("globex", 10, 5)], 0.0)
    assert spilled(leases, 0.25) == {"globex": 0.0}
    assert spilled(leases, 1.0) == {"globex": 5.0}, "ten have come, of which it holds five"
    assert spend(leases, "globex", 1.5, 5) == 5
    assert spilled(leases, 1.5) == {"globex": 5.0}
    assert spilled(leases, 1.75) == {"globex": 0.0}


def test_what_is_put_in_once_is_used_as_far_as_there_is_room() -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    assert spend(leases, "globex", 0.0, 9) == STARTER
    leases.grant([Share(bucket=Bucket(policy=POLICY, tenant="globex"), rate=1, burst=5, more=3)], 0.0)
    assert spend(leases, "globex", 0.0, 9) == 3
    leases.grant([Share(bucket=Bucket(policy=POLICY, tenant="globex"), rate=1, burst=5, more=100)], 0.0)
    assert spend(leases, "globex", 0.0, 9) == 5
    assert spilled(leases, 0.0) == {"globex": 0.0}


@pytest.mark.parametrize("more", [math.nan, -5.0, math.inf])
def test_a_strange_amount_breaks_nothing(more: float) -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    assert spend(leases, "globex", 0.0, 9) == STARTER
    leases.grant([Share(bucket=Bucket(policy=POLICY, tenant="globex"), rate=1, burst=5, more=more)], 0.0)
    assert spend(leases, "globex", 0.0, 9) == (5 if more == math.inf else 0)
    assert 0 <= spilled(leases, 0.0)["globex"] <= 5


def test_once_the_lease_is_over_nothing_is_given_on_or_put_in() -> None:
    leases = made()  # KEEP_LAST
    leases.prolong(1.0, 0.0)
    spend(leases, "globex", 0.0, 2)
    leases.grant([share("globex", 10, 5)], 0.0)
    assert spilled(leases, 3.0) == {"globex": 0.0}
    assert spend(leases, "globex", 3.0, 9) == 5
    leases.grant([Share(bucket=Bucket(policy=POLICY, tenant="globex"), rate=10, burst=5, more=3)], 3.0)
    assert spend(leases, "globex", 3.0, 9) == 0
    assert spend(leases, "globex", 9.0, 5) == 5
    leases.prolong(FOR_EVER, 9.0)
    assert spilled(leases, 9.0) == {"globex": 0.0}, "others had it meanwhile"


def test_only_a_share_that_is_lower_is_waited_for() -> None:
    leases = made()
    leases.prolong(FOR_EVER, 0.0)
    spend(leases, "globex", 0.0, 1)
    assert not leases.grant([share("globex", 10, 5)], 0.0)
    assert not leases.grant([share("globex", 20, 5)], 0.0)
    assert leases.grant([share("globex", 15, 5)], 0.0)
