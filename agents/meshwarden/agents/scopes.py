"""What the node's data planes are to have: scopes as the control plane has pushed them, in their form of the moment.

What is let in for a time is shut out here when that ends, by this node's clock, with a control plane or without.
"""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

import anyio
import structlog
from google.protobuf.message import DecodeError

from meshwarden.agents.cache import Cache
from meshwarden.certs.clock import Clock, seconds_of, utc_now
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.xds.snapshot import Resource, Snapshot

_log = structlog.get_logger()
_RETRY_S: Final = 5.0
# Clocks are put right meanwhile, and machines sleep.
_LOOK_S: Final = 1.0


class _Scope:
    """The resources of one scope, immutable: a change makes a new one.

    Attributes:
        later: what it becomes by itself: (from when, in seconds since 1970, the form).
    """

    __slots__ = ("access", "later", "limits", "resources", "told")

    def __init__(
        self,
        resources: dict[tuple[str, str], Resource],
        limits: node_pb.ServerLimits | None = None,
        access: node_pb.ServerAccess | None = None,
        told: node_pb.LaterForms | None = None,
    ) -> None:
        self.resources, self.limits, self.access = resources, limits, access
        self.told = told
        self.later = tuple(self._form(form) for form in told.forms) if told is not None else ()

    def _form(self, form: node_pb.ScopeForm) -> tuple[float, "_Scope"]:
        changed = {(item.type_url, item.name): _resource(item) for item in form.resources}
        access = form.access if form.HasField("access") else self.access
        from_s = getattr(form, "from").ToNanoseconds() / 1e9
        return from_s, _Scope({**self.resources, **changed}, self.limits, access)

    def at(self, at_s: float) -> "_Scope":
        """Its form at a moment."""
        return next((form for from_s, form in reversed(self.later) if from_s <= at_s), self)

    def changed(self, update: node_pb.ScopeUpdate) -> "_Scope":
        """This scope after an update."""
        resources = {} if update.full else dict(self.resources)
        for name in update.removed:
            resources.pop((name.type_url, name.name), None)
        for item in update.resources:
            resources[item.type_url, item.name] = _resource(item)
        limits, access, told = self.limits, self.access, None if update.full else self.told
        if update.HasField("limits"):
            limits = node_pb.ServerLimits()
            limits.CopyFrom(update.limits)
        if update.HasField("access"):
            access = node_pb.ServerAccess()
            access.CopyFrom(update.access)
        if update.HasField("later"):
            told = node_pb.LaterForms()
            told.CopyFrom(update.later)
        return _Scope(resources, limits, access, told)

    def to_update(self, name: str) -> node_pb.ScopeUpdate:
        update = node_pb.ScopeUpdate(scope=name, full=True, limits=self.limits, access=self.access, later=self.told)
        for item in self.resources.values():
            update.resources.add(type_url=item.type_url, name=item.name, version=item.version, body=item.body)
        return update


def _resource(item: node_pb.XdsResource) -> Resource:
    return Resource(item.type_url, item.name, item.version, item.body)


_PLANES: Final = "planes"
_SCOPE: Final = "scope-"


