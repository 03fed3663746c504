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
    decisions = [limits.take("acme", GET) for _ in range(20)]
    assert [decision.allowed for decision in decisions] == [True] * 2 + [False] * 18
    assert {decision.policy for decision in decisions[2:]} == {"platform/narrow"}
    limits.update(ServerLimits(policies=[wide]))
    assert [limits.take("acme", GET).allowed for _ in range(5)] == [True] * 3 + [False] * 2
    assert limits.take("acme", GET).policy == "platform/wide"
    limits.update(ServerLimits())
    assert limits.take("acme", GET).allowed


def test_scopes_go_together(limits: Limits) -> None:
    mesh = said("platform/mesh", "acme", 100, RatePolicySpec.MESH)
    point = said("platform/point", "acme", 1, RatePolicySpec.POINT)
    limits.update(ServerLimits(policies=[mesh, point]))
    assert limits.take("acme", GET).allowed
    refused = limits.take("acme", GET)
    assert (refused.allowed, refused.policy) == (False, "platform/point")
    limits.update(ServerLimits(policies=[mesh]))
    assert limits.take("acme", GET).allowed, "the refused one was put back: a bucket is opened with two"
    assert limits.take("acme", GET).policy == "platform/mesh"
    message, trailing = limits.refusal(limits.take("acme", GET), "acme", GET)
    assert "rate policy platform/mesh limits tenant acme" in message
    assert dict(trailing)["x-meshwarden-policy"] == "RatePolicy platform/mesh"
