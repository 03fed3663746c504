"""What `explain` says, stage by stage."""

from typing import Any

from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.policy.explain import explain
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.v1 import admin_service_pb2, resources_pb2
from meshwarden.v1.report_pb2 import CallStat


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def endpoint(name: str, version: str, health: str = "HEALTHY") -> Change:
    spec = {"service": "orders", "address": "127.0.0.1", "port": len(name), "version": version, "health": health}
    return made("Endpoint", "platform", name, spec)


ORDERS = made("Service", "platform", "orders", {"protocol": "GRPC", "exportTo": ["acme"]})
ALLOW = made(
    "AccessPolicy",
    "platform",
    "who",
    {"service": "orders", "allow": [{"from": [{"tenant": "acme", "service": "web"}], "methods": ["POST /s.O/Get"]}]},
)
SPLIT = made(
    "RoutePolicy",
    "platform",
    "way",
    {
        "service": "orders",
        "rules": [
            {"match": {"headers": [{"name": "x-beta", "exact": "1"}]}, "split": [{"version": "v2", "weight": 1}]},
            {"split": [{"version": "v1", "weight": 3}, {"version": "v2", "weight": 1}]},
        ],
    },
)


def asked(*changes: Change, method: str = "/s.O/Get", caller: str = "acme/web", by: str = "", **headers: str) -> Any:
    """The answer to an operator of tenant `by`, or of the mesh."""
    mesh = Mesh("mesh.test")
    mesh.apply(changes)
    request = admin_service_pb2.ExplainRequest(to="platform/orders", method=method, headers=headers)
    setattr(request, "from", caller)
    return explain(mesh, request, lambda tenant: by in ("", tenant))


def step(answer: Any, stage: str) -> Any:
    (found,) = [item for item in answer.steps if item.stage == stage]
    return found


def test_a_service_that_is_not_there_is_named() -> None:
    answer = asked()
    assert not answer.visible
    assert "there is no service platform/orders" in step(answer, "visibility").text


def test_not_exported_is_not_visible_and_says_where_to_change_that() -> None:
    answer = asked(ORDERS, caller="globex/web")
    assert not answer.visible
    assert (step(answer, "visibility").resource, step(answer, "visibility").field) == (
        "Service platform/orders",
        "spec.exportTo",
    )


def test_an_ambiguous_short_name_is_told() -> None:
    other = made("Service", "globex", "orders", {"protocol": "GRPC", "exportTo": ["acme"]})
    assert "orders alone is ambiguous: globex/orders, platform/orders" in step(asked(ORDERS, other), "visibility").text
    own = made("Service", "acme", "orders", {"protocol": "GRPC"})
    assert "orders alone is acme/orders" in step(asked(ORDERS, own), "visibility").text


def test_without_policy_denied_with_policy_the_rule_is_named() -> None:
    answer = asked(ORDERS)
    assert answer.decision == CallStat.DENIED
    assert "no AccessPolicy allows calls of platform/orders" in step(answer, "access").text
    answer = asked(ORDERS, ALLOW)
    assert answer.decision == CallStat.ALLOWED, "a gRPC call is a POST"
    assert (step(answer, "access").resource, step(answer, "access").field) == (
        "AccessPolicy platform/who",
        "spec.allow[0]",
    )
    assert "other methods, not this one" in step(asked(ORDERS, ALLOW, method="/s.O/Put"), "access").text
    assert "allows acme/job nothing" in step(asked(ORDERS, ALLOW, caller="acme/job"), "access").text


def test_a_denial_and_a_header_are_told_with_their_place() -> None:
    everybody = {"from": [{"tenant": "acme", "service": "*"}]}
    header = {"name": "x-purpose", "prefix": "audit"}
    rules = {
        "service": "orders",
        "allow": [{**everybody, "headers": [header]}],
        "deny": [{**everybody, "methods": ["/s.O/Drop"]}],
    }
    policy = made("AccessPolicy", "platform", "not", rules)
    allowed = step(asked(ORDERS, policy, **{"X-Purpose": "audit-7"}), "access")
    assert (allowed.field, allowed.ok) == ("spec.allow[0]", True)
    assert allowed.text.endswith("may call this, with header x-purpose that starts with 'audit'")
    without = step(asked(ORDERS, policy), "access")
    assert (without.field, without.ok) == ("spec.allow[0].headers", False)
    denied = step(asked(ORDERS, policy, method="/s.O/Drop", **{"x-purpose": "audit"}), "access")
    assert (denied.resource, denied.field, denied.ok) == ("AccessPolicy platform/not", "spec.deny[0]", False)
    outside = asked(ORDERS, policy, method="/s.O/Drop", by="acme", **{"x-purpose": "audit"})
    assert step(outside, "access").text == "denied: an AccessPolicy of tenant platform denies acme/web this"
    # Denials of one policy hold against what another allows.
    assert (
        asked(
            ORDERS,
            policy,
            made("AccessPolicy", "platform", "a", {"service": "orders", "allow": [everybody]}),
            method="/s.O/Drop",
        ).decision
        == CallStat.DENIED
    )
    only = made("AccessPolicy", "platform", "not", {"service": "orders", "deny": [everybody]})
    assert asked(ORDERS, only).decision == CallStat.DENIED


