"""Whether the last release could go on with the store: it must not where it would leave out what a resource says.

An access policy that denies, read by who knows no `deny`, lets everybody in. So the store is marked as long as there is
a resource with something newer, and the last release refuses to open it.
"""

import asyncio
from collections.abc import Sequence

import anyio
import structlog
from google.protobuf.message import DecodeError

from meshwarden.controlplane.resources import model
from meshwarden.controlplane.resources.released import kind_of_key, may_be_unreleased, unreleased
from meshwarden.controlplane.store.follow import RETRY_S, follow
from meshwarden.controlplane.store.port import Batch, Record, Store, StoreError

log = structlog.get_logger()


class WayBack:
    """Marks the store, and takes the mark away."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # The keys of resources that have something newer.
        self._newer: set[str] = set()
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Keeps the mark as the resources are, until it is cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(follow, self._store, model.ROOT, self._whole, self._change)
            marked: bool | None = None
            while True:
                await self._moved.wait()
                self._moved.clear()
                if bool(self._newer) != marked:
                    marked = await self._mark()

    async def _mark(self) -> bool:
        while True:
            has_newer = bool(self._newer)
            try:
                await self._store.mark(has_newer)
            except StoreError as error:
                log.warning("store.not_marked", reason=str(error))
                await anyio.sleep(RETRY_S)
            else:
                return has_newer

    def _whole(self, records: Sequence[Record], _: int) -> None:
        self._newer.clear()
        for record in records:
            self._take(record.key, record.value)
        self._moved.set()

    def _change(self, batch: Batch) -> None:
        for event in batch.events:
            self._take(event.key, event.value)
        self._moved.set()

    def _take(self, key: str, value: bytes | None) -> None:
        if not may_be_unreleased(kind_of_key(key)):
            return
        self._newer.discard(key)
        if value is not None and _is_newer(value):
            self._newer.add(key)


def _is_newer(value: bytes) -> bool:
    try:
        return bool(unreleased(model.decode(value, 0)))
    except (ValueError, DecodeError):  # newer than what we know ourselves
        return True
