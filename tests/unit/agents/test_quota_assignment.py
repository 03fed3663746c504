"""What Envoys are told of their buckets."""

from typing import Any

import pytest
from google.protobuf import json_format

from meshwarden.agents.quota.assignment import ALLOW, DENY, IDLE_S, PATIENCE_S, RENEWAL_S, Assignments
from meshwarden.agents.quota.point import MAX_BUCKETS, Key
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.xds import api

POLICY = "platform/billing"
KEY = Key(POLICY, "acme", "")


def limits(**spec: Any) -> ServerLimits:
    said = {"policy": POLICY, "spec": {"service": "billing", **spec}}
    return json_format.ParseDict({"policies": [said]}, ServerLimits())


def share(rate: float, burst: float, key: Key = KEY) -> pb.Share:
    return pb.Share(bucket=key.to_proto(), rate=rate, burst=burst)


def strategies(actions: list[dict[str, Any]]) -> list[Any]:
    """What is assigned, or None for a bucket that is let go; each is what Envoy's schema takes."""
    api.build("envoy.service.rate_limit_quota.v3.RateLimitQuotaResponse", {"bucket_action": actions})
    return [action.get("quota_assignment_action", {}).get("rate_limit_strategy") for action in actions]


def tokens(rate: int, burst: int) -> dict[str, Any]:
    return {"token_bucket": {"max_tokens": burst, "tokens_per_fill": rate * 60, "fill_interval": "60s"}}


def test_a_share_becomes_a_bucket_that_fills_at_its_rate_rounded_down() -> None:
    assignments = Assignments()
    assignments.use(KEY, 0.0)
    assert assignments.due(limits(), 0.0) == []
    assignments.grant([share(12.59, 7.9)])
    assignments.prolong(3.0)
    (action,) = assignments.due(limits(), 0.1)
    assert action["bucket_id"] == {"bucket": {"policy": POLICY, "tenant": "acme", "method": ""}}
    assert strategies([action]) == [{"token_bucket": {"max_tokens": 7, "tokens_per_fill": 755, "fill_interval": "60s"}}]


def test_a_bucket_that_nobody_speaks_of_gets_a_little_after_a_moment() -> None:
    assignments = Assignments()
    assignments.use(KEY, 0.0)
    assert assignments.due(limits(), PATIENCE_S / 2) == []
    assert strategies(assignments.due(limits(), PATIENCE_S)) == [tokens(2, 2)]


def test_what_holds_is_said_once_and_renewed() -> None:
    assignments = Assignments()
    assignments.use(KEY, 0.0)
    assignments.grant([share(10, 10)])
    assert len(assignments.due(limits(), 0.0)) == 1
    assert assignments.due(limits(), RENEWAL_S / 2) == []
    assert strategies(assignments.due(limits(), RENEWAL_S)) == [tokens(10, 10)]


@pytest.mark.parametrize(
    ("spec", "after", "ttl"),
    [
        ({}, tokens(10, 10), "86400s"),
        ({"whenAway": "KEEP_LAST"}, tokens(10, 10), "86400s"),
        ({"whenAway": "DENY"}, DENY, "4s"),
        ({"whenAway": "FALLBACK", "fallback": {"requests": 3, "burst": 1}}, tokens(3, 1), "4s"),
    ],
)
def test_when_a_lease_ends_the_policy_says_what_holds(spec: dict[str, Any], after: Any, ttl: str) -> None:
    assignments, said = Assignments(), limits(**spec)
    assignments.use(KEY, 0.0)
    assignments.grant([share(10, 10)])
    assignments.prolong(3.0)
    (action,) = assignments.due(said, 0.0)
    assert strategies([action]) == [tokens(10, 10)]
    assert action["quota_assignment_action"]["assignment_time_to_live"] == ttl
    assert strategies(assignments.due(said, 3.0)) == [after]
    assignments.prolong(6.0)
    assert strategies(assignments.due(said, 4.0)) == [tokens(10, 10)]


def test_in_shadow_all_calls_pass() -> None:
    assignments = Assignments()
    assignments.use(KEY, 0.0)
    assignments.grant([share(1, 1)])
    assert strategies(assignments.due(limits(shadow=True), 0.0)) == [ALLOW]


def test_nothing_is_denied_and_a_bucket_at_rest_let_go() -> None:
    assignments = Assignments()
    assignments.use(KEY, 0.0)
    assignments.grant([share(0, 0)])
    assignments.prolong(100.0)
    assert strategies(assignments.due(limits(), 1.0)) == [DENY]
    assert strategies(assignments.due(limits(), IDLE_S)) == [None]
    assert assignments.due(limits(), IDLE_S + RENEWAL_S) == []


def test_buckets_of_a_policy_that_has_ended_are_let_go() -> None:
    assignments = Assignments()
    assignments.use(KEY, 0.0)
    assert strategies(assignments.due(ServerLimits(policies=[PolicyLimits(policy="platform/other")]), 0.0)) == [None]


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0, 1e300, 0.09])
def test_absurd_shares_break_nothing(rate: float) -> None:
    assignments = Assignments()
    assignments.use(KEY, 0.0)
    assignments.grant([share(rate, rate)])
    strategies(assignments.due(limits(), 0.0))


def test_buckets_are_bounded() -> None:
    assignments = Assignments()
    assert all(assignments.use(Key(POLICY, f"t{number}", ""), 0.0) for number in range(MAX_BUCKETS))
    assert not assignments.use(KEY, 0.0)
    assert assignments.use(Key(POLICY, "t1", ""), 0.0)
