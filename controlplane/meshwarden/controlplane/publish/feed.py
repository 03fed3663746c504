"""What one node is still to be told.

A feed keeps no queue: it knows what it has said last and, when its session can take more, says what differs from the
newest state. So at most one update is pending, the newest wins, and a slow session holds up nobody and costs nothing.
When several can take more it is the turn of each tenant's changes after the other's (`fair`); what is urgent has none
to wait for.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.scope import scopes_of
from meshwarden.controlplane.publish.compiled import Compiled
from meshwarden.controlplane.publish.fair import Turns
from meshwarden.controlplane.publish.layer import Layer
from meshwarden.controlplane.publish.message import Message, Pieces
from meshwarden.controlplane.publish.secrets import EntrySecrets, Mark
from meshwarden.controlplane.publish.trail import Trails
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1.resources_pb2 import WorkloadEntry

OWN: Final = ""
"""Whose news it is where no tenant's change touches the node: a new revision, what an operator says to all."""
_WHOLE: Final = frozenset({"bundle", "trust_bundles", "renew_now"})
_MAX_FIRST: Final = 256
_NOTHING: Final[Mapping[str, bytes]] = MappingProxyType({})
Serves = Callable[[str], bool]
"""Whether a node may have anything of a tenant's."""
Refuse = Callable[[str, v1.DataPlaneRef, str], None]
"""Told of (node, data plane, reason) when a data plane that a node asks for is refused."""


class Shared:
    """Configurations of the newest revision that are the same for several sessions."""

    def __init__(self) -> None:
        self._revision = 0
        self._made: dict[tuple[str, tuple[int, ...]], tuple[list[Pieces], Message]] = {}

    def config(self, revision: int, updates: list[Pieces], trace_parent: str) -> Message:
        """A message of these updates of scopes; `updates` are told apart by identity."""
        if revision != self._revision:
            self._revision, self._made = revision, {}
        key = trace_parent, tuple(map(id, updates))
        known = self._made.get(key)
        if known is None:
            made = Message.config(revision, updates, v1.ConfigUpdate(trace_parent=trace_parent)).joined()
            known = self._made[key] = (updates, made)  # the list keeps the identities taken
        return known[1]


