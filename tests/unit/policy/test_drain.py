"""Drains: which endpoints get no new calls, what compiles anew for it, and what is told of it."""

from typing import Any

import pytest
from google.protobuf import json_format

from meshwarden.controlplane.policy.endpoint import assignment, count
from meshwarden.controlplane.policy.explain import explain
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.resources.manifest import ManifestFaults, parse
from meshwarden.controlplane.resources.reference import reference_faults, users
from meshwarden.controlplane.resources.view import View
from meshwarden.v1 import admin_service_pb2, resources_pb2
from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.xds import api

ORDERS, OTHER = Name("platform", "orders"), Name("platform", "other")


def made(kind: str, name: str, spec: dict[str, Any], tenant: str = "platform") -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def endpoint(name: str, port: int, tenant: str = "platform", **spec: Any) -> Change:
    more = {"service": "orders", "address": "127.0.0.1", "port": port, "locality": {"region": "eu", "zone": "a"}}
    return made("Endpoint", name, {**more, **spec}, tenant)


@pytest.fixture
def mesh() -> Mesh:
    found = Mesh("mesh.test")
    found.apply(
        [
            made("Service", "orders", {"protocol": "GRPC", "exportTo": ["acme"]}),
            made("Service", "other", {"protocol": "GRPC"}),
            made("Service", "orders", {"protocol": "GRPC"}, "globex"),
            endpoint("one", 1, node="n1", version="v1"),
            endpoint("two", 2, node="n2", version="v2"),
            endpoint("three", 3, node="n1", health="UNHEALTHY", locality={"region": "us", "zone": "a"}),
            endpoint("elsewhere", 4, service="other", node="n2"),
            endpoint("theirs", 5, "globex", node="n1", version="v1"),
        ]
    )
    return found


def states(mesh: Mesh, service: Name = ORDERS) -> dict[int, str]:
    said = api.to_dict(api.parse("envoy.config.endpoint.v3.ClusterLoadAssignment", assignment(mesh, service).body))
    return {
        one["endpoint"]["address"]["socket_address"]["port_value"]: one["health_status"]
        for group in said.get("endpoints", ())
        for one in group["lb_endpoints"]
    }


@pytest.mark.parametrize(
    ("spec", "drained"),
    [
        ({"node": "n1"}, {1}),
        ({"zone": "a"}, {1, 2}),
        ({"zone": "a", "region": "us"}, set()),
        ({"region": "eu", "node": "n2"}, {2}),
        ({"service": "orders", "version": "v2"}, {2}),
        ({"service": "other", "version": "v2"}, set()),
        ({"endpoint": "one"}, {1}),
        ({"node": "n9"}, set()),
    ],
)
def test_a_drain_is_about_what_fits_all_that_it_gives_of_its_own_tenant(
    mesh: Mesh, spec: dict[str, str], drained: set[int]
) -> None:
    before = states(mesh)
    drain = made("Drain", "d", spec)
    impact = mesh.apply([drain])
    assert states(mesh) == before | dict.fromkeys(drained, "DRAINING"), "who is unhealthy stays so"
    assert states(mesh, Name("globex", "orders")) == {5: "HEALTHY"}
    assert count(mesh, ORDERS) == 2 - len(drained)
    assert {item.spec.port for item in mesh.drained(drain.key) if item.spec.port in (1, 2)} == drained
    assert (ORDERS in impact.services) >= bool(drained)
    assert not impact.routed
    assert not impact.ways
    if drained:
        assert impact.seen_by >= {"platform", "acme"}
    assert mesh.apply([Change(drain.key, None)]).services == impact.services
    assert states(mesh) == before
    assert mesh.drains.all() == []


def test_explain_names_the_drain(mesh: Mesh) -> None:
    mesh.apply([made("Drain", "d", {"zone": "a"}), made("Drain", "b", {"node": "n2"})])
    request = admin_service_pb2.ExplainRequest(to="platform/orders", method="/s.O/Get")
    setattr(request, "from", "acme/web")
    step = explain(mesh, request).steps[-1]
    assert (step.stage, step.ok, step.resource, step.field) == ("endpoints", False, "Drain platform/b", "spec")
    assert "0 of 3 are healthy and not drained" in step.text


BASE = """\
kind: Tenant
metadata: {name: platform}
---
kind: Service
metadata: {tenant: platform, name: orders}
spec: {protocol: GRPC}
---
kind: WorkloadEntry
metadata: {tenant: platform, name: orders}
spec: {service: orders, nodes: [n1], selectors: {uid: 1001}, version: v1}
---
kind: Endpoint
metadata: {tenant: platform, name: one}
spec: {service: orders, address: 127.0.0.1, port: 1}
"""


def faults(spec: str) -> str:
    view = View()
    for item in parse(BASE, "base"):
        view.put(item.resource)
    try:
        batch = [
            item.resource
            for item in parse(f"kind: Drain\nmetadata: {{tenant: platform, name: d}}\nspec: {spec}\n", "x")
        ]
    except ManifestFaults as error:
        return str(error)
    return "; ".join(f"{fault.field}: {fault.message}" for fault in reference_faults(batch, view))


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("{}", "give node, region, zone, version or endpoint"),
        ("{service: orders}", "give node, region, zone, version or endpoint"),
        ("{node: N1}", "spec.node"),
        ("{zone: " + "z" * 64 + "}", "spec.zone"),
        ("{version: v1}", "spec.service: is required"),
        ("{service: order, version: v1}", "there is no Service platform/order; did you mean orders?"),
        (
            "{service: orders, version: v9}",
            "spec.version: no workload entry of platform/orders has version v9; it has v1",
        ),
        ("{endpoint: on}", "spec.endpoint: there is no Endpoint platform/on; did you mean one?"),
    ],
)
def test_what_is_no_drain_is_refused(spec: str, fault: str) -> None:
    assert fault in faults(spec)


@pytest.mark.parametrize(
    "spec", ["{node: n9}", "{zone: a}", "{service: orders, version: v1}", "{endpoint: one, node: n1}"]
)
def test_what_is_one_is_taken(spec: str) -> None:
    assert faults(spec) == ""


def test_a_service_that_is_being_drained_is_missed() -> None:
    view = View()
    for item in parse(
        BASE + "---\nkind: Drain\nmetadata: {tenant: platform, name: d}\nspec: {service: orders, node: n1}\n", "b"
    ):
        view.put(item.resource)
    ref = ResourceRef(kind="Service", tenant="platform", name="orders")
    assert any("Drain platform/d needs it: spec.service" in text for text in users([ref], view))


def test_a_copy_of_the_mesh_is_drained_by_itself(mesh: Mesh) -> None:
    mesh.apply([made("Drain", "d", {"node": "n2"})])
    fork = mesh.fork()
    fork.apply([made("Drain", "e", {"node": "n1"})])
    assert (len(fork.drains.all()), len(mesh.drains.all())) == (2, 1)
    assert (states(fork)[1], states(mesh)[1]) == ("DRAINING", "HEALTHY")
