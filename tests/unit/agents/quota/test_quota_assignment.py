"""What Envoys are told of their buckets."""

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.agents.quota.assignment import (
    ALLOW,
    BACK_S,
    DENY,
    IDLE_S,
    MORE_S,
    PATIENCE_S,
    RENEWAL_S,
    Assignments,
)
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
    assignments.report(KEY, 0, 0, 0.0)
    assert assignments.due(limits(), 0.0) == []
    assignments.grant([share(12.59, 7.9)], 0.0)
    assignments.prolong(3.0)
    (action,) = assignments.due(limits(), 0.1)
    assert action["bucket_id"] == {"bucket": {"policy": POLICY, "tenant": "acme", "method": ""}}
    assert strategies([action]) == [{"token_bucket": {"max_tokens": 7, "tokens_per_fill": 755, "fill_interval": "60s"}}]


def test_a_bucket_that_nobody_speaks_of_gets_a_little_after_a_moment() -> None:
    assignments = Assignments()
    assignments.report(KEY, 0, 0, 0.0)
    assert assignments.due(limits(), PATIENCE_S / 2) == []
    assert strategies(assignments.due(limits(), PATIENCE_S)) == [tokens(2, 2)]


@pytest.mark.parametrize(
    ("key", "burst"),
    [
        (KEY, 2000),
        (Key(POLICY, "globex", ""), 20),
        (Key(POLICY, "acme", "/p.S/Pay"), 10),
        (Key(POLICY, "acme", "writes"), 4),
        (Key(POLICY, "acme", "/p.S/Seldom"), 2),
    ],
)
def test_a_bucket_far_below_its_limit_waits_for_no_share(key: Key, burst: int) -> None:
    methods = [
        {"method": "/p.S/Pay", "requests": 500, "burst": 500},
        {"class": "writes", "methods": ["/p.S/Put"], "requests": 200, "burst": 200},
        {"method": "/p.S/Seldom", "requests": 9, "burst": 9},
    ]
    said = [
        {"tenant": "acme", "requests": 100_000, "burst": 100_000, "methods": methods},
        {"tenant": "*", "requests": 1000, "burst": 1000},
    ]
    assignments = Assignments()
    assignments.report(key, 0, 0, 0.0)
    assert strategies(assignments.due(limits(limits=said), PATIENCE_S)) == [tokens(2, burst)]


def test_what_holds_is_said_once_and_renewed() -> None:
    assignments = Assignments()
    assignments.report(KEY, 0, 0, 0.0)
    assignments.grant([share(10, 10)], 0.0)
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
    assignments.report(KEY, 0, 0, 0.0)
    assignments.grant([share(10, 10)], 0.0)
    assignments.prolong(3.0)
    (action,) = assignments.due(said, 0.0)
    assert strategies([action]) == [tokens(10, 10)]
    assert action["quota_assignment_action"]["assignment_time_to_live"] == ttl
    assert strategies(assignments.due(said, 3.0)) == [after]
    assignments.prolong(6.0)
    assert strategies(assignments.due(said, 4.0)) == [tokens(10, 10)]


def test_in_shadow_all_calls_pass() -> None:
    assignments = Assignments()
    assignments.report(KEY, 0, 0, 0.0)
    assignments.grant([share(1, 1)], 0.0)
    assert strategies(assignments.due(limits(shadow=True), 0.0)) == [ALLOW]


def test_nothing_is_denied_and_a_bucket_at_rest_let_go() -> None:
    assignments = Assignments()
    assignments.report(KEY, 0, 0, 0.0)
    assignments.grant([share(0, 0)], 0.0)
    assignments.prolong(100.0)
    assert strategies(assignments.due(limits(), 1.0)) == [DENY]
    assert strategies(assignments.due(limits(), IDLE_S)) == [None]
    assert assignments.due(limits(), IDLE_S + RENEWAL_S) == []


def test_buckets_of_a_policy_that_has_ended_are_let_go() -> None:
    assignments = Assignments()
    assignments.report(KEY, 0, 0, 0.0)
    assert strategies(assignments.due(ServerLimits(policies=[PolicyLimits(policy="platform/other")]), 0.0)) == [None]


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0, 1e300, 0.09])
def test_absurd_shares_break_nothing(rate: float) -> None:
    assignments = Assignments()
    assignments.report(KEY, 0, 0, 0.0)
    assignments.grant([share(rate, rate)], 0.0)
    strategies(assignments.due(limits(), 0.0))


def test_buckets_are_bounded() -> None:
    assignments = Assignments()
    assert all(assignments.report(Key(POLICY, f"t{number}", ""), 0, 0, 0.0) == 0 for number in range(MAX_BUCKETS))
    assert assignments.report(KEY, 0, 0, 0.0) is None
    assert assignments.report(Key(POLICY, "t1", ""), 0, 0, 0.0) == 0


def opened(rate: float, burst: float, now_s: float = 0.0) -> Assignments:
    """A bucket that has a share and was told of it."""
    assignments = Assignments()
    assignments.report(KEY, 0, 0, now_s)
    assignments.grant([share(rate, burst)], now_s)
    assignments.prolong(1e9)
    assignments.due(limits(), now_s)
    return assignments


