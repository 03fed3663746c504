"""At which control plane of a store each node has its session, so that none judges another's nodes by its own eyes.

    /presence/<node>          the control plane with the node's newest session, and which roots the node trusts and uses
    lease presence/<name>     held by a control plane for as long as it lives

A node that is at another control plane is away here, and not lost for that. Only when whoever had it lives no more is
it waited for, and given up, as one that was here.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import anyio
import structlog
from anyio.abc import TaskStatus

from meshwarden.controlplane.store.follow import follow
from meshwarden.controlplane.store.limit import MAX_OPS
from meshwarden.controlplane.store.port import Batch, Lease, LeaseHeld, LeaseLost, Put, Record, Store, StoreError

PREFIX: Final = "/presence/"
TTL_S: Final = 15.0
LOOK_S: Final = 5.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Place:
    """Where a node has its session.

    Attributes:
        holder: the name of the control plane.
        trusted: the fingerprints of the roots that the node trusts.
        used: of those that its certificates lead to.
        jwt_keys: the ids of the JWT keys that it knows; empty if it doesn't say.
    """

    holder: str
    trusted: frozenset[str] | None = None
    used: frozenset[str] = frozenset()
    jwt_keys: frozenset[str] = frozenset()

    def encode(self) -> bytes:
        """What is stored."""
        trusted = None if self.trusted is None else sorted(self.trusted)
        said = {"holder": self.holder, "trusted": trusted, "used": sorted(self.used), "jwt_keys": sorted(self.jwt_keys)}
        return json.dumps(said).encode()

    @classmethod
    def decode(cls, value: bytes) -> "Place":
        """Reads a record.

        Raises:
            ValueError: it is none.
        """
        try:
            said = json.loads(value)
            trusted = None if said["trusted"] is None else frozenset(map(str, said["trusted"]))
            used, jwt_keys = (frozenset(map(str, names)) for names in (said["used"], said.get("jwt_keys", ())))
            return cls(str(said["holder"]), trusted, used, jwt_keys)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no presence: {error}") from None


class Presence:
    """Says where this control plane has nodes, and knows where the others have theirs."""

    def __init__(self, store: Store, owner: str) -> None:
        """`owner` is this control plane's name among those of the store."""
        self._store, self._owner = store, owner
        self._places: dict[str, Place] = {}
        self._due: dict[str, Place] = {}
        self._work = anyio.Event()
        self._gone: set[str] = set()
        self._listeners: list[Callable[[str], None]] = []
        self._lease: Lease | None = None

    def listen(self, callback: Callable[[str], None]) -> None:
        """Calls back with a node that has a session at another control plane from now on."""
        self._listeners.append(callback)

    def put(
        self,
        node: str,
        trusted: frozenset[str] | None,
        used: frozenset[str],
        jwt_keys: frozenset[str] = frozenset(),
    ) -> None:
        """A node has its session here, and says this of the roots and of JWT keys."""
        place = Place(self._owner, trusted, used, jwt_keys)
        if self._due.get(node, self._places.get(node)) != place:
            self._due[node] = place
            self._work.set()

    def elsewhere(self, node: str) -> Place | None:
        """Where a node is, if that is another control plane, which lives; None if it isn't."""
        place = self._places.get(node)
        is_away = place is not None and place.holder != self._owner and place.holder not in self._gone
        return place if is_away and node not in self._due else None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follows the store and writes to it until it is cancelled; has started once it knows where all nodes are."""
        try:
            async with anyio.create_task_group() as group:
                await group.start(self._follow)
                await self._look()
                task_status.started()
                group.start_soon(self._live)
                group.start_soon(self._write)
        finally:
            if self._lease is not None:
                with anyio.CancelScope(shield=True), contextlib.suppress(StoreError):
                    await self._store.renew(self._lease, release=True)

    async def _follow(self, *, task_status: TaskStatus[None]) -> None:
        await follow(self._store, PREFIX, self._load, self._change, task_status=task_status)

    def _load(self, records: Sequence[Record], _: int) -> None:
        self._places = {}
        for record in records:
            self._take(record.key, record.value)

    def _change(self, batch: Batch) -> None:
        for event in batch.events:
            self._take(event.key, event.value)

    def _take(self, key: str, value: bytes | None) -> None:
        node = key.removeprefix(PREFIX)
        before = self._places.pop(node, None)
        if value is None:
            return
        try:
            place = self._places[node] = Place.decode(value)
        except ValueError as error:
            log.error("record.unreadable", key=key, reason=str(error))
            return
        if place.holder != self._owner and (before is None or before.holder != place.holder):
            for callback in self._listeners:
                callback(node)

    async def _live(self) -> None:
        while True:
            await anyio.sleep(LOOK_S)
            await self._look()

    async def _look(self) -> None:
        """Shows that we live, and sees who of the others does."""
        holders = {place.holder for place in self._places.values()} - {self._owner}
        try:
            self._lease = await self._hold(self._lease)
            gone = {holder for holder in holders if not await self._lives(holder)}
        except StoreError as error:
            log.info("presence.unknown", reason=str(error))
            return
        for holder in sorted(gone - self._gone):
            log.warning("control_plane.gone", name=holder)
        self._gone = gone

    async def _hold(self, lease: Lease | None) -> Lease | None:
        with contextlib.suppress(LeaseLost):
            if lease is not None:
                return await self._store.renew(lease)
        with contextlib.suppress(LeaseHeld):  # for a moment, by whoever looks whether we live
            return await self._store.acquire(_lease_of(self._owner), self._owner, TTL_S)
        return None

    async def _lives(self, holder: str) -> bool:
        try:
            lease = await self._store.acquire(_lease_of(holder), self._owner, 1.0)
        except LeaseHeld:
            return True
        with contextlib.suppress(LeaseLost):
            await self._store.renew(lease, release=True)
        return False

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work = anyio.Event()
            while due := dict(itertools.islice(self._due.items(), MAX_OPS)):
                try:
                    await self._store.commit([Put(PREFIX + node, place.encode()) for node, place in due.items()])
                except StoreError as error:
                    log.info("presence.unwritten", nodes=len(self._due), reason=str(error))
                    await anyio.sleep(LOOK_S)
                    continue
                self._places.update(due)
                self._due = {node: place for node, place in self._due.items() if due.get(node) is not place}


def _lease_of(holder: str) -> str:
    return f"presence/{holder}"
