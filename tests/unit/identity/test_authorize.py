import grpc
import pytest

from meshwarden.certs.spiffe_id import Role, SpiffeId
from meshwarden.controlplane.identity.authorize import TABLE, Denied, authorize, authorize_region, check_role, sees
from meshwarden.v1 import (
    admin_service_pb2,
    audit_service_pb2,
    console_service_pb2,
    cost_service_pb2,
    data_plane_service_pb2,
    node_service_pb2,
    operator_service_pb2,
    preview_service_pb2,
    quota_service_pb2,
    region_service_pb2,
    report_pb2,
    resource_service_pb2,
    revision_service_pb2,
    rollout_service_pb2,
    session_service_pb2,
)

WHO = {
    Role.WORKLOAD: SpiffeId.workload("a.test", "acme", "web"),
    Role.NODE: SpiffeId.for_node("a.test", "eu", "n1"),
    Role.CONTROL_PLANE: SpiffeId.control_plane("a.test", "eu"),
    Role.OPERATOR: SpiffeId.for_operator("a.test", "ann"),
    Role.TENANT_OPERATOR: SpiffeId.for_operator("a.test", "bob", "acme"),
    Role.OTHER: SpiffeId.parse("spiffe://a.test/x"),
}
HEALTH = {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch"}


def methods() -> set[str]:
    files = (
        admin_service_pb2,
        audit_service_pb2,
        console_service_pb2,
        cost_service_pb2,
        data_plane_service_pb2,
        node_service_pb2,
        operator_service_pb2,
        preview_service_pb2,
        quota_service_pb2,
        region_service_pb2,
        report_pb2,
        resource_service_pb2,
        revision_service_pb2,
        rollout_service_pb2,
        session_service_pb2,
    )
    return {
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


NODE = ("NodeService", "QuotaService", "ReportService")


def may(peer: SpiffeId | None) -> set[str]:
    allowed = set()
    for method in TABLE:
        try:
            check_role(peer, method)
        except Denied:
            continue
        allowed.add(method)
    return allowed


def test_every_method_of_the_control_plane_is_in_the_table() -> None:
    assert {method for method in TABLE if method.startswith("/meshwarden.")} == methods()


def test_who_may_what() -> None:
    login = "/meshwarden.v1.OperatorService/LoginOperator"
    session = {
        f"/meshwarden.v1.SessionService/{method}" for method in ("PreviewSession", "CreateSession", "DeleteSession")
    }
    assert may(None) == HEALTH | {"/meshwarden.v1.NodeService/Attest", login} | session
    assert may(WHO[Role.WORKLOAD]) == may(WHO[Role.OTHER]) == set()
    region = {f"/meshwarden.v1.RegionService/{method}" for method in ("GetDenies", "GetTrust", "Pull")}
    assert may(WHO[Role.CONTROL_PLANE]) == HEALTH | region
    node = {method for method in TABLE if any(name in method for name in NODE)}
    assert may(WHO[Role.NODE]) == HEALTH | node
    rest = set(TABLE) - node - region
    assert may(WHO[Role.OPERATOR]) == rest
    names = (
        "CreateJoinToken",
        "RenewSvids",
        "ListNodes",
        "BanNode",
        "UnbanNode",
        "EvictNode",
        "ForgetNode",
        "ListRoots",
        "ChangeRoot",
        "ListJwtKeys",
        "ListBundles",
        "ChangeJwtKey",
    )
    mesh_wide = {f"/meshwarden.v1.AdminService/{name}" for name in names}
    mesh_wide.add("/meshwarden.v1.AuditService/VerifyEvents")
    assert may(WHO[Role.TENANT_OPERATOR]) == rest - mesh_wide


@pytest.mark.parametrize("method", ["", "/", "/meshwarden.v1.AdminService/New", "meshwarden.v1.NodeService/Attest"])
def test_what_is_not_in_the_table_is_refused(method: str) -> None:
    for peer in (None, *WHO.values()):
        with pytest.raises(Denied):
            authorize(peer, method, None)


def test_a_tenants_operator_stays_with_its_tenant() -> None:
    bob = WHO[Role.TENANT_OPERATOR]
    apply = "/meshwarden.v1.ResourceService/Apply"
    authorize(bob, apply, "acme")
    for tenant in ("globex", "", None, "ACME"):
        with pytest.raises(Denied, match="operator of tenant acme alone"):
            authorize(bob, apply, tenant)
    authorize(bob, "/meshwarden.v1.AdminService/GetStatus", None)
    authorize(WHO[Role.OPERATOR], apply, None)


def test_statuses() -> None:
    with pytest.raises(Denied) as caught:
        check_role(None, "/meshwarden.v1.NodeService/Sync")
    assert caught.value.status is grpc.StatusCode.UNAUTHENTICATED
    assert "a node agent" in caught.value.message
    with pytest.raises(Denied) as caught:
        check_role(WHO[Role.WORKLOAD], "/meshwarden.v1.NodeService/Sync")
    assert caught.value.status is grpc.StatusCode.PERMISSION_DENIED


def test_sees() -> None:
    assert sees(WHO[Role.OPERATOR], "acme")
    assert sees(WHO[Role.TENANT_OPERATOR], "acme")
    assert not sees(WHO[Role.TENANT_OPERATOR], "globex")
    assert not sees(WHO[Role.WORKLOAD], "acme")
    assert not sees(None, "acme")


@pytest.mark.parametrize(
    "peer",
    [
        None,
        *(who for role, who in WHO.items() if role is not Role.CONTROL_PLANE),
        SpiffeId.control_plane("a.test", "us"),  # ourselves
        SpiffeId.control_plane("b.test", "eu"),
    ],
)
def test_a_region_tells_no_other_than_another_of_its_trust_domain(peer: SpiffeId | None) -> None:
    with pytest.raises(Denied):
        authorize_region(peer, "/meshwarden.v1.RegionService/Pull", "a.test", "us")


def test_a_region_tells_another() -> None:
    peer = SpiffeId.control_plane("a.test", "eu")
    assert authorize_region(peer, "/meshwarden.v1.RegionService/Pull", "a.test", "us") == "eu"
