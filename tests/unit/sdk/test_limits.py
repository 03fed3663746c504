"""A server under several policies."""

import asyncio
import contextlib
import itertools
import math
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from meshwarden.sdk.backpressure.overload import PUSHBACK_KEY
from meshwarden.sdk.backpressure.retry import told_s
from meshwarden.sdk.quota import chunk as chunk_module
from meshwarden.sdk.quota import limits as limits_module
from meshwarden.sdk.quota.limits import POLICY_KEY, Limits
from meshwarden.sdk.quota.share import _Shares, _Stream
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.quota_service_pb2 import Bucket, Chunk, Share, ShareResponse
from meshwarden.v1.resources_pb2 import Rate, RateLimit, RatePolicySpec

GET = "/shop.v1.Orders/Get"
ORDERS = "platform/orders"


class Silent:
    """An agent that answers nothing."""

    def __init__(self) -> None:
        self.observed: list[Any] = []

    def observe(self, states: Any) -> None:
        """Will ask how it is with calls at once."""
        self.observed.append(states)

    def unobserve(self, states: Any) -> None:
        """Won't any more."""
        self.observed.remove(states)

    def share(self, requests: Any) -> Iterator[Any]:
        """No answer to what a server has used."""
        next(requests)
        return iter(())


def said(name: str, tenant: str, burst: int, scope: "RatePolicySpec.Scope.ValueType") -> PolicyLimits:
    limit = RateLimit(tenant=tenant, requests=1, burst=burst)
    limit.per.seconds = 3600
    return PolicyLimits(policy=name, spec=RatePolicySpec(scope=scope, limits=[limit]))


@pytest.fixture
def agent() -> Any:
    return Silent()


@pytest.fixture
def limits(agent: Any) -> Iterator[Limits]:
    made = Limits(agent, lambda: 100.0)
    yield made
    made.close()
    assert agent.observed == []


def test_a_call_must_pass_every_policy_and_costs_those_nothing_that_let_a_refused_one_pass(limits: Limits) -> None:
    wide = said("platform/wide", "acme", 5, RatePolicySpec.POINT)
    narrow = said("platform/narrow", "acme", 2, RatePolicySpec.POINT)
    limits.update(ServerLimits(policies=[wide, narrow]))
    decisions = [limits.admit("acme", GET).decision for _ in range(20)]
    assert [decision.allowed for decision in decisions] == [True] * 2 + [False] * 18
    assert {decision.policy for decision in decisions[2:]} == {"platform/narrow"}
    limits.update(ServerLimits(policies=[wide]))
    assert [limits.admit("acme", GET).decision.allowed for _ in range(5)] == [True] * 3 + [False] * 2
    assert limits.admit("acme", GET).decision.policy == "platform/wide"
    limits.update(ServerLimits())
    assert limits.admit("acme", GET).decision.allowed


def test_scopes_go_together(limits: Limits) -> None:
    mesh = said("platform/mesh", "acme", 100, RatePolicySpec.MESH)
    point = said("platform/point", "acme", 1, RatePolicySpec.POINT)
    limits.update(ServerLimits(policies=[mesh, point]))
    assert limits.admit("acme", GET).decision.allowed
    refused = limits.admit("acme", GET).decision
    assert (refused.allowed, refused.policy) == (False, "platform/point")
    limits.update(ServerLimits(policies=[mesh]))
    assert limits.admit("acme", GET).decision.allowed, "the refused one was put back: a bucket is opened with two"
    assert limits.admit("acme", GET).decision.policy == "platform/mesh"
    told = limits.refusal(limits.admit("acme", GET).decision, "acme", GET)
    assert "rate policy platform/mesh limits tenant acme" in told.message
    assert dict(told.trailing)["x-meshwarden-policy"] == "RatePolicy platform/mesh"


