"""How an endpoint is chosen: what a policy becomes for each kind of client, and what is told of the difference."""

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.policy.choice import Choice, choice, sentences
from meshwarden.controlplane.policy.compile import compile_scope
from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.policy.gap import gaps
from meshwarden.controlplane.policy.grpc import balance
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.near import assignments
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.variant import Kind, Variant
from meshwarden.v1 import resources_pb2
from meshwarden.xds import api

ORDERS = Name("platform", "orders")
GRPC_KINDS = (Kind.C_CORE, Kind.NODE, Kind.GO, Kind.JAVA)


def made(kind: str, name: str, spec: dict[str, Any], tenant: str = "platform") -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def at(number: int, health: str = "HEALTHY", region: str = "eu", zone: str = "a") -> Change:
    spec = {"service": "orders", "address": f"127.0.{number // 250}.{number % 250 + 1}", "port": 1, "health": health}
    return made("Endpoint", f"e{number}", {**spec, "locality": {"region": region, "zone": zone}})


def mesh_of(spec: dict[str, Any], *more: Change) -> Mesh:
    mesh = Mesh("mesh.test")
    mesh.apply([made("Service", "orders", {"protocol": "GRPC", "exportTo": ["acme"]})])
    mesh.apply([made("RoutePolicy", "way", {"service": "orders", **spec}), *more])
    return mesh


def resources(mesh: Mesh, scope: str) -> dict[str, dict[str, Any]]:
    """The resources of a scope in JSON form, by type and name."""
    return {
        f"{item.type_url.rpartition('.')[2]} {item.name}": api.to_dict(
            api.parse(item.type_url.rpartition("/")[2], item.body)
        )
        for item in compile_scope(mesh, scope).resources
    }


def cluster(mesh: Mesh, kind: Kind) -> dict[str, Any]:
    return resources(mesh, f"client/acme/{kind}")["Cluster orders.platform"]


def route(mesh: Mesh, kind: Kind) -> dict[str, Any]:
    name = "outbound/acme" if kind is Kind.ENVOY else "orders.platform"
    found = resources(mesh, f"client/acme/{kind}")[f"RouteConfiguration {name}"]
    return found["virtual_hosts"][0]["routes"][0]["route"]


def told(mesh: Mesh, kind: Kind) -> set[tuple[str, str]]:
    return {(gap.field, gap.what) for gap in gaps(mesh, ORDERS, Variant(kind))}


def test_without_a_word_endpoints_are_called_in_turn() -> None:
    mesh = mesh_of({"rules": [{"split": [{"version": "v1", "weight": 1}]}]})
    for kind in Kind:
        assert cluster(mesh, kind).get("lb_policy", "ROUND_ROBIN") == "ROUND_ROBIN"
        none = {} if kind is not Kind.NODE else {"outlier_detection": {"enforcing_success_rate": 0}}
        assert {key: item for key, item in cluster(mesh, kind).items() if key == "outlier_detection"} == none
        assert told(mesh, kind) == set()
    assert list(sentences(choice(Mesh("mesh.test"), ORDERS))) == []
    assert choice(Mesh("mesh.test"), ORDERS) == Choice()


def test_the_idlest_is_taken_by_whom_knows_how_and_all_others_are_told_and_go_on() -> None:
    mesh = mesh_of({"loadBalancing": {"leastRequest": {"choiceCount": 3}}})
    said = cluster(mesh, Kind.ENVOY)
    assert (said["lb_policy"], said["least_request_lb_config"]) == ("LEAST_REQUEST", {"choice_count": 3})
    for kind in GRPC_KINDS:
        picking = cluster(mesh, kind)["load_balancing_policy"]["policies"][0]["typed_extension_config"]["typed_config"]
        names = [one["typed_extension_config"]["name"] for one in picking["endpoint_picking_policy"]["policies"]]
        assert names == ["least_request", "round_robin"], "who does not know the first takes the second"
        known = {("spec.loadBalancing.leastRequest", "equivalent")} if kind in (Kind.C_CORE, Kind.NODE) else set()
        assert told(mesh, kind) == known


