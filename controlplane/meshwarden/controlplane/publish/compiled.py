"""Scopes as they go over the wire, compiled once and shared by every session that wants them.

A scope is made of pieces: what each service adds to it, and what belongs to none. A change compiles the pieces that it
touches, and what it has replaced is remembered as long as some session has not got it: what work there is grows with
what changed, and neither with the mesh nor with those who have the scope.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from meshwarden.controlplane.policy.compile import DIALECTS, Later, Parts, Pieces, ScopeContent, compile_scope
from meshwarden.controlplane.policy.mesh import Impact, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.scope import server_scope, service_of
from meshwarden.controlplane.publish import message
from meshwarden.controlplane.publish.message import Pieces as Wire
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.xds.scope_digest import scope_digest
from meshwarden.xds.snapshot import Resource

_MAX_STEPS: Final = 256
"""Sessions that are more changes of a scope behind get it whole."""

_NOTHING: Final = ScopeContent(())

Piece = tuple[Resource, ...]


class _State:
    """A scope as it is now, and what its last changes have replaced.

    `beside` holds what it says beside its resources.
    """

    def __init__(self, pieces: Mapping[Name | None, Piece], beside: ScopeContent) -> None:
        self.pieces, self.beside, self.step, self.forgotten = dict(pieces), beside, 0, 0
        self._replaced: deque[tuple[int, dict[Name | None, Piece]]] = deque()
        self._steps: WeakValueDictionary[int, Compiled] = WeakValueDictionary()
        # The pieces as they go over the wire, once somebody has wanted all of them.
        self._wire: dict[Name | None, bytes] | None = None

    def held(self, at: "Compiled") -> None:
        """Takes note of who is at the present step."""
        self._steps[self.step] = at

    def move(self, new: Mapping[Name | None, Piece]) -> None:
        """Replaces pieces; an empty one is gone."""
        self.step += 1
        self._replaced.append((self.step, {name: self.pieces.get(name, ()) for name in new}))
        for name, piece in new.items():
            if piece:
                self.pieces[name] = piece
            else:
                self.pieces.pop(name, None)
            if self._wire is not None:
                self._wire.pop(name, None)
                if piece:
                    self._wire[name] = _bytes(piece)
        oldest = min(self._steps.keys(), default=self.step)
        while self._replaced and (self._replaced[0][0] <= oldest or len(self._replaced) > _MAX_STEPS):
            self.forgotten, _ = self._replaced.popleft()

    def since(self, step: int) -> dict[Name | None, Piece] | None:
        """The pieces that were replaced after a step, as they were at it; None if that is not known any more."""
        if step < self.forgotten:
            return None
        found: dict[Name | None, Piece] = {}
        for number, pieces in self._replaced:
            if number > step:
                found = pieces | found
        return found

    def wire(self) -> Wire:
        """All pieces as they go over the wire; a change serialises those that it touches."""
        if self._wire is None:
            self._wire = {name: _bytes(piece) for name, piece in self.pieces.items()}
        return tuple(self._wire.values())


class Compiled:
    """A scope at one moment; as long as nothing of it changes it is one object."""

    def __init__(self, scope: str, state: _State) -> None:
        self.scope = scope
        self.limits, self.access = state.beside.limits, state.beside.access
        self.later = v1.LaterForms(forms=map(_form, state.beside.later))
        self.turn_s = state.beside.later[0].from_s if state.beside.later else math.inf
        """When it becomes something else by itself, in seconds since 1970."""
        self._state, self._step = state, state.step
        self._since: WeakKeyDictionary[Compiled, Wire] = WeakKeyDictionary()
        self._whole: Wire | None = None
        self._digest = b""
        state.held(self)

    @property
    def versions(self) -> Mapping[tuple[str, str], str]:
        """What it holds, of the newest of its scope: `{(type_url, name): version}`."""
        return {(item.type_url, item.name): item.version for item in _flat(self._state.pieces.values())}

    @property
    def resources(self) -> Mapping[tuple[str, str], v1.XdsResource]:
        """The same with all that there is: `{(type_url, name): resource}`."""
        return {(item.type_url, item.name): _wire(item) for item in _flat(self._state.pieces.values())}

    def same(self, other: "Compiled") -> bool:
        """Whether both, each the newest of its scope, hold the same."""
        mine, theirs = self._state, other._state
        return (mine.pieces, mine.beside) == (theirs.pieces, theirs.beside)

    def whole(self) -> Wire:
        """What a session needs that has nothing of it: a scope of a ConfigUpdate, in pieces that all share.

        This one must be the newest of its scope, here and in `update`.
        """
        if self._whole is None:
            self._whole = message.scope(self._beside(), self._state.wire())
        return self._whole

    def digest(self) -> bytes:
        """What a node says that holds all of it, made once; this one must be the newest of its scope."""
        if not self._digest:
            resources = {(item.type_url, item.name): item for item in _flat(self._state.pieces.values())}
            self._digest = scope_digest(self._beside(), resources.values())
        return self._digest

    def _beside(self) -> v1.ScopeUpdate:
        """All of it but its resources."""
        beside = v1.ScopeUpdate(scope=self.scope, full=True, limits=self.limits, access=self.access)
        if self.later.forms:
            beside.later.CopyFrom(self.later)
        return beside

    def update(self, before: "Compiled") -> Wire:
        """What a session needs that has `before`, likewise; made once for all that have the same. Empty for nothing."""
        known = self._since.get(before)
        if known is None:
            replaced = self._replaced(before)
            known = self._since[before] = self.whole() if replaced is None else self._changed(before, replaced)
        return known

    def _changed(self, before: "Compiled", replaced: Mapping[Name | None, Piece]) -> Wire:
        change = self._change(before, replaced)
        return message.scope(change) if len(change.ListFields()) > 1 else ()  # else it is but a name

    def _replaced(self, before: "Compiled") -> dict[Name | None, Piece] | None:
        """What has been replaced since `before`, as it was then; None if that is not known."""
        if before._state is self._state:
            return self._state.since(before._step)
        if before._step != before._state.step:
            return None
        return {**dict.fromkeys(self._state.pieces, ()), **before._state.pieces}

    def _change(self, before: "Compiled", replaced: Mapping[Name | None, Piece]) -> v1.ScopeUpdate:
        gone = {(item.type_url, item.name): item for item in _flat(replaced.values())}
        changed = []
        for item in _flat(self._state.pieces.get(name, ()) for name in replaced):
            old = gone.pop((item.type_url, item.name), None)
            if old is None or old.version != item.version:
                changed.append(item)
        changed.sort(key=lambda item: (item.type_url, item.name))
        update = v1.ScopeUpdate(scope=self.scope, resources=map(_wire, changed))
        for type_url, name in sorted(gone):
            update.removed.add(type_url=type_url, name=name)
        if self.limits is not None and self.limits != before.limits:
            update.limits.CopyFrom(self.limits)
        if self.access is not None and self.access != before.access:
            update.access.CopyFrom(self.access)
        if self.later != before.later:
            update.later.CopyFrom(self.later)
        return update


def _flat(pieces: Iterable[Piece]) -> Iterable[Resource]:
    return (item for piece in pieces for item in piece)


def _wire(item: Resource) -> v1.XdsResource:
    return v1.XdsResource(type_url=item.type_url, name=item.name, version=item.version, body=item.body)


def _bytes(piece: Piece) -> bytes:
    return message.resources_of(map(_wire, piece))


def _alone(scope: str, content: ScopeContent) -> Compiled:
    """A scope of one piece."""
    beside = ScopeContent((), content.limits, content.access, content.later)
    return Compiled(scope, _State({None: content.resources}, beside))


def _form(later: Later) -> v1.ScopeForm:
    form = v1.ScopeForm(resources=map(_wire, later.resources), access=later.access)
    getattr(form, "from").FromNanoseconds(int(later.from_s * 1e9))
    return form


class Scopes:
    """The compiled scopes that some session holds. A scope is compiled when it is asked for, once for each change."""

    def __init__(
        self,
        mesh: Mesh,
        now_s: Callable[[], float],
        turns: Callable[[float], object],
        parts: Parts | None = None,
    ) -> None:
        """Holds none.

        Args:
            mesh: the resources.
            now_s: the present, in seconds since 1970.
            turns: told when a scope becomes something else by itself; `due` has it then.
            parts: what of the mesh is compiled already.
        """
        self._mesh, self._now_s, self._turns = mesh, now_s, turns
        self.parts = parts if parts is not None else Parts()
        """What scopes are made of."""
        self._known: WeakValueDictionary[str, Compiled] = WeakValueDictionary()
        # {tenant: the scopes of its clients, of which some may be known no more}
        self._of_tenant: dict[str, set[str]] = {}
        # {external service: its scopes, of which some may be known no more}
        self._egress: dict[Name, set[str]] = {}
        # {scope: the pieces to compile anew}
        self._due: dict[str, set[Name | None]] = {}

    def touch(self, impact: Impact) -> set[str]:
        """Takes note of a change; returns what is to be compiled anew for it."""
        self.parts.forget(impact)
        found: set[str] = set()
        for tenant in list(self._of_tenant) if "*" in impact.seen_by else impact.seen_by:
            own: set[Name | None] = set() if {"*", tenant}.isdisjoint(impact.routed) else {None}
            for scope in list(self._of_tenant.get(tenant, ())):
                if scope in self._known:
                    self._due.setdefault(scope, set()).update(impact.services, own)
                    found.add(scope)
                else:
                    self._drop(tenant, scope)
        for service in impact.servers:
            of_service = {server_scope(service, dialect) for dialect in DIALECTS} | self._egress.get(service, set())
            known = {scope for scope in of_service if scope in self._known}
            self._due.update((scope, {None}) for scope in known)
            found |= known
        return found

    def get(self, scope: str) -> Compiled:
        """A scope that many data planes share.

        Raises:
            ValueError: the scope's name is none.
        """
        known = self._known.get(scope)
        if known is not None and scope not in self._due:
            return known
        if scope.startswith(("server/", "egress/")):
            made = self._of_servers(scope, known)
        else:
            pieces = Pieces.of(self._mesh, scope, self.parts)
            made = self._of_clients(scope, pieces) if known is None else self._moved(known, pieces)
        self._due.pop(scope, None)
        self._known[scope] = made
        if made.turn_s < math.inf:
            self._turns(made.turn_s)
        return made

    def due(self) -> Impact:
        """What has become something else by itself."""
        now_s = self._now_s()
        found = [scope for scope, known in list(self._known.items()) if known.turn_s <= now_s]
        return Impact(servers={service_of(scope) for scope in found if scope not in self._due})

    def next_s(self) -> float:
        """When the next scope becomes something else by itself, in seconds since 1970; infinity if none does."""
        found = list(self._known.items())
        return min((known.turn_s for scope, known in found if scope not in self._due), default=math.inf)

    def listener(self, scope: str, ref: v1.DataPlaneRef, entry: Any, before: Compiled | None) -> Compiled:
        """The scope of one instance; `before` itself if that holds the same.

        Raises:
            ValueError: an address of the instance is none.
        """
        content = compile_scope(self._mesh, scope, ref, entry, at_s=self._now_s())
        made = _alone(scope, content)
        return before if before is not None and before.same(made) else made

    def _of_servers(self, scope: str, known: Compiled | None) -> Compiled:
        if known is None and scope.startswith("egress/"):
            self._egress.setdefault(service_of(scope), set()).add(scope)
        made = _alone(scope, compile_scope(self._mesh, scope, parts=self.parts, at_s=self._now_s()))
        return known if known is not None and known.same(made) else made

    def _of_clients(self, scope: str, pieces: Pieces) -> Compiled:
        """A scope that nobody holds yet."""
        found = {name: piece for name in pieces.names() if (piece := pieces.get(name))}
        self._of_tenant.setdefault(pieces.tenant, set()).add(scope)
        return Compiled(scope, _State(found, _NOTHING))

    def _moved(self, known: Compiled, pieces: Pieces) -> Compiled:
        """A scope of clients after what is due; `known` itself if nothing of it has changed."""
        state = known._state
        new = {name: pieces.get(name) for name in self._due[known.scope]}
        new = {name: piece for name, piece in new.items() if piece != state.pieces.get(name, ())}
        if not new:
            return known
        state.move(new)
        return Compiled(known.scope, state)

    def _drop(self, tenant: str, scope: str) -> None:
        self._due.pop(scope, None)
        self._of_tenant[tenant].discard(scope)
        if not self._of_tenant[tenant]:
            del self._of_tenant[tenant]
