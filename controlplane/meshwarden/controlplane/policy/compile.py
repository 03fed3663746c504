"""A scope to the resources of its dialect.

`compile_scope` is a function of the mesh alone (and, for a listener, of the instance). `Parts` remembers what belongs
to one service and is the same for all who see it, so that a change of one service compiles that one anew.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from meshwarden.controlplane.policy import access, rate, route
from meshwarden.controlplane.policy.envoy.dialect import Envoy
from meshwarden.controlplane.policy.grant import Access
from meshwarden.controlplane.policy.grpc.dialect import Grpc
from meshwarden.controlplane.policy.mesh import Impact, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.traffic import Route
from meshwarden.controlplane.policy.variant import Asker, Variant
from meshwarden.v1 import node_service_pb2
from meshwarden.xds.snapshot import Resource


@dataclass(frozen=True)
class Later:
    """What becomes of a scope by itself, as time goes on.

    Attributes:
        from_s: from which moment on, in seconds since 1970.
        resources: those that are others then.
        access: what `ScopeContent.access` is then.
    """

    from_s: float
    resources: tuple[Resource, ...]
    access: node_service_pb2.ServerAccess | None


@dataclass(frozen=True)
class ScopeContent:
    """What a scope holds.

    Attributes:
        resources: of distinct type and name.
        limits: what servers of the scope enforce; None for a scope of no servers.
        access: whom the SDK's servers let in; None for a scope of none of those.
        later: what becomes of it at the next moments, in their order; with the last nothing is let in for a time.
    """

    resources: tuple[Resource, ...]
    limits: node_service_pb2.ServerLimits | None = None
    access: node_service_pb2.ServerAccess | None = None
    later: tuple[Later, ...] = ()


class Dialect(Protocol):
    """A way to say things to data planes."""

    def bearing(self, said: Route, asker: Asker) -> Hashable:
        """What the part of a service depends on, of who asks for it: all for whom that is equal share its bytes."""

    def part(self, mesh: Mesh, service: Name, asker: Asker) -> tuple[Resource, ...]:
        """What who asks needs to call a service."""

    def client(self, mesh: Mesh, caller: Name) -> tuple[Resource, ...]:
        """What a caller needs beside the parts of the services that its tenant sees."""

    def server(self, mesh: Mesh, service: Name, said: Access) -> tuple[Resource, ...]:
        """What a service's instances enforce, where that is who may call."""

    def listener(self, mesh: Mesh, ref: node_service_pb2.DataPlaneRef, service: Name) -> tuple[Resource, ...]:
        """The listeners of one instance."""


_LATER: Final = 4
"""How many turns of time ahead a scope is compiled; from the next on nothing is let in for a time."""
DIALECTS: dict[str, Dialect] = {"grpc": Grpc(), "envoy": Envoy()}


class Parts:
    """What was compiled for one service or one tenant, kept until a change touches it."""

    def __init__(self) -> None:
        self._known: dict[Name, _Part] = {}
        self._clients: dict[tuple[str, Name], tuple[Resource, ...]] = {}
        # Found again without asking what they depend on: {who asks: {service: its part}}.
        self._of: dict[Asker, dict[Name, tuple[Resource, ...]]] = {}

    def client(self, mesh: Mesh, asker: Asker) -> tuple[Resource, ...]:
        """What who asks needs beside the parts of services; no change of endpoints touches it."""
        key = (asker.variant.dialect, asker.caller)
        known = self._clients.get(key)
        if known is None:
            known = self._clients[key] = DIALECTS[asker.variant.dialect].client(mesh, asker.caller)
        return known

    def all(self, mesh: Mesh, asker: Asker, services: Iterable[Name]) -> list[Resource]:
        """The parts of services for who asks, in the order of these."""
        own, every = self._of.setdefault(asker, {}), list[Resource]()
        for service in services:
            found = own.get(service)
            if found is None:
                found = own[service] = self._part(mesh, asker, service)
            every += found
        return every

    def _part(self, mesh: Mesh, asker: Asker, service: Name) -> tuple[Resource, ...]:
        part = self._known.get(service)
        if part is None:
            part = self._known[service] = _Part(route.route(mesh, service), {})
        name = asker.variant.dialect
        key = (name, DIALECTS[name].bearing(part.route, asker))
        known = part.made.get(key)
        if known is None:
            known = part.made[key] = DIALECTS[name].part(mesh, service, asker)
        return known

    def forget(self, impact: Impact) -> None:
        """Forgets what a change touches."""
        for service in impact.services:
            self._known.pop(service, None)
        for dialect, caller in list(self._clients):
            if not {"*", caller.tenant}.isdisjoint(impact.routed):
                del self._clients[dialect, caller]
        for asker, own in list(self._of.items()):
            if not {"*", asker.caller.tenant}.isdisjoint(impact.routed):
                del self._of[asker]
                continue
            for service in impact.services:
                own.pop(service, None)


@dataclass(frozen=True)
class _Part:
    """A service: what becomes of its calls, and {(dialect, bearing): resources}."""

    route: Route
    made: dict[tuple[str, Hashable], tuple[Resource, ...]]


def compile_scope(
    mesh: Mesh,
    scope: str,
    ref: node_service_pb2.DataPlaneRef | None = None,
    entry: Any = None,
    parts: Parts | None = None,
    at_s: float | None = None,
) -> ScopeContent:
    """The content of a scope.

    Args:
        mesh: the resources.
        scope: as `scope.scopes_of` names it.
        ref: the instance, for a `listener` scope.
        entry: the instance's workload entry, for a `listener` scope.
        parts: what is known already of the same mesh.
        at_s: the present, in seconds since 1970; without it nothing holds that lets in for a time.

    Raises:
        ValueError: the scope's name is none, or a listener's instance is missing or has a bad address.
    """
    kind, _, rest = scope.partition("/")
    if kind == "server":
        return _server(mesh, rest, at_s)
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
    tenant, text, *service = rest.split("/")
    asker = Asker(Variant.parse(text), Name(tenant, *service) if service else Name(tenant, ""))
    return ScopeContent((*parts.client(mesh, asker), *parts.all(mesh, asker, mesh.visible(tenant))))


def _server(mesh: Mesh, rest: str, at_s: float | None) -> ScopeContent:
    tenant, name, dialect = rest.split("/")
    service = Name(tenant, name)
    said = access.access(mesh, service)

    def content(moment_s: float | None) -> ScopeContent:
        told = access.told(mesh, service, moment_s) if dialect == "grpc" else None
        resources = DIALECTS[dialect].server(mesh, service, said.at(moment_s))
        return ScopeContent(resources, server_limits(mesh, service), told)

    now = content(at_s)
    later: list[Later] = []
    while at_s is not None and len(later) <= _LATER and (turn_s := said.turn(at_s)) is not None:
        then = content(turn_s if len(later) < _LATER else None)
        changed = tuple(one for one in then.resources if one not in now.resources)
        later.append(Later(turn_s, changed, then.access))
        at_s = turn_s
    return replace(now, later=tuple(later))


def _listener(mesh: Mesh, rest: str, ref: node_service_pb2.DataPlaneRef | None, entry: Any, _: object) -> ScopeContent:
    if ref is None or entry is None:
        raise ValueError(f"listener/{rest} can't be compiled without its instance")
    service = Name(entry.metadata.tenant, entry.spec.service)
    dialect = "envoy" if ref.dialect == node_service_pb2.DataPlaneRef.ENVOY else "grpc"
    return ScopeContent(DIALECTS[dialect].listener(mesh, ref, service))


_KINDS: dict[str, Callable[..., ScopeContent]] = {"client": _client, "listener": _listener}
