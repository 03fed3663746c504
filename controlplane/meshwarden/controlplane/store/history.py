"""What a revision has changed, as far as the store still remembers."""

from contextlib import aclosing
from typing import Any, cast

from meshwarden.controlplane.store.port import Future, Store

_NOWHERE = "/"


async def keys_changed(store: Store, revision: int) -> tuple[str, ...]:
    """The keys of the records that a revision has put or deleted; none if it was taken by a lease.

    Raises:
        Future: there is no such revision yet.
        Compacted: what it has changed is forgotten.
        StoreError: the store can't say now.
    """
    _, newest = await store.get(_NOWHERE)
    if revision > newest:
        raise Future(newest)
    async with aclosing(cast("Any", store.watch("/", after=revision - 1))) as batches:
        async for batch in batches:
            if batch.revision >= revision:
                return tuple(event.key for event in batch.events) if batch.revision == revision else ()
    return ()
