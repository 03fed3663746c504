"""What a change does to whoever calls: named by caller, method and the rule that decides."""

from typing import Any

from google.protobuf import json_format

from meshwarden.controlplane.policy.foresight.effect import Budget, Effects
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.v1 import resources_pb2
from meshwarden.v1.preview_service_pb2 import ClientChange, PreviewResponse


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def service(tenant: str, name: str, *export_to: str, protocol: str = "GRPC") -> Change:
    return made("Service", tenant, name, {"protocol": protocol, "exportTo": list(export_to)})


def allow(*rules: dict[str, Any], service: str = "orders") -> Change:
    return made("AccessPolicy", "platform", service, {"service": service, "allow": list(rules)})


def web(*methods: str, service: str = "web") -> dict[str, Any]:
    return {"from": [{"tenant": "acme", "service": service}], "methods": list(methods)}


def route(*rules: dict[str, Any]) -> Change:
    return made("RoutePolicy", "platform", "orders", {"service": "orders", "rules": list(rules)})


def split(**weights: int) -> dict[str, Any]:
    return {"split": [{"version": version, "weight": weight} for version, weight in weights.items()]}


def rate(requests: int, tenant: str = "acme", **more: Any) -> Change:
    limit = {"tenant": tenant, "requests": requests, **more}
    return made("RatePolicy", "platform", "orders", {"service": "orders", "limits": [limit]})


BASE = (
    service("platform", "orders", "acme"),
    service("platform", "stock"),
    service("acme", "web"),
    made("WorkloadEntry", "acme", "web", {"service": "web", "nodes": ["n1"]}),
    allow(web("/s.O/Get", "/s.O/List"), web("/s.O/List", service="job")),
)


def effect(*changes: Change, before: tuple[Change, ...] = BASE, **more: Any) -> PreviewResponse:
    mesh = Mesh("mesh.test")
    mesh.apply(before)
    after = mesh.fork()
    impact = after.apply(changes)
    return Effects(mesh, after, **more).of(impact)


def told(answer: PreviewResponse) -> list[tuple[list[str], str, str, list[str]]]:
    return [
        (list(getattr(one, "from")), one.to, ClientChange.Kind.Name(one.kind), list(one.methods))
        for one in answer.changes
    ]


def test_a_rule_that_goes_denies_its_methods_and_nothing_else() -> None:
    answer = effect(allow(web("/s.O/Get"), web("/s.O/List", service="job")))
    assert told(answer) == [(["acme/web"], "platform/orders", "DENIED", ["/s.O/List"])]
    (change,) = answer.changes
    assert (change.before.resource, change.before.field) == ("AccessPolicy platform/orders", "spec.allow[0]")
    assert change.after.text.endswith("allows this caller other methods, not this one")
    assert list(getattr(answer.untouched[0], "from")) == ["acme/job"]
    assert (answer.services, answer.other_services) == (1, 2)


def test_the_same_in_other_words_is_no_change() -> None:
    answer = effect(allow(web("/s.O/List", service="job"), web("/s.O/List"), web("POST /s.O/Get")))
    assert told(answer) == []


def test_a_whole_tenant_and_every_method_are_told_as_such() -> None:
    answer = effect(allow(web(service="*")))
    assert told(answer) == [
        (["acme/*"], "platform/orders", "ALLOWED", []),
        (["acme/job", "acme/web"], "platform/orders", "ALLOWED", ["/*"]),
    ]


def test_shares_that_change_are_told_and_weights_that_mean_the_same_are_not() -> None:
    before = (*BASE, route(split(v1=90, v2=10)))
    answer = effect(route(split(v1=50, v2=50)), before=before)
    (change,) = [one for one in answer.changes if "acme/web" in getattr(one, "from")]
    assert (change.kind, list(change.methods)) == (ClientChange.ROUTED, [])
    assert list(getattr(change, "from")) == ["acme/job", "acme/web"]
    assert (change.before.text, change.after.text) == ("90% to v1, 10% to v2", "50% to v1, 50% to v2")
    assert told(effect(route(split(v2=1, v1=9)), before=before)) == []


