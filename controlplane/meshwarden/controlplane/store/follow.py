"""What a store has below a prefix, and then each change of it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, Generic, TypeVar, cast

import anyio
import structlog
from anyio.abc import TaskStatus

from meshwarden.controlplane.store.port import Batch, Record, Store, StoreError

RETRY_S: Final = 1.0

T = TypeVar("T")
log = structlog.get_logger()


async def follow(
    store: Store,
    prefix: str,
    whole: Callable[[Sequence[Record], int], None],
    change: Callable[[Batch], None],
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Tells what is there, then what changes, until it is cancelled; has started once it has told what is there.

    Args:
        store: where.
        prefix: below which keys.
        whole: takes all records, and as of which revision: first of all, and again whenever changes were missed.
        change: takes the changes of one revision; of none in a bookmark.
        task_status: is told that it has started.
    """
    started = False
    while True:
        try:
            records, at = await _read(store, prefix)
            whole(records, at)
            if not started:
                started = True
                task_status.started()
            async with aclosing(cast("Any", store.watch(prefix, after=at))) as batches:
                async for batch in batches:
                    change(batch)
        except StoreError as error:
            log.info("store.reread", prefix=prefix, reason=str(error))
        await anyio.sleep(RETRY_S)


async def _read(store: Store, prefix: str) -> tuple[list[Record], int]:
    records: list[Record] = []
    at, start = 0, ""
    while True:
        page = await store.range(prefix, start=start, at=at)
        at, start = page.revision, page.next_key
        records += page.records
        if not start:
            return records, at


class Followed(Generic[T]):
    """Keeps `items` as the store has them."""

    def __init__(self, store: Store, prefix: str, decode: Callable[[str, bytes], T]) -> None:
        """Says what to follow.

        Args:
            store: where.
            prefix: below which keys.
            decode: reads a record; what it raises a ValueError for is left out.
        """
        self._store, self._prefix, self._decode = store, prefix, decode
        self._listeners: list[Callable[[], None]] = []
        self._items: dict[str, T] = {}
        self._moved = asyncio.Event()
        self.revision = 0
        """As of which revision the items are, or of which nothing below the prefix has changed since."""

    @property
    def items(self) -> Mapping[str, T]:
        """{key: what is there}."""
        return self._items

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back after each change."""
        self._listeners.append(callback)

    async def wait_revision(self, revision: int) -> None:
        """Returns once the items are as of `revision` or later."""
        while self.revision < revision:
            await self._moved.wait()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follows the store until it is cancelled; has started once all items are known."""
        await follow(self._store, self._prefix, self._load, self._change, task_status=task_status)

    def _load(self, records: Sequence[Record], at: int) -> None:
        self._items = {}
        for record in records:
            self._put(record.key, record.value)
        self._tell(at)

    def _change(self, batch: Batch) -> None:
        for event in batch.events:
            self._put(event.key, event.value)
        self._tell(batch.revision)

    def _put(self, key: str, value: bytes | None) -> None:
        self._items.pop(key, None)
        if value is not None:
            try:
                self._items[key] = self._decode(key, value)
            except ValueError as error:
                log.warning("store.unreadable", key=key, error=str(error))

    def _tell(self, revision: int) -> None:
        self.revision = revision
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        for callback in self._listeners:
            callback()
