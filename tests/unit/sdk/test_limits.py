"""A server under several policies."""

from collections.abc import Iterator
from typing import Any

import pytest

from meshwarden.sdk.limits import Limits
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

GET = "/shop.v1.Orders/Get"


class Silent:
    """An agent that answers nothing."""

    def share(self, requests: Any) -> Iterator[Any]:
        """No answer to what a server has used."""
        next(requests)
        return iter(())


def said(name: str, tenant: str, burst: int, scope: "RatePolicySpec.Scope.ValueType") -> PolicyLimits:
    limit = RateLimit(tenant=tenant, requests=1, burst=burst)
    limit.per.seconds = 3600
    return PolicyLimits(policy=name, spec=RatePolicySpec(scope=scope, limits=[limit]))


@pytest.fixture
def limits() -> Iterator[Limits]:
    agent: Any = Silent()
    made = Limits(agent, lambda: 100.0)
    yield made
    made.close()


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
    assert told("globex", GET)["ratelimit-policy"] == '"platform/mesh tenant";q=9;w=1;pk=:Z2xvYmV4:'
    refused = limits.admit("acme", GET).decision
    limits.update(ServerLimits())
    assert dict(limits.refusal(refused, "acme", GET).headers).keys() == {"ratelimit"}, "of a policy that has gone"
