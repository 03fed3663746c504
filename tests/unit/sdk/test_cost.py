"""Calls that cost more than one: what is declared, what is let in for it, and what is settled at the end."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.sdk.quota import cost
from meshwarden.sdk.quota.admission import Admission, Taken
from meshwarden.sdk.quota.bucket import IDLE_S
from meshwarden.sdk.quota.lease import Leases
from meshwarden.sdk.quota.limit import DEBT_S, Limiter
from meshwarden.sdk.quota.limits import Limits
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.quota_service_pb2 import Bucket, Share
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

POLICY, ASK = "daena/model", "/daena.Model/Generate"
RATE, BURST = 100, 1000


def policy(**fields: Any) -> PolicyLimits:
    limits = [RateLimit(tenant="acme", cost=RATE, burst=BURST)]
    return PolicyLimits(policy=POLICY, spec=RatePolicySpec(**{"limits": limits, "reserve": 50, **fields}))


def leased(**fields: Any) -> Leases:
    """With the whole limit, and a full bucket at 1000 s."""
    leases = Leases()
    leases.update(policy(**fields), 0.0)
    leases.take("acme", ASK, 1, 0.0)
    leases.grant([Share(bucket=Bucket(policy=POLICY, tenant="acme", unit="cost"), rate=RATE, burst=BURST)], 0.0)
    leases.prolong(1e9, 0.0)
    leases.report(0.0)
    return leases


def limiter() -> Limiter:
    made = Limiter()
    made.update(policy(scope=RatePolicySpec.POINT), 0.0)
    return made


@pytest.fixture(params=[leased, limiter])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param()


class Silent:
    """An agent that answers nothing."""

    def share(self, requests: Any) -> Iterator[Any]:
        """No answer to what a server has used."""
        next(requests)
        return iter(())


@pytest.fixture
def clock() -> list[float]:
    return [1000.0]


@pytest.fixture
def limits(clock: list[float]) -> Iterator[Limits]:
    agent: Any = Silent()
    made = Limits(agent, lambda: clock[0])
    made.update(ServerLimits(policies=[policy(scope=RatePolicySpec.POINT)]))
    yield made
    made.close()


def left(engine: Any, now_s: float) -> int:
    """How much can still be taken, all of which is taken."""
    return next(most for most in range(BURST, -1, -1) if most == 0 or engine.take("acme", ASK, most, now_s).allowed)


@pytest.mark.parametrize(
    "value",
    ["", "-1", "+1", "1.5", "1e3", "NaN", "inf", "0x10", " 1", "1 ", "1_000", "١٢", "²", "1000000001", "9" * 400, b"1"],
)
def test_what_is_no_cost_is_refused_by_its_header(value: Any) -> None:
    with pytest.raises(cost.Malformed, match=r"^x-meshwarden-cost: give one whole number up to 1000000000, in digits$"):
        cost.find_declared([("other", "x"), (cost.KEY, value)])
    assert cost.find_reported([(cost.KEY, value)]) is None, "of a service's own word only the log is told"


def test_a_cost_is_said_once() -> None:
    assert cost.find_declared([(cost.KEY, "0012")]) == 12
    assert cost.find_declared([(cost.KEY, "7"), (cost.KEY, "7")]) == 7
    assert cost.find_declared([("x", "7")]) is None
    with pytest.raises(cost.Malformed):
        cost.find_declared([(cost.KEY, "7"), (cost.KEY, "8")])


@given(st.text() | st.binary())
def test_any_value_is_a_cost_or_is_refused(value: Any) -> None:
    try:
        found = cost.find_declared([(cost.KEY, value)])
    except cost.Malformed:
        return
    assert found is not None
    assert 0 <= found <= cost.MAX_COST


@pytest.mark.parametrize("more", [-1, cost.MAX_COST + 1, float("nan"), float("inf"), -1e-9])
def test_a_handler_can_not_report_what_is_no_cost(more: Any) -> None:
    with pytest.raises(ValueError, match="a cost is between 0 and"):
        cost.report_cost(more)


def test_what_is_declared_is_taken_and_no_more_is_let_in(engine: Any) -> None:
    assert engine.take("acme", ASK, 600, 1000.0).allowed
    refused = engine.take("acme", ASK, 600, 1000.0)
    assert (refused.allowed, refused.level, refused.policy) == (False, "tenant", POLICY)
    assert refused.retry_after_s == pytest.approx(2.0)
    assert engine.take("acme", ASK, 400, 1000.0).allowed
    assert not engine.take("acme", ASK, 1, 1000.0).allowed
    engine.give_back("acme", ASK, 400, 1000.0)
    assert left(engine, 1000.0) == 400


def test_a_call_that_is_dearer_than_the_limits_burst_is_never_let_in(engine: Any) -> None:
    for now_s in (1000.0, 1e6):
        assert not engine.take("acme", ASK, BURST + 1, now_s).allowed
    assert engine.take("acme", ASK, BURST, 1e6).allowed


def test_a_small_share_lets_a_dear_call_in_and_pays_for_it_first() -> None:
    leases = leased()
    leases.grant([Share(bucket=Bucket(policy=POLICY, tenant="acme", unit="cost"), rate=10, burst=20)], 1000.0)
    assert leases.take("acme", ASK, 500, 1000.0).allowed, "else it would never pass anywhere"
    assert not leases.take("acme", ASK, 1, 1047.9).allowed, "480 are owed, and 10 come each second"
    assert leases.take("acme", ASK, 1, 1048.2).allowed


def test_debt_has_a_bound_and_is_not_forgotten_while_it_runs(engine: Any) -> None:
    assert engine.take("acme", ASK, 1, 1000.0).allowed
    assert engine.charge("acme", ASK, 1e12, 1000.0) == pytest.approx(DEBT_S + BURST / RATE)
    assert not engine.take("acme", ASK, 1, 1000.0 + DEBT_S + BURST / RATE - 0.1).allowed
    assert engine.take("acme", ASK, 1, 1000.0 + DEBT_S + BURST / RATE + 0.1).allowed


def test_a_bucket_in_debt_is_kept_until_the_limit_could_have_paid() -> None:
    leases = leased()
    assert leases.take("acme", ASK, BURST, 1000.0).allowed
    leases.charge("acme", ASK, 1e12, 1000.0)
    leases.grant([Share(bucket=Bucket(policy=POLICY, tenant="acme", unit="cost"))], 1000.0)
    leases.report(1000.0)
    leases.report(1000.0 + IDLE_S + 1)
    assert not leases.take("acme", ASK, 1, 1000.0 + IDLE_S + 1).allowed, "to stay away for a minute settles nothing"


def test_settled_up_and_down_once(engine: Any) -> None:
    for said, expected in (([], 900), ([30], 970), ([0], 1000), ([250, 150], 600)):
        assert engine.take("acme", ASK, 100, 1000.0).allowed
        call = Admission("acme", ASK, lambda: 1000.0, costs=[Taken(engine, 100, 1000.0)])
        for more in said:
            call.cost(more)
        call.end()
        call.cost(500)
        call.end([(cost.KEY, "900")])
        assert left(engine, 1000.0) == expected
        engine.charge("acme", ASK, -BURST, 1000.0)


def test_what_exceeds_the_reserve_counts_before_the_call_has_ended(engine: Any) -> None:
    assert engine.take("acme", ASK, 100, 1000.0).allowed
    call = Admission("acme", ASK, lambda: 1000.0, costs=[Taken(engine, 100, 1000.0)])
    call.cost(40)
    call.cost(40)
    assert not engine.take("acme", ASK, 901, 1000.0).allowed, "the reserve stands until the end"
    call.cost(220)
    assert left(engine, 1000.0) == 700


def test_trailing_metadata_settle_what_the_handler_says(engine: Any) -> None:
    assert engine.take("acme", ASK, 100, 1000.0).allowed
    call = Admission("acme", ASK, lambda: 1000.0, costs=[Taken(engine, 100, 1000.0)])
    call.cost(400)
    call.end([("x", "y"), (cost.KEY, "10")])
    assert left(engine, 1000.0) == 990


def test_what_is_put_back_after_it_was_reported_counts_against_what_comes() -> None:
    leases = leased()

    def allowed(now_s: float) -> int:
        return sum(usage.allowed for usage in leases.report(now_s).usages)

    assert leases.take("acme", ASK, 500, 1000.0).allowed
    assert allowed(1000.0) == 500
    leases.charge("acme", ASK, -400, 1000.0)
    assert allowed(1001.0) == 0
    assert leases.take("acme", ASK, 450, 1001.0).allowed
    assert allowed(1002.0) == 50, "of 550 that were used together 500 were told"


def test_in_shadow_what_a_call_costs_is_counted() -> None:
    leases = leased(shadow=True)
    assert all(leases.take("acme", ASK, 400, 1000.0).allowed for _ in range(5))
    (usage,) = leases.report(1000.0).usages
    assert (usage.allowed, usage.denied, usage.shadowed) == (2000, 0, 1200)


def test_a_server_takes_what_is_declared_and_no_less_than_is_reserved(limits: Limits) -> None:
    def room() -> int:
        most = next(most for most in range(BURST, 0, -1) if limits.admit("acme", ASK, said(most)).decision.allowed)
        limits.update(ServerLimits())
        limits.update(ServerLimits(policies=[policy(scope=RatePolicySpec.POINT)]))
        return most

    def said(most: int) -> list[tuple[str, str | bytes]]:
        return [(cost.KEY, str(most))]

    assert limits.admit("acme", ASK).decision.allowed
    assert room() == BURST - 50
    assert limits.admit("acme", ASK, said(300)).decision.allowed
    assert room() == BURST - 300
    assert all(limits.admit("acme", ASK, said(few)).decision.allowed for few in range(10))
    assert room() == BURST - 10 * 50, "nor does who declares little set the price"
    with pytest.raises(cost.Malformed):
        limits.admit("acme", ASK, [(cost.KEY, "many")])
    assert room() == BURST
    limits.update(ServerLimits())
    assert limits.admit("acme", ASK, [(cost.KEY, "many")]).decision.allowed, "where nobody counts it, nobody reads it"


def test_costs_and_calls_are_held_side_by_side(limits: Limits) -> None:
    calls = RatePolicySpec(scope=RatePolicySpec.POINT, limits=[RateLimit(tenant="acme", requests=1, burst=2)])
    both = [policy(scope=RatePolicySpec.POINT), PolicyLimits(policy="daena/z", spec=calls)]
    limits.update(ServerLimits(policies=both))
    first, second = (limits.admit("acme", ASK, [(cost.KEY, "400")]) for _ in range(2))
    assert first.decision.allowed
    assert second.decision.allowed
    for _ in range(50):
        assert limits.admit("acme", ASK, [(cost.KEY, "100")]).decision.policy == "daena/z"
    cost.report_cost(1)
    second.end()
    first.end()
    limits.update(ServerLimits(policies=both[:1]))
    assert limits.admit("acme", ASK, [(cost.KEY, "599")]).decision.allowed, "whom another policy refused cost nothing"
    assert not limits.admit("acme", ASK, [(cost.KEY, "1")]).decision.allowed


def test_a_refusal_has_no_fields_that_the_draft_has_no_unit_for(limits: Limits) -> None:
    refused = limits.admit("acme", ASK, [(cost.KEY, str(BURST + 1))]).decision
    told = limits.refusal(refused, "acme", ASK)
    assert told.headers == ()
    assert dict(told.trailing)["x-meshwarden-policy"] == f"RatePolicy {POLICY}"


def test_an_end_that_many_threads_tell_counts_once() -> None:
    engine = leased()
    assert engine.take("acme", ASK, 100, 1000.0).allowed
    call = Admission("acme", ASK, lambda: 1000.0, costs=[Taken(engine, 100, 1000.0)])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: call.end([(cost.KEY, "90")]), range(200)))
    assert left(engine, 1000.0) == 910
