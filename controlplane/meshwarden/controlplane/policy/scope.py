"""Scopes: the sets of xDS resources that are compiled, cached and pushed as one.

    client/<tenant>/<variant>            what any workload of the tenant, whose client is of that variant, needs to call
    client/<tenant>/<variant>/<service>  the same for those of a service that some route policy names as caller
    near/<tenant>/<region>/<zone>        of that the endpoints of services that prefer what is near, for who is there
    server/<tenant>/<service>/<dialect>  what a service's instances enforce
    egress/<tenant>/<owner>/<service>    what a tenant's Envoys hold of an external service, which is its owner's
    listener/<node>/<data plane id>      one instance's own listeners

A data plane's configuration is the union of its scopes.
"""

from collections.abc import Container, Iterable
from typing import Any
from urllib.parse import quote

from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.policy.mesh import Impact
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.variant import Kind, Variant
from meshwarden.controlplane.resources.ingress import runs
from meshwarden.v1 import node_service_pb2


def client_scope(tenant: str, variant: Variant, service: str = "") -> str:
    """The scope of a tenant's clients of a variant, or of one service's."""
    return f"client/{tenant}/{variant}/{service}" if service else f"client/{tenant}/{variant}"


def near_scope(tenant: str, place: Place) -> str:
    """The scope of a tenant's clients at a place, which may be called anything."""
    return f"near/{tenant}/{quote(place.region, safe='')}/{quote(place.zone, safe='')}"


def server_scope(service: Name, dialect: str) -> str:
    """The scope of a service's instances."""
    return f"server/{service.tenant}/{service.name}/{dialect}"


def egress_scope(tenant: str, service: Name) -> str:
    """The scope of an external service for a tenant's Envoys."""
    return f"egress/{tenant}/{service.tenant}/{service.name}"


def listener_scope(node: str, data_plane: str) -> str:
    """The scope of one instance; its id may hold slashes."""
    return f"listener/{node}/{data_plane}"


def scopes_of(
    ref: node_service_pb2.DataPlaneRef,
    node: str,
    entry: Any,
    named: Container[Name] = (),
    place: Place | None = None,
    externals: Iterable[Name] = (),
) -> tuple[str, ...]:
    """The scopes of a data plane of `node` whose workload entry is `entry`.

    Tenant and service come from the entry, never from the agent's word. `named` are the services that some route policy
    names as callers: `Mesh.named`. Where the node is, `place`, is given if that matters to some service that the tenant
    sees. `externals` are the external services that it sees.

    Raises:
        ValueError: the dialect is none that we speak.
    """
    variant = Variant.of(ref)
    service = Name(entry.metadata.tenant, entry.spec.service)
    scopes = [client_scope(service.tenant, variant, service.name if service in named else "")]
    if place is not None:
        scopes.append(near_scope(service.tenant, place))
    if ref.listen_address:
        scopes.append(server_scope(service, variant.dialect))
    if ref.outbound_path:
        scopes += (egress_scope(service.tenant, name) for name in externals)
    if ref.listen_address or ref.outbound_path or (variant.kind is Kind.ENVOY and runs(entry)):
        scopes.append(listener_scope(node, ref.id))
    return tuple(scopes)


def service_of(scope: str) -> Name:
    """The service of a `server` scope, or of an `egress` scope."""
    kind, *rest = scope.split("/")
    return Name(*rest[1:]) if kind == "egress" else Name(*rest[:2])


def touched(scope: str, impact: Impact) -> bool:
    """Whether a change makes it necessary to compile a scope anew."""
    kind, first, _ = scope.split("/", 2)
    if kind in ("client", "near"):
        return not {"*", first}.isdisjoint(impact.seen_by)
    if kind in ("server", "egress"):
        return service_of(scope) in impact.servers
    return first in impact.nodes