def test_a_refused_caller_is_told_the_limit_in_the_drafts_fields(limits: Limits) -> None:
    policy = said("platform/mesh", "acme", 100, RatePolicySpec.MESH)
    policy.spec.limits[0].methods.add(method=GET, requests=7, burst=7)
    writes = ["/shop.v1.Orders/Put", "/shop.v1.Orders/Drop"]
    policy.spec.limits[0].methods.add(call_class="writes", methods=writes, requests=5, burst=5)
    policy.spec.limits.add(tenant="*", requests=9, burst=9)
    limits.update(ServerLimits(policies=[policy]))

    def told(tenant: str, method: str) -> dict[str, str]:
        decisions = [limits.admit(tenant, method).decision for _ in range(3)]  # a bucket is opened with two
        return dict(limits.refusal(decisions[-1], tenant, method).headers)

    assert told("acme", "/other") == {
        "ratelimit-policy": '"platform/mesh tenant";q=1;w=3600;pk=:YWNtZQ==:',
        "ratelimit": '"platform/mesh tenant";r=0;t=3600;pk=:YWNtZQ==:',
    }
    assert told("acme", GET) == {
        "ratelimit-policy": '"platform/mesh method";q=7;w=1;pk=:YWNtZS9zaG9wLnYxLk9yZGVycy9HZXQ=:',
        "ratelimit": '"platform/mesh method";r=0;t=1;pk=:YWNtZS9zaG9wLnYxLk9yZGVycy9HZXQ=:',
    }
    assert (
        told("acme", "/shop.v1.Orders/Drop")["ratelimit-policy"]
        == '"platform/mesh class";q=5;w=1;pk=:YWNtZS93cml0ZXM=:'
    )
    refused = limits.admit("acme", "/shop.v1.Orders/Put").decision
    assert "tenant acme at its class writes" in limits.refusal(refused, "acme", "/shop.v1.Orders/Put").message
    assert told("globex", GET)["ratelimit-policy"] == '"platform/mesh tenant";q=9;w=1;pk=:Z2xvYmV4:'
    refused = limits.admit("acme", GET).decision
    limits.update(ServerLimits())
    assert dict(limits.refusal(refused, "acme", GET).headers).keys() == {"ratelimit"}, "of a policy that has gone"


def adaptive(least: int, most: int, name: str = "platform/room") -> PolicyLimits:
    spec = RatePolicySpec(scope=RatePolicySpec.POINT, limits=[RateLimit(tenant="acme", weight=3)])
    spec.adaptive.min, spec.adaptive.max = least, most
    return PolicyLimits(policy=name, spec=spec)


def test_a_server_that_is_full_lets_nobody_in_until_a_call_ends(limits: Limits, agent: Any) -> None:
    limits.update(ServerLimits(policies=[adaptive(2, 2)]))
    admitted = [limits.admit("acme", GET) for _ in range(4)]
    assert [one.decision.allowed for one in admitted] == [True, True, False, False]
    ((states,),) = (one() for one in agent.observed)
    assert (states.policy, states.limit, states.in_flight) == ("platform/room", 2, 2)
    assert [(one.tenant, one.criticality, one.count) for one in states.shed] == [("acme", "CRITICAL", 2)]
    for one in admitted:
        one.end(is_measured=True)
        one.end()
    assert [limits.admit("acme", GET).decision.allowed for _ in range(3)] == [True, True, False]


def test_a_stream_has_a_place_until_its_first_answer(limits: Limits) -> None:
    limits.update(ServerLimits(policies=[adaptive(1, 1)]))
    stream = limits.admit("acme", GET)
    assert not limits.admit("acme", GET).decision.allowed
    stream.answered()
    stream.answered()
    assert limits.admit("acme", GET).decision.allowed
    stream.end()
    assert not limits.admit("acme", GET).decision.allowed


def test_who_is_not_let_in_is_told_that_another_server_may_have_room(limits: Limits) -> None:
    limits.update(ServerLimits(policies=[adaptive(1, 1)]))
    limits.admit("acme", GET)
    told = limits.refusal(limits.admit("acme", GET).decision, "acme", GET)
    assert told.code is grpc.StatusCode.UNAVAILABLE
    assert "rate policy platform/room: this server has as many calls as it can do with" in told.message
    trailing = dict(told.trailing)
    assert (trailing["retry-after"], trailing[PUSHBACK_KEY]) == ("1", "1000")
    assert trailing[POLICY_KEY] == "RatePolicy platform/room"
    assert b"RetryInfo" in trailing["grpc-status-details-bin"]
    assert told.headers == ()


def test_who_finds_no_place_has_used_nothing_of_other_policies(limits: Limits) -> None:
    wide = said("platform/wide", "acme", 5, RatePolicySpec.POINT)
    limits.update(ServerLimits(policies=[adaptive(1, 1), wide]))
    first = limits.admit("acme", GET)
    assert [limits.admit("acme", GET).decision.policy for _ in range(20)] == ["platform/room"] * 20
    for _ in range(4):
        first.end()
        first = limits.admit("acme", GET)
        assert first.decision.allowed
    first.end()
    over = limits.admit("acme", GET)
    assert over.decision.policy == "platform/wide"
    over.end()
    limits.update(ServerLimits(policies=[adaptive(1, 1)]))
    assert limits.admit("acme", GET).decision.allowed, "who was over a limit held no place"


