"""Route policies, compiled for each kind of client: what a reader of the compiled routes does is what is meant."""

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.policy import route
from meshwarden.controlplane.policy.compile import Parts, compile_scope
from meshwarden.controlplane.policy.gap import gaps
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.named import named
from meshwarden.controlplane.policy.neutral import Method, Name
from meshwarden.controlplane.policy.scope import client_scope
from meshwarden.controlplane.policy.variant import Kind, Variant
from meshwarden.controlplane.resources.traffic import meet
from meshwarden.v1 import resources_pb2
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource

ORDERS, WEB, SHOP = Name("platform", "orders"), Name("acme", "web"), Name("acme", "shop")
ROUTES = "envoy.config.route.v3.RouteConfiguration"
VARIANTS = [Variant(kind) for kind in Kind]
GRPC = [variant for variant in VARIANTS if variant.dialect == "grpc"]

paths = st.sampled_from(["/", "/a", "/ab", "/a.B/C", "/b"])
methods = st.builds(
    lambda verb, path, rest: verb + path + rest,
    st.sampled_from(["", "GET ", "POST "]),
    paths,
    st.sampled_from(["", "*"]),
)
callers = st.fixed_dictionaries({"tenant": st.sampled_from(["", "acme"]), "service": st.sampled_from(["*", "web"])})
header = st.sampled_from([{"name": "x-a", "exact": "1"}, {"name": "x-b", "present": False}])
matches = st.fixed_dictionaries(
    {},
    optional={
        "methods": st.lists(methods, max_size=3, unique=True),
        "headers": st.lists(header, max_size=1),
        "from": st.lists(callers, min_size=1, max_size=1),
    },
)
rules = st.fixed_dictionaries(
    {"match": matches, "split": st.sampled_from([[], [{"version": "v1", "weight": 1}]])},
    optional={
        "timeout": st.sampled_from(["1s", "0.250s"]),
        "retry": st.just({"codes": ["UNAVAILABLE", "503"], "attempts": 2}),
        "fault": st.builds(
            lambda headers: {"abort": {"httpStatus": 503, "percent": 50}, "headers": headers},
            st.lists(header, max_size=1),
        ),
        "mirror": st.just({"version": "v1"}),
        "requestHeaders": st.just({"set": [{"name": "x-a", "value": "1%"}]}),
    },
)
policies = st.fixed_dictionaries(
    {"rules": st.lists(rules, min_size=1, max_size=4), "idempotent": st.lists(methods, max_size=3, unique=True)}
)


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def mesh_of(policy: dict[str, Any], protocol: str = "GRPC") -> Mesh:
    mesh = Mesh("mesh.test")
    mesh.apply(
        [
            made("Service", "platform", "orders", {"protocol": protocol, "exportTo": ["*"]}),
            made("RoutePolicy", "platform", "orders", {"service": "orders", **policy}),
        ]
    )
    return mesh


def resources(mesh: Mesh, variant: Variant, caller: Name, parts: Parts | None = None) -> tuple[Resource, ...]:
    """What a caller gets: of its own if a policy names it."""
    own = caller.name if caller in mesh.named else ""
    return compile_scope(mesh, client_scope(caller.tenant, variant, own), parts=parts).resources


def routes(found: tuple[Resource, ...]) -> list[dict[str, Any]]:
    """The compiled routes of orders."""
    (config,) = [api.to_dict(api.parse(ROUTES, item.body)) for item in found if item.type_url == api.ROUTE]
    (host,) = [host for host in config["virtual_hosts"] if host["name"] == "orders.platform"]
    return list(host["routes"])


def fits(match: dict[str, Any], path: str, headers: dict[str, str]) -> bool:
    """As both data planes read a RouteMatch."""
    if not (path == match["path"] if "path" in match else path.startswith(match["prefix"])):
        return False
    for said in match.get("headers", ()):
        value = headers.get(said["name"])
        found = value is not None if said.get("present_match") else value == said["string_match"]["exact"]
        if found == said.get("invert_match", False):
            return False
    return True


@given(
    policies,
    paths,
    st.sampled_from(["GET", "POST"]),
    st.sampled_from([{}, {"x-a": "1"}, {"x-b": ""}]),
    st.sampled_from([WEB, SHOP]),
)
def test_compiled_routes_do_what_the_rule_says_that_decides(
    policy: dict[str, Any], path: str, verb: str, headers: dict[str, str], caller: Name
) -> None:
    mesh = mesh_of(policy)
    said = route.route(mesh, ORDERS)
    for variant in VARIANTS:
        spoken = "POST" if variant.dialect == "grpc" else verb
        rule = said.find(caller, path, spoken, headers)
        known = headers | ({":method": spoken} if variant.dialect == "envoy" else {})
        found = next(one for one in routes(resources(mesh, variant, caller)) if fits(one["match"], path, known))
        action = found["route"]
        version = rule.split[0][0]
        assert action["cluster"] == ("orders.platform|v1" if version else "orders.platform")
        later = 2 if variant.kind is Kind.C_CORE else 0
        ends = action.get("max_stream_duration", {}).get("max_stream_duration")
        assert ends == (
            None if rule.timeout is None else f"{rule.timeout.total_seconds() + later:g}s".replace(".25s", ".250s")
        )
        again = rule.retry is not None and said.is_idempotent(path, spoken)
        assert ("unavailable" in action.get("retry_policy", {}).get("retry_on", "")) == again
        if again:
            assert action["retry_policy"]["num_retries"] == 2
        faulty = rule.fault is not None and all(header.fits(headers) for header in rule.fault.headers)
        assert ("fault" in found.get("typed_per_filter_config", {})) == faulty
        is_envoy = variant.dialect == "envoy"
        assert ("request_mirror_policies" in action) == (is_envoy and rule.mirror is not None)
        values = [one["header"]["value"] for one in found.get("request_headers_to_add", ())]
        assert values == (["1%%"] if is_envoy and rule.request else [])