class Feed:
    """The messages for one session of a node."""

    def __init__(
        self,
        node: str,
        layer: Layer,
        shared: Shared,
        revision: Callable[[], int],
        refuse: Refuse,
        trails: Trails,
        serves: Serves,
        secrets: EntrySecrets | None,
        turns: Turns,
        place: Place,
    ) -> None:
        self._turns, self._has_turn, self._is_listening = turns, False, False
        # Whose changes there is news of.
        self._due: set[str] = {OWN}
        self.node, self._trails, self._serves, self._secrets = node, trails, serves, secrets
        self.place = place
        self.layer, self._shared, self._revision, self._refuse = layer, shared, revision, refuse
        self._refs: dict[str, v1.DataPlaneRef] | None = None
        self._remap = self._look = True
        self._planes: list[v1.DataPlaneScopes] = []
        self._now: dict[str, Compiled] = {}
        # Those of `_now` that others may have too.
        self._common: list[str] = []
        self._sent: dict[str, Compiled] = {}
        # {scope: the digest of what the node has of it, by its own word}, until it is told which scopes it needs.
        self._held: dict[str, bytes] = {}
        self._sent_planes: list[v1.DataPlaneScopes] | None = None
        self._sent_revision = -1
        self._sent_entries: v1.EntrySet | None = None
        self._sent_secrets: dict[Name, Mark] = {}
        self._first: dict[str | int, v1.SyncResponse] = {}
        self._denies: Message | None = None
        self._wake = asyncio.Event()
        self._wake.set()

    def set_interest(self, refs: Iterable[v1.DataPlaneRef], held: Mapping[str, bytes] = _NOTHING) -> None:
        """Takes which data planes the node has: the whole set.

        Args:
            refs: the data planes.
            held: what it has from before, `{scope: digest}`; heeded the first time alone.
        """
        if self._refs is None:
            self._held = dict(held)
        self._refs = {ref.id: ref for ref in refs}
        self._remap = True
        self._have_news({ref.tenant for ref in self._refs.values()})

    def say(self, message: v1.SyncResponse) -> None:
        """Puts a message before all others; of whole sets that a slow session still has to take, the newest alone."""
        kind = message.WhichOneof("message") or ""
        if len(self._first) >= _MAX_FIRST:
            del self._first[next(iter(self._first))]
        self._first[kind if kind in _WHOLE else id(message)] = message
        self._wake.set()

    def deny(self, message: Message) -> None:
        """Takes the newest deny list, which goes before all else."""
        self._denies = message
        self._wake.set()

    def touch(self, nodes: Collection[str], scopes: Collection[str], tenants: Collection[str]) -> None:
        """Takes note of a new revision.

        Args:
            nodes: whose entries, or whose entries' services, changed.
            scopes: what is to be compiled anew.
            tenants: whose changes these are.
        """
        is_touched = self.node in nodes or not self._now.keys().isdisjoint(scopes)
        self._have_news(tenants if is_touched else ())

    def map_anew(self) -> None:
        """Takes note that its entries, or their services, have changed."""
        self._remap = self._look = True

    def move(self, layer: Layer, tenants: Collection[str]) -> None:
        """Takes its news from another layer from now on, for changes of these tenants'."""
        if layer is not self.layer:
            self.layer = layer
            self.map_anew()
            self._have_news(tenants)

    def look(self) -> None:
        """Takes note that secrets have changed."""
        self._look = True
        self._have_news(())

    def your_turn(self) -> None:
        """It may say its news now."""
        self._has_turn = True
        self._wake.set()

    def _have_news(self, tenants: Collection[str]) -> None:
        self._due.update(tenants or (OWN,))
        if self._is_listening:
            self._turns.ask(self, self._due)

    def untold(self, message: v1.EntrySecrets) -> None:
        """Secrets were not told after all: they are said again with whatever comes next."""
        self._sent_secrets.pop(Name(message.tenant, message.entry), None)
        self._look = True
        self._due.add(message.tenant)

    def close(self) -> None:
        """The session has ended: nothing is wanted for it any more."""
        self._turns.withdraw(self)
        if self._secrets is not None:
            self._secrets.want(self, ())

    async def next(self) -> list[Message]:
        """Waits until there is something to say, and returns it."""
        self._is_listening = True
        if self._due:
            self._turns.ask(self, self._due)
        try:
            while not (messages := self._messages()):
                await self._wake.wait()
                self._wake.clear()
        finally:
            self._is_listening = False
        return messages

    def _messages(self) -> list[Message]:
        messages = self._urgent()
        if self._has_turn:
            with self._turns.take(self):
                self._has_turn, self._due = False, set()
                messages += self._news()
        elif messages:  # not to be given a turn while these are written
            self._turns.withdraw(self)
        return messages

    def _urgent(self) -> list[Message]:
        messages = [] if self._denies is None else [self._denies]
        messages += map(Message.of, self._first.values())
        self._denies, self._first = None, {}
        return messages

    def _news(self) -> list[Message]:
        messages: list[Message] = []
        if self._remap or self._sent_entries is None:
            messages += self._entries()
        if self._refs is not None:
            messages += self._config()
        if self._secrets is not None and self._look and self._sent_entries is not None:
            self._look = False
            messages += self._told_secrets(self._secrets, self._sent_entries.entries)
        return messages

    def _told_secrets(self, secrets: EntrySecrets, entries: Iterable[WorkloadEntry]) -> list[Message]:
        """The secrets of each entry where any has changed; an entry that names none any more is told that, too."""
        named = {Name(entry.metadata.tenant, entry.metadata.name): entry for entry in entries}
        secrets.want(self, named.values())
        messages = []
        for name, entry in named.items():
            found = secrets.find(entry)
            if found is None or found[0] == self._sent_secrets.get(name, ()):
                continue
            self._sent_secrets[name] = found[0]
            messages.append(Message.of(v1.SyncResponse(secrets=found[1])))
        self._sent_secrets = {name: mark for name, mark in self._sent_secrets.items() if name in named}
        return messages

    def _entries(self) -> list[Message]:
        entries = [entry for entry in self.layer.mesh.entries_on(self.node) if self._serves(entry.metadata.tenant)]
        names = sorted({Name(entry.metadata.tenant, entry.spec.service) for entry in entries})
        services = [found for name in names if (found := self.layer.mesh.find("Service", *name)) is not None]
        made = v1.EntrySet(entries=entries, services=services)
        if made == self._sent_entries:
            return []
        self._sent_entries = made
        message = v1.SyncResponse(entries=made)
        message.entries.revision = self._revision()
        return [Message.of(message)]

    def _config(self) -> list[Message]:
        if self._remap:
            self._remap = False
            self._map()
        for scope in self._common:
            self._now[scope] = self.layer.scopes.get(scope)
        updates, is_whole = [], False
        for scope, now in self._now.items():
            if (before := self._sent.get(scope)) is None:
                if scope in self._held and self._held[scope] == now.digest():
                    continue
                updates.append(now.whole())
                is_whole = True
            elif before is not now and (update := now.update(before)):
                updates.append(update)
        revision, planes = self._revision(), self._planes
        if planes:  # of what these don't need the node keeps nothing
            self._held = {}
        if not updates and planes == self._sent_planes and revision == self._sent_revision:
            return []
        self._sent, self._sent_revision = self._now.copy(), revision
        self._trails.compiled(self.node, revision)
        parent = self._trails.parent(self.node, revision)
        if planes == self._sent_planes and not is_whole:
            return [self._shared.config(revision, updates, parent)]
        self._sent_planes = planes
        rest = v1.ConfigUpdate(data_planes=planes, trace_parent=parent)
        return [Message.config(revision, updates, rest)]

    def _map(self) -> None:
        """Which scopes make up each data plane; from the entries as they are now, never from the agent's word."""
        refused = {plane.id: plane.refused for plane in self._planes}
        self._now, self._planes = {}, []
        for ref in (self._refs or {}).values():
            plane = v1.DataPlaneScopes(id=ref.id)
            try:
                plane.scopes.extend(self._scopes_of(ref))
            except ValueError as error:
                plane.refused = str(error)
                if refused.get(ref.id) != plane.refused:
                    self._refuse(self.node, ref, plane.refused)
            self._planes.append(plane)
        common = {scope for plane in self._planes for scope in plane.scopes if not scope.startswith("listener/")}
        self._common = sorted(common)
        self._now |= {scope: self.layer.scopes.get(scope) for scope in self._common}

    def _scopes_of(self, ref: v1.DataPlaneRef) -> tuple[str, ...]:
        entry = self.layer.mesh.find("WorkloadEntry", ref.tenant, ref.entry)
        if entry is None:
            raise ValueError(f"there is no workload entry {ref.tenant}/{ref.entry}")
        if self.node not in entry.spec.nodes:
            raise ValueError(f"workload entry {ref.tenant}/{ref.entry} does not name node {self.node}")
        if not self._serves(ref.tenant):
            raise ValueError(f"node {self.node} has joined for other tenants than {ref.tenant}")
        mesh = self.layer.mesh
        place = self.place if mesh.near(ref.tenant) else None
        scopes = scopes_of(ref, self.node, entry, mesh.named, place, mesh.externals(ref.tenant))
        for scope in scopes:
            if scope.startswith("listener/"):
                self._now[scope] = self.layer.scopes.listener(scope, ref, entry, self._sent.get(scope))
        return scopes