def test_random_is_in_turn_for_grpc() -> None:
    mesh = mesh_of({"loadBalancing": {"random": {}}})
    assert cluster(mesh, Kind.ENVOY)["lb_policy"] == "RANDOM"
    for kind in GRPC_KINDS:
        assert "lb_policy" not in cluster(mesh, kind)
        assert told(mesh, kind) == {("spec.loadBalancing.random", "equivalent")}


@pytest.mark.parametrize(
    ("on", "envoy", "grpc", "gap"),
    [
        ({"header": "x-user"}, {"header": {"header_name": "x-user"}}, {"header": {"header_name": "x-user"}}, None),
        (
            {"cookie": {"name": "user"}},
            {"cookie": {"name": "user", "path": "/"}},
            {
                "header": {
                    "header_name": "cookie",
                    "regex_rewrite": {"pattern": {"regex": "^(.*; *)?user=([^;]*).*$"}, "substitution": "\\2"},
                }
            },
            None,
        ),
        (
            {"sourceIdentity": True},
            {"filter_state": {"key": "meshwarden.source"}},
            {"filter_state": {"key": "io.grpc.channel_id"}},
            ("spec.loadBalancing.ringHash.sourceIdentity", "equivalent"),
        ),
    ],
)
def test_calls_are_alike_in_a_header_a_cookie_or_who_calls(
    on: dict[str, Any], envoy: dict[str, Any], grpc: dict[str, Any], gap: tuple[str, str] | None
) -> None:
    mesh = mesh_of({"loadBalancing": {"ringHash": {**on, "minimumRingSize": 64}}})
    # Go's and Java's clients would hash "\\2" itself.
    rewritten = {"regex_rewrite": {"pattern": {"regex": "^(.*; *)?user=|;.*$"}}}
    other = {"header": {**grpc["header"], **rewritten}} if "cookie" in on else grpc
    for kind in Kind:
        said = cluster(mesh, kind)
        assert (said["lb_policy"], said["ring_hash_lb_config"]) == ("RING_HASH", {"minimum_ring_size": "64"})
        wanted = {Kind.ENVOY: envoy, Kind.GO: other, Kind.JAVA: other}.get(kind, grpc)
        assert route(mesh, kind)["hash_policy"] == [wanted]
        assert told(mesh, kind) == (set() if gap is None or kind is Kind.ENVOY else {gap})


def test_a_cookie_with_a_life_is_given_out_by_envoys_alone() -> None:
    mesh = mesh_of({"loadBalancing": {"ringHash": {"cookie": {"name": "user", "ttl": "60s", "path": "/shop"}}}})
    assert route(mesh, Kind.ENVOY)["hash_policy"] == [{"cookie": {"name": "user", "ttl": "60s", "path": "/shop"}}]
    assert told(mesh, Kind.NODE) == {("spec.loadBalancing.ringHash.cookie.ttl", "ignored")}


def test_a_session_is_kept_by_a_filter_or_where_there_is_none_by_a_ring_of_hashes() -> None:
    mesh = mesh_of({"affinity": {"cookie": {"name": "at"}}, "circuitBreaker": {"maxRequests": 7}})
    for kind in (Kind.ENVOY, Kind.C_CORE):
        assert cluster(mesh, kind)["common_lb_config"]["override_host_status"]["statuses"] == ["UNKNOWN", "HEALTHY"]
        assert "hash_policy" not in route(mesh, kind)
        assert told(mesh, kind) == set()
    host = resources(mesh, "client/acme/envoy")["RouteConfiguration outbound/acme"]["virtual_hosts"][0]
    assert host["typed_per_filter_config"]["session"]["stateful_session"]["session_state"]
    for name in ("orders", "orders.platform"):
        for kind in GRPC_KINDS:
            listener = resources(mesh, f"client/acme/{kind}")[f"Listener {name}"]["api_listener"]["api_listener"]
            assert ("session" in [item["name"] for item in listener["http_filters"]]) == (kind is Kind.C_CORE)
    for kind in (Kind.NODE, Kind.GO, Kind.JAVA):
        assert cluster(mesh, kind)["lb_policy"] == "RING_HASH"
        assert route(mesh, kind)["hash_policy"][0]["header"]["header_name"] == "cookie"
        assert ("spec.affinity", "equivalent") in told(mesh, kind)
        assert cluster(mesh, kind)["circuit_breakers"], "the rest of the policy stays"


