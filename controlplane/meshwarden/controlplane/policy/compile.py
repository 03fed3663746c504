"""A scope to the resources of its dialect.

`compile_scope` is a function of the mesh alone (and, for a listener, of the instance). `Parts` remembers what belongs
to one service and is the same for all who see it, so that a change of one service compiles that one anew, and a change
of its endpoints these alone. `Pieces` are what of a scope a change may touch.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol
from urllib.parse import unquote

from meshwarden.controlplane.policy import access, endpoint, external, near, permissive, rate, route
from meshwarden.controlplane.policy.choice import Choice, choice
from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.policy.envoy import ingress
from meshwarden.controlplane.policy.envoy.dialect import Envoy
from meshwarden.controlplane.policy.grant import Access
from meshwarden.controlplane.policy.grpc.dialect import Grpc
from meshwarden.controlplane.policy.mesh import Impact, Mesh
from meshwarden.controlplane.policy.neutral import Method, Name
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

    def bearing(self, said: Route, chosen: Choice, asker: Asker) -> Hashable:
        """What the way to a service depends on, of who asks for it: all for whom that is equal share its bytes."""

    def way(self, mesh: Mesh, service: Name, asker: Asker) -> tuple[Resource, ...]:
        """What who asks needs to call a service, but its endpoints."""

    def client(self, mesh: Mesh, asker: Asker) -> tuple[Resource, ...]:
        """What who asks needs beside what belongs to the services that its tenant sees."""

    def server(self, mesh: Mesh, service: Name, said: Access) -> tuple[Resource, ...]:
        """What a service's instances enforce, where that is who may call."""

    def egress(self, mesh: Mesh, service: Name, tenant: str, said: Access) -> tuple[Resource, ...]:
        """What a tenant's data planes share of an external service, where that is who may call it."""

    def clear(self, service: Name, methods: tuple[Method, ...]) -> tuple[Resource, ...]:
        """What anybody may call in the clear at a service's instances."""

    def listener(
        self, mesh: Mesh, ref: node_service_pb2.DataPlaneRef, service: Name, *, permissive: bool
    ) -> tuple[Resource, ...]:
        """The listeners of one instance; `permissive`: whether they take calls in the clear."""


_LATER: Final = 4
"""How many turns of time ahead a scope is compiled; from the next on nothing is let in for a time."""
DIALECTS: dict[str, Dialect] = {"grpc": Grpc(), "envoy": Envoy()}


class Parts:
    """What was compiled for one service or one tenant, kept until a change touches it."""

    def __init__(self) -> None:
        self._ways: dict[Name, _Ways] = {}
        self._endpoints: dict[Name, tuple[Resource, ...]] = {}
        self._near: dict[Name, dict[Place, tuple[Resource, ...]]] = {}
        self._clients: dict[Asker, tuple[Resource, ...]] = {}

    def client(self, mesh: Mesh, asker: Asker) -> tuple[Resource, ...]:
        """What who asks needs beside the parts of services; no change of endpoints touches it."""
        known = self._clients.get(asker)
        if known is None:
            known = self._clients[asker] = DIALECTS[asker.variant.dialect].client(mesh, asker)
        return known

    def get(self, mesh: Mesh, asker: Asker, service: Name) -> tuple[Resource, ...]:
        """The part of a service for who asks."""
        endpoints = self._endpoints.get(service)
        if endpoints is None:
            endpoints = self._endpoints[service] = endpoint.assignments(mesh, service)
        return (*self._way(mesh, asker, service), *endpoints)

    def near(self, mesh: Mesh, service: Name, place: Place) -> tuple[Resource, ...]:
        """The endpoints of a service for callers at a place; none if that doesn't matter to it."""
        of_service = self._near.setdefault(service, {})
        known = of_service.get(place)
        if known is None:
            known = of_service[place] = near.assignments(mesh, service, place)
        return known

    def forget(self, impact: Impact) -> None:
        """Forgets what a change touches."""
        for service in impact.services:
            self._endpoints.pop(service, None)
            self._near.pop(service, None)
        for service in impact.ways:
            self._ways.pop(service, None)
        for asker in list(self._clients) if impact.routed else ():
            if not {"*", asker.caller.tenant}.isdisjoint(impact.routed):
                del self._clients[asker]

    def _way(self, mesh: Mesh, asker: Asker, service: Name) -> tuple[Resource, ...]:
        ways = self._ways.get(service)
        if ways is None:
            ways = self._ways[service] = _Ways(route.route(mesh, service), choice(mesh, service), {})
        name, mark = asker.variant.dialect, _mark(mesh, service, ways.choice)
        key = (name, DIALECTS[name].bearing(ways.route, ways.choice, asker))
        known = ways.made.get(key)
        if known is None or known[0] != mark:
            known = ways.made[key] = mark, DIALECTS[name].way(mesh, service, asker)
        return known[1]


