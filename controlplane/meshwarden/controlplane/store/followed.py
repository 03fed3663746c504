"""What a store has below a prefix, in memory, as it changes."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any, Final, Generic, TypeVar, cast

import anyio
import structlog
from anyio.abc import TaskStatus

from meshwarden.controlplane.store.port import Store, StoreError

RETRY_S: Final = 1.0

T = TypeVar("T")
log = structlog.get_logger()


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
        started = False
        while True:
            try:
                await self._load()
                if not started:
                    started = True
                    task_status.started()
                await self._follow()
            except StoreError as error:
                log.info("store.reread", prefix=self._prefix, reason=str(error))
            await anyio.sleep(RETRY_S)

    async def _load(self) -> None:
        found: dict[str, T] = {}
        at, start = 0, ""
        while True:
            page = await self._store.range(self._prefix, start=start, at=at)
            at, start = page.revision, page.next_key
            for record in page.records:
                self._put(found, record.key, record.value)
            if not start:
                break
        self._items = found
        self._tell(at)

    async def _follow(self) -> None:
        async with aclosing(cast("Any", self._store.watch(self._prefix, after=self.revision))) as batches:
            async for batch in batches:
                for event in batch.events:
                    self._put(self._items, event.key, event.value)
                self._tell(batch.revision)

    def _put(self, items: dict[str, T], key: str, value: bytes | None) -> None:
        items.pop(key, None)
        if value is not None:
            try:
                items[key] = self._decode(key, value)
            except ValueError as error:
                log.warning("store.unreadable", key=key, error=str(error))

    def _tell(self, revision: int) -> None:
        self.revision = revision
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        for callback in self._listeners:
            callback()