def test_a_route_by_header_is_told_with_the_header() -> None:
    beta = {"match": {"headers": [{"name": "x-beta", "exact": "1"}]}, **split(v2=1)}
    (change,) = [
        one
        for one in effect(route(beta, split(v1=1)), before=(*BASE, route(split(v1=1)))).changes
        if "acme/web" in getattr(one, "from")
    ]
    assert (list(change.headers), change.after.text, change.after.field) == (
        ["x-beta: 1"],
        "100% to v2",
        "spec.rules[0]",
    )


def test_a_header_that_must_not_be_there_is_told_of_who_sends_it() -> None:
    narrower = {**web("/s.O/Get", "/s.O/List"), "headers": [{"name": "x-debug", "present": False}]}
    (change,) = effect(allow(narrower, web("/s.O/List", service="job"))).changes
    assert (ClientChange.Kind.Name(change.kind), list(change.headers)) == ("DENIED", ["x-debug: *"])
    assert list(getattr(change, "from")) == ["acme/web"]


def test_what_takes_the_headers_of_two_rules_at_once_is_told() -> None:
    def denied(*denials: dict[str, Any]) -> Change:
        rules = {"allow": [{**web(), "headers": [{"name": "x-a", "exact": "1"}]}], "deny": list(denials)}
        return made("AccessPolicy", "platform", "orders", {"service": "orders", **rules})

    frozen = {**web(), "headers": [{"name": "x-b", "exact": "2"}]}
    (change,) = effect(denied(), before=(*BASE, denied(frozen))).changes
    assert (ClientChange.Kind.Name(change.kind), list(change.headers)) == ("ALLOWED", ["x-a: 1", "x-b: 2"])
    (change,) = effect(denied(frozen), before=(*BASE, denied())).changes
    assert (ClientChange.Kind.Name(change.kind), list(change.headers)) == ("DENIED", ["x-a: 1", "x-b: 2"])


def test_a_limit_that_changes_is_told_before_and_after() -> None:
    answer = effect(rate(50), before=(*BASE, rate(100)))
    (change,) = answer.changes
    assert (change.kind, list(getattr(change, "from"))) == (ClientChange.LIMITED, ["acme/job", "acme/web"])
    assert change.before.text.startswith("100 calls in 1 s")
    assert change.after.text.startswith("50 calls in 1 s")
    assert change.after.resource == "RatePolicy platform/orders"


def test_an_export_that_goes_hides_and_a_name_that_becomes_ambiguous_is_told() -> None:
    answer = effect(service("platform", "orders"), before=BASE)
    assert (["acme/*", "acme/job", "acme/web"], "platform/orders", "HIDDEN", []) in told(answer)
    answer = effect(service("globex", "orders", "acme"))
    names = {name.tenant: (list(name.before), list(name.after)) for name in answer.names}
    assert names["acme"] == (["platform/orders"], ["globex/orders", "platform/orders"])
    hidden = effect(service("globex", "orders", "acme"), shown=lambda tenant: tenant == "globex")
    assert {name.tenant for name in hidden.names} == {"globex"}, "what else acme sees is not globex's business"


def test_verbs_are_told_apart_for_http() -> None:
    before = (
        service("platform", "billing", "acme", protocol="HTTP"),
        service("acme", "web"),
        allow(web("/invoices"), service="billing"),
    )
    answer = effect(allow(web("GET /invoices"), service="billing"), before=before)
    assert told(answer) == [(["acme/web"], "platform/billing", "DENIED", ["/invoices by any other verb"])]


def test_work_is_bounded_and_what_is_left_out_is_counted() -> None:
    answer = effect(allow(web()), budget=Budget(steps=1))
    assert (answer.omitted_services, len(answer.changes)) == (1, 0)


