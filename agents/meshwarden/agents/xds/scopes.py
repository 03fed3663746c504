"""What the node's data planes are to have: scopes as the control plane has pushed them, in their form of the moment.

What is let in for a time is shut out here when that ends, by this node's clock, with a control plane or without.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final
from weakref import WeakValueDictionary

import anyio
import structlog

from meshwarden.agents.cache import Cache
from meshwarden.agents.xds.scope import Scope
from meshwarden.agents.xds.scope_disk import ScopeDisk, State
from meshwarden.certs.clock import Clock, seconds_of, utc_now
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.xds.snapshot import Snapshot

_log = structlog.get_logger()
_RETRY_S: Final = 5.0
# Clocks are put right meanwhile, and machines sleep.
_LOOK_S: Final = 1.0
# Of what is held so much is said, which a control plane takes in one message: Interest.held.
MOST_HELD: Final = 4096
MOST_HELD_BYTES: Final = 1 << 20
_MAX_NAME: Final = 512


class ScopeStore:
    """The configuration of the node's data planes, as last pushed and as time has it; on disk as well."""

    def __init__(self, cache: Cache, clock: Clock = utc_now) -> None:
        """Reads what the cache holds."""
        self._disk, self._now_s = ScopeDisk(cache), seconds_of(clock)
        # How late it is: never earlier than it was, or what has ended would begin again.
        self._at_s = self._now_s()
        state = self._disk.load()
        self._scopes = dict(state.scopes)
        self._planes = dict(state.planes)
        self._merged: dict[str, tuple[tuple[Scope, ...], Snapshot]] = {}
        self._shared: WeakValueDictionary[tuple[Scope, ...], Snapshot] = WeakValueDictionary()
        self._listeners: list[Callable[[], None]] = []
        self._work = asyncio.Event()
        # How often something was changed; what is saved is told apart by it.
        self._number = 0
        self.revision = state.revision
        """The store revision of what is here."""
        self.refusal = ""
        """Why the disk takes none of this; empty if it does."""

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

    async def held(self) -> dict[str, bytes]:
        """What is here by `{scope: its digest}`, for a control plane that need not tell it again then.

        Of more than it may be told the scopes with the most resources. It takes milliseconds after a large change.
        """
        return await asyncio.to_thread(_held, dict(self._scopes))

    def apply(self, update: node_pb.ConfigUpdate) -> None:
        """Takes an update, all of it at once."""
        self._at_s = max(self._at_s, self._now_s())
        for change in update.scopes:
            self._scopes[change.scope] = self._scopes.get(change.scope, Scope({})).changed(change)
        if update.data_planes:
            self._planes = {}
            for plane in update.data_planes:
                self._planes[plane.id] = node_pb.DataPlaneScopes()
                self._planes[plane.id].CopyFrom(plane)
            self._forget_unused()
        self.revision = update.revision
        self._number += 1
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
            try:
                await asyncio.to_thread(self._disk.save, self._number, self._state())
            except OSError as error:
                if str(error) != self.refusal:
                    _log.error("configuration not cached", reason=str(error))
                self.refusal = str(error)
                await asyncio.sleep(_RETRY_S)
                self._work.set()
            else:
                self.refusal = ""

    def flush(self) -> None:
        """Writes what is still to be written, at the end, and as agents before this one read it.

        Raises:
            OSError: if the disk refuses.
        """
        self._disk.save(self._number, self._state(), whole=True)

    def _state(self) -> State:
        return State(self.revision, dict(self._scopes), dict(self._planes))

    def _scopes_of(self, data_plane_id: str) -> tuple[Scope, ...] | None:
        plane = self._planes.get(data_plane_id)
        if plane is None or plane.refused:
            return None
        found = tuple(self._scopes[name].at(self._at_s) for name in plane.scopes if name in self._scopes)
        return found if len(found) == len(plane.scopes) else None

    def _forget_unused(self) -> None:
        used = {name for plane in self._planes.values() for name in plane.scopes}
        for name in [name for name in self._scopes if name not in used]:
            del self._scopes[name]
        for plane in [plane for plane in self._merged if plane not in self._planes]:
            del self._merged[plane]


def _held(scopes: Mapping[str, Scope]) -> dict[str, bytes]:
    found, left_bytes = dict[str, bytes](), MOST_HELD_BYTES
    for name, scope in sorted(scopes.items(), key=lambda item: len(item[1].resources), reverse=True):
        left_bytes -= len(name.encode())
        if len(found) == MOST_HELD or left_bytes < 0:
            break
        if 0 < len(name) <= _MAX_NAME:
            found[name] = scope.digest(name)
    return found
