"""The nodes that have joined, whether they have a session or not, and those that are banned: what the store says."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import anyio
import structlog
from anyio.abc import TaskStatus

from meshwarden.controlplane.identity.record import BANS, NODES, BanRecord, NodeRecord, RecordError
from meshwarden.controlplane.store.follow import follow
from meshwarden.controlplane.store.port import Batch, Record, Store

# Of both, so that a ban and the end of the node's record are seen together, as they are written.
PREFIX: Final = "/identity/node"

log = structlog.get_logger()


class Members:
    """Keeps `joined` and `bans` as the store has them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listeners: list[Callable[[str], None]] = []
        self.joined: dict[str, NodeRecord] = {}
        """{name: record}"""
        self.bans: dict[str, BanRecord] = {}
        """{name: record}"""

    def on_removed(self, callback: Callable[[str], None]) -> None:
        """Calls back with each node whose record has ended or that was banned."""
        self._listeners.append(callback)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follows the store until it is cancelled; has started once all nodes are known."""
        await follow(self._store, PREFIX, self._load, self._change, task_status=task_status)

    def _load(self, records: Sequence[Record], _: int) -> None:
        joined: dict[str, NodeRecord] = {}
        bans: dict[str, BanRecord] = {}
        for record in records:
            _put(joined, bans, record.key, record.value, record.revision)
        gone = (self.joined.keys() - joined.keys()) | (bans.keys() - self.bans.keys())
        self.joined, self.bans = joined, bans
        self._tell(gone)

    def _change(self, batch: Batch) -> None:
        changed = (_put(self.joined, self.bans, event.key, event.value, batch.revision) for event in batch.events)
        self._tell({node for node in changed if node})

    def _tell(self, nodes: set[str]) -> None:
        for node in sorted(nodes):
            for callback in self._listeners:
                callback(node)


def _put(
    joined: dict[str, NodeRecord], bans: dict[str, BanRecord], key: str, value: bytes | None, revision: int
) -> str:
    """Takes a record; returns the node if it is removed by that, or empty."""
    try:
        if key.startswith(NODES):
            node = key.removeprefix(NODES)
            if value is None:
                return node if joined.pop(node, None) is not None else ""
            joined[node] = replace(NodeRecord.decode(key, value), revision=revision)
        elif key.startswith(BANS):
            node = key.removeprefix(BANS)
            if value is None:
                bans.pop(node, None)
                return ""
            bans[node] = BanRecord.decode(key, value)
            return node
    except RecordError as error:  # one that can't be read must not hide the others
        log.error("record.unreadable", key=key, reason=str(error))
    return ""