@dataclass(frozen=True)
class _Ways:
    """A service: what becomes of its calls, and {(dialect, bearing): (mark, resources)}."""

    route: Route
    choice: Choice
    made: dict[tuple[str, Hashable], tuple[object, tuple[Resource, ...]]]


def _mark(mesh: Mesh, service: Name, chosen: Choice) -> object:
    """What of its endpoints all else of a service depends on: equal where nothing of that has changed."""
    versions = ("", *mesh.versions(service))
    if chosen.outliers is None:
        return versions
    return tuple((version, endpoint.count(mesh, service, version)) for version in versions)


class Pieces:
    """A scope of clients in the pieces that a change may touch: by service, and under None what belongs to none."""

    tenant: str
    """Whose clients it is for."""

    def __init__(self, mesh: Mesh, rest: str, parts: Parts) -> None:
        self._mesh, self._rest, self._parts = mesh, rest, parts

    @staticmethod
    def of(mesh: Mesh, scope: str, parts: Parts) -> "Pieces":
        """The pieces of a scope.

        Raises:
            ValueError: the scope's name is none.
        """
        kind, _, rest = scope.partition("/")
        if kind not in _SHARED:
            raise ValueError(f"{scope!r} is not a scope")
        return _SHARED[kind](mesh, rest, parts)

    def names(self) -> Iterable[Name | None]:
        """Which there are."""
        return (None,)

    def get(self, name: Name | None) -> tuple[Resource, ...]:
        """One of them; empty if there is none of that name."""
        raise NotImplementedError


class _Client(Pieces):
    def __init__(self, mesh: Mesh, rest: str, parts: Parts) -> None:
        super().__init__(mesh, rest, parts)
        self.tenant, text, *service = rest.split("/")
        self._asker = Asker(Variant.parse(text), Name(self.tenant, *service) if service else Name(self.tenant, ""))

    def names(self) -> Iterable[Name | None]:
        return (None, *self._mesh.visible(self.tenant))

    def get(self, name: Name | None) -> tuple[Resource, ...]:
        if name is None:
            return self._parts.client(self._mesh, self._asker)
        if not self._mesh.sees(self.tenant, name) or self._mesh.is_external(name):
            return ()
        return self._parts.get(self._mesh, self._asker, name)


class _Near(Pieces):
    def __init__(self, mesh: Mesh, rest: str, parts: Parts) -> None:
        super().__init__(mesh, rest, parts)
        self.tenant, region, zone = rest.split("/")
        self._place = Place(unquote(region), unquote(zone))

    def names(self) -> Iterable[Name | None]:
        return self._mesh.near(self.tenant)

    def get(self, name: Name | None) -> tuple[Resource, ...]:
        if name is None or not self._mesh.sees(self.tenant, name):
            return ()
        return self._parts.near(self._mesh, name, self._place)


