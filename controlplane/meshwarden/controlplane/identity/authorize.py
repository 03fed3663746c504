"""The one table of who may call what. Every RPC passes `admit` before its handler and `authorize` in it.

What isn't in the table is refused.
"""

from typing import Final

import grpc

from meshwarden.certs.spiffe_id import Role, SpiffeId
from meshwarden.certs.verify import VerifiedPeer
from meshwarden.sdk.mtls.peer import Refused


class Denied(Refused):
    """The caller may not; the message says what it would need."""

    def __init__(
        self, message: str, status: grpc.StatusCode = grpc.StatusCode.PERMISSION_DENIED, code: str = ""
    ) -> None:
        super().__init__(status, message, code)


# None is a caller without a certificate.
_ADMIN: frozenset[Role | None] = frozenset({Role.OPERATOR})
_OPERATORS: frozenset[Role | None] = frozenset({Role.OPERATOR, Role.TENANT_OPERATOR})
_NODE: frozenset[Role | None] = frozenset({Role.NODE})
_REGION: frozenset[Role | None] = frozenset({Role.CONTROL_PLANE})
_JOIN: frozenset[Role | None] = frozenset({None, Role.NODE})
_LOGIN: frozenset[Role | None] = frozenset({None, Role.OPERATOR, Role.TENANT_OPERATOR})
_HEALTH: frozenset[Role | None] = frozenset({None, Role.NODE, Role.OPERATOR, Role.TENANT_OPERATOR, Role.CONTROL_PLANE})