def test_who_fails_is_left_out_by_failures_in_a_row_or_by_what_is_equivalent() -> None:
    mesh = mesh_of({"outlierDetection": {"consecutive5xx": 4, "baseEjectionTime": "5s"}}, at(1), at(2))
    said = cluster(mesh, Kind.ENVOY)["outlier_detection"]
    assert (said["consecutive_5xx"], said["enforcing_consecutive_5xx"], said["enforcing_success_rate"]) == (4, 100, 0)
    assert "failure_percentage_threshold" not in said
    for kind in GRPC_KINDS:
        said = cluster(mesh, kind)["outlier_detection"]
        assert said["enforcing_success_rate"] == 0, "Node crashes without (trap T8)"
        assert (said["failure_percentage_threshold"], said["failure_percentage_request_volume"]) == (50, 4)
        assert (said["enforcing_failure_percentage"], said["base_ejection_time"]) == (100, "5s")
        assert told(mesh, kind) == {
            ("spec.outlierDetection", "equivalent"),
            ("spec.outlierDetection.consecutive5xx", "equivalent"),
        }
    assert told(mesh, Kind.ENVOY) == set()


def test_a_share_of_failures_is_the_same_for_all() -> None:
    share = {"threshold": 30, "requestVolume": 20, "minimumHosts": 3}
    mesh = mesh_of({"outlierDetection": {"failurePercentage": share, "maxEjectionPercent": 40}}, *map(at, range(5)))
    for kind in Kind:
        said = cluster(mesh, kind)["outlier_detection"]
        assert said["failure_percentage_threshold"] == 30
        assert said["failure_percentage_minimum_hosts"] == 3
        assert said["max_ejection_percent"] == 40
    assert cluster(mesh, Kind.ENVOY)["outlier_detection"]["enforcing_consecutive_5xx"] == 0


@given(st.integers(1, 100), st.integers(1, 60))
def test_grpc_never_leaves_out_more_than_envoy_would(percent: int, endpoints: int) -> None:
    out = 0
    while 100 * out / endpoints < balance.share(percent, endpoints):  # as gRPC asks
        out += 1
    most = 0
    while 100 * (most + 1) / endpoints <= percent:  # as Envoy asks
        most += 1
    assert out == most


def test_of_endpoints_of_which_none_may_be_left_out_none_is() -> None:
    mesh = mesh_of({"outlierDetection": {"consecutive5xx": 4}}, at(1))
    assert "outlier_detection" not in cluster(mesh, Kind.C_CORE), "half of one is none"


def test_bounds_are_kept_as_far_as_a_client_has_them() -> None:
    bounds = {"maxConnections": 5, "maxPendingRequests": 6, "maxRequests": 7, "maxRetries": 8}
    mesh = mesh_of({"circuitBreaker": bounds})
    (said,) = cluster(mesh, Kind.ENVOY)["circuit_breakers"]["thresholds"]
    assert said == {"max_connections": 5, "max_pending_requests": 6, "max_requests": 7, "max_retries": 8}
    for kind in GRPC_KINDS:
        assert cluster(mesh, kind)["circuit_breakers"]["thresholds"] == [{"max_requests": 7}]
        counted = {("spec.circuitBreaker.maxRequests", "equivalent")} if kind is Kind.NODE else set()
        assert told(mesh, kind) == counted | {
            (f"spec.circuitBreaker.{name}", "ignored")
            for name in ("maxConnections", "maxPendingRequests", "maxRetries")
        }
    (said,) = cluster(mesh_of({"circuitBreaker": {"maxRequests": 7}}), Kind.ENVOY)["circuit_breakers"]["thresholds"]
    assert said["retry_budget"], "what is not given stays as it is"