def test_what_was_found_stays_when_other_policies_change(limits: Limits) -> None:
    limits.update(ServerLimits(policies=[adaptive(1, 1)]))
    held = limits.admit("acme", GET)
    limits.update(ServerLimits(policies=[adaptive(1, 1), said("platform/wide", "acme", 5, RatePolicySpec.POINT)]))
    assert not limits.admit("acme", GET).decision.allowed
    held.end()
    assert limits.admit("acme", GET).decision.allowed


def test_a_server_takes_no_more_than_it_has_threads_but_one(agent: Any) -> None:
    few = Limits(agent, lambda: 100.0, most_calls=3)
    few.update(ServerLimits(policies=[adaptive(4, 1000)]))
    assert [few.admit("acme", GET).decision.allowed for _ in range(5)] == [True] * 3 + [False] * 2
    few.close()
    one = Limits(agent, lambda: 100.0, most_calls=0)
    one.update(ServerLimits(policies=[adaptive(4, 1000)]))
    assert one.admit("acme", GET).decision.allowed, "who has one thread serves one call"
    one.close()


def test_a_ceiling_holds_whatever_is_free(limits: Limits) -> None:
    policy = adaptive(10, 10)
    policy.spec.limits[0].concurrent = 2
    limits.update(ServerLimits(policies=[policy]))
    assert [limits.admit("acme", GET).decision.allowed for _ in range(4)] == [True, True, False, False]
    assert limits.admit("globex", GET).decision.allowed


def counting(unit: str, scope: "RatePolicySpec.Scope.ValueType", **fields: Any) -> ServerLimits:
    limit = RateLimit(tenant="acme", burst=9, **{unit: 9})
    return ServerLimits(
        policies=[PolicyLimits(policy=ORDERS, spec=RatePolicySpec(scope=scope, limits=[limit], **fields))]
    )


@pytest.mark.parametrize("scope", [RatePolicySpec.POINT, RatePolicySpec.MESH])
def test_what_a_call_did_cost_is_nothing_to_a_policy_that_counts_calls_by_then(limits: Limits, scope: Any) -> None:
    limits.update(counting("cost", scope))
    call = limits.admit("acme", GET)
    limits.update(counting("requests", scope))
    call.cost(1_000_000)
    call.end()
    assert limits.admit("acme", GET).decision.allowed


@pytest.mark.parametrize(
    ("fields", "is_kept"),
    [({"period": "DAY"}, True), ({"period": "HOUR"}, False), ({"period": "DAY", "time_zone": "Asia/Tokyo"}, False)],
)
def test_amounts_that_were_given_hold_for_what_they_were_given_for(fields: dict[str, Any], is_kept: bool) -> None:
    shares = _Shares(lambda: None, random.Random(1))
    first = counting("requests", RatePolicySpec.MESH, period=RatePolicySpec.DAY).policies
    chunks = shares.update(first, 0.0)[ORDERS]
    chunks.take("acme", GET, 1, 0.0)
    (usage,) = shares.report(0.0, usage=True, full=True).usages
    chunk = Chunk(series=usage.chunks.series, turn=1, amount=9, until=Duration(seconds=99))
    shares.grant([Share(bucket=Bucket(policy=ORDERS, tenant="acme"), chunk=chunk)], 0.0, 0.0)
    after = shares.update(counting("requests", RatePolicySpec.MESH, **fields).policies, 0.0)[ORDERS]
    assert after.take("acme", GET, 1, 0.0).allowed is is_kept


def test_a_share_in_another_unit_is_never_read_in_the_one_that_counts_now() -> None:
    shares = _Shares(lambda: None, random.Random(1))
    leases = shares.update(counting("requests", RatePolicySpec.MESH).policies, 0.0)[ORDERS]
    shares.prolong(9.0, 0.0)
    leases.take("acme", GET, 1, 0.0)
    named = Bucket(policy=ORDERS, tenant="acme")
    later = Bucket(policy=ORDERS, tenant="acme", unit="bytes")
    shares.grant([Share(bucket=named, rate=1, burst=1)], 0.0, 0.0)
    shares.grant([Share(bucket=later, rate=9, burst=9)], 0.0, 0.0)
    assert [held.rate for held in shares.report(0.0, usage=True, full=True).held] == [1]
    shares.update(counting("bytes", RatePolicySpec.MESH).policies, 0.0)[ORDERS].take("acme", GET, 1, 0.0)
    shares.grant([Share(bucket=named, rate=1, burst=1)], 0.0, 0.0)
    report = shares.report(0.0, usage=True, full=True)
    assert (list(report.held), report.usages[0].bucket) == ([], later)
    shares.grant([Share(bucket=later, rate=9, burst=9)], 0.0, 0.0)
    assert [held.bucket for held in shares.report(0.0, usage=True, full=True).held] == [later]


