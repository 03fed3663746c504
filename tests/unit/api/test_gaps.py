"""What servers without the SDK leave out is told, to whoever may know."""

from datetime import timedelta
from typing import Any

from meshwarden.certs.clock import utc_now
from meshwarden.certs.deny import Deny, DenyList
from meshwarden.controlplane.api.gaps import policy_gaps, say_unheld
from meshwarden.controlplane.policy.explain import explain
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.controlplane.resources.model import ref_of, unwrap
from meshwarden.v1 import admin_service_pb2, node_service_pb2

MESH = """\
kind: Tenant
metadata: {name: platform}
---
kind: Tenant
metadata: {name: acme}
---
kind: Service
metadata: {tenant: platform, name: orders}
spec: {protocol: GRPC, exportTo: [acme]}
---
kind: WorkloadEntry
metadata: {tenant: platform, name: orders-v1}
spec: {service: orders, nodes: [n1], selectors: {uid: 1001}, port: 7001}
---
kind: AccessPolicy
metadata: {tenant: platform, name: orders}
spec: {service: orders, allow: [{from: [{tenant: acme, service: web}]}]}
"""
LIMIT = """\
kind: RatePolicy
metadata: {tenant: platform, name: limit}
spec: {service: orders, limits: [{tenant: acme, requests: 10}]}
"""
TRY = """\
kind: AccessPolicy
metadata: {tenant: platform, name: try}
spec: {service: orders, dryRun: true, deny: [{from: [{tenant: acme, service: web}]}]}
"""
WEB = "spiffe://mesh.test/tenant/acme/service/web"


def mesh_of(*manifests: str) -> Mesh:
    mesh = Mesh("mesh.test")
    for item in parse("---\n".join((MESH, *manifests)), "mesh.yaml"):
        ref = ref_of(item.resource)
        mesh.apply([Change(Key(ref.kind, ref.tenant, ref.name), unwrap(item.resource))])
    return mesh


def told(mesh: Mesh, shown: Any = lambda _: True, **said: Any) -> list[tuple[str, str, str]]:
    ref = node_service_pb2.DataPlaneRef(
        id="o/grpc", tenant="platform", entry="orders-v1", dialect="GRPC", listen_address="127.0.0.1:7001", **said
    )
    node = admin_service_pb2.NodeState(node="n1", connected=True, data_planes=[ref])
    found = policy_gaps(mesh, [node], shown)
    assert all(gap.effect == admin_service_pb2.PolicyGap.IGNORED for gap in found)
    return [(gap.policy, gap.field, gap.client) for gap in found]


def test_limits_dry_runs_and_numbers_of_certificates_are_nothing_to_grpcs_own_servers() -> None:
    limited, tried = mesh_of(LIMIT), mesh_of(TRY)
    entry = "platform/orders-v1"
    assert told(limited, without_sdk=True) == [("RatePolicy platform/limit", "", entry)]
    assert told(tried, without_sdk=True) == [("AccessPolicy platform/try", "spec.dryRun", entry)]
    for mesh in (limited, tried):
        assert not told(mesh), "the SDK holds them"
        assert not told(mesh, lambda tenant: tenant == "acme", without_sdk=True)
    assert not told(mesh_of(), without_sdk=True)


def test_explain_says_of_a_limit_who_does_not_hold_it() -> None:
    mesh = mesh_of(LIMIT)
    request = admin_service_pb2.ExplainRequest(**{"from": "acme/web", "to": "platform/orders", "method": "/o.O/Get"})
    for without_sdk, connected, shown, said in (
        (True, True, True, True),
        (False, True, True, False),
        (True, False, True, False),
        (True, True, False, False),  # nothing of what is another tenant's
    ):
        node = admin_service_pb2.NodeState(node="n1", connected=connected)
        ref = {"id": "o/grpc", "tenant": "platform", "entry": "orders-v1", "without_sdk": without_sdk}
        node.data_planes.add(**ref)
        answer = explain(mesh, request, lambda tenant, shown=shown: shown or tenant == "acme")
        say_unheld(answer, mesh, [node], "platform/orders")
        assert ("; not held by platform/orders-v1, whose servers have no SDK" in str(answer)) is said
    say_unheld(answer, mesh, [node], "platform/none")


def test_a_certificate_that_is_revoked_by_number_is_told_where_it_would_be_let_in() -> None:
    later = utc_now() + timedelta(hours=1)
    for serial, identity, found in (
        ("ab12", WEB, [("Service platform/orders", "", "platform/orders-v1")]),
        ("ab12", "", [("Service platform/orders", "", "platform/orders-v1")]),
        ("", WEB, []),  # gRPC's own servers know identities
        ("ab12", "spiffe://mesh.test/tenant/acme/service/other", []),
    ):
        mesh = mesh_of()
        mesh.deny(DenyList((Deny(identity, serial, later),)))
        assert told(mesh, without_sdk=True) == found, (serial, identity)
