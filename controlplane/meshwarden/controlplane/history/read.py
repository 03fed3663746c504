"""Reads the history, the newest first."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from meshwarden.controlplane.history.record import LAST, PREFIX, kept, key_after, summary_of, whole
from meshwarden.controlplane.store.port import Record, Store
from meshwarden.v1.revision_service_pb2 import Revision, RevisionChange

MAX_READ: Final = 2000
"""So many changes are looked through for one page."""
_PAGE: Final = 500

Shown = Callable[[RevisionChange], bool]
"""Says which parts of a change are wanted."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Page:
    """Changes, the newest first. There may be older ones before `next_before`; 0 says that there are none."""

    revisions: tuple[Revision, ...]
    next_before: int


async def newest(store: Store, shown: Shown, limit: int, before: int = 0) -> Page:
    """Returns the newest changes of which anything is shown, without what the resources were and are.

    Args:
        store: where.
        shown: which changes of resources.
        limit: so many at most.
        before: only changes before this revision; 0 for all.

    Raises:
        StoreError: the store can't be read.
    """
    found: list[Revision] = []
    last = read = 0
    async for record in records(store, before):
        if len(found) == limit or read == MAX_READ:
            return Page(tuple(found), last)
        last, read = record.revision, read + 1
        try:
            part = kept(summary_of(record), shown)
        except ValueError as error:  # one that can't be read must not hide the others
            log.error("record.unreadable", key=record.key, reason=str(error))
            continue
        if part is not None:
            found.append(part)
    return Page(tuple(found), 0)


async def find(store: Store, revision: int) -> Revision | None:
    """Returns the change that has made a revision, with its resources; None if none is known.

    Raises:
        StoreError: the store can't be read.
        ValueError: what is kept of it can't be read.
    """
    page = await store.range(PREFIX, start=key_after(min(revision, LAST) - 1), limit=1)
    record = page.records[0] if page.records else None
    return whole(record) if record is not None and record.revision == revision else None


async def records(store: Store, before: int = 0) -> AsyncIterator[Record]:
    """Yields the records of changes before a revision, 0 for all, the newest first; all as of one moment.

    Raises:
        StoreError: the store can't be read.
    """
    start, at = key_after(before - 1) if before else "", 0
    while True:
        page = await store.range(PREFIX, start=start, limit=_PAGE, at=at)
        for record in page.records:
            if not before or record.revision < before:
                yield record
        start, at = page.next_key, page.revision
        if not start:
            return
