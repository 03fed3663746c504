"""The one pump: watches the store, keeps the mesh, and wakes the feeds of the nodes' sessions.

Nothing is pushed before the store has been read whole, so that a start never looks like a deletion. When a watch breaks
off the store is read whole again and the difference is taken, which is a change like any other.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

import anyio
import structlog
from anyio.abc import TaskStatus
from google.protobuf.message import DecodeError

from meshwarden.certs.clock import Clock, seconds_of, utc_now
from meshwarden.certs.deny import DenyList
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.policy.endpoint import NOWHERE, Place
from meshwarden.controlplane.policy.mesh import Change, Impact, Key, Mesh
from meshwarden.controlplane.publish.compiled import Scopes
from meshwarden.controlplane.publish.fair import Turns
from meshwarden.controlplane.publish.feed import OWN, Feed, Serves, Shared
from meshwarden.controlplane.publish.layer import Layer, Layers, is_staged
from meshwarden.controlplane.publish.message import Message
from meshwarden.controlplane.publish.roots import Roots
from meshwarden.controlplane.publish.secrets import EntrySecrets
from meshwarden.controlplane.publish.trail import Trails
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.store.port import Batch, Compacted, Future, Store, StoreError
from meshwarden.v1 import node_service_pb2 as v1

_PAGE: Final = 1000
_RECENT: Final = 256
_FIRST_BACKOFF_S: Final = 0.1
_LAST_BACKOFF_S: Final = 5.0
_LOOK_S: Final = 30.0

log = structlog.get_logger()


class Publisher:
    """Keeps every node's session told of the newest revision."""

    def __init__(
        self,
        store: Store,
        *,
        trust_domain: str,
        audit: AuditLog,
        trails: Trails | None = None,
        roots: Roots | None = None,
        secrets: EntrySecrets | None = None,
        turns: Turns | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self._turns = turns if turns is not None else Turns()
        # What has changed and is not told to the feeds yet: nodes, scopes, whose changes.
        self._nodes: set[str] = set()
        self._stale: set[str] = set()
        self._tenants: set[str] = set()
        self._store, self._audit, self._now_s = store, audit, seconds_of(clock)
        self.secrets: Final = secrets
        """Gives entries their secrets; None where there are none to give."""
        if secrets is not None:
            secrets.watch.listen(lambda _: self._look())
        self.trails: Final = trails or Trails()
        """What is told of the way of each change."""
        self.roots: Final = roots or Roots()
        """What is told of the way of the roots."""
        self.mesh: Final = Mesh(trust_domain)
        """The resources as of `revision`."""
        self.revision = 0
        """The store revision of the newest change of the mesh; 0 before the first load."""
        self.recent: Final[deque[int]] = deque(maxlen=_RECENT)
        """The newest revisions of the mesh, in order."""
        # Up to where the store is read. Other records than the mesh's move it, which is no news to anybody.
        self._at = 0
        base = Layer(self.mesh, Scopes(self.mesh, self._now_s, self._changes_at))
        self._layers = Layers(base, self._now_s, self._changes_at)
        self._turn: asyncio.TimerHandle | None = None
        self._turn_s = math.inf
        self._shared = Shared()
        self._feeds: set[Feed] = set()
        self._on_node: dict[str, set[Feed]] = {}
        self._listeners: list[Callable[[Impact], None]] = []
        self._denies: Message | None = None
        self._loaded = asyncio.Event()
        self._moved = asyncio.Event()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Pumps until it is cancelled; has started once the store was read whole."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                await self._load()
                if not self._loaded.is_set():
                    self._loaded.set()
                    task_status.started()
                backoff_s = _FIRST_BACKOFF_S
                await self._follow()
            except (Compacted, Future) as error:
                log.info("store.reread", reason=str(error))
            except StoreError as error:
                log.warning("store.lost", reason=str(error), retry_s=backoff_s)
            await anyio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _LAST_BACKOFF_S)

    async def wait_loaded(self) -> None:
        """Returns once the store was read whole."""
        await self._loaded.wait()

    async def wait_revision(self, revision: int) -> None:
        """Returns once the mesh has all that was stored up to `revision`."""
        while self._at < revision:
            await self._moved.wait()

    def open(self, node: str, serves: Serves = lambda _: True, place: Place = NOWHERE) -> Feed:
        """A feed for a session of `node`; `close` it at the end.

        Args:
            node: its name.
            serves: of which tenants it may have anything.
            place: where it says that it is; it matters to what it calls, and to nothing else.
        """
        feed = Feed(
            node,
            self._layers.of(node, place),
            self._shared,
            lambda: self.revision,
            self._refused,
            self.trails,
            serves,
            self.secrets,
            self._turns,
            place,
        )
        self._feeds.add(feed)
        self._on_node.setdefault(node, set()).add(feed)
        if self._denies is not None:
            feed.deny(self._denies)
        return feed

    def layer(self, node: str) -> Layer:
        """What a node is told at present: the mesh as it is, or with the changes of rollouts that it has."""
        return self._layers.of(node, self.place(node))

    def place(self, node: str) -> Place:
        """Where a node says that it is, if it has a session here."""
        return next((feed.place for feed in self._on_node.get(node, ())), NOWHERE)

    def deny(self, deny_list: DenyList) -> None:
        """Takes the newest deny list and tells every session."""
        # One message for all of them, and for those to come.
        self._denies = Message.of(v1.SyncResponse(deny_list=deny_list.to_proto()))
        for feed in self._feeds:
            feed.deny(self._denies)
        self._touch(lambda mesh: mesh.deny(deny_list))

    def cut(self, mark: str) -> None:
        """Has Envoys end all that is open; `mark` is another one each time."""
        self._touch(lambda mesh: mesh.cut(mark))

    def _touch(self, change: Callable[[Mesh], Impact]) -> None:
        """Changes something beside the store, and tells sessions of it."""
        for layer in self._layers:
            self._take(change(layer.mesh), (OWN,), layer)
        self._look()

    def _changes_at(self, at_s: float) -> None:
        """Has the clock looked at when time changes what holds, and now and then before that: clocks are put right."""
        if self._turn is None or at_s < self._turn_s:
            if self._turn is not None:
                self._turn.cancel()
            self._turn_s = at_s
            wait_s = min(max(at_s - self._now_s(), 0.0), _LOOK_S)
            self._turn = asyncio.get_running_loop().call_later(wait_s, self._has_turned)

    def _has_turned(self) -> None:
        self._turn = None
        found = [(layer, impact) for layer in self._layers if (impact := layer.scopes.due())]
        for layer, impact in found:
            self._take(impact, (OWN,), layer)
        if found:
            self._look()
        if (next_s := min(layer.scopes.next_s() for layer in self._layers)) < math.inf:
            self._changes_at(next_s)

    def close(self, feed: Feed) -> None:
        """The feed's session has ended."""
        self._feeds.discard(feed)
        feeds = self._on_node.get(feed.node, set())
        feeds.discard(feed)
        if not feeds:
            self._on_node.pop(feed.node, None)
        feed.close()

    def listen(self, callback: Callable[[Impact], None]) -> None:
        """Calls back after each change, with what it touches."""
        self._listeners.append(callback)

    def _look(self) -> None:
        for feed in self._feeds:
            feed.look()

    async def _load(self) -> None:
        """Reads the store whole and takes the difference."""
        found: dict[Key, Change] = {}
        at, start = 0, ""
        while True:
            page = await self._store.range(model.ROOT, start=start, limit=_PAGE, at=at)
            at, start = page.revision, page.next_key
            for record in page.records:
                if (change := _change(record.key, record.value, record.revision)) is not None:
                    found[change.key] = change
            if not start:
                break
        gone = [Change(key, None) for key in self.mesh.all() if key not in found]
        known = self.mesh.all()
        moved = [change for key, change in found.items() if known.get(key) != change.message]
        self._apply(at, [*gone, *moved])

    async def _follow(self) -> None:
        async with _watching(self._store, self._at) as batches:
            async for batch in batches:
                changes = (_change(event.key, event.value, batch.revision) for event in batch.events)
                self._apply(batch.revision, [change for change in changes if change is not None])
                # Also where the next batch is here already: those who are told have their turns between.
                await asyncio.sleep(0)

    def _apply(self, revision: int, changes: Iterable[Change]) -> None:
        changes, self._at = list(changes), revision
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        if not changes and self._loaded.is_set():
            return
        impact = self.mesh.apply(changes)
        self.revision = revision
        self.recent.append(revision)
        tenants = {change.key.tenant for change in changes} or {OWN}
        self._take(impact, tenants, self._layers.base)
        for overlay in self._layers.overlays():
            self._take(overlay.apply(changes), tenants, overlay)
        if is_staged(changes):
            for feed in self._feeds:
                feed.move(self._layers.of(feed.node, feed.place), tenants)
            self._layers.keep({feed.layer for feed in self._feeds})
        self.trails.published(revision, self._on_node.keys())
        for callback in self._listeners:
            callback(impact)

    def _take(self, impact: Impact, tenants: Iterable[str], layer: Layer) -> None:
        """Takes a change of these tenants' in, and has the feeds told of it soon."""
        if not self._tenants:
            asyncio.get_running_loop().call_soon(self._tell)
        self._tenants.update(tenants)
        self._stale |= layer.scopes.touch(impact)
        # Where it begins to matter where a node is, or ends to, each node's data planes are made up of other scopes.
        nodes = self._on_node.keys() if impact.near else impact.nodes
        self._nodes |= nodes
        # At once: a feed that has its turn before it is told says that it is at this revision.
        for node in nodes & self._on_node.keys():
            for feed in self._on_node[node]:
                feed.map_anew()

    def _tell(self) -> None:
        """Tells the feeds of what has changed since it was called last: several revisions, if they came at once."""
        nodes, self._nodes = self._nodes, set()
        scopes, self._stale = self._stale, set()
        tenants, self._tenants = self._tenants, set()
        for feed in self._feeds:
            feed.touch(nodes, scopes, tenants)

    def _refused(self, node: str, ref: v1.DataPlaneRef, reason: str) -> None:
        log.warning("data_plane.refused", node=node, data_plane=ref.id, reason=reason)
        self._audit.note("data_plane.refused", node=node, data_plane=ref.id, reason=reason)


@contextlib.asynccontextmanager
async def _watching(store: Store, after: int) -> AsyncIterator[AsyncIterator[Batch]]:
    batches = store.watch(model.ROOT, after=after)
    try:
        yield batches
    finally:
        if (close := getattr(batches, "aclose", None)) is not None:
            await close()


def _change(key: str, value: bytes | None, revision: int) -> Change | None:
    """A stored change as the mesh takes it; None for a record that can't be read, which must not stop the others."""
    try:
        ref = model.parse_key(key)
        message = None if value is None else model.unwrap(model.decode(value, revision))
    except (ValueError, DecodeError) as error:
        log.error("record.unreadable", key=key, revision=revision, reason=str(error))
        return None
    return Change(Key(ref.kind, ref.tenant, ref.name), message)
