"""How far each node has come, in the store: for the other control planes of it, and for ourselves after a restart.

    /progress/<digest of a control plane's name>/<part>    ProgressRecord, compressed (RFC 1950)

A control plane writes what has changed of its nodes now and then, a part of them a record. Whoever has heard of a node
last is right about it.
"""

import asyncio
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import anyio
import structlog
from anyio.abc import TaskStatus
from google.protobuf.message import DecodeError

from meshwarden.controlplane.store.follow import follow
from meshwarden.controlplane.store.limit import MAX_COMMIT_BYTES
from meshwarden.controlplane.store.port import Batch, Put, Record, Store, StoreError
from meshwarden.v1.admin_service_pb2 import NodeState
from meshwarden.v1.revision_service_pb2 import ProgressRecord
from meshwarden.xds.wire import delimited

PREFIX: Final = "/progress/"
PARTS: Final = 16
FIRST_S: Final = 0.5
NODES_PER_S: Final = 200.0
"""What is written is collected for so long that this many nodes are looked at each second."""
MAX_BYTES: Final = 64 << 20

log = structlog.get_logger()


class Standings:
    """Writes how far our nodes have come, and knows it of all."""

    def __init__(self, store: Store, owner: str, states: Callable[[], Iterable[NodeState]]) -> None:
        """Says what to write.

        Args:
            store: where.
            owner: this control plane's name among those of the store.
            states: the nodes that have joined, in any order; those that were heard of here have `last_seen`.
        """
        self._store, self._states = store, states
        self._own = f"{PREFIX}{hashlib.sha256(owner.encode()).hexdigest()[:16]}/"
        # {key: {node: state}}
        self._known: dict[str, dict[str, NodeState]] = {}
        self._written: dict[str, bytes] = {}
        self._dirty = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back when another control plane has said something."""
        self._listeners.append(callback)

    def touch(self) -> None:
        """Something of our nodes has changed."""
        self._dirty.set()

    def find(self, node: str) -> NodeState | None:
        """What was last said of a node, by whichever control plane; None if nothing was."""
        found = [states[node] for states in self._known.values() if node in states]
        return max(found, key=lambda state: state.last_seen.ToNanoseconds(), default=None)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follows the store and writes to it until it is cancelled; has started once it knows what is there."""
        async with anyio.create_task_group() as group:
            await group.start(self._follow)
            task_status.started()
            await self._write()

    async def _follow(self, *, task_status: TaskStatus[None]) -> None:
        await follow(self._store, PREFIX, self._load, self._change, task_status=task_status)

    def _load(self, records: Sequence[Record], _: int) -> None:
        self._known = {}
        for record in records:
            self._take(record.key, record.value)
        self._tell()

    def _change(self, batch: Batch) -> None:
        for event in batch.events:
            self._take(event.key, event.value)
        if any(not event.key.startswith(self._own) for event in batch.events):
            self._tell()

    def _tell(self) -> None:
        for callback in self._listeners:
            callback()

    def _take(self, key: str, value: bytes | None) -> None:
        self._known.pop(key, None)
        if value is None:
            return
        try:
            record = ProgressRecord.FromString(zlib.decompressobj().decompress(value, MAX_BYTES))
        except (zlib.error, DecodeError) as error:
            log.error("record.unreadable", key=key, reason=str(error))
            return
        self._known[key] = {state.node: state for state in record.nodes}

    async def _write(self) -> None:
        pause_s = FIRST_S
        while True:
            await self._dirty.wait()
            await anyio.sleep(pause_s)
            self._dirty.clear()
            states = list(self._states())
            pause_s = max(FIRST_S, len(states) / NODES_PER_S)
            try:
                await self._save(states)
            except StoreError as error:
                log.info("progress.unwritten", reason=str(error))
                self._dirty.set()
                await anyio.sleep(pause_s)

    async def _save(self, states: Iterable[NodeState]) -> None:
        parts: dict[str, list[tuple[bytes, bytes]]] = {}
        for state in sorted(states, key=lambda state: state.node):
            # Of one that is at another, or was there last, that one tells.
            if not state.HasField("last_seen"):
                known = self.find(state.node)
                if known is None or known is not self._ours(state.node):
                    continue
                state = known
            key = f"{self._own}{zlib.crc32(state.node.encode()) % PARTS:02}"
            parts.setdefault(key, []).append(_standing(state))
        marks = {key: b"".join(lasting for lasting, _ in nodes) for key, nodes in sorted(parts.items())}
        news = [key for key, mark in marks.items() if self._written.get(key) != mark]
        for some in _commits({key: _record(parts[key]) for key in news}):
            await self._store.commit(some)
            self._written.update((put.key, marks[put.key]) for put in some)

    def _ours(self, node: str) -> NodeState | None:
        """What we have said of a node ourselves, maybe before a restart."""
        for key, states in self._known.items():
            if key.startswith(self._own) and node in states:
                return states[node]
        return None


def _standing(state: NodeState) -> tuple[bytes, bytes]:
    """The part of a state that others want to know: all but when it was heard of, which changes all the time; and that.

    Both are serialised; one behind the other they are the state.
    """
    part = NodeState(
        node=state.node,
        zone=state.zone,
        connected=state.connected,
        acked_revision=state.acked_revision,
        nacks=state.nacks,
        data_planes=state.data_planes,
        pending_revision=state.pending_revision,
        pending=state.pending,
    )
    if not state.HasField("last_seen"):
        return part.SerializeToString(deterministic=True), b""
    seen = delimited(NodeState.LAST_SEEN_FIELD_NUMBER, state.last_seen.SerializeToString())
    return part.SerializeToString(deterministic=True), seen


def _record(nodes: Iterable[tuple[bytes, bytes]]) -> bytes:
    """What is stored of some nodes."""
    return zlib.compress(b"".join(delimited(ProgressRecord.NODES_FIELD_NUMBER, b"".join(both)) for both in nodes))


def _commits(values: Mapping[str, bytes]) -> Iterator[list[Put]]:
    """Puts values in as few commits as take them: each of these waits for the disk."""
    some: list[Put] = []
    for key, value in values.items():
        if some and sum(len(put.key) + len(put.value) for put in some) + len(key) + len(value) > MAX_COMMIT_BYTES:
            yield some
            some = []
        some.append(Put(key, value))
    if some:
        yield some