def test_a_chunk_is_no_share_to_what_counts_rates() -> None:
    shares = _Shares(lambda: None, random.Random(1))
    leases = shares.update(counting("requests", RatePolicySpec.MESH).policies, 0.0)[ORDERS]
    shares.prolong(9.0, 0.0)
    leases.take("acme", GET, 1, 0.0)
    shares.grant([Share(bucket=Bucket(policy=ORDERS, tenant="acme"), rate=5, burst=5)], 0.0, 0.0)
    shares.grant([Share(bucket=Bucket(policy=ORDERS, tenant="acme"), chunk=Chunk(series=1, amount=9))], 0.0, 0.0)
    assert [held.rate for held in shares.report(0.0, usage=True, full=True).held] == [5]


def test_who_counts_something_else_begins_a_stream_that_says_that_nothing_is_held() -> None:
    shares, pressing, closing = _Shares(lambda: None, random.Random(1)), threading.Event(), threading.Event()
    leases = shares.update(counting("requests", RatePolicySpec.MESH).policies, 0.0)[ORDERS]
    leases.take("acme", GET, 1, 0.0)
    shares.grant([Share(bucket=Bucket(policy=ORDERS, tenant="acme"), rate=5, burst=5)], 0.0, 0.0)
    shares.prolong(9.0, 0.0)
    stream = _Stream(shares, pressing, closing, lambda: 1.0)
    assert next(stream.requests()).points[0].held[0].rate == 5
    shares.update(counting("requests", RatePolicySpec.MESH).policies, 0.0)
    assert len(list(itertools.islice(stream.requests(), 2))) == 2, "nothing has changed"
    shares.update(counting("concurrent", RatePolicySpec.MESH).policies, 0.0)
    assert list(itertools.islice(stream.requests(), 1)) == []
    (report,) = next(_Stream(shares, pressing, closing, lambda: 1.0).requests()).points
    assert report.begins
    assert not report.held


DEAR: list[tuple[dict[str, Any], str]] = [
    ({"scope": RatePolicySpec.POINT}, "tenant acme to 9 at once"),
    ({"scope": RatePolicySpec.MESH}, "tenant acme to 9 at once"),
    ({"scope": RatePolicySpec.MESH, "when_away": RatePolicySpec.DENY}, "tenant acme to 9 at once"),
    ({"scope": RatePolicySpec.MESH, "period": RatePolicySpec.DAY}, "tenant acme to 9 a day"),
    (
        {"scope": RatePolicySpec.MESH, "period": RatePolicySpec.MONTH, "total": Rate(cost=7)},
        "all callers together to 7 a month",
    ),
]


@pytest.mark.parametrize(("fields", "limited"), DEAR)
def test_who_declares_more_than_can_ever_pass_is_told_so_and_not_to_try_again(
    limits: Limits, fields: dict[str, Any], limited: str
) -> None:
    limits.update(counting("cost", **fields))
    decision = limits.admit("acme", GET, [("x-meshwarden-cost", "10")]).decision
    assert not decision.allowed
    told = limits.refusal(decision, "acme", GET)
    assert told.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert told.message == f"rate policy {ORDERS} limits {limited}: a call that costs more never passes"
    trailing = dict(told.trailing)
    assert "retry-after" not in trailing
    assert trailing[PUSHBACK_KEY] == "-1"
    assert b"RetryInfo" not in trailing["grpc-status-details-bin"]  # type: ignore[operator]
    assert b"QuotaFailure" in trailing["grpc-status-details-bin"]  # type: ignore[operator]
    assert told_s(told.trailing) == math.inf
    cheaper = limits.refusal(limits.admit("acme", GET, [("x-meshwarden-cost", "7")]).decision, "acme", GET)
    assert "never" not in cheaper.message


def test_what_can_never_pass_is_not_asked_for() -> None:
    pressed = list[int]()
    chunks = _Shares(lambda: pressed.append(1), random.Random(1))
    held = chunks.update(counting("cost", RatePolicySpec.MESH, period=RatePolicySpec.DAY).policies, 0.0)[ORDERS]
    assert held.take("acme", GET, 1_000_000_000, 0.0).most == 9
    (usage,) = chunks.report(0.0, usage=True, full=True).usages
    assert (usage.chunks.wanted, usage.chunks.asks, usage.denied) == (0, False, 9)
    assert held.take("acme", GET, 9, 0.0).most is None
    (usage,) = chunks.report(0.0, usage=True, full=True).usages
    assert (usage.chunks.wanted, usage.chunks.asks) == (9, True)