# {priority: {zone: (weight, endpoints)}}
Groups = dict[int, dict[str, tuple[int, int]]]


def near(mesh: Mesh, region: str = "eu", zone: str = "a") -> Groups:
    found: Groups = {}
    (every,) = assignments(mesh, ORDERS, Place(region, zone))
    said = api.to_dict(api.parse("envoy.config.endpoint.v3.ClusterLoadAssignment", every.body))
    assert said["policy"] == {"overprovisioning_factor": 100_000}
    for one in said.get("endpoints", ()):
        where = one["locality"].get("zone", "")
        found.setdefault(one.get("priority", 0), {})[where] = (one["load_balancing_weight"], len(one["lb_endpoints"]))
    return found


def places(**healthy: str) -> list[Change]:
    """Endpoints, by zone: "a" and "b" of region eu, "c" of us; "+" is healthy, "-" is not, "d" is draining."""
    states = {"+": "HEALTHY", "-": "UNHEALTHY", "d": "DRAINING"}
    found = []
    for zone, marks in healthy.items():
        for mark in marks:
            found.append(at(len(found), states[mark], "us" if zone == "c" else "eu", zone))
    return found


LOCAL = {"locality": {}}


def test_the_own_zone_takes_all_and_others_are_for_when_it_is_gone() -> None:
    mesh = mesh_of(LOCAL, *places(a="++", b="+++", c="+"))
    assert near(mesh) == {0: {"a": (2, 2)}, 1: {"b": (3, 3)}, 2: {"c": (1, 1)}}
    assert near(mesh, zone="b") == {0: {"b": (3, 3)}, 1: {"a": (2, 2)}, 2: {"c": (1, 1)}}
    assert near(mesh, "us", "c") == {0: {"c": (1, 1)}, 1: {"a": (2, 2), "b": (3, 3)}}
    assert near(mesh, zone="other") == {0: {"a": (2, 2), "b": (3, 3)}, 1: {"c": (1, 1)}}
    assert near(mesh, "ap", "x") == {0: {"a": (2, 2), "b": (3, 3), "c": (1, 1)}}
    assert near(mesh, "", "") == near(mesh, "ap", "x")


def test_of_a_zone_with_too_few_the_rest_goes_on_in_proportion() -> None:
    mesh = mesh_of(LOCAL, *places(a="++++++++--", b="+", c="+"))
    assert set(near(mesh)[0]) == {"a"}, "80 % are enough"
    mesh = mesh_of(LOCAL, *places(a="+++++-----", b="+", c="+"))
    assert near(mesh) == {0: {"a": (71_428, 10), "b": (28_572, 1)}, 1: {"c": (1, 1)}}, "50 of 70 %"
    mesh = mesh_of({"locality": {"healthyPercent": 50}}, *places(a="+++++-----", b="+", c="+"))
    assert set(near(mesh)[0]) == {"a"}
    mesh = mesh_of(LOCAL, *places(a="+ddd", b="+"))
    assert near(mesh)[0] == {"a": (35_714, 4), "b": (64_286, 1)}, "who drains takes no calls"


