"""Forgets the store's history when it is old enough: a cursor that is older starts afresh."""

from collections import deque

import anyio
import structlog

from meshwarden.controlplane.store.port import Store, StoreError

LOOK_S = 600.0
KEEP_LOOKS = 6

log = structlog.get_logger()


async def compact_old(store: Store, *, look_s: float = LOOK_S, keep_looks: int = KEEP_LOOKS) -> None:
    """Keeps the history of the last `keep_looks` looks, an hour by default, until it is cancelled.

    Several processes that share a store may each do so.
    """
    heads: deque[int] = deque()
    while True:
        try:
            heads.append((await store.range("", limit=1)).revision)
            if len(heads) > keep_looks:
                await store.compact(heads.popleft())
        except StoreError as error:
            log.warning("store.uncompacted", reason=str(error), retry_s=look_s)
        await anyio.sleep(look_s)
