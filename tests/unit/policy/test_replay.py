"""The ledger held against a change: what is decided is right, and what isn't is said with what it depends on."""

from typing import Any

import pytest
from google.protobuf import json_format

from meshwarden.controlplane.policy.foresight.replay import Replay, Seen
from meshwarden.controlplane.policy.foresight.replay_limit import LimitReplay, Minute, counted, policies_of
from meshwarden.controlplane.policy.foresight.verdict import Judge
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.v1 import resources_pb2
from meshwarden.v1.preview_service_pb2 import ReplayedCalls


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def allow(*rules: dict[str, Any]) -> Change:
    return made("AccessPolicy", "platform", "orders", {"service": "orders", "allow": list(rules)})


def web(*methods: str, **caller: str) -> dict[str, Any]:
    return {"from": [caller or {"tenant": "acme", "service": "web"}], "methods": list(methods)}


def rate(**limit: Any) -> Change:
    return made("RatePolicy", "platform", "much", {"service": "orders", "limits": [{"tenant": "acme", **limit}]})


BASE = (
    made("Service", "platform", "orders", {"protocol": "GRPC", "exportTo": ["acme"]}),
    made("Service", "platform", "stock", {"protocol": "HTTP"}),
    allow(web("/s.O/*")),
)
WEB, ORDERS = "acme/web", "platform/orders"


def replayed(
    changes: list[Change], rows: list[Seen], minutes: list[Minute] | None = None, before: tuple[Change, ...] = BASE
) -> tuple[Replay, list[ReplayedCalls], list[ReplayedCalls]]:
    mesh = Mesh("mesh.test")
    mesh.apply(before)
    after = mesh.fork()
    impact = after.apply(changes)
    judges = (Judge(mesh), Judge(after))
    policies = policies_of(judges, impact)
    replay = Replay(*judges, frozenset(impact.services | impact.servers), counted(judges, policies))
    replay.add(rows)
    limits = LimitReplay(*judges, policies, replay.passed)
    limits.add(minutes or [])
    return replay, replay.found(), list(limits.found())


def test_calls_that_would_newly_be_denied_are_counted_once_though_both_sides_told_of_them() -> None:
    rows = [
        Seen(WEB, ORDERS, "/s.O/Get", 7, 10),
        Seen(WEB, ORDERS, "/s.O/List", 4, 0),
        Seen(WEB, "platform/stock", "GET /", 1, 1),
    ]
    replay, found, _ = replayed([allow(web("/s.O/List"))], rows)
    (one,) = found
    assert (one.outcome, one.calls, one.method, len(one.told_by)) == (ReplayedCalls.DENIED, 10, "/s.O/Get", 2)
    assert (one.before.resource, one.before.field) == ("AccessPolicy platform/orders", "spec.allow[0]")
    assert replay.totals == {ReplayedCalls.DENIED: 10, ReplayedCalls.OUTCOME_UNSPECIFIED: 5}


def test_calls_of_whom_nobody_may_call_become_allowed() -> None:
    _, (one,), _ = replayed(
        [allow(web(), web(tenant="acme", service="job"))], [Seen("acme/job", ORDERS, "/s.O/Get", 3, 3)]
    )
    assert (one.outcome, one.after.field) == (ReplayedCalls.ALLOWED, "spec.allow[1]")


def test_a_split_says_how_many_would_move() -> None:
    def split(**weights: int) -> Change:
        shares = [{"version": version, "weight": weight} for version, weight in weights.items()]
        return made("RoutePolicy", "platform", "way", {"service": "orders", "rules": [{"split": shares}]})

    _, (one,), _ = replayed(
        [split(v1=50, v2=50)], [Seen(WEB, ORDERS, "/s.O/Get", 8, 8)], before=(*BASE, split(v1=90, v2=10))
    )
    assert (one.outcome, one.calls, one.moved) == (ReplayedCalls.REROUTED, 8, 0.4)
    assert (one.before.text, one.after.text) == ("90% to v1, 10% to v2", "50% to v1, 50% to v2")