TABLE: dict[str, frozenset[Role | None]] = {
    "/meshwarden.v1.AdminService/CreateJoinToken": _ADMIN,
    "/meshwarden.v1.AdminService/RenewSvids": _ADMIN,
    "/meshwarden.v1.AdminService/ListNodes": _ADMIN,
    "/meshwarden.v1.AdminService/BanNode": _ADMIN,
    "/meshwarden.v1.AdminService/UnbanNode": _ADMIN,
    "/meshwarden.v1.AdminService/EvictNode": _ADMIN,
    "/meshwarden.v1.AdminService/ForgetNode": _ADMIN,
    "/meshwarden.v1.AdminService/GetStatus": _OPERATORS,
    "/meshwarden.v1.AdminService/Explain": _OPERATORS,
    "/meshwarden.v1.AdminService/ListCalls": _OPERATORS,
    "/meshwarden.v1.AdminService/GetGraph": _OPERATORS,
    "/meshwarden.v1.AdminService/SearchTraces": _OPERATORS,
    "/meshwarden.v1.AdminService/GetTrace": _OPERATORS,
    "/meshwarden.v1.AdminService/GetQuotas": _OPERATORS,
    "/meshwarden.v1.AdminService/Deny": _OPERATORS,
    "/meshwarden.v1.AdminService/Allow": _OPERATORS,
    "/meshwarden.v1.AdminService/ListDenied": _OPERATORS,
    "/meshwarden.v1.AdminService/ListCertificates": _OPERATORS,
    "/meshwarden.v1.AuditService/ListEvents": _OPERATORS,
    "/meshwarden.v1.AuditService/VerifyEvents": _ADMIN,
    "/meshwarden.v1.AdminService/ListRoots": _ADMIN,
    "/meshwarden.v1.AdminService/ChangeRoot": _ADMIN,
    "/meshwarden.v1.AdminService/ListJwtKeys": _ADMIN,
    "/meshwarden.v1.AdminService/ListBundles": _ADMIN,
    "/meshwarden.v1.AdminService/ChangeJwtKey": _ADMIN,
    "/meshwarden.v1.ConsoleService/WatchMesh": _OPERATORS,
    "/meshwarden.v1.CostService/GetCosts": _OPERATORS,
    "/meshwarden.v1.OperatorService/CreateOperator": _OPERATORS,
    "/meshwarden.v1.OperatorService/RenewOperator": _OPERATORS,
    "/meshwarden.v1.OperatorService/LoginOperator": _LOGIN,
    "/meshwarden.v1.OperatorService/ListOperators": _OPERATORS,
    "/meshwarden.v1.OperatorService/RemoveOperator": _OPERATORS,
    "/meshwarden.v1.ResourceService/Apply": _OPERATORS,
    "/meshwarden.v1.ResourceService/ParseManifest": _OPERATORS,
    "/meshwarden.v1.ResourceService/Put": _OPERATORS,
    "/meshwarden.v1.ResourceService/Get": _OPERATORS,
    "/meshwarden.v1.ResourceService/List": _OPERATORS,
    "/meshwarden.v1.ResourceService/Delete": _OPERATORS,
    "/meshwarden.v1.ResourceService/Remove": _OPERATORS,
    "/meshwarden.v1.ResourceService/Watch": _OPERATORS,
    "/meshwarden.v1.PreviewService/Preview": _OPERATORS,
    "/meshwarden.v1.PreviewService/Replay": _OPERATORS,
    "/meshwarden.v1.PreviewService/SuggestAccess": _OPERATORS,
    "/meshwarden.v1.RevisionService/ListRevisions": _OPERATORS,
    "/meshwarden.v1.RevisionService/GetRevision": _OPERATORS,
    "/meshwarden.v1.RevisionService/Rollback": _OPERATORS,
    "/meshwarden.v1.RevisionService/GetProgress": _OPERATORS,
    "/meshwarden.v1.RevisionService/WatchProgress": _OPERATORS,
    "/meshwarden.v1.RolloutService/ListRollouts": _OPERATORS,
    "/meshwarden.v1.RolloutService/ChangeRollout": _OPERATORS,
    "/meshwarden.v1.SessionService/CreateSessionCode": _OPERATORS,
    "/meshwarden.v1.SessionService/PreviewSession": _LOGIN,
    "/meshwarden.v1.SessionService/CreateSession": _LOGIN,
    "/meshwarden.v1.SessionService/GetSession": _OPERATORS,
    "/meshwarden.v1.SessionService/DeleteSession": _LOGIN,
    "/meshwarden.v1.DataPlaneService/ListDataPlanes": _OPERATORS,
    "/meshwarden.v1.DataPlaneService/GetDataPlane": _OPERATORS,
    "/meshwarden.v1.NodeService/Attest": _JOIN,
    "/meshwarden.v1.NodeService/Renew": _NODE,
    "/meshwarden.v1.NodeService/Sync": _NODE,
    "/meshwarden.v1.NodeService/SignWorkload": _NODE,
    "/meshwarden.v1.NodeService/SignJwt": _NODE,
    "/meshwarden.v1.QuotaService/Share": _NODE,
    "/meshwarden.v1.ReportService/Export": _NODE,
    "/meshwarden.v1.RegionService/GetDenies": _REGION,
    "/meshwarden.v1.RegionService/GetTrust": _REGION,
    "/meshwarden.v1.RegionService/Pull": _REGION,
    "/grpc.health.v1.Health/Check": _HEALTH,
    "/grpc.health.v1.Health/List": _HEALTH,
    "/grpc.health.v1.Health/Watch": _HEALTH,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": _OPERATORS,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _OPERATORS,
}
READING: Final = frozenset(
    {
        "GetStatus",
        "Explain",
        "ListCalls",
        "GetGraph",
        "SearchTraces",
        "GetTrace",
        "GetQuotas",
        "GetCosts",
        "WatchMesh",
        "ListDenied",
        "ListCertificates",
        "ListEvents",
        "ListOperators",
        "VerifyEvents",
        "ListNodes",
        "ListRoots",
        "ListJwtKeys",
        "ListBundles",
        "Preview",
        "Replay",
        "SuggestAccess",
        "ListRevisions",
        "GetRevision",
        "GetProgress",
        "WatchProgress",
        "ListRollouts",
        "ListDataPlanes",
        "GetDataPlane",
        "GetSession",
        "ParseManifest",
        "Get",
        "List",
    },
)
"""Methods that change nothing, by their names."""
BY_CERTIFICATE: Final = frozenset(
    {
        "/meshwarden.v1.OperatorService/CreateOperator",
        "/meshwarden.v1.OperatorService/RenewOperator",
        "/meshwarden.v1.SessionService/CreateSessionCode",
    }
)
"""What no browser's session may: what comes of it would outlive the session."""
# Of these a tenant's operator need not name a tenant: the answer shows no other.
FILTERED = frozenset(
    f"/meshwarden.v1.{service}/{method}"
    for service, methods in {
        "AdminService": (
            "GetStatus",
            "GetGraph",
            "SearchTraces",
            "GetTrace",
            "GetQuotas",
            "ListDenied",
            "ListCertificates",
        ),
        "ConsoleService": ("WatchMesh",),
        "CostService": ("GetCosts",),
        "DataPlaneService": ("ListDataPlanes", "GetDataPlane"),
        "RevisionService": ("ListRevisions", "GetRevision", "GetProgress", "WatchProgress"),
        "RolloutService": ("ListRollouts",),
    }.items()
    for method in methods
)
_TITLES = {
    None: "a caller without a certificate",
    Role.OPERATOR: "an operator of the mesh",
    Role.TENANT_OPERATOR: "an operator of the tenant",
    Role.NODE: "a node agent",
    Role.CONTROL_PLANE: "a control plane",
}


