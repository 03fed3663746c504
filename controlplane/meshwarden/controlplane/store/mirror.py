"""All resources of a store, in memory, as of one revision; brought up to date when it is asked for."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import structlog

from meshwarden.controlplane.resources.model import decode, parse_key, prefix_of
from meshwarden.controlplane.resources.view import View
from meshwarden.controlplane.store.limit import MAX_PAGE
from meshwarden.controlplane.store.port import Batch, Compacted, Future, Store

log = structlog.get_logger()


class Mirror:
    """The resources as of `revision`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loaded = False
        self.view = View()
        self.revision = 0

    async def refresh(self) -> None:
        """Takes in what has changed: everything that was committed before the call is in the view after it."""
        if self._loaded:
            try:
                await self._follow()
                return
            except (Compacted, Future):
                log.info("store.mirror.reload", revision=self.revision)
        await self._load()

    async def _follow(self) -> None:
        async with aclosing(_generator(self._store, self.revision)) as batches:
            async for batch in batches:
                for event in batch.events:
                    self._put(event.key, event.value, batch.revision)
                self.revision = batch.revision
                if not batch.events:
                    return

    async def _load(self) -> None:
        self._loaded, self.view, key, at = False, View(), "", 0
        while True:
            page = await self._store.range(prefix_of(), start=key, limit=MAX_PAGE, at=at)
            for record in page.records:
                self._put(record.key, record.value, record.revision)
            key, at = page.next_key, page.revision
            if not key:
                break
        self._loaded, self.revision = True, at

    def _put(self, key: str, value: bytes | None, revision: int) -> None:
        try:
            if value is None:
                self.view.remove(parse_key(key))
            else:
                self.view.put(decode(value, revision))
        except ValueError as error:
            # A record of a newer version of ours: it is nobody's reference here.
            log.warning("store.mirror.skip", key=key, revision=revision, reason=str(error))


def _generator(store: Store, after: int) -> AsyncGenerator[Batch, None]:
    # The port promises an iterator; that it can be closed is what aclosing needs.
    return cast("AsyncGenerator[Batch, None]", store.watch(prefix_of(), after=after))
