"""Resources in, meaning out: visibility, names, access, routes, limits and what a change touches."""

from google.protobuf import json_format

from meshwarden.controlplane.policy import access, rate, route, scope
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Caller, Method, Name
from meshwarden.v1 import node_service_pb2, resources_pb2

ORDERS = Name("platform", "orders")


def made(kind: str, tenant: str, name: str, spec: dict[str, object]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def service(tenant: str, name: str, *export_to: str) -> Change:
    return made("Service", tenant, name, {"protocol": "GRPC", "exportTo": list(export_to)})


def mesh_of(*changes: Change) -> Mesh:
    mesh = Mesh("mesh.test")
    mesh.apply(changes)
    return mesh


def test_without_access_policy_nobody_may_call() -> None:
    assert access.access(mesh_of(service(*ORDERS)), ORDERS).find(ORDERS, "/a") is None


def test_policies_add_up_and_default_to_the_policys_own_tenant() -> None:
    one = {"service": "orders", "allow": [{"from": [{"service": "web"}], "methods": ["/shop.Orders/*"]}]}
    two = {"service": "orders", "allow": [{"from": [{"tenant": "acme", "service": "*"}], "methods": ["GET /x"]}]}
    compiled = access.access(
        mesh_of(made("AccessPolicy", "platform", "a", one), made("AccessPolicy", "platform", "b", two)), ORDERS
    )
    assert compiled.find(Name("platform", "web"), "/shop.Orders/Get") is not None
    assert compiled.find(Name("acme", "web"), "/shop.Orders/Get") is None
    assert compiled.find(Name("acme", "web"), "/x", "GET") is not None
    assert compiled.find(Name("acme", "web"), "/x", "POST") is None
    assert compiled.find(Name("acme", "web"), "/x") is None


def test_a_whole_tenants_prefix_ends_with_a_slash() -> None:
    assert Caller("acme").spiffe("mesh.test") == "spiffe://mesh.test/tenant/acme/service/"
    assert not Caller("acme").fits(Name("acme2", "web"))


def test_method_without_star_is_exact() -> None:
    assert not Method.parse("/a").fits("/ab")
    assert Method.parse("/a*").fits("/ab")


def test_a_short_name_is_ones_own_then_a_single_exported() -> None:
    mesh = mesh_of(service(*ORDERS, "acme"), service("globex", "orders", "acme"))
    assert mesh.resolve("acme", "orders") is None
    assert mesh.candidates("acme", "orders") == [Name("globex", "orders"), ORDERS]
    assert mesh.resolve("platform", "orders") == ORDERS
    mesh.apply([Change(Key("Service", "globex", "orders"), None)])
    assert mesh.resolve("acme", "orders") == ORDERS
    assert mesh.sees("acme", ORDERS)
    assert not mesh.sees("initech", ORDERS)
    assert mesh.visible("initech") == []


def test_a_call_that_no_rule_fits_goes_to_every_version() -> None:
    rules = [{"match": {"headers": [{"name": "x-beta", "exact": "1"}]}, "split": [{"version": "v2", "weight": 1}]}]
    compiled = route.route(mesh_of(made("RoutePolicy", "platform", "r", {"service": "orders", "rules": rules})), ORDERS)
    assert compiled.find("/a", "", {"x-beta": "1"}).split == (("v2", 1),)
    assert compiled.find("/a", "", {}).split == (("", 1),)


def test_own_limit_comes_before_the_one_for_all_others() -> None:
    spec = {
        "service": "orders",
        "limits": [{"tenant": "*", "requests": 600, "per": "60s"}, {"tenant": "acme", "requests": 20}],
    }
    compiled = rate.limits(mesh_of(made("RatePolicy", "platform", "r", spec)), ORDERS)
    acme, other = compiled.find("acme"), compiled.find("globex")
    assert acme is not None
    assert (acme.requests, acme.per_s, acme.burst) == (20, 1.0, 2)
    assert other is not None
    assert (other.tenant, other.burst) == ("*", 1)


def test_a_change_touches_only_the_scopes_that_depend_on_it() -> None:
    mesh = mesh_of(service(*ORDERS, "acme"))
    policy = made("RatePolicy", "platform", "r", {"service": "orders", "limits": [{"tenant": "*", "requests": 1}]})
    impact = mesh.apply([policy])
    assert scope.touched("server/platform/orders/grpc", impact)
    assert not scope.touched("server/platform/billing/grpc", impact)
    assert not scope.touched("client/acme/grpc", impact)
    impact = mesh.apply([service(*ORDERS, "globex")])
    assert scope.touched("client/acme/envoy", impact), "it no longer sees the service"
    assert scope.touched("client/globex/envoy", impact)
    assert not scope.touched("client/initech/envoy", impact)


def test_scopes_come_from_the_entry_not_from_the_agents_word() -> None:
    entry = made("WorkloadEntry", "acme", "web", {"service": "web", "nodes": ["n1"], "selectors": {"uid": 1}}).message
    ref = node_service_pb2.DataPlaneRef(id="acme/web#1/grpc", tenant="globex", entry="web", dialect="GRPC")
    assert scope.scopes_of(ref, "n1", entry) == ("client/acme/grpc",)
    ref.listen_address = "127.0.0.1:7021"
    assert scope.scopes_of(ref, "n1", entry) == (
        "client/acme/grpc",
        "server/acme/web/grpc",
        "listener/n1/acme/web#1/grpc",
    )
