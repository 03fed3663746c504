"""Resources in, meaning out: visibility, names, access, routes, limits and what a change touches."""

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.policy import access, rate, route, scope
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Caller, Limit, Method, Name, Rate
from meshwarden.sdk.quota.slot import Slots
from meshwarden.v1 import node_service_pb2, quota_service_pb2, resources_pb2

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
    assert compiled.find(ORDERS, "/a", "", {"x-beta": "1"}).split == (("v2", 1),)
    assert compiled.find(ORDERS, "/a", "", {}).split == (("", 1),)


def test_own_limit_comes_before_the_one_for_all_others() -> None:
    spec: dict[str, Any] = {
        "service": "orders",
        "limits": [{"tenant": "*", "requests": 600, "per": "60s"}, {"tenant": "acme", "requests": 20}],
    }
    (compiled,) = rate.limits(mesh_of(made("RatePolicy", "platform", "r", spec)), ORDERS)
    acme, other = compiled.find("acme"), compiled.find("globex")
    assert acme is not None
    assert acme.rate == Rate(20, 1.0, 20)
    assert other is not None
    assert (other.tenant, other.rate.burst) == ("*", 10)
    spec["scope"] = "POINT"
    (compiled,) = rate.limits(mesh_of(made("RatePolicy", "platform", "r", spec)), ORDERS)
    assert [limit.rate.burst for limit in compiled.limits] == [1, 2]


@pytest.mark.parametrize("scope", ["POINT", "MESH"])
def test_calls_at_once_are_as_many_as_the_limit_says(scope: str) -> None:
    spec = {"service": "orders", "scope": scope, "limits": [{"tenant": "acme", "concurrent": 40}]}
    (compiled,) = rate.limits(mesh_of(made("RatePolicy", "platform", "r", spec)), ORDERS)
    slots = Slots()
    slots.update(node_service_pb2.PolicyLimits(policy="platform/r", spec=rate.to_spec(compiled, ORDERS)), 0.0)
    bucket = quota_service_pb2.Bucket(policy="platform/r", tenant="acme", unit="concurrent")
    slots.take("acme", "/m", 1, 0.0)
    slots.grant([quota_service_pb2.Share(bucket=bucket, rate=40, burst=40)], 0.0)
    slots.prolong(9.0, 0.0)
    assert sum(slots.take("acme", "/m", 1, 0.0).allowed for _ in range(99)) == 39


def test_a_total_limits_the_tenants_that_nothing_names() -> None:
    spec = {"service": "orders", "total": {"requests": 7}, "limits": [{"tenant": "acme", "requests": 2, "floor": 1}]}
    (compiled,) = rate.limits(mesh_of(made("RatePolicy", "platform", "r", spec)), ORDERS)
    assert compiled.find("globex") == Limit("*", Rate(7, 1.0, 7))
    assert compiled.find("acme") == Limit("acme", Rate(2, 1.0, 2), floor=1)


UNITS = st.sampled_from(["requests", "bytes", "cost", "concurrent"])
RATES = st.builds(
    lambda amount, per_s, burst: {"requests": amount, "per": f"{per_s}s", "burst": burst},
    st.integers(1, 1_000_000),
    st.integers(1, 3600),
    st.integers(0, 99),
)


@given(RATES, RATES, RATES, st.sampled_from(["KEEP_LAST", "FALLBACK", "DENY"]), st.booleans(), st.integers(1, 9), UNITS)
def test_a_spec_that_leaves_nothing_out_means_the_same(
    a: dict[str, Any], b: dict[str, Any], c: dict[str, Any], away: str, shadow: bool, weight: int, unit: str
) -> None:
    a, b, c = ({unit if name == "requests" else name: value for name, value in one.items()} for one in (a, b, c))
    limit = {"tenant": "acme", "weight": weight, "methods": [{"method": "/a.B/C", "criticality": weight % 5, **b}], **a}
    spec = {"service": "orders", "limits": [limit], "total": c, "whenAway": away, "shadow": shadow}
    if away == "FALLBACK":
        spec["fallback"] = b
    if unit == "cost":
        spec["reserve"] = weight
    (said,) = rate.limits(mesh_of(made("RatePolicy", "platform", "r", spec)), ORDERS)
    assert said.unit == unit
    assert rate.of_spec(said.policy, rate.to_spec(said, ORDERS)) == said


@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 99))
def test_a_limit_that_is_found_means_the_same_when_nothing_is_left_out(
    least: int, more: int, weight: int, ceiling: int
) -> None:
    limit = {"tenant": "acme"} | ({"weight": weight} if weight else {}) | ({"concurrent": ceiling} if ceiling else {})
    adaptive = {"min": least, "max": least + more} if more else {"min": least}
    spec = {"service": "orders", "scope": "POINT", "adaptive": adaptive, "limits": [limit, {"tenant": "*"}]}
    (said,) = rate.limits(mesh_of(made("RatePolicy", "platform", "r", spec)), ORDERS)
    whole = rate.to_spec(said, ORDERS)
    assert rate.of_spec(said.policy, whole) == said
    assert (whole.adaptive.min, whole.adaptive.max) == (least, least + more if more else 1000)
    assert [(part.weight, part.concurrent) for part in whole.limits] == [(weight or 1, ceiling), (1, 0)]


def test_a_change_touches_only_what_depends_on_it() -> None:
    mesh = mesh_of(service(*ORDERS, "acme"))
    policy = made("RatePolicy", "platform", "r", {"service": "orders", "limits": [{"tenant": "*", "requests": 1}]})
    impact = mesh.apply([policy])
    assert (impact.servers, impact.seen_by, impact.services) == ({ORDERS}, set(), set())
    impact = mesh.apply([service(*ORDERS, "globex")])
    assert impact.seen_by == {"platform", "acme", "globex"}, "acme no longer sees the service"
    assert impact.ways == {ORDERS}
    endpoint = made("Endpoint", "platform", "e", {"service": "orders", "address": "127.0.0.1", "port": 1})
    impact = mesh.apply([endpoint])
    assert (impact.services, impact.ways, impact.routed) == ({ORDERS}, set(), set())


def test_scopes_come_from_the_entry_not_from_the_agents_word() -> None:
    entry = made("WorkloadEntry", "acme", "web", {"service": "web", "nodes": ["n1"], "selectors": {"uid": 1}}).message
    ref = node_service_pb2.DataPlaneRef(id="acme/web#1/grpc", tenant="globex", entry="web", dialect="GRPC")
    assert scope.scopes_of(ref, "n1", entry) == ("client/acme/c-core",)
    ref.listen_address = "127.0.0.1:7021"
    assert scope.scopes_of(ref, "n1", entry) == (
        "client/acme/c-core",
        "server/acme/web/grpc",
        "listener/n1/acme/web#1/grpc",
    )
    assert scope.scopes_of(ref, "n1", entry, {Name("acme", "web")})[0] == "client/acme/c-core/web"
    assert scope.scopes_of(ref, "n1", entry, {Name("globex", "web")})[0] == "client/acme/c-core"
