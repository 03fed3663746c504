"""What the agent keeps on disk, so that it starts and serves while the control plane is away.

Each item is a file of its own in a directory that is ours alone: one header line that names format, item and key, then
the item's bytes, encrypted and bound to that header (`seal`). Whatever cannot be read, was changed, or was written by a
newer agent, is set aside under another name and logged: a cache is never a reason not to start, and never believed.

    meshwarden-agent-cache 2 entries 0123456789abcdef
    <bytes>

Secrets (workload keys) are among the items: files are 0600, and never leave the node.

Agents before this format wrote in the clear. What they have left is taken over when a key is made beside the cache for
the first time. It is not where a key is given: there, whoever can write to the disk shall not be able to put it there.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import structlog
from google.protobuf.message import DecodeError

from meshwarden.certs.seal import KeyFile, Seal, Unsealed
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.xds.snapshot import Resource, Snapshot

_log = structlog.get_logger()
FORMAT: Final = 2
_CLEAR_FORMAT: Final = 1
_MAGIC: Final = b"meshwarden-agent-cache"
_MAX_HEADER_BYTES: Final = 512
_MAX_ITEM_BYTES: Final = (256 << 20) + 64
_ASIDE: Final = ".aside"
_DRAFTS: Final = ".*"
_RETRY_S: Final = 5.0


class _Unreadable(Exception):
    """A file of the cache cannot be used."""


class _Clear(_Unreadable):
    """It was written in the clear, where that is not taken."""


class Cache:
    """Named items on disk; each is replaced as a whole and survives a crash in its old or its new form."""

    def __init__(self, directory: Path, secret: bytes | None = None) -> None:
        """Takes `directory`, which is made 0700 if it isn't there.

        Args:
            directory: the cache's own.
            secret: what its key is made of; left out, that lies beside the directory, and is made if it isn't there.
        """
        self._directory = directory
        self._unsaved: dict[str, bytes] = {}
        self.refusal = ""
        """Why the disk takes not all there is to keep; empty if it does."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        for draft in directory.glob(_DRAFTS):  # what a crash has left
            with contextlib.suppress(OSError):
                draft.unlink()
        self._takes_clear = False
        if secret is not None:
            self._seal = Seal(secret)
            return
        key_file = KeyFile(directory.with_name(f"{directory.name}-key"))
        self._seal = Seal(key_file.secret)
        if key_file.is_new:
            self._take_over(key_file)

    def _take_over(self, key_file: KeyFile) -> None:
        """Encrypts what an earlier agent has left in the clear, and then keeps the key."""
        self._takes_clear = True
        try:
            for name in self.names(""):
                body = self.load(name)
                if body is not None:
                    self.save(name, body)
            for path in self._directory.glob(f"*{_ASIDE}"):  # keys are among what was set aside, too
                path.unlink()
            key_file.settle()
        except OSError as error:  # the next start goes on with it
            _log.error("cache not encrypted", reason=str(error))
            self.refusal = str(error)
        else:
            self._takes_clear = False

    def load(self, name: str) -> bytes | None:
        """An item; None if there is none that can be used."""
        path = self._directory / name
        try:
            return self._read(path, name)
        except FileNotFoundError:
            return None
        except _Clear as error:
            _log.warning("cache item removed", item=name, reason=str(error))
            self.remove(name)  # it may be a key: it is not kept for anybody to look into
            return None
        except (OSError, _Unreadable) as error:
            self.set_aside(name, str(error))
            return None

    def save(self, name: str, body: bytes) -> None:
        """Replaces an item.

        Raises:
            OSError: if the disk refuses; the old item still stands.
        """
        header = b"%s %d %s %s\n" % (_MAGIC, FORMAT, name.encode(), self._seal.id.encode())
        draft = self._directory / f".{name[:64]}.{secrets.token_hex(6)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(header)
                file.write(self._seal.close(body, header))
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self._directory / name)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def keep(self, name: str, body: bytes) -> None:
        """Replaces an item, if need be when the disk takes it again: see `save_rest`."""
        try:
            self.save(name, body)
        except OSError as error:
            if name not in self._unsaved:
                _log.error("not cached", item=name, reason=str(error))
            self._unsaved[name] = body
            self.refusal = str(error)
        else:
            self._unsaved.pop(name, None)
            if not self._unsaved:
                self.refusal = ""

    def save_rest(self) -> None:
        """Tries again to save what the disk has refused."""
        for name, body in list(self._unsaved.items()):
            self.keep(name, body)

    def remove(self, name: str) -> None:
        """Removes an item, if it is there."""
        self._unsaved.pop(name, None)
        try:
            (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            _log.error("not removed", item=name, reason=str(error))

    def names(self, prefix: str) -> Iterator[str]:
        """The names of the items that start with `prefix`."""
        for path in sorted(self._directory.iterdir()):
            if path.name.startswith(prefix) and path.suffix != _ASIDE:
                yield path.name

    def set_aside(self, name: str, reason: str) -> None:
        """Keeps an item that cannot be used for whoever looks into it, out of our way."""
        path = self._directory / name
        _log.warning("cache item set aside", item=name, reason=reason, kept_as=name + _ASIDE)
        try:
            os.replace(path, path.with_name(name + _ASIDE))
        except OSError as error:
            _log.warning("cache item not moved", item=name, reason=str(error))

    def _read(self, path: Path, name: str) -> bytes:
        with open(path, "rb") as file:
            header = file.readline(_MAX_HEADER_BYTES)
            body = file.read(_MAX_ITEM_BYTES + 1)
        words = header.split()
        if len(words) != 4 or words[0] != _MAGIC or not words[1].isdigit() or not header.endswith(b"\n"):
            raise _Unreadable("no header of ours")
        if words[2] != name.encode() or len(body) > _MAX_ITEM_BYTES:
            raise _Unreadable("another item, or too large")
        if int(words[1]) == _CLEAR_FORMAT:
            return self._read_clear(words[3], body)
        if int(words[1]) != FORMAT:
            raise _Unreadable(f"format {int(words[1])}; this agent reads {FORMAT}")
        if words[3] != self._seal.id.encode():
            raise _Unreadable("it was written under another key")
        try:
            return self._seal.open(body, header)
        except Unsealed as error:
            raise _Unreadable(str(error)) from None

    def _read_clear(self, digest: bytes, body: bytes) -> bytes:
        if not self._takes_clear:
            raise _Clear("it was written in the clear, by an agent before this one or by somebody else")
        if digest != hashlib.sha256(body).hexdigest().encode():
            raise _Unreadable("its digest is wrong: it was cut short or changed")
        return body


class _Scope:
    """The resources of one scope, immutable: a change makes a new one."""

    __slots__ = ("limits", "resources")

    def __init__(self, resources: dict[tuple[str, str], Resource], limits: node_pb.ServerLimits | None) -> None:
        self.resources = resources
        self.limits = limits

    def changed(self, update: node_pb.ScopeUpdate) -> "_Scope":
        """This scope after an update."""
        resources = {} if update.full else dict(self.resources)
        for name in update.removed:
            resources.pop((name.type_url, name.name), None)
        for item in update.resources:
            resources[item.type_url, item.name] = Resource(item.type_url, item.name, item.version, item.body)
        limits = self.limits
        if update.HasField("limits"):
            limits = node_pb.ServerLimits()
            limits.CopyFrom(update.limits)
        return _Scope(resources, limits)

    def to_update(self, name: str) -> node_pb.ScopeUpdate:
        update = node_pb.ScopeUpdate(scope=name, full=True, limits=self.limits)
        for item in self.resources.values():
            update.resources.add(type_url=item.type_url, name=item.name, version=item.version, body=item.body)
        return update


_PLANES: Final = "planes"
_SCOPE: Final = "scope-"


class ScopeStore:
    """The configuration of the node's data planes, as last pushed; on disk as well."""

    def __init__(self, cache: Cache) -> None:
        """Reads what the cache holds."""
        self._cache = cache
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
        """What a data plane's server lets each tenant call; None if nothing is said of it."""
        found = [scope.limits for scope in self._scopes_of(data_plane_id) or () if scope.limits is not None]
        return found[0] if found else None

    def refusals(self) -> dict[str, str]:
        """Which data planes get nothing, and why: `{data plane id: reason}`."""
        return {name: plane.refused for name, plane in sorted(self._planes.items()) if plane.refused}

    def apply(self, update: node_pb.ConfigUpdate) -> None:
        """Takes an update, all of it at once."""
        for change in update.scopes:
            self._scopes[change.scope] = self._scopes.get(change.scope, _Scope({}, None)).changed(change)
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
        """Writes changes to disk, several at a time, until it is cancelled."""
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
        found = tuple(self._scopes[name] for name in plane.scopes if name in self._scopes)
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
                self._scopes[update.scope] = _Scope({}, None).changed(update)
        try:
            summary = node_pb.ConfigUpdate.FromString(self._cache.load(_PLANES) or b"")
        except DecodeError as error:
            self._cache.set_aside(_PLANES, str(error))
            return
        self._planes = {plane.id: plane for plane in summary.data_planes}
        self.revision = summary.revision


def _file(scope: str) -> str:
    return _SCOPE + hashlib.sha256(scope.encode()).hexdigest()[:32]