def rate_of(actions: list[dict[str, Any]]) -> float:
    (said,) = strategies(actions)
    return float(said["token_bucket"]["tokens_per_fill"]) / 60


def test_less_is_told_at_once_and_more_when_the_last_change_is_a_while_ago() -> None:
    assignments = opened(10, 10)
    assignments.grant([share(20, 10)], 0.5)
    assert assignments.due(limits(), 0.5) == []
    assignments.grant([share(5, 10)], 0.6)
    assert rate_of(assignments.due(limits(), 0.6)) == 5
    assignments.grant([share(20, 10)], 0.7)
    assert rate_of(assignments.due(limits(), 0.6 + RENEWAL_S)) == 5  # what holds is renewed meanwhile
    assert rate_of(assignments.due(limits(), 0.6 + MORE_S)) == 20


def test_what_changes_took_from_a_bucket_that_refuses_calls_comes_back_to_it() -> None:
    assignments = opened(1, 1)
    assert assignments.report(KEY, 3, 4, 5.0) == 0
    # Two of five were lost: to one change, and what is left of a call.
    assert rate_of(assignments.due(limits(), 5.0)) == pytest.approx(1 + 2 / BACK_S, abs=1 / 60)
    assignments.report(KEY, 7, 1, 10.0)
    assert rate_of(assignments.due(limits(), 10.0)) == 1


def test_a_bucket_that_refuses_nothing_holds_its_burst_and_the_rest_runs_over() -> None:
    assignments = opened(2, 3)
    assert assignments.report(KEY, 4, 0, 5.0) == pytest.approx(3)
    assert assignments.report(KEY, 4, 0, 10.0) == pytest.approx(6)
    assert rate_of(assignments.due(limits(), 10.0)) == 2


def test_what_is_given_once_comes_as_a_faster_filling_until_the_next_report() -> None:
    assignments = opened(2, 3)
    said = share(2, 3)
    said.more = 5
    assignments.grant([said], MORE_S)
    assert rate_of(assignments.due(limits(), MORE_S)) == pytest.approx(
        2 + 5 / BACK_S, abs=1 / 60
    )  # Envoys fill by whole calls a minute


@pytest.mark.parametrize("more", [float("nan"), float("inf"), -1.0, 1e300])
def test_what_is_no_amount_is_not_given(more: float) -> None:
    assignments = opened(2, 3)
    said = share(2, 3)
    said.more = more
    assignments.grant([said], MORE_S)
    assert rate_of(assignments.due(limits(), MORE_S)) == 2


class EnvoyBucket:
    """As Envoy 1.40 keeps it: what is changed holds the same part, in whole calls."""

    def __init__(self) -> None:
        self.most, self.rate, self.left, self.at_s = 1, 0.0, 0.0, 0.0

    def fill(self, now_s: float) -> None:
        self.left = min(self.most, self.left + (now_s - self.at_s) * self.rate)
        self.at_s = now_s

    def obey(self, actions: list[dict[str, Any]], now_s: float) -> None:
        self.fill(now_s)
        for said in strategies(actions):
            bucket = said.get("token_bucket", {"max_tokens": 1, "tokens_per_fill": 0})
            most, rate = bucket["max_tokens"], bucket["tokens_per_fill"] / 60
            if (most, rate) != (self.most, self.rate):
                self.left = float(int(most * (self.left / self.most)))
                self.most, self.rate = most, rate

    def take(self, now_s: float) -> bool:
        self.fill(now_s)
        is_allowed = self.left >= 1
        self.left -= is_allowed
        return is_allowed


@given(
    st.lists(
        st.tuples(st.sampled_from([0.3, 0.7, 2.0, 9.5]), st.integers(min_value=0, max_value=12)),
        min_size=80,
        max_size=240,
    )
)
def test_no_more_is_let_through_than_a_share_gives_but_for_what_its_bucket_holds_and_changes_may_have_taken(
    quarters: list[tuple[float, int]],
) -> None:
    assignments, envoy = opened(0.3, 2), EnvoyBucket()
    gave, served, changes = 0.0, 0, 0
    used = [0, 0]
    for number, (rate, calls) in enumerate(quarters):
        now_s = (number + 1) / 4
        for call in range(calls):
            is_allowed = envoy.take(now_s - 0.25 + 0.25 * call / calls)
            served += is_allowed
            used[not is_allowed] += 1
        if number % 20 == 19:
            assignments.report(KEY, used[0], used[1], now_s)
            used = [0, 0]
        before = (envoy.most, envoy.rate)
        assignments.grant([share(rate, 2)], now_s)
        envoy.obey(assignments.due(limits(), now_s), now_s)
        changes += before != (envoy.most, envoy.rate)
        gave += rate / 4
    # The bucket itself, and twice what changes between two reports can take.
    assert served <= gave + 2 + 2 * (20 + 1) + 9.5
