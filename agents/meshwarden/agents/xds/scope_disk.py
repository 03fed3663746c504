"""What the node's data planes are to have, on disk: all of it now and then, and what has changed since.

    scope-<digest of its name>   all of a scope: ScopeUpdate
    planes                       which scopes make up which data plane, and the revision of all this: ConfigUpdate
    changes                      what is different by now: a line of JSON, and a ConfigUpdate

    {"format": 1, "planes": "<SHA-256>", "scopes": {"client/acme/envoy": "<SHA-256>"}}

A change is written as one file of what differs, so what it costs grows with that and not with what is there. When as
much was written of changes as all of it is large, all that differs is written whole and there are none; so it is when
the agent stops. An agent before this knows nothing of changes, and finds what they are based on, which is whole. Of
changes that it has left behind none are taken that were made to something else than what is there.
"""

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError

from meshwarden.agents.cache import Cache
from meshwarden.agents.xds.scope import Scope
from meshwarden.v1 import node_service_pb2 as node_pb

FORMAT: Final = 1
LEAST_BYTES: Final = 64 << 10
"""So much may be written of changes, however little there is."""
_PLANES: Final = "planes"
_SCOPE: Final = "scope-"
_CHANGES: Final = "changes"

Planes = Mapping[str, node_pb.DataPlaneScopes]
"""{data plane id: its scopes}"""


@dataclass(frozen=True)
class State:
    """All of it at one moment.

    Attributes:
        revision: the store revision of this.
        scopes: `{name: scope}`
        planes: which of them make up which data plane.
    """

    revision: int = 0
    scopes: Mapping[str, Scope] = field(default_factory=dict)
    planes: Planes = field(default_factory=dict)


@dataclass(frozen=True)
class _Base:
    """A scope that is on disk as a whole."""

    scope: Scope
    digest: str
    size_bytes: int


class ScopeDisk:
    """Keeps the newest state; of two that are saved at once the later stands."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._turn = threading.Lock()
        # Which state is on disk, and whether as a whole.
        self._saved, self._is_whole = 0, True
        # {name: what is on disk as a whole}
        self._bases: dict[str, _Base] = {}
        self._planes: list[node_pb.DataPlaneScopes] | None = None
        self._planes_digest = ""
        self._spent_bytes = 0

    def load(self) -> State:
        """What was saved last; without what can't be read."""
        for item in list(self._cache.names(_SCOPE)):
            body = self._cache.load(item)
            try:
                update = node_pb.ScopeUpdate.FromString(body or b"")
            except DecodeError as error:
                self._cache.set_aside(item, str(error))
                continue
            if body is not None:
                self._bases[update.scope] = _Base(Scope({}).changed(update), _digest(body), len(body))
        scopes = {name: base.scope for name, base in self._bases.items()}
        body = self._cache.load(_PLANES) or b""
        try:
            summary = node_pb.ConfigUpdate.FromString(body)
        except DecodeError as error:
            self._cache.set_aside(_PLANES, str(error))
            return State(0, scopes)
        self._planes, self._planes_digest = list(summary.data_planes), _digest(body)
        planes = {plane.id: plane for plane in summary.data_planes}
        return self._changed(State(summary.revision, scopes, planes))

    def _changed(self, base: State) -> State:
        """What has become of it by changes."""
        body = self._cache.load(_CHANGES)
        if body is None:
            return base
        self._spent_bytes, self._is_whole = len(body), False
        head, _, rest = body.partition(b"\n")
        try:
            said = json.loads(head)
            if said["format"] != FORMAT:
                raise ValueError(f"format {said['format']}; this agent reads {FORMAT}")
            if said["planes"] != self._planes_digest:
                return base  # an agent before this has been at it since, or all was written anew
            update = node_pb.ConfigUpdate.FromString(rest)
            scopes = dict(base.scopes)
            for change in update.scopes:
                known = self._bases.get(change.scope)
                if known is not None and known.digest == said["scopes"][change.scope]:
                    scopes[change.scope] = known.scope.changed(change)
        except (ValueError, KeyError, TypeError, DecodeError) as error:
            self._cache.set_aside(_CHANGES, f"it is none: {error}")
            return base
        return State(update.revision, scopes, base.planes)

    def save(self, number: int, state: State, *, whole: bool = False) -> None:
        """Saves a state, for whoever starts after a crash to find this one or the one before.

        Args:
            number: grows with each state; an earlier one than the last that was saved is left out.
            state: all there is.
            whole: whether to leave no changes beside it.

        Raises:
            OSError: the disk refuses; what is there is no worse than before.
        """
        with self._turn:
            if number < self._saved or (number == self._saved and (self._is_whole or not whole)):
                return
            changes = None if whole else self._changes(state)
            if changes is None:
                self._save_whole(state)
            else:
                self._cache.save(_CHANGES, changes)
                self._spent_bytes += len(changes)
            self._saved, self._is_whole = number, changes is None

    def _changes(self, state: State) -> bytes | None:
        """What differs from what is there as a whole; None if that is to be written anew."""
        if list(state.planes.values()) != self._planes or state.scopes.keys() != self._bases.keys():
            return None
        update, digests = node_pb.ConfigUpdate(revision=state.revision), {}
        for name, base in self._bases.items():
            if state.scopes[name] is base.scope:
                continue
            change = state.scopes[name].since(base.scope, name)
            if change is None:
                return None
            update.scopes.append(change)
            digests[name] = base.digest
        head = json.dumps({"format": FORMAT, "planes": self._planes_digest, "scopes": digests})
        body = head.encode() + b"\n" + update.SerializeToString()
        most = max(LEAST_BYTES, sum(base.size_bytes for base in self._bases.values()))
        return body if self._spent_bytes + len(body) <= most else None

    def _save_whole(self, state: State) -> None:
        for name, scope in state.scopes.items():
            base = self._bases.get(name)
            if base is None or base.scope is not scope:
                body = scope.to_update(name).SerializeToString()
                self._cache.save(_file(name), body)
                self._bases[name] = _Base(scope, _digest(body), len(body))
        # Before the map: changes that it would make true again are gone by then.
        self._cache.remove(_CHANGES)
        # The map comes last: it never names a scope that is not on disk yet.
        body = node_pb.ConfigUpdate(revision=state.revision, data_planes=state.planes.values()).SerializeToString()
        self._cache.save(_PLANES, body)
        self._planes, self._planes_digest, self._spent_bytes = list(state.planes.values()), _digest(body), 0
        for name in self._bases.keys() - state.scopes.keys():
            self._cache.remove(_file(name))
            del self._bases[name]


def _file(scope: str) -> str:
    return _SCOPE + hashlib.sha256(scope.encode()).hexdigest()[:32]


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