class Giving(Silent):
    """An agent that gives what is asked for when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.gives = threading.Event(), threading.Event()

    def share(self, requests: Any) -> Iterator[ShareResponse]:
        """Answers each report; from `gives` on, one that asks with a chunk."""
        amount = 0.0
        for request in requests:
            answer = ShareResponse(answers=request.sequence, ttl=Duration(seconds=60))
            for usage in request.points[0].usages:
                if usage.chunks.asks:
                    self.asked.set()
                    assert self.gives.wait(20)
                    amount += usage.chunks.wanted
                    chunk = Chunk(series=usage.chunks.series, turn=1, amount=amount, until=Duration(seconds=99))
                    answer.points.add(point="p", shares=[Share(bucket=usage.bucket, chunk=chunk)])
            yield answer


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls wait for as long as it takes."""
    monkeypatch.setattr(chunk_module, "WAIT_S", 20.0)
    monkeypatch.setattr(limits_module, "WAIT_S", 20.0)


@pytest.mark.usefixtures("patient")
def test_the_first_call_of_a_period_passes() -> None:
    agent = Giving()
    made = Limits(agent, time.monotonic)  # type: ignore[arg-type]  # as far as it is used
    made.update(counting("requests", RatePolicySpec.MESH, period=RatePolicySpec.DAY))
    told = made.admit("acme", GET)
    assert not told.decision.allowed
    threading.Thread(target=lambda: agent.asked.wait(20) and agent.gives.set()).start()
    assert made.wait(told, ("acme", GET, ()), None).decision.allowed
    made.close()


@pytest.mark.usefixtures("patient")
async def test_calls_of_an_event_loop_wait_and_do_not_hold_it_up() -> None:
    agent = Giving()
    made = Limits(agent, time.monotonic)  # type: ignore[arg-type]  # as far as it is used
    made.update(counting("requests", RatePolicySpec.MESH, period=RatePolicySpec.DAY))
    waiting = [made.wait_aio(made.admit("acme", GET), ("acme", GET, ()), None) for _ in range(3)]
    late = asyncio.gather(*waiting)
    await asyncio.sleep(0)
    assert not late.done()
    agent.gives.set()
    assert [told.decision.allowed for told in await late] == [True] * 3
    gone = asyncio.ensure_future(made.wait_aio(made.admit("globex", GET), ("globex", GET, ()), None))
    await asyncio.sleep(0)
    gone.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await gone
    assert made._waiting == 0
    made.close()


@pytest.mark.parametrize(("most_calls", "left_s"), [(4, 0.0), (0, 0.0), (4, -1.0)])
def test_who_has_no_time_or_place_to_wait_is_refused(most_calls: int, left_s: float, agent: Any) -> None:
    made = Limits(agent, lambda: 100.0, most_calls)
    made.update(counting("requests", RatePolicySpec.MESH, period=RatePolicySpec.DAY))
    call = ("acme", GET, ())
    decision = made.wait(made.admit(*call), call, left_s).decision
    assert (decision.allowed, decision.coming, decision.retry_after_s) == (False, None, 0.5)
    assert made._waiting == 0
    made.close()


@pytest.mark.usefixtures("patient")
def test_no_more_wait_than_a_quarter_of_the_threads(agent: Any) -> None:
    made = Limits(agent, lambda: 100.0, most_calls=9)
    made.update(counting("requests", RatePolicySpec.MESH, period=RatePolicySpec.DAY))
    call = ("acme", GET, ())
    held = [made._waits(made.admit(*call), call, None) for _ in range(3)]
    assert [isinstance(next(one, None), tuple) for one in held] == [True, True, False]
    held[0].close()
    assert next(made._waits(made.admit(*call), call, None))
    made.close()


@pytest.mark.parametrize(("scope", "most"), [(RatePolicySpec.POINT, 9), (RatePolicySpec.MESH, 1)])
def test_the_ends_of_calls_that_began_before_a_policy_was_made_again_free_no_slot_of_it(
    limits: Limits, scope: Any, most: int
) -> None:
    limits.update(counting("concurrent", scope))
    before = [limits.admit("acme", GET) for _ in range(most + 1)]
    assert [one.decision.allowed for one in before] == [True] * most + [False]
    limits.update(ServerLimits())
    between = limits.admit("acme", GET)
    limits.update(counting("concurrent", scope))
    after = [limits.admit("acme", GET) for _ in range(most)]
    assert all(one.decision.allowed for one in after)
    for one in (*before, between):
        one.end()
    assert not limits.admit("acme", GET).decision.allowed
    after[0].end()
    assert [limits.admit("acme", GET).decision.allowed for _ in range(2)] == [True, False]
