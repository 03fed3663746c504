from fractions import Fraction

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.sdk.quota.limit import MAX_BUCKETS, Decision, Limiter, retry_after
from meshwarden.v1.node_service_pb2 import PolicyLimits
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

GET = "/shop.v1.Orders/Get"


def limits(tenant: str = "acme", requests: int = 8, per_s: int = 1, burst: int = 4) -> PolicyLimits:
    rate = RateLimit(tenant=tenant, requests=requests, per=Duration(seconds=per_s), burst=burst)
    return PolicyLimits(policy="platform/orders", spec=RatePolicySpec(scope=RatePolicySpec.POINT, limits=[rate]))


def limiter(config: PolicyLimits) -> Limiter:
    made = Limiter()
    made.update(config, 0.0)
    return made


def spend(bucket: Limiter, tenant: str, now_s: float, tries: int) -> int:
    return sum(bucket.take(tenant, GET, 1, now_s).allowed for _ in range(tries))


# Powers of two for the rate and 64ths for the steps: the floats are exact, and so the oracle's word is final.
@given(
    rate=st.sampled_from([1, 2, 4, 8, 16, 64]),
    burst=st.integers(1, 20),
    steps=st.lists(st.integers(0, 200), max_size=120),
)
def test_it_decides_as_an_exact_token_bucket_does(rate: int, burst: int, steps: list[int]) -> None:
    bucket, tokens, now = limiter(limits(requests=rate, burst=burst)), Fraction(burst), Fraction(0)
    for step in steps:
        elapsed = Fraction(step, 64)
        now += elapsed
        tokens = min(Fraction(burst), tokens + elapsed * rate)
        decision = bucket.take("acme", GET, 1, float(now))
        assert decision.allowed == (tokens >= 1)
        if decision.allowed:
            tokens -= 1
        else:
            assert decision.retry_after_s == pytest.approx(float((1 - tokens) / rate))


@given(st.lists(st.floats(0, 0.5), max_size=300))
def test_no_window_has_more_than_its_rate_and_burst(gaps: list[float]) -> None:
    bucket, now, allowed = limiter(limits(requests=20, burst=5)), 0.0, 0
    for gap in gaps:
        now += gap
        allowed += bucket.take("acme", GET, 1, now).allowed
    assert allowed <= 5 + 20 * now + 1e-6


def test_spent_calls_stay_spent_when_the_limits_change() -> None:
    bucket = limiter(limits(requests=8, burst=4))
    assert spend(bucket, "acme", 0.0, 10) == 4
    bucket.update(limits(requests=2, burst=4), 0.0)
    assert spend(bucket, "acme", 0.0, 10) == 0
    bucket.update(limits(requests=8, burst=6), 0.0)
    assert spend(bucket, "acme", 0.0, 10) == 2


def test_a_tenant_without_a_limit_is_not_limited_and_another_is_not_charged() -> None:
    bucket = limiter(limits(burst=1))
    assert spend(bucket, "acme", 0.0, 5) == 1
    assert spend(bucket, "globex", 0.0, 500) == 500


def test_the_star_gives_each_other_tenant_a_bucket_of_its_own() -> None:
    bucket = limiter(limits(tenant="*", burst=3))
    assert [spend(bucket, tenant, 0.0, 9) for tenant in ("acme", "globex")] == [3, 3]


def test_the_default_burst_is_a_tenth_of_a_second_and_at_least_one() -> None:
    assert spend(limiter(limits(requests=200, burst=0)), "acme", 0.0, 99) == 20
    assert spend(limiter(limits(requests=3, per_s=60, burst=0)), "acme", 0.0, 99) == 1


def test_forgetting_full_buckets_keeps_the_spent_ones() -> None:
    bucket = limiter(limits(tenant="*", requests=1, burst=2))
    spend(bucket, "early", 0.0, 1)
    for number in range(MAX_BUCKETS):
        bucket.take(f"t{number}", GET, 1, 10.0)
    assert spend(bucket, "t0", 10.0, 5) == 1


def test_retry_after_is_whole_seconds_and_never_zero() -> None:
    assert [retry_after(Decision(allowed=False, retry_after_s=wait)) for wait in (0.01, 1.0, 1.2)] == ["1", "1", "2"]
