"""Forgets the oldest changes: beyond a number, an age and a size."""

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import anyio
import structlog

from meshwarden.controlplane.history.read import records
from meshwarden.controlplane.history.record import summary_of
from meshwarden.controlplane.store.port import Delete, Store, StoreError

LOOK_S: Final = 600.0
_MAX_OPS: Final = 100

log = structlog.get_logger()


@dataclass(frozen=True)
class Bounds:
    """How much of the history is kept: what any of the bounds leaves out is forgotten."""

    changes: int
    age: timedelta
    size_bytes: int


async def prune(store: Store, bounds: Bounds, now: datetime) -> int:
    """Forgets what is beyond the bounds; returns how many changes that were. The newest change always stays.

    Raises:
        StoreError: the store can't now; the next time goes on with it.
    """
    gone: list[str] = []
    count = size = 0
    async with aclosing(cast("Any", records(store))) as found:
        async for record in found:
            count, size = count + 1, size + len(record.value)
            is_over = bool(gone) or count > bounds.changes or size > bounds.size_bytes
            if count > 1 and (is_over or _time(record) < now - bounds.age):
                gone.append(record.key)
    # The oldest first: whatever ends this leaves no hole.
    gone.reverse()
    for first in range(0, len(gone), _MAX_OPS):
        await store.commit([Delete(key) for key in gone[first : first + _MAX_OPS]])
    return len(gone)


async def prune_old(store: Store, bounds: Bounds, clock: Callable[[], datetime], *, look_s: float = LOOK_S) -> None:
    """Prunes now and then until it is cancelled. Several processes that share a store may each do so."""
    while True:
        try:
            forgotten = await prune(store, bounds, clock())
        except StoreError as error:
            log.warning("history.unpruned", reason=str(error), retry_s=look_s)
        else:
            if forgotten:
                log.info("history.pruned", changes=forgotten)
        await anyio.sleep(look_s)


def _time(record: Any) -> datetime:
    try:
        return summary_of(record).time.ToDatetime(UTC)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)  # it goes when older ones do
