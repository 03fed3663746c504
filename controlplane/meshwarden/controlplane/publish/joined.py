"""The nodes that have joined, whether they have a session or not: what the store says of them."""

from contextlib import aclosing
from typing import Any, Final, cast

import anyio
import structlog
from anyio.abc import TaskStatus

from meshwarden.controlplane.identity.record import NODES, NodeRecord, RecordError
from meshwarden.controlplane.store.port import Store, StoreError

RETRY_S: Final = 1.0

log = structlog.get_logger()


class Joined:
    """Keeps `nodes` as the store has them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.nodes: dict[str, NodeRecord] = {}
        """{name: record}"""

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
        found: dict[str, NodeRecord] = {}
        at, start = 0, ""
        while True:
            page = await self._store.range(NODES, start=start, at=at)
            at, start = page.revision, page.next_key
            for record in page.records:
                _put(found, record.key, record.value)
            if not start:
                self.nodes = found
                return at

    async def _follow(self, after: int) -> None:
        async with aclosing(cast("Any", self._store.watch(NODES, after=after))) as batches:
            async for batch in batches:
                for event in batch.events:
                    _put(self.nodes, event.key, event.value)


def _put(nodes: dict[str, NodeRecord], key: str, value: bytes | None) -> None:
    if value is None:
        nodes.pop(key.removeprefix(NODES), None)
        return
    try:
        record = NodeRecord.decode(key, value)
    except RecordError as error:  # one that can't be read must not hide the others
        log.error("record.unreadable", key=key, reason=str(error))
    else:
        nodes[record.node] = record