@given(policies)
def test_who_asks_for_the_same_shares_bytes_and_parts_change_nothing(policy: dict[str, Any]) -> None:
    mesh, parts = mesh_of(policy), Parts()
    for variant in VARIANTS:
        for caller in (WEB, SHOP, Name("globex", "web")):
            assert resources(mesh, variant, caller, parts) == resources(mesh, variant, caller)
    said = route.route(mesh, ORDERS)
    made_for = len(parts._ways[ORDERS].made)
    assert made_for <= 1 + (3 if said.has_timeout else 2) * (3 if said.names_callers else 1)


@given(methods, methods, paths, st.sampled_from(["GET", "POST"]))
def test_what_both_methods_mean_is_what_each_means(one: str, other: str, path: str, verb: str) -> None:
    first, second = Method.parse(one), Method.parse(other)
    both = first.both(second)
    assert (both is not None) == meet(one, other) == meet(other, one)
    assert (both is not None and both.fits(path, verb)) == (first.fits(path, verb) and second.fits(path, verb))


@pytest.mark.parametrize("protocol", ["GRPC", "HTTP"])
def test_an_envoy_counts_a_timeout_by_what_the_service_speaks(protocol: str) -> None:
    (first, *_) = routes(resources(mesh_of({"rules": [{"timeout": "2s"}]}, protocol), Variant(Kind.ENVOY), WEB))
    ends = (first["route"]["timeout"], first["route"]["max_stream_duration"]["max_stream_duration"])
    assert ends == (("0s", "2s") if protocol == "GRPC" else ("2s", "2.100s"))


def test_an_envoy_holds_the_policys_budget() -> None:
    mesh = mesh_of(
        {"rules": [{"retry": {"codes": ["503"], "budget": {"percent": 25, "minRetries": 0}}}], "idempotent": ["/*"]}
    )
    (cluster, *_) = [item for item in resources(mesh, Variant(Kind.ENVOY), WEB) if item.type_url == api.CLUSTER]
    found = api.to_dict(api.parse("envoy.config.cluster.v3.Cluster", cluster.body))
    budget = found["circuit_breakers"]["thresholds"][0]["retry_budget"]
    assert (budget["budget_percent"], budget["min_retry_concurrency"]) == ({"value": 25.0}, 0)


def test_what_a_client_cant_do_of_a_rule_is_told_for_it_alone() -> None:
    retry = {"codes": ["UNAVAILABLE", "503"], "perTryTimeout": "1s", "budget": {"percent": 10}}
    more = {"mirror": {"version": "v1"}, "requestHeaders": {"remove": ["a"]}, "responseHeaders": {"remove": ["a"]}}
    mesh = mesh_of({"rules": [{"timeout": "2s", "retry": retry, **more}], "idempotent": ["/*"]})
    found = {variant.kind: [(gap.field, gap.what) for gap in gaps(mesh, ORDERS, variant)] for variant in VARIANTS}
    ignored = [(f"spec.rules[0].retry.{name}", "ignored") for name in ("codes", "perTryTimeout", "budget")]
    ignored += [(f"spec.rules[0].{name}", "ignored") for name in ("mirror", "requestHeaders", "responseHeaders")]
    assert found.pop(Kind.ENVOY) == []
    assert found.pop(Kind.C_CORE) == [("spec.rules[0].timeout", "equivalent"), *ignored]
    assert set(map(tuple, found.values())) == {tuple(ignored)}


def test_a_policy_touches_the_nodes_of_the_callers_that_it_names_before_and_after() -> None:
    mesh = Mesh("mesh.test")
    for node, name in (("n1", "web"), ("n2", "shop"), ("n3", "other")):
        mesh.apply([made("WorkloadEntry", "acme", name, {"service": name, "nodes": [node]})])

    def said(*names: str) -> Change:
        rules = [{"match": {"from": [{"tenant": "acme", "service": name} for name in names]}}]
        return made("RoutePolicy", "platform", "orders", {"service": "orders", "rules": rules})

    assert mesh.apply([said("web", "*")]).nodes == {"n1"}
    assert WEB in mesh.named
    assert mesh.apply([said("shop")]).nodes == {"n1", "n2"}
    assert WEB not in mesh.named
    assert mesh.apply([Change(Key("RoutePolicy", "platform", "orders"), None)]).nodes == {"n2"}
    assert SHOP not in mesh.named
    assert list(named(made("Service", "platform", "orders", {}).message)) == []


def test_a_fork_names_callers_by_itself() -> None:
    mesh = mesh_of({"rules": [{"match": {"from": [{"tenant": "acme", "service": "web"}]}}]})
    fork = mesh.fork()
    fork.apply([Change(Key("RoutePolicy", "platform", "orders"), None)])
    assert (WEB in mesh.named, WEB in fork.named) == (True, False)
