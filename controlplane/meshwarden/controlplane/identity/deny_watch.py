"""The deny list in force: what the store says, followed, and without what has ended."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import anyio
import structlog
from anyio.abc import TaskStatus

from meshwarden.certs.deny import DenyList
from meshwarden.controlplane.identity.deny import DENIES, DenyRecord
from meshwarden.controlplane.identity.record import RecordError
from meshwarden.controlplane.store.follow import follow
from meshwarden.controlplane.store.limit import MAX_OPS
from meshwarden.controlplane.store.port import Batch, Delete, Record, Store, StoreError

TICK: Final = timedelta(seconds=30)

log = structlog.get_logger()


class DenyWatch:
    """Keeps `present` as the store has it, and calls back at each change."""

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store, self._clock = store, clock
        self._records: dict[str, tuple[DenyRecord, int]] = {}
        self._listeners: list[Callable[[DenyList], None]] = []
        self._moved = asyncio.Event()
        self.present = DenyList()
        """What is denied; without what has ended, up to half a minute ago."""

    def listen(self, callback: Callable[[DenyList], None]) -> None:
        """Calls back at each change."""
        self._listeners.append(callback)

    def records(self) -> list[DenyRecord]:
        """The denies with who and why, the newest first."""
        now = self._clock()
        found = [record for record, _ in self._records.values() if record.deny.not_after >= now]
        return sorted(found, key=lambda record: (record.time, record.key), reverse=True)

    async def wait_revision(self, revision: int) -> None:
        """Returns once a list of `revision` or a later one is in force."""
        while self.present.revision < revision:
            await self._moved.wait()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follows the store until it is cancelled; has started once all denies are known."""
        async with anyio.create_task_group() as group:
            await group.start(partial(follow, self._store, DENIES, self._load, self._change))
            task_status.started()
            await self._forget()

    def _load(self, records: Sequence[Record], at: int) -> None:
        found: dict[str, tuple[DenyRecord, int]] = {}
        for record in records:
            _put(found, record.key, record.value, record.revision)
        self._records = found
        self._tell(at)

    def _change(self, batch: Batch) -> None:
        for event in batch.events:
            _put(self._records, event.key, event.value, batch.revision)
        if batch.events:
            self._tell(batch.revision)

    def _tell(self, revision: int) -> None:
        self.present = DenyList([record.deny for record in reversed(self.records())], revision)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        for callback in self._listeners:
            callback(self.present)

    async def _forget(self) -> None:
        """Deletes what has ended, which is a change like any other; until then it is no longer held against anybody."""
        while True:
            await anyio.sleep(TICK.total_seconds())
            now = self._clock()
            ended = [(key, at) for key, (record, at) in self._records.items() if record.deny.not_after < now]
            for start in range(0, len(ended), MAX_OPS):
                ops = [Delete(key, at) for key, at in ended[start : start + MAX_OPS]]
                try:
                    await self._store.commit(ops)
                except StoreError as error:  # another replica was first, or somebody has denied it anew
                    log.info("denies.not_forgotten", reason=str(error))


def _put(records: dict[str, tuple[DenyRecord, int]], key: str, value: bytes | None, revision: int) -> None:
    if value is None:
        records.pop(key, None)
        return
    try:
        records[key] = DenyRecord.decode(key, value), revision
    except RecordError as error:
        # Who it denies can't be told. What was known under this key stands: it must not be allowed by a bad write.
        log.error("record.unreadable", key=key, reason=str(error))