def admit(peer: VerifiedPeer | None, method: str) -> None:
    """Lets a caller's role through to a method, or not: what is asked before a request is even read.

    Raises:
        Denied: UNAUTHENTICATED without a certificate, PERMISSION_DENIED with one of the wrong role.
    """
    check_role(peer.spiffe_id if peer is not None else None, method)


def authorize(peer: SpiffeId | None, method: str, tenant: str | None) -> None:
    """Checks a request: the role, and that a tenant's operator stays with its tenant.

    Args:
        peer: the caller; None is one without a certificate.
        method: the full method, "/meshwarden.v1.ResourceService/Get".
        tenant: whose things the request touches; None if those of no tenant, or of all.

    Raises:
        Denied: the caller may not.
    """
    check_role(peer, method)
    if peer is None or peer.role is not Role.TENANT_OPERATOR or tenant == peer.tenant:
        return
    if tenant is None and method in FILTERED:
        return
    wanted = "every tenant" if tenant is None else f"tenant {tenant}"
    raise Denied(f"{peer} may not call {method} for {wanted}: it is an operator of tenant {peer.tenant} alone")


def authorize_region(peer: SpiffeId | None, method: str, trust_domain: str, region: str) -> str:
    """Checks that the caller is the control plane of another region of the same trust domain; returns that region.

    Args:
        peer: the caller; None is one without a certificate.
        method: the full method.
        trust_domain: ours.
        region: ours.

    Raises:
        Denied: it is not.
    """
    check_role(peer, method)
    if peer is None or peer.trust_domain != trust_domain or peer.region in (None, region):
        raise Denied(f"{peer} may not call {method}: it takes a control plane of another region of {trust_domain}")
    return str(peer.region)


def sees(peer: SpiffeId | None, tenant: str) -> bool:
    """Says whether a caller may be shown a tenant's things."""
    if peer is None:
        return False
    return peer.role is Role.OPERATOR or (peer.role is Role.TENANT_OPERATOR and peer.tenant == tenant)


def check_role(peer: SpiffeId | None, method: str) -> None:
    """Checks the role alone.

    Raises:
        Denied: the caller may not.
    """
    allowed = TABLE.get(method, frozenset())
    role = peer.role if peer is not None else None
    if role in allowed:
        return
    who = " or ".join(title for known, title in _TITLES.items() if known in allowed and known is not None)
    needed = f"it takes the certificate of {who}" if who else "nobody may"
    if peer is None:
        raise Denied(f"{method}: {needed}; you showed none", grpc.StatusCode.UNAUTHENTICATED)
    raise Denied(f"{peer} may not call {method}: {needed}")
