"""One scope: a set of xDS resources that several data planes share, and what goes with them."""

from collections.abc import Iterable, Iterator

from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.xds.scope_digest import scope_digest
from meshwarden.xds.snapshot import Resource

Name = tuple[str, str]
"""(type, name)"""


class Scope:
    """The resources of one scope, immutable: a change makes a new one.

    Attributes:
        resources: `{(type, name): resource}`
        limits: how much its servers let each tenant call; None if nothing is said of it.
        access: whom they let in, likewise.
        told: what it becomes by itself, as it was told; None if it becomes nothing else.
        later: the same: (from when, in seconds since 1970, the form).
    """

    __slots__ = ("_digest", "access", "later", "limits", "resources", "told")

    def __init__(
        self,
        resources: dict[Name, Resource],
        limits: node_pb.ServerLimits | None = None,
        access: node_pb.ServerAccess | None = None,
        told: node_pb.LaterForms | None = None,
    ) -> None:
        self.resources, self.limits, self.access = resources, limits, access
        self.told = told
        self._digest: tuple[str, bytes] = ("", b"")
        self.later = tuple(self._form(form) for form in told.forms) if told is not None else ()

    def _form(self, form: node_pb.ScopeForm) -> tuple[float, "Scope"]:
        changed = {(item.type_url, item.name): _resource(item) for item in form.resources}
        access = form.access if form.HasField("access") else self.access
        from_s = getattr(form, "from").ToNanoseconds() / 1e9
        return from_s, Scope({**self.resources, **changed}, self.limits, access)

    def at(self, at_s: float) -> "Scope":
        """Its form at a moment."""
        return next((form for from_s, form in reversed(self.later) if from_s <= at_s), self)

    def changed(self, update: node_pb.ScopeUpdate) -> "Scope":
        """This scope after an update. What is as it was is the same object, also where all is told anew."""
        resources = {} if update.full else dict(self.resources)
        for name in update.removed:
            resources.pop((name.type_url, name.name), None)
        for item in update.resources:
            known = self.resources.get((item.type_url, item.name))
            now = _resource(item)
            resources[item.type_url, item.name] = known if known is not None and known == now else now
        limits, access, told = (None, None, None) if update.full else (self.limits, self.access, self.told)
        if update.HasField("limits"):
            limits = node_pb.ServerLimits()
            limits.CopyFrom(update.limits)
        if update.HasField("access"):
            access = node_pb.ServerAccess()
            access.CopyFrom(update.access)
        if update.HasField("later"):
            told = node_pb.LaterForms() if update.later.forms else None
            if told is not None:
                told.CopyFrom(update.later)
        return Scope(resources, limits, access, told)

    def digest(self, name: str) -> bytes:
        """What a control plane knows by that this is held: of all that was told, whatever its form of the moment."""
        known, digest = self._digest
        if known != name or not digest:
            digest = scope_digest(self._beside(name), self.resources.values())
            self._digest = name, digest
        return digest

    def _beside(self, name: str) -> node_pb.ScopeUpdate:
        return node_pb.ScopeUpdate(scope=name, full=True, limits=self.limits, access=self.access, later=self.told)

    def to_update(self, name: str) -> node_pb.ScopeUpdate:
        """All of it."""
        update = self._beside(name)
        update.resources.extend(_items(self.resources.values()))
        return update

    def since(self, before: "Scope", name: str) -> node_pb.ScopeUpdate | None:
        """What makes this of another one; None if no change can, and all of it has to be told."""
        if (self.limits is None, self.access is None) != (before.limits is None, before.access is None):
            return None
        changed = (item for key, item in self.resources.items() if before.resources.get(key) != item)
        update = node_pb.ScopeUpdate(scope=name, resources=_items(changed))
        for type_url, gone in before.resources.keys() - self.resources.keys():
            update.removed.add(type_url=type_url, name=gone)
        if self.limits is not None and self.limits != before.limits:
            update.limits.CopyFrom(self.limits)
        if self.access is not None and self.access != before.access:
            update.access.CopyFrom(self.access)
        if self.told != before.told:
            update.later.CopyFrom(self.told or node_pb.LaterForms())
        return update


def _items(resources: Iterable[Resource]) -> Iterator[node_pb.XdsResource]:
    for item in resources:
        yield node_pb.XdsResource(type_url=item.type_url, name=item.name, version=item.version, body=item.body)


def _resource(item: node_pb.XdsResource) -> Resource:
    return Resource(item.type_url, item.name, item.version, item.body)
