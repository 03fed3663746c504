"""Bytes of messages: what is let in, what is owed, and what a point says that it wants while it refuses."""

from typing import Any

import pytest

from meshwarden.sdk.quota.admission import Admission, Taken
from meshwarden.sdk.quota.lease import OFTEN_S
from meshwarden.sdk.quota.limit import DEBT_S, Limiter
from meshwarden.sdk.quota.size import Sizes
from meshwarden.v1.node_service_pb2 import PolicyLimits
from meshwarden.v1.quota_service_pb2 import Bucket, Share
from meshwarden.v1.resources_pb2 import MethodLimit, RateLimit, RatePolicySpec

POLICY, GET, UPLOAD = "platform/files", "/f.Files/Get", "/f.Files/Upload"
RATE, BURST = 1000, 2000


def policy(**fields: Any) -> PolicyLimits:
    methods = [] if fields.get("scope") == RatePolicySpec.POINT else [MethodLimit(method=UPLOAD, bytes=100, burst=100)]
    limits = [RateLimit(tenant="acme", bytes=RATE, burst=BURST, methods=methods)]
    return PolicyLimits(policy=POLICY, spec=RatePolicySpec(limits=limits, **fields))


def leased(**fields: Any) -> Sizes:
    """With the whole limit, and a full bucket at 1000 s."""
    sizes = Sizes()
    sizes.update(policy(**fields), 0.0)
    sizes.take("acme", GET, 1, 0.0)
    sizes.grant([Share(bucket=Bucket(policy=POLICY, tenant="acme", unit="bytes"), rate=RATE, burst=BURST)], 0.0)
    sizes.prolong(1e9, 0.0)
    sizes.report(0.0)
    return sizes


def limiter() -> Limiter:
    made = Limiter()
    made.update(policy(scope=RatePolicySpec.POINT), 0.0)
    return made


@pytest.fixture(params=[leased, limiter])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param()


def called(engine: Any, *sizes: int, now_s: float = 1000.0) -> Admission | None:
    """A call with messages of such sizes; None if it was not let in."""
    if not engine.take("acme", GET, 1, now_s).allowed:
        return None
    call = Admission("acme", GET, lambda: now_s, sizes=[Taken(engine, 1, now_s)])
    for size_bytes in sizes:
        call.weigh(size_bytes)
    return call


def test_calls_are_let_in_while_something_is_left_whatever_they_take(engine: Any) -> None:
    for _ in range(2):
        assert called(engine, 400, 500) is not None
    assert called(engine, 0, 5200) is not None, "200 were left"
    assert called(engine) is None, "5000 are owed"
    assert not engine.take("acme", GET, 1, 1004.9).allowed
    assert engine.take("acme", GET, 1, 1005.1).allowed


def test_a_stream_waits_while_something_is_owed_and_not_longer(engine: Any) -> None:
    call = called(engine, 500)
    assert call is not None
    assert call.owed_s() == 0
    call.weigh(2500)
    assert call.owed_s() == pytest.approx(1.0)
    call.weigh(0)
    assert call.owed_s() == pytest.approx(1.0)
    call.end()
    call.weigh(10**9)
    assert call.owed_s() == pytest.approx(1.0), "after its end nothing counts"


def test_debt_has_a_bound(engine: Any) -> None:
    call = called(engine, 10**15)
    assert call is not None
    assert call.owed_s() == pytest.approx(DEBT_S + BURST / RATE)


def test_a_point_that_refuses_says_that_it_wants_as_much_as_calls_are_large() -> None:
    sizes = leased()
    for _ in range(4):
        assert called(sizes, 100, 500) is not None
    while called(sizes, 600) is not None:
        pass
    sizes.report(1000.0)
    for _ in range(10):
        assert called(sizes) is None
    (usage,) = sizes.report(1000.0).usages
    assert usage.allowed == 0
    assert usage.denied == pytest.approx(10 * (4 * 600 + 1) / 5, abs=1), "the first took a byte"


def test_streams_that_wait_say_so() -> None:
    asked: list[int] = []
    sizes = Sizes(lambda: asked.append(1))
    sizes.update(policy(), 0.0)
    sizes.prolong(1e9, 0.0)
    call = called(sizes, 5000, now_s=0.0)
    assert call is not None
    sizes.report(-OFTEN_S)
    asked.clear()
    assert call.owed_s() > 0
    (usage,) = sizes.report(0.0).usages
    assert usage.denied == 5000
    assert asked == [1]


def test_in_shadow_nothing_waits_and_all_is_counted_once() -> None:
    sizes = leased(shadow=True)
    for _ in range(10):
        call = called(sizes, 500, 500)
        assert call is not None
        assert call.owed_s() == 0
    (usage,) = sizes.report(1000.0).usages
    assert usage.allowed == 10_000
    assert usage.denied == 0
    assert usage.shadowed > 5000


def test_a_method_has_a_bucket_of_its_own_and_without_a_share_lets_one_call_in() -> None:
    sizes = leased()
    assert sizes.take("acme", UPLOAD, 1, 1000.0).allowed
    sizes.charge("acme", UPLOAD, 50_000, 1000.0)
    assert sizes.take("acme", UPLOAD, 1, 1000.0).level == "method"
    assert sizes.take("acme", GET, 1, 1000.0).allowed


@pytest.mark.parametrize(("away", "is_let_in"), [(RatePolicySpec.KEEP_LAST, True), (RatePolicySpec.DENY, False)])
def test_while_nobody_divides_a_point_without_a_share_has_a_fiftieth_or_nothing(away: Any, is_let_in: bool) -> None:
    sizes = Sizes()
    sizes.update(policy(when_away=away), 0.0)
    assert sizes.take("acme", GET, 1, 0.0).allowed is is_let_in
    sizes.charge("acme", GET, 100, 0.0)
    assert sizes.take("acme", GET, 1, 10.0).allowed is is_let_in, "20 bytes come each second"


def test_what_another_policy_refused_took_nothing(engine: Any) -> None:
    assert engine.take("acme", GET, 1, 1000.0).allowed
    engine.give_back("acme", GET, 1, 1000.0)
    call = called(engine, BURST)
    assert call is not None
    assert call.owed_s() == 0
    assert called(engine) is None