_SHARED: dict[str, Callable[[Mesh, str, Parts], Pieces]] = {"client": _Client, "near": _Near}


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
    if kind == "egress":
        return _egress(mesh, rest, at_s)
    if kind == "listener":
        return _listener(mesh, scope, ref, entry, at_s)
    pieces = Pieces.of(mesh, scope, parts or Parts())
    return ScopeContent(tuple(item for name in pieces.names() for item in pieces.get(name)))


def server_limits(mesh: Mesh, service: Name, tenant: str = "") -> node_service_pb2.ServerLimits:
    """The limits of a service, for the SDK's servers and for who speaks for an Envoy; or of them those on a tenant."""
    answer = node_service_pb2.ServerLimits()
    for said in rate.limits(mesh, service):
        own = external.limits_of(said, tenant) if tenant else said
        if own is not None:
            answer.policies.add(policy=str(said.policy), spec=rate.to_spec(own, service))
    return answer


def _server(mesh: Mesh, rest: str, at_s: float | None) -> ScopeContent:
    tenant, name, dialect = rest.split("/")
    service = Name(tenant, name)
    said, clear = access.access(mesh, service), permissive.find(mesh, service)

    def content(moment_s: float | None) -> ScopeContent:
        told = access.told(mesh, service, moment_s) if dialect == "grpc" else None
        resources = DIALECTS[dialect].server(mesh, service, said.at(moment_s))
        if clear is not None:
            methods = clear.methods if clear.holds(moment_s) else ()
            resources = (*resources, *DIALECTS[dialect].clear(service, methods))
        return ScopeContent(resources, server_limits(mesh, service), told)

    def turn(after_s: float) -> float | None:
        turns = (said.turn(after_s), clear.turn(after_s) if clear is not None else None)
        return min((moment for moment in turns if moment is not None), default=None)

    return _through_time(content, turn, at_s)


def _egress(mesh: Mesh, rest: str, at_s: float | None) -> ScopeContent:
    tenant, *name = rest.split("/")
    service = Name(*name)
    said, limits = access.access(mesh, service), server_limits(mesh, service, tenant)

    def content(moment_s: float | None) -> ScopeContent:
        return ScopeContent(DIALECTS["envoy"].egress(mesh, service, tenant, said.at(moment_s)), limits)

    return _through_time(content, said.turn, at_s)


def _through_time(
    content: Callable[[float | None], ScopeContent], turn: Callable[[float], float | None], at_s: float | None
) -> ScopeContent:
    """What a scope holds now, and at the next moments at which it turns into something else."""
    now = content(at_s)
    later: list[Later] = []
    while at_s is not None and len(later) <= _LATER and (turn_s := turn(at_s)) is not None:
        then = content(turn_s if len(later) < _LATER else None)
        changed = tuple(one for one in then.resources if one not in now.resources)
        later.append(Later(turn_s, changed, then.access))
        at_s = turn_s
    return replace(now, later=tuple(later))


def _listener(
    mesh: Mesh, scope: str, ref: node_service_pb2.DataPlaneRef | None, entry: Any, at_s: float | None
) -> ScopeContent:
    if ref is None or entry is None:
        raise ValueError(f"{scope} can't be compiled without its instance")
    service = Name(entry.metadata.tenant, entry.spec.service)
    dialect = "envoy" if ref.dialect == node_service_pb2.DataPlaneRef.ENVOY else "grpc"
    edge = ingress.resources(mesh, scope.split("/", 2)[1], entry) if dialect == "envoy" else ()
    strict = (*DIALECTS[dialect].listener(mesh, ref, service, permissive=False), *edge)
    clear = permissive.find(mesh, service)
    if clear is None or not clear.holds(at_s):
        return ScopeContent(strict)
    now = (*DIALECTS[dialect].listener(mesh, ref, service, permissive=True), *edge)
    changed = tuple(one for one in strict if one not in now)
    return ScopeContent(now, later=(Later(clear.until_s, changed, None),) if changed else ())
