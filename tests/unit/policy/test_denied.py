"""Revoked callers in what is compiled: which services are touched, and when a listener is to end what is open."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf import json_format

from meshwarden.certs.deny import Deny, DenyList
from meshwarden.controlplane.policy import access, endpoint
from meshwarden.controlplane.policy.compile import compile_scope
from meshwarden.controlplane.policy.explain import explain
from meshwarden.controlplane.policy.grpc.dialect import Grpc
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.v1 import admin_service_pb2, node_service_pb2, resources_pb2
from meshwarden.xds import api

ORDERS, BILLING, WEB = Name("platform", "orders"), Name("platform", "billing"), Name("acme", "web")
LISTENER = "envoy.config.listener.v3.Listener"
ASSIGNMENT = "envoy.config.endpoint.v3.ClusterLoadAssignment"
LATER = datetime(2026, 11, 27, tzinfo=UTC)
REF = node_service_pb2.DataPlaneRef(
    id="x", tenant="platform", entry="orders", dialect="ENVOY", listen_address="127.0.0.1:1", app_address="127.0.0.1:2"
)


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


@pytest.fixture
def mesh() -> Mesh:
    mesh = Mesh("mesh.test")
    mesh.apply(
        [
            made("Service", "platform", "orders", {"exportTo": ["*"]}),
            made("Service", "platform", "billing", {"exportTo": ["*"]}),
            made("Service", "acme", "web", {"exportTo": ["globex"]}),
            made("WorkloadEntry", "platform", "orders", {"service": "orders", "nodes": ["n1"]}),
            made("WorkloadEntry", "platform", "billing", {"service": "billing", "nodes": ["n2"]}),
            made("Endpoint", "acme", "e", {"service": "web", "address": "127.0.0.1", "port": 1}),
            policy("orders", {"tenant": "acme", "service": "*"}),
            policy("billing", {"tenant": "globex", "service": "shop"}),
        ]
    )
    return mesh


def policy(service: str, *callers: dict[str, str]) -> Change:
    return made("AccessPolicy", "platform", service, {"service": service, "allow": [{"from": list(callers)}]})


def spiffe(name: Name, domain: str = "mesh.test") -> str:
    return f"spiffe://{domain}/tenant/{name.tenant}/service/{name.name}"


def denying(*denies: tuple[str, str], hours: int = 0) -> DenyList:
    return DenyList([Deny(who, serial, LATER + timedelta(hours=hours)) for who, serial in denies], 1)


def chain_name(mesh: Mesh) -> str:
    """What the filter chain of orders' listener is called."""
    entry = mesh.find("WorkloadEntry", "platform", "orders")
    found = compile_scope(mesh, "listener/n1/x", REF, entry).resources
    (listener,) = [item for item in found if item.type_url == api.LISTENER]
    return str(api.to_dict(api.parse(LISTENER, listener.body))["filter_chains"][0].get("name", ""))


def router_name(mesh: Mesh) -> str:
    """What the last filter of a gRPC server's listener is called."""
    ref = node_service_pb2.DataPlaneRef(listen_address="127.0.0.1:7021")
    (listener,) = Grpc().listener(mesh, ref, ORDERS, permissive=False)
    (chain,) = api.to_dict(api.parse(LISTENER, listener.body))["filter_chains"]
    return str(chain["filters"][0]["typed_config"]["http_filters"][-1]["name"])


def test_a_deny_touches_those_whose_policies_let_the_caller_in(mesh: Mesh) -> None:
    impact = mesh.deny(denying((spiffe(WEB), "")))
    assert (impact.servers, impact.nodes) == ({ORDERS}, {"n1"})
    # It is called no more either.
    assert (impact.services, impact.seen_by) == ({WEB}, {"acme", "globex"})
    assert access.access(mesh, ORDERS).revoked == (WEB,)
    assert access.access(mesh, BILLING).revoked == ()
    assert not api.to_dict(api.parse(ASSIGNMENT, endpoint.assignment(mesh, WEB).body)).get("endpoints")
    assert not mesh.deny(denying((spiffe(WEB), "")))
    assert mesh.deny(denying()).servers == {ORDERS}
    assert api.to_dict(api.parse(ASSIGNMENT, endpoint.assignment(mesh, WEB).body))["endpoints"]


def test_a_certificate_of_whoever_touches_all_who_may_be_called(mesh: Mesh) -> None:
    impact = mesh.deny(denying(("", "1f"), (spiffe(WEB), "2f")))
    assert (impact.servers, impact.services) == ({ORDERS, BILLING}, set())
    assert set(access.access(mesh, ORDERS).serials) == {("1f", None), ("2f", WEB)}
    assert access.access(mesh, BILLING).serials == (("1f", None),)


@pytest.mark.parametrize(
    "stranger",
    [
        "spiffe://mesh.test/region/eu/node/n1",
        "spiffe://mesh.test/operator/ann",
        "spiffe://mesh.test/tenant/acme/operator/web",
        spiffe(WEB, "other.test"),
        spiffe(WEB) + "/more",
        spiffe(Name("initech", "web")),
    ],
)
def test_who_calls_nobody_touches_nothing(mesh: Mesh, stranger: str) -> None:
    assert not mesh.deny(denying((stranger, ""), (stranger, "1f")))


def test_a_listener_ends_what_is_open_at_each_deny_that_comes_and_at_no_other_change(mesh: Mesh) -> None:
    assert chain_name(mesh) == ""
    mesh.deny(denying((spiffe(WEB), "")))
    first = chain_name(mesh)
    assert first.startswith("inbound/")
    mesh.deny(denying())
    assert chain_name(mesh) == first  # whoever is allowed again is not to be thrown out
    mesh.deny(denying((spiffe(Name("globex", "shop")), "")))
    assert chain_name(mesh) == first  # another's business
    mesh.deny(denying((spiffe(WEB), ""), hours=1))
    second = chain_name(mesh)
    assert second != first
    again = Mesh("mesh.test")
    again.deny(denying((spiffe(WEB), ""), hours=1))
    again.apply([Change(key, message) for key, message in mesh.all().items()])
    assert chain_name(again) == second  # a control plane that starts again throws nobody out


def test_a_revoked_caller_is_told_so_by_explain(mesh: Mesh) -> None:
    mesh.deny(denying((spiffe(WEB), "")))
    request = admin_service_pb2.ExplainRequest(**{"from": "acme/web", "to": "platform/orders", "method": "/a/B"})
    for shown in (True, False):
        answer = explain(mesh, request, lambda _, shown=shown: shown)
        assert any("revoked" in step.text and not step.ok for step in answer.steps)


def test_when_a_root_is_gone_all_listeners_end_what_is_open(mesh: Mesh) -> None:
    impact = mesh.cut("a1")
    assert (impact.servers, impact.nodes) == ({ORDERS, BILLING}, {"n1", "n2"})
    first, grpc = chain_name(mesh), router_name(mesh)
    assert grpc != "router"
    mesh.deny(denying((spiffe(WEB), "")))
    second = chain_name(mesh)
    mesh.cut("b2")
    assert len({first, second, chain_name(mesh), ""}) == 4
    assert router_name(mesh) != grpc


def test_a_deny_alone_leaves_connections_to_grpc_servers_open(mesh: Mesh) -> None:
    mesh.deny(denying((spiffe(WEB), "")))
    assert router_name(mesh) == "router"