def test_routes_have_shares_and_healthy_endpoints() -> None:
    changes = (ORDERS, SPLIT, endpoint("a", "v1"), endpoint("bb", "v1", "UNHEALTHY"), endpoint("ccc", "v2", "DRAINING"))
    answer = asked(*changes)
    assert [(item.version, item.percent, item.healthy_endpoints) for item in answer.routes] == [
        ("v1", 75.0, 1),
        ("v2", 25.0, 0),
    ]
    assert (answer.healthy_endpoints, answer.endpoints) == (1, 3)
    assert step(answer, "endpoints").ok
    beta = asked(*changes, **{"X-Beta": "1"})
    assert step(beta, "route").field == "spec.rules[0]"
    assert not step(beta, "endpoints").ok, "nothing healthy where it goes"


def test_the_limit_is_told_with_its_place() -> None:
    limits = [{"tenant": "globex", "requests": 1}, {"tenant": "*", "requests": 600, "per": "60s"}]
    answer = asked(ORDERS, made("RatePolicy", "platform", "much", {"service": "orders", "limits": limits}))
    assert answer.limit == "600 calls in 60 s, 10 at once"
    assert step(answer, "limit").field == "spec.limits[1]"
    assert asked(ORDERS).limit == ""


def test_an_amount_for_a_period_is_told_with_it() -> None:
    day = {"service": "orders", "period": "DAY", "timeZone": "Asia/Tokyo", "limits": [{"tenant": "acme", "cost": 500}]}
    answer = asked(ORDERS, made("RatePolicy", "platform", "budget", day))
    assert answer.limit == "500 cost each day of Asia/Tokyo"


def test_a_limit_that_is_found_is_told_with_the_callers_part() -> None:
    spec = {"service": "orders", "scope": "POINT", "adaptive": {"max": 40}, "limits": [{"tenant": "acme", "weight": 3}]}
    answer = asked(ORDERS, made("RatePolicy", "platform", "room", spec))
    assert step(answer, "limit").field == "spec.limits[0]"
    part = "tenant acme has a part of weight 3, and what is spare"
    assert step(answer, "limit").text == f"each server takes from 4 to 40 calls at once, as it finds; {part}"
    spec["limits"] = [{"tenant": "acme", "concurrent": 7}]
    told = step(asked(ORDERS, made("RatePolicy", "platform", "room", spec)), "limit").text
    assert told.endswith("tenant acme has a part of weight 1, and what is spare, up to 7")
    spec["limits"] = []
    assert step(asked(ORDERS, made("RatePolicy", "platform", "room", spec)), "limit").field == "spec.adaptive"


LIMIT = made("RatePolicy", "platform", "much", {"service": "orders", "limits": [{"tenant": "*", "requests": 7}]})
HELD = (ORDERS, ALLOW, SPLIT, LIMIT, endpoint("a", "v1"))


def test_who_does_not_see_the_callees_tenant_gets_the_decision_and_no_resource() -> None:
    answer = asked(*HELD, by="acme")
    assert (answer.visible, answer.decision) == (True, CallStat.ALLOWED)
    assert [(item.stage, item.ok, item.resource, item.field) for item in answer.steps] == [
        ("visibility", True, "", ""),
        ("access", True, "", ""),
    ]
    assert (list(answer.routes), answer.limit, answer.endpoints) == ([], "", 0)
    denied = asked(*HELD, by="acme", method="/s.O/Put")
    assert denied.decision == CallStat.DENIED
    said = "denied: no AccessPolicy of tenant platform lets acme/web call this"
    assert step(denied, "access").text == said == step(asked(ORDERS, by="acme"), "access").text
    for name in ("platform/who", "platform/way", "platform/much", "v1", "7 calls"):
        assert name not in str(answer) + str(denied)


def test_a_service_that_is_not_exported_is_to_the_callers_operator_as_if_it_were_not_there() -> None:
    hidden = asked(*HELD, by="globex", caller="globex/web")
    assert hidden == asked(by="globex", caller="globex/web")
    assert [item.stage for item in hidden.steps] == ["visibility"]
    assert hidden.decision == CallStat.DENIED