def test_without_anybody_near_all_goes_further_and_without_anybody_nobody_is_asked() -> None:
    mesh = mesh_of(LOCAL, *places(a="--", b="++", c="+"))
    assert near(mesh) == {0: {"a": (1, 2), "b": (100_000, 2)}, 1: {"c": (1, 1)}}
    assert near(mesh_of(LOCAL, *places(b="++", c="+"))) == {0: {"b": (2, 2)}, 1: {"c": (1, 1)}}
    assert near(mesh_of(LOCAL, *places(a="-", b="-"))) == {0: {"a": (1, 1), "b": (1, 1)}}
    assert near(mesh_of(LOCAL)) == {}


@given(st.fixed_dictionaries({zone: st.text("+-d", max_size=6) for zone in "abc"}), st.integers(1, 100))
def test_nobody_is_lost_and_healthy_endpoints_take_all_calls(zones: dict[str, str], percent: int) -> None:
    found = near(mesh_of({"locality": {"healthyPercent": percent}}, *places(**zones)))
    assert {zone: count for group in found.values() for zone, (_, count) in group.items()} == {
        zone: len(marks) for zone, marks in zones.items() if marks
    }, "each endpoint once"
    assert sorted(found) == list(range(len(found))), "gRPC refuses priorities with a gap"
    healthy = {zone: marks.count("+") for zone, marks in zones.items()}
    if any(healthy.values()):
        assert any(healthy[zone] for zone in found[0]), "the first priority can be called"
    for group in found.values():
        for zone, (weight, _) in group.items():
            assert weight >= 1
            if not healthy[zone]:
                assert weight == 1


def test_only_what_depends_on_where_the_caller_is_is_apart() -> None:
    mesh = mesh_of(LOCAL, *places(a="+", b="+"), made("Service", "plain", {"protocol": "GRPC", "exportTo": ["acme"]}))
    for kind in (Kind.ENVOY, Kind.C_CORE):
        shared = resources(mesh, f"client/acme/{kind}")
        assert "ClusterLoadAssignment plain.platform" in shared
        assert "ClusterLoadAssignment orders.platform" not in shared
    assert set(resources(mesh, "near/acme/eu/a")) == {"ClusterLoadAssignment orders.platform"}
    assert cluster(mesh, Kind.ENVOY)["common_lb_config"]["locality_weighted_lb_config"] == {}
    assert mesh.near("acme") == mesh.near("platform") == [ORDERS]
    assert mesh.near("globex") == []
    assert resources(mesh, "near/globex/eu/a") == {}
    assert mesh.apply([made("RoutePolicy", "way", {"service": "orders", "affinity": {"cookie": {"name": "x"}}})]).near
    assert mesh.near("acme") == []
    assert not mesh.apply([at(9)]).near


def test_what_is_said_is_told_with_its_field() -> None:
    spec = {
        "loadBalancing": {"ringHash": {"header": "x-user"}},
        "outlierDetection": {"consecutive5xx": 3, "failurePercentage": {"threshold": 10}},
        "circuitBreaker": {"maxRequests": 5, "maxRetries": 1},
        "locality": {},
    }
    found = dict(sentences(choice(mesh_of(spec), ORDERS)))
    assert list(found) == ["spec.loadBalancing", "spec.locality", "spec.outlierDetection", "spec.circuitBreaker"]
    assert "the same header x-user" in found["spec.loadBalancing"]
    assert "after 3 failures in a row or when more than 10% of 50 calls or more fail" in found["spec.outlierDetection"]
    assert "at most 5 calls, 1 calls tried again" in found["spec.circuitBreaker"]
    assert list(sentences(choice(mesh_of({"loadBalancing": {"roundRobin": {}}}), ORDERS))) == []
    for way, text in (("leastRequest", "of 2 healthy endpoints"), ("random", "any healthy")):
        assert text in next(sentences(choice(mesh_of({"loadBalancing": {way: {}}}), ORDERS)))[1]
    assert (
        "cookie at"
        in dict(sentences(choice(mesh_of({"affinity": {"cookie": {"name": "at"}}}), ORDERS)))["spec.affinity"]
    )
