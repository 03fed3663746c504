"""A scope to the resources of its dialect.

`compile_scope` is a function of the mesh alone (and, for a listener, of the instance). `Parts` remembers what belongs
to one service and is the same for all who see it, so that a change of one service compiles that one anew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from meshwarden.controlplane.policy import rate
from meshwarden.controlplane.policy.envoy.dialect import Envoy
from meshwarden.controlplane.policy.grpc.dialect import Grpc
from meshwarden.controlplane.policy.mesh import Impact, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.variant import Variant
from meshwarden.v1 import node_service_pb2
from meshwarden.xds.snapshot import Resource


@dataclass(frozen=True)
class ScopeContent:
    """What a scope holds.

    Attributes:
        resources: of distinct type and name.
        limits: what servers of the scope enforce; None for a scope of no servers.
    """

    resources: tuple[Resource, ...]
    limits: node_service_pb2.ServerLimits | None = None


class Dialect(Protocol):
    """A way to say things to data planes."""

    def bearing(self, mesh: Mesh, service: Name, variant: Variant) -> Variant:
        """The variant whose part of a service is also that of `variant`: all that have the same share its bytes."""

    def part(self, mesh: Mesh, service: Name, variant: Variant) -> tuple[Resource, ...]:
        """What every caller of a service needs whose client is of a variant, whoever it is."""

    def client(self, mesh: Mesh, tenant: str) -> tuple[Resource, ...]:
        """What a tenant's callers need beside the parts of the services that it sees."""

    def server(self, mesh: Mesh, service: Name) -> tuple[Resource, ...]:
        """What a service's instances enforce."""

    def listener(self, mesh: Mesh, ref: node_service_pb2.DataPlaneRef, service: Name) -> tuple[Resource, ...]:
        """The listeners of one instance."""


DIALECTS: dict[str, Dialect] = {"grpc": Grpc(), "envoy": Envoy()}


class Parts:
    """What was compiled for one service or one tenant, kept until a change touches it."""

    def __init__(self) -> None:
        self._known: dict[Name, dict[Variant, tuple[Resource, ...]]] = {}
        self._clients: dict[tuple[str, str], tuple[Resource, ...]] = {}

    def client(self, mesh: Mesh, dialect: str, tenant: str) -> tuple[Resource, ...]:
        """What a tenant's callers need beside the parts of services; no change of endpoints touches it."""
        known = self._clients.get((dialect, tenant))
        if known is None:
            known = self._clients[dialect, tenant] = DIALECTS[dialect].client(mesh, tenant)
        return known

    def get(self, mesh: Mesh, variant: Variant, service: Name) -> tuple[Resource, ...]:
        """The part of a service for clients of a variant."""
        dialect = DIALECTS[variant.dialect]
        of_service, bearing = self._known.setdefault(service, {}), dialect.bearing(mesh, service, variant)
        known = of_service.get(bearing)
        if known is None:
            known = of_service[bearing] = dialect.part(mesh, service, bearing)
        return known

    def forget(self, impact: Impact) -> None:
        """Forgets what a change touches."""
        for service in impact.services:
            self._known.pop(service, None)
        for dialect, tenant in list(self._clients):
            if not {"*", tenant}.isdisjoint(impact.routed):
                del self._clients[dialect, tenant]


def compile_scope(
    mesh: Mesh,
    scope: str,
    ref: node_service_pb2.DataPlaneRef | None = None,
    entry: Any = None,
    parts: Parts | None = None,
) -> ScopeContent:
    """The content of a scope.

    Args:
        mesh: the resources.
        scope: as `scope.scopes_of` names it.
        ref: the instance, for a `listener` scope.
        entry: the instance's workload entry, for a `listener` scope.
        parts: what is known already of the same mesh.

    Raises:
        ValueError: the scope's name is none, or a listener's instance is missing or has a bad address.
    """
    kind, _, rest = scope.partition("/")
    compiler = _KINDS.get(kind)
    if compiler is None:
        raise ValueError(f"{scope!r} is not a scope")
    return compiler(mesh, rest, ref, entry, parts or Parts())


def server_limits(mesh: Mesh, service: Name) -> node_service_pb2.ServerLimits:
    """The limits of a service, for the SDK's servers and for who speaks for an Envoy."""
    answer = node_service_pb2.ServerLimits()
    for said in rate.limits(mesh, service):
        answer.policies.add(policy=str(said.policy), spec=rate.to_spec(said, service))
    return answer


def _client(mesh: Mesh, rest: str, _: object, __: object, parts: Parts) -> ScopeContent:
    tenant, text = rest.split("/")
    variant = Variant.parse(text)
    shared = [item for service in mesh.visible(tenant) for item in parts.get(mesh, variant, service)]
    return ScopeContent((*parts.client(mesh, variant.dialect, tenant), *shared))


def _server(mesh: Mesh, rest: str, *_: object) -> ScopeContent:
    tenant, name, dialect = rest.split("/")
    service = Name(tenant, name)
    return ScopeContent(DIALECTS[dialect].server(mesh, service), server_limits(mesh, service))


def _listener(mesh: Mesh, rest: str, ref: node_service_pb2.DataPlaneRef | None, entry: Any, _: object) -> ScopeContent:
    if ref is None or entry is None:
        raise ValueError(f"listener/{rest} can't be compiled without its instance")
    service = Name(entry.metadata.tenant, entry.spec.service)
    dialect = "envoy" if ref.dialect == node_service_pb2.DataPlaneRef.ENVOY else "grpc"
    return ScopeContent(DIALECTS[dialect].listener(mesh, ref, service))


_KINDS: dict[str, Callable[..., ScopeContent]] = {"client": _client, "server": _server, "listener": _listener}
