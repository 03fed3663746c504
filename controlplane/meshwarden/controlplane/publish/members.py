"""The nodes that have joined, whether they have a session or not, and those that are banned: what the store says."""

from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Final, cast

import anyio
import structlog
from anyio.abc import TaskStatus

from meshwarden.controlplane.identity.record import BANS, NODES, BanRecord, NodeRecord, RecordError
from meshwarden.controlplane.store.port import Store, StoreError

# Of both, so that a ban and the end of the node's record are seen together, as they are written.
PREFIX: Final = "/identity/node"
RETRY_S: Final = 1.0

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
        started = False
        while True:
            try:
                at = await self._load()
                if not started:
                    started = True
                    task_status.started()
                await self._follow(at)
            except StoreError as error:
                log.info("nodes.reread", reason=str(error))
            await anyio.sleep(RETRY_S)

    async def _load(self) -> int:
        """Reads all, and returns as of which revision."""
        joined: dict[str, NodeRecord] = {}
        bans: dict[str, BanRecord] = {}
        at, start = 0, ""
        while True:
            page = await self._store.range(PREFIX, start=start, at=at)
            at, start = page.revision, page.next_key
            for record in page.records:
                _put(joined, bans, record.key, record.value)
            if not start:
                break
        gone = (self.joined.keys() - joined.keys()) | (bans.keys() - self.bans.keys())
        self.joined, self.bans = joined, bans
        self._tell(gone)
        return at

    async def _follow(self, after: int) -> None:
        async with aclosing(cast("Any", self._store.watch(PREFIX, after=after))) as batches:
            async for batch in batches:
                changed = (_put(self.joined, self.bans, event.key, event.value) for event in batch.events)
                self._tell({node for node in changed if node})

    def _tell(self, nodes: set[str]) -> None:
        for node in sorted(nodes):
            for callback in self._listeners:
                callback(node)


def _put(joined: dict[str, NodeRecord], bans: dict[str, BanRecord], key: str, value: bytes | None) -> str:
    """Takes a record; returns the node if it is removed by that, or empty."""
    try:
        if key.startswith(NODES):
            node = key.removeprefix(NODES)
            if value is None:
                return node if joined.pop(node, None) is not None else ""
            joined[node] = NodeRecord.decode(key, value)
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