HEADER = {"match": {"headers": [{"name": "x-beta", "exact": "1"}]}, "split": [{"version": "v2", "weight": 1}]}


@pytest.mark.parametrize(
    ("row", "change", "needs"),
    [
        (
            Seen(WEB, ORDERS, "/s.O/Get", 1, 1),
            made("RoutePolicy", "platform", "way", {"service": "orders", "rules": [HEADER]}),
            "the header x-beta",
        ),
        (Seen(WEB, ORDERS, "_OTHER", 1, 1), allow(web("/s.O/Get")), "which method it was"),
        (Seen(WEB, ORDERS, "GET /" + "a" * 600, 1, 1), allow(web("/s.O/Get")), "which method it was"),
        (
            Seen(WEB, ORDERS, "/s.O/Get", 1, 1),
            allow({**web(), "headers": [{"name": "x-a", "exact": "1"}]}),
            "the header x-a",
        ),
        (
            Seen(WEB, ORDERS, "/s.O/Get", 1, 1),
            allow({**web(), "during": {"weekly": [{"days": ["MONDAY"]}]}}),
            "when it was: a rule of access holds for a time",
        ),
        (
            Seen("spiffe://b.test/*", ORDERS, "/s.O/Get", 0, 1),
            allow(web(), web(spiffeId="spiffe://b.test/x")),
            "which caller it was",
        ),
        (
            Seen("spiffe://b.test/*", ORDERS, "_OTHER", 0, 1),
            allow(web("/s.O/Get", spiffeId="spiffe://b.test/x")),
            "which caller it was and which method it was",
        ),
        (
            Seen("overflow/overflow", "overflow/overflow", "overflow", 1, 0),
            allow(web("/s.O/Get")),
            "which service it was: the ledger had no room for its name",
        ),
    ],
)
def test_what_the_ledger_does_not_record_is_undecidable(row: Seen, change: Change, needs: str) -> None:
    trust = made("TrustDomain", "platform", "b", {"trustDomain": "b.test"})
    replay, (one,), _ = replayed([change], [row], before=(*BASE, trust))
    assert (one.outcome, one.needs) == (ReplayedCalls.UNDECIDABLE, needs)
    assert replay.totals[ReplayedCalls.UNDECIDABLE] == 1


def test_what_is_not_recorded_and_makes_no_difference_is_decided() -> None:
    trust = made("TrustDomain", "platform", "b", {"trustDomain": "b.test"})
    everybody = web(trustDomain="b.test")
    _, (one,), _ = replayed(
        [allow(web(), everybody)], [Seen("spiffe://b.test/*", ORDERS, "_OTHER", 0, 5)], before=(*BASE, trust)
    )
    assert (one.outcome, one.calls) == (ReplayedCalls.ALLOWED, 5)
    _, found, _ = replayed([allow(web())], [Seen("unknown/unknown", ORDERS, "_OTHER", 0, 5)])
    assert found == [], "nobody is nobody"


def at(minute: int, calls: int, method: str = "/s.O/Get", limited: int = 0) -> Minute:
    return Minute(minute * 60, "eu", WEB, ORDERS, method, calls, calls, limited)


def limited(change: Change, *minutes: Minute, before: tuple[Change, ...] = BASE) -> list[ReplayedCalls]:
    calls = sum(row.by_source for row in minutes)
    return replayed([change], [Seen(WEB, ORDERS, "/s.O/Get", calls, calls)], list(minutes), before)[2]


def test_calls_beyond_what_a_limit_lets_through_in_a_minute_are_limited_for_sure() -> None:
    (one,) = limited(rate(requests=1, burst=1), at(0, 100), at(1, 30))
    assert (one.outcome, one.calls) == (ReplayedCalls.LIMITED, 39)
    assert (getattr(one, "from"), one.to, one.before.text) == ("acme/*", ORDERS, "not limited")
    assert one.after.text == "1 calls in 1 s, 1 at once"