def test_services_of_a_tenant_that_is_not_seen_are_not_named() -> None:
    others = made("Service", "globex", "orders", {"protocol": "GRPC", "exportTo": ["acme"]})
    for by in ("acme", "platform"):
        text = step(asked(*HELD, others, by=by), "visibility").text
        assert text.endswith("orders alone is ambiguous: platform/orders, another tenant's")
    own = made("Service", "acme", "orders", {"protocol": "GRPC"})
    assert step(asked(*HELD, own, by="acme"), "visibility").text.endswith("orders alone is acme/orders")
    assert step(asked(*HELD, own, by="platform"), "visibility").text.endswith("orders alone is another tenant's")


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=30))
def test_any_text_gets_an_answer_of_five_steps(caller: str, callee: str, method: str) -> None:
    mesh = Mesh("mesh.test")
    mesh.apply([ORDERS, ALLOW, SPLIT])
    request = admin_service_pb2.ExplainRequest(to=callee, method=method)
    setattr(request, "from", caller)
    assert len(explain(mesh, request).steps) == 5


def test_of_another_trust_domain_it_says_what_names_it() -> None:
    partner = made("TrustDomain", "platform", "partner", {"trustDomain": "partner.test"})
    rules = [{"from": [{"tenant": "acme", "service": "*"}]}, {"from": [{"trustDomain": "partner.test"}]}]
    policy = made("AccessPolicy", "platform", "who", {"service": "orders", "allow": rules})
    limits = {"service": "orders", "limits": [{"tenant": "acme", "requests": 1}, {"tenant": "*", "requests": 7}]}
    web = "spiffe://partner.test/tenant/acme/service/web"
    answer = asked(ORDERS, partner, policy, made("RatePolicy", "platform", "r", limits), caller=web)
    assert answer.decision == CallStat.ALLOWED
    assert step(answer, "access").field == "spec.allow[1]"
    assert step(answer, "access").text == "allowed: every identity of partner.test may call this"
    # It isn't acme's limit.
    assert step(answer, "limit").field == "spec.limits[1]"
    assert asked(ORDERS, policy, caller=web).decision == CallStat.DENIED, "where the trust domain was taken back"
    assert asked(ORDERS, partner, ALLOW, caller=web).decision == CallStat.DENIED


def test_of_what_is_served_elsewhere_it_says_by_whom() -> None:
    partner = made("TrustDomain", "platform", "partner", {"trustDomain": "partner.test"})
    spec = {"protocol": "GRPC", "exportTo": ["acme"], "spiffeId": "spiffe://partner.test/orders"}
    answer = asked(partner, made("Service", "platform", "orders", spec), endpoint("e", "v1"))
    assert answer.decision == CallStat.ALLOWED
    assert "spiffe://partner.test/orders serves it" in step(answer, "access").text


def test_what_becomes_of_a_call_beside_where_it_goes_is_told_with_its_field() -> None:
    rule = {
        "timeout": "2s",
        "retry": {"codes": ["UNAVAILABLE"], "attempts": 2, "perTryTimeout": "1s", "budget": {"percent": 20}},
        "fault": {
            "delay": {"fixedDelay": "0.5s", "percent": 1},
            "abort": {"grpcStatus": "ABORTED", "percent": 2},
            "headers": [{"name": "x-chaos", "present": True}],
        },
        "mirror": {"version": "v9", "percent": 5},
        "requestHeaders": {"set": [{"name": "x-plan", "value": "gold"}], "remove": ["cookie"]},
    }
    web = {"match": {"from": [{"tenant": "acme", "service": "web"}]}, **rule}
    spec = {"service": "orders", "idempotent": ["/s.O/Get"], "rules": [web]}
    policy = made("RoutePolicy", "platform", "way", spec)
    answer = asked(ORDERS, ALLOW, policy, **{"x-chaos": "1"})
    assert {
        (item.resource, item.field, item.text) for item in answer.steps if item.field.startswith("spec.rules[0].")
    } == {
        ("RoutePolicy platform/way", f"spec.rules[0].{field}", text)
        for field, text in {
            "timeout": "ends after 2 s, if its caller's deadline is later",
            "retry": "made again up to 2 times after UNAVAILABLE, 0.025 s to 0.25 s later; each attempt may take 1 s; "
            "at most 20% of the calls under way, or 3",
            "fault": "1% wait 0.5 s first; 2% end with ABORTED on purpose",
            "mirror": "a copy of 5% goes to version v9, if an Envoy makes the call",
            "requestHeaders": "sets x-plan; removes cookie, if an Envoy makes the call",
        }.items()
    }
    stages = [item.stage for item in asked(ORDERS, ALLOW, policy).steps]
    assert stages == ["visibility", "access", "route", "timeout", "retry", "mirror", "headers", "limit", "endpoints"]
    put = asked(ORDERS, ALLOW, policy, method="/s.O/Put")
    assert (step(put, "retry").field, step(put, "retry").text.partition(":")[0]) == (
        "spec.idempotent",
        "not made again once a server may have seen it",
    )
    other = asked(ORDERS, ALLOW, policy, caller="acme/shop")
    assert [item.stage for item in other.steps] == ["visibility", "access", "route", "limit", "endpoints"]
    foreign = asked(ORDERS, ALLOW, policy, caller="spiffe://partner.example/acme")
    assert step(foreign, "route").resource == ""