def test_a_fork_leaves_the_mesh_as_it_was() -> None:
    mesh = Mesh("mesh.test")
    mesh.apply([*BASE, rate(1), made("RatePolicy", "platform", "wide", {"services": ["*"], "limits": []})])
    held = dict(mesh.all())
    fork = mesh.fork()
    fork.apply([Change(key, None) for key in list(fork.all())])
    fork.apply([service("acme", "new", "*")])
    assert dict(mesh.all()) == held
    assert len(mesh.services()) == 3
    assert mesh.rate_policies(mesh.services()[1])
    assert fork.services() == [("acme", "new")]


def test_what_becomes_of_a_call_is_told_by_caller_method_and_header() -> None:
    retry = {"retry": {"codes": ["UNAVAILABLE"]}}

    def routed(*rules: dict[str, Any], idempotent: tuple[str, ...] = ("/s.O/Get",)) -> Change:
        spec = {"service": "orders", "rules": list(rules), "idempotent": list(idempotent)}
        return made("RoutePolicy", "platform", "orders", spec)

    answer = effect(routed({"match": {"from": [{"tenant": "acme", "service": "job"}]}, "timeout": "1s"}))
    assert told(answer) == [(["acme/job"], "platform/orders", "ROUTED", [])]
    assert answer.changes[0].after.field == "spec.rules[0]"
    before = (*BASE, routed(retry))
    moved = told(effect(routed(retry, idempotent=("/s.O/List",)), before=before))
    assert {(*callers, kind) for callers, _, kind, _ in moved} == {("acme/web", "ROUTED"), ("acme/job", "ROUTED")}
    other = {"retry": {"codes": ["UNAVAILABLE"], "budget": {"percent": 50}}}
    assert told(effect(routed(other), before=before)) == [(["acme/web"], "platform/orders", "ROUTED", ["/s.O/Get"])]
    asked = {"headers": [{"name": "x-chaos", "exact": "1"}]}
    faulty = {**retry, "fault": {"abort": {"httpStatus": 503, "percent": 1}, **asked}}
    found = effect(routed(faulty), before=before)
    assert {tuple(change.headers) for change in found.changes} == {("x-chaos: 1",)}


def test_what_holds_for_a_time_alone_is_told_whatever_the_time_is() -> None:
    def hours(day: str) -> Change:
        return allow({**web("/s.O/Get"), "during": {"weekly": [{"days": [day]}]}})

    for at_s in (0.0, 4 * 86_400.0):
        answer = effect(hours("TUESDAY"), before=(*BASE[:-1], hours("MONDAY")), at_s=at_s)
        found = {(one.kind, one.at_other_times) for one in answer.changes}
        assert {(ClientChange.ALLOWED, True), (ClientChange.DENIED, True)} <= found
        (one,) = [one for one in answer.changes if one.at_other_times and one.kind == ClientChange.ALLOWED]
        assert (list(one.methods), one.after.field) == (["/s.O/Get"], "spec.allow[0]")
        assert "Tuesday" in one.after.text
    assert told(effect(hours("MONDAY"), before=(*BASE[:-1], hours("MONDAY")), at_s=0.0)) == []


def test_another_choice_of_endpoints_is_told() -> None:
    def chosen(**more: Any) -> Change:
        return made("RoutePolicy", "platform", "orders", {"service": "orders", "rules": [split(v1=1)], **more})

    answer = effect(chosen(locality={}), before=(*BASE, chosen()))
    assert told(answer) == [(["acme/job", "acme/web"], "platform/orders", "ROUTED", [])]
    assert answer.changes[0].before.text != answer.changes[0].after.text
    renamed = made("RoutePolicy", "platform", "other", {"service": "orders", "rules": [split(v1=1)]})
    gone = Change(Key("RoutePolicy", "platform", "orders"), None)
    assert told(effect(gone, renamed, before=(*BASE, chosen()))) == []