def test_calls_that_may_have_come_at_once_are_undecidable() -> None:
    (one,) = limited(rate(requests=1, burst=5), at(0, 30))
    assert (one.outcome, one.needs) == (ReplayedCalls.UNDECIDABLE, "when within their minutes the calls came")
    assert limited(rate(requests=1, burst=30), at(0, 30)) == []


def test_what_a_limit_refuses_already_is_not_told_again() -> None:
    before = (*BASE, rate(requests=2, burst=1))
    assert limited(rate(requests=3, burst=1), at(0, 500), before=before) == []
    (one,) = limited(rate(requests=1, burst=1), at(0, 500), before=before)
    assert one.calls == 439 - 379
    (one,) = limited(rate(requests=1, burst=1), at(0, 500, limited=400), before=before)
    assert one.calls == 39


@pytest.mark.parametrize(
    ("spec", "needs"),
    [
        ({"limits": [{"tenant": "acme", "bytes": 9}]}, "the bytes of each call"),
        ({"limits": [{"tenant": "acme", "cost": 9}]}, "the cost of each call"),
        ({"scope": "POINT", "limits": [{"tenant": "acme", "concurrent": 9}]}, "how many calls ran at once"),
        (
            {"scope": "POINT", "limits": [{"tenant": "acme", "requests": 9}]},
            "which enforcement point each call came to",
        ),
        ({"period": "DAY", "limits": [{"tenant": "acme", "requests": 9}]}, "what was used of the period before"),
    ],
)
def test_limits_on_what_is_not_recorded_are_undecidable(spec: dict[str, Any], needs: str) -> None:
    policy = made("RatePolicy", "platform", "much", {"service": "orders", **spec})
    (one,) = limited(policy, at(0, 500))
    assert (one.outcome, one.needs) == (ReplayedCalls.UNDECIDABLE, needs)


def test_a_limit_in_shadow_and_calls_that_are_denied_count_for_nothing() -> None:
    spec = {"service": "orders", "shadow": True, "limits": [{"tenant": "acme", "requests": 1}]}
    assert limited(made("RatePolicy", "platform", "much", spec), at(0, 500)) == []
    _, (denied,), found = replayed(
        [allow(web("/s.O/List")), rate(requests=1)], [Seen(WEB, ORDERS, "/s.O/Get", 500, 500)], [at(0, 500)]
    )
    assert (denied.outcome, found) == (ReplayedCalls.DENIED, [])


def test_a_method_and_a_total_have_limits_of_their_own() -> None:
    spec = {
        "service": "orders",
        "total": {"requests": 2, "burst": 1},
        "limits": [{"tenant": "acme", "requests": 9, "methods": [{"method": "/s.O/Get", "requests": 1, "burst": 1}]}],
    }
    found = limited(made("RatePolicy", "platform", "much", spec), at(0, 200))
    told = {(getattr(one, "from"), one.method): one.calls for one in found if one.outcome == ReplayedCalls.LIMITED}
    assert told == {("acme/*", "/s.O/Get"): 139}, "what one has refused comes to no other, of 200 in all"
    (other,) = (one for one in found if (getattr(one, "from"), one.method) == ("*", ""))
    assert other.needs == "which of their limits refuses them"


def test_many_rows_are_kept_by_what_matters_and_the_rest_is_counted() -> None:
    rows = [Seen(f"acme/w{number}", ORDERS, "/s.O/Get", number, 0) for number in range(1, 2501)]
    replay, found, _ = replayed([allow(web(tenant="acme", service="*"))], rows)
    assert (len(found), replay.omitted["rows"]) == (1000, 1500)
    assert (found[0].calls, replay.totals[ReplayedCalls.ALLOWED]) == (2500, sum(range(1, 2501)))