class ScopeStore:
    """The configuration of the node's data planes, as last pushed and as time has it; on disk as well."""

    def __init__(self, cache: Cache, clock: Clock = utc_now) -> None:
        """Reads what the cache holds."""
        self._cache, self._now_s = cache, seconds_of(clock)
        # How late it is: never earlier than it was, or what has ended would begin again.
        self._at_s = self._now_s()
        self._scopes: dict[str, _Scope] = {}
        self._planes: dict[str, node_pb.DataPlaneScopes] = {}
        self._merged: dict[str, tuple[tuple[_Scope, ...], Snapshot]] = {}
        self._shared: WeakValueDictionary[tuple[_Scope, ...], Snapshot] = WeakValueDictionary()
        self._listeners: list[Callable[[], None]] = []
        self._dirty: set[str] = set()
        self._work = asyncio.Event()
        self.revision = 0
        """The store revision of what is here."""
        self.refusal = ""
        """Why the disk takes none of this; empty if it does."""
        self._load()

    def snapshot(self, data_plane_id: str) -> Snapshot | None:
        """The union of a data plane's scopes: one object until it changes; None while any of it is not known."""
        scopes = self._scopes_of(data_plane_id)
        if scopes is None:
            return None
        known = self._merged.get(data_plane_id)
        if known is None or known[0] != scopes:
            merged = self._shared.get(scopes)  # data planes of the same scopes have the same
            if merged is None:
                before = known[1] if known is not None else None
                items = (item for scope in scopes for item in scope.resources.values())
                merged = self._shared[scopes] = Snapshot.of(items, before=before)
            known = self._merged[data_plane_id] = (scopes, merged)
        return known[1]

    def limits(self, data_plane_id: str) -> node_pb.ServerLimits | None:
        """What a data plane lets each tenant call, of its server and of external services; None if nothing is said."""
        found = [scope.limits for scope in self._scopes_of(data_plane_id) or () if scope.limits is not None]
        if len(found) < 2:
            return found[0] if found else None
        return node_pb.ServerLimits(policies=[one for limits in found for one in limits.policies])

    def access(self, data_plane_id: str) -> node_pb.ServerAccess | None:
        """Who may call a data plane's server; None if nothing is said of it."""
        found = [scope.access for scope in self._scopes_of(data_plane_id) or () if scope.access is not None]
        return found[0] if found else None

    def refusals(self) -> dict[str, str]:
        """Which data planes get nothing, and why: `{data plane id: reason}`."""
        return {name: plane.refused for name, plane in sorted(self._planes.items()) if plane.refused}

    def turn(self) -> float:
        """Has what time changes change; returns in how many seconds it does next, at most one."""
        before, self._at_s = self._at_s, max(self._at_s, self._now_s())
        edges = [from_s for scope in self._scopes.values() for from_s, _ in scope.later]
        if any(before < edge <= self._at_s for edge in edges):
            for callback in self._listeners:
                callback()
        return min([_LOOK_S, *(edge - self._at_s for edge in edges if edge > self._at_s)])

    def apply(self, update: node_pb.ConfigUpdate) -> None:
        """Takes an update, all of it at once."""
        self._at_s = max(self._at_s, self._now_s())
        for change in update.scopes:
            self._scopes[change.scope] = self._scopes.get(change.scope, _Scope({})).changed(change)
            self._dirty.add(change.scope)
        if update.data_planes:
            self._planes = {}
            for plane in update.data_planes:
                self._planes[plane.id] = node_pb.DataPlaneScopes()
                self._planes[plane.id].CopyFrom(plane)
            self._forget_unused()
        self.revision = update.revision
        self._work.set()
        for callback in self._listeners:
            callback()

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back after each change."""
        self._listeners.append(callback)

    async def run(self) -> None:
        """Writes changes to disk, and goes with the time, until it is cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep_time)
            await self._write()

    async def _keep_time(self) -> None:
        while True:  # noqa: ASYNC110  # the clock tells nobody
            await asyncio.sleep(self.turn())

    async def _write(self) -> None:
        """Writes changes, several at a time."""
        while True:
            await self._work.wait()
            self._work.clear()
            dirty, self._dirty = self._dirty, set()
            try:
                await asyncio.to_thread(self._save, {name: self._scopes.get(name) for name in dirty}, self._summary())
            except OSError as error:
                self._dirty |= dirty
                if str(error) != self.refusal:
                    _log.error("configuration not cached", reason=str(error))
                self.refusal = str(error)
                await asyncio.sleep(_RETRY_S)
                self._work.set()
            else:
                self.refusal = ""

    def flush(self) -> None:
        """Writes what is still to be written, at the end.

        Raises:
            OSError: if the disk refuses.
        """
        dirty, self._dirty = self._dirty, set()
        if dirty or self._work.is_set():
            self._work.clear()
            self._save({name: self._scopes.get(name) for name in dirty}, self._summary())

    def _scopes_of(self, data_plane_id: str) -> tuple[_Scope, ...] | None:
        plane = self._planes.get(data_plane_id)
        if plane is None or plane.refused:
            return None
        found = tuple(self._scopes[name].at(self._at_s) for name in plane.scopes if name in self._scopes)
        return found if len(found) == len(plane.scopes) else None

    def _forget_unused(self) -> None:
        used = {name for plane in self._planes.values() for name in plane.scopes}
        for name in [name for name in self._scopes if name not in used]:
            del self._scopes[name]
            self._dirty.add(name)
        for plane in [plane for plane in self._merged if plane not in self._planes]:
            del self._merged[plane]

    def _summary(self) -> node_pb.ConfigUpdate:
        return node_pb.ConfigUpdate(revision=self.revision, data_planes=self._planes.values())

    def _save(self, scopes: dict[str, _Scope | None], summary: node_pb.ConfigUpdate) -> None:
        # The map comes last: it never names a scope that is not on disk yet.
        for name, scope in scopes.items():
            if scope is not None:
                self._cache.save(_file(name), scope.to_update(name).SerializeToString())
        self._cache.save(_PLANES, summary.SerializeToString())
        for name, scope in scopes.items():
            if scope is None:
                self._cache.remove(_file(name))

    def _load(self) -> None:
        for name in list(self._cache.names(_SCOPE)):
            body = self._cache.load(name)
            try:
                update = node_pb.ScopeUpdate.FromString(body or b"")
            except DecodeError as error:
                self._cache.set_aside(name, str(error))
                continue
            if body is not None:
                self._scopes[update.scope] = _Scope({}).changed(update)
        try:
            summary = node_pb.ConfigUpdate.FromString(self._cache.load(_PLANES) or b"")
        except DecodeError as error:
            self._cache.set_aside(_PLANES, str(error))
            return
        self._planes = {plane.id: plane for plane in summary.data_planes}
        self.revision = summary.revision


def _file(scope: str) -> str:
    return _SCOPE + hashlib.sha256(scope.encode()).hexdigest()[:32]
