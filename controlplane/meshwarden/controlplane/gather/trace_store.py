"""Recent traces: spans on disk, compressed, found by trace or by time.

Spans of a tenant that are written together lie in one compressed block; a row for each part of a trace says in which
blocks it lies, and what one searches for. Blocks are forgotten whole, the oldest first, and by tenant: where all are
too much, the one that has most loses its oldest.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import apsw
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from meshwarden.controlplane.gather import trace_query
from meshwarden.controlplane.gather.durable import Durable, transaction
from meshwarden.controlplane.gather.resource import Checked, framed
from meshwarden.controlplane.gather.tally import DROPPED, PASSED, STORE, Tally
from meshwarden.controlplane.gather.trace_part import (
    ID_BYTES,
    Owner,
    Part,
    block_numbers,
    by_part,
    grown,
    read_block,
)
from meshwarden.controlplane.gather.trace_query import Page, Place, Question, Sees
from meshwarden.v1 import admin_service_pb2 as v1

RETENTION: Final = timedelta(hours=24)
MAX_SIZE_BYTES: Final = 512 << 20
# What may wait while the disk is full.
WAITING_BYTES: Final = 64 << 20
_BLOCK_BYTES: Final = 128 << 10
_FORGOTTEN_AT_ONCE: Final = 32
# What a part takes in the file beside its spans' ids, about, and a block beside its body.
_PART_BYTES: Final = 256
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS trace_owners (
  id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, service TEXT NOT NULL, UNIQUE (tenant, service)
);
CREATE TABLE IF NOT EXISTS trace_blocks (
  id INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, stored_s INTEGER NOT NULL, size INTEGER NOT NULL,
  body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS trace_blocks_of ON trace_blocks (tenant, id, size, stored_s);
CREATE TABLE IF NOT EXISTS trace_parts (
  trace_id BLOB NOT NULL, owner INTEGER NOT NULL, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
  longest_ns INTEGER NOT NULL, errors INTEGER NOT NULL, is_root INTEGER NOT NULL, name TEXT NOT NULL, ids BLOB NOT NULL,
  blocks BLOB NOT NULL, PRIMARY KEY (trace_id, owner)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS trace_parts_of ON trace_parts (owner, start_ns)
"""
_FIND: Final = "SELECT * FROM trace_parts WHERE trace_id = ? AND owner = ?"
_PUT: Final = "REPLACE INTO trace_parts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_OWN: Final = "INSERT INTO trace_owners (tenant, service) VALUES (?, ?) RETURNING id"
_BLOCK: Final = "INSERT INTO trace_blocks (tenant, stored_s, size, body) VALUES (?, ?, 0, ?) RETURNING id"
_SIZES: Final = "SELECT tenant, sum(size) FROM trace_blocks GROUP BY tenant"
_OLDEST: Final = "SELECT id, size, body FROM trace_blocks WHERE tenant = ? ORDER BY id LIMIT ?"
_EXPIRED: Final = "SELECT id, size, body FROM trace_blocks WHERE tenant = ? AND stored_s < ? ORDER BY id LIMIT ?"


@dataclass(frozen=True)
class _Waiting:
    tenant: str
    spans: ResourceSpans
    items: int
    body: bytes


@dataclass
class _Changes:
    """What a transaction has changed, for what is known of the file in memory."""

    owners: dict[Owner, int] = field(default_factory=dict)
    sizes: Counter[str] = field(default_factory=Counter)
    counts: Counter[tuple[str, str, str, str, str]] = field(default_factory=Counter)


class TraceStore:
    """The spans of the last while. A part of `Durable`."""

    def __init__(
        self,
        durable: Durable,
        tally: Tally,
        clock: Callable[[], datetime],
        *,
        retention: timedelta = RETENTION,
        max_size_bytes: int = MAX_SIZE_BYTES,
    ) -> None:
        """Becomes a part of the file.

        Args:
            durable: the file.
            tally: counts what becomes of spans; a part of the file too.
            clock: the present, aware.
            retention: how long spans are kept.
            max_size_bytes: how much of them.

        Raises:
            apsw.Error: the file can't be written.
        """
        self._durable, self._tally, self._clock = durable, tally, clock
        self._retention, self._max_size_bytes = retention, max_size_bytes
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._owners: dict[Owner, int] = {}
        self._sizes: Counter[str] = Counter()
        self._changes = _Changes()
        durable.add(self)

    def add(self, checked: Checked, body: bytes) -> None:
        """Takes spans, to be written by the next flush; `body` is them serialised."""
        self._tally.received(STORE, "span", checked.tenant, checked.items)
        if self._waiting_bytes + len(body) > WAITING_BYTES:
            self._tally.drop(STORE, "span", "disk_full", checked.tenant, checked.items)
            return
        self._waiting_bytes += len(body)
        self._waiting.append(_Waiting(checked.tenant, checked.message, checked.items, body))

    def size_bytes(self) -> int:
        """How much of the file is spans, about."""
        return self._sizes.total()

    async def search(self, question: Question, sees: Sees, most: int, after: Place | None = None) -> Page:
        """Returns flushed traces, the newest first, and where to go on.

        Args:
            question: which.
            sees: whose spans the asker may see.
            most: how many at most.
            after: where the page before has ended.
        """
        return await self._durable.read(lambda db: trace_query.search(db, question, sees, most, after))

    async def find(self, trace_id: bytes, sees: Sees) -> v1.GetTraceResponse | None:
        """Returns what has been flushed of a trace and the asker may see; None if that is nothing."""
        return await self._durable.read(lambda db: trace_query.find(db, trace_id, sees))

    # -- writing

    def create(self, db: apsw.Connection) -> None:
        """See `durable.Part`."""
        db.execute(_SCHEMA)
        owners: list[Any] = db.execute("SELECT tenant, service, id FROM trace_owners").fetchall()
        self._owners = {(tenant, service): number for tenant, service, number in owners}
        sizes: list[Any] = db.execute(_SIZES).fetchall()
        self._sizes = Counter(dict(sizes))

    def take(self) -> Any:
        """See `durable.Part`."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        return waiting or None

    def write(self, db: apsw.Connection, waiting: Any) -> None:
        """See `durable.Part`."""
        self._changes = _Changes()
        by_tenant: dict[str, list[_Waiting]] = {}
        for item in waiting:
            by_tenant.setdefault(item.tenant, []).append(item)
        for tenant, items in by_tenant.items():
            for some in _blocks(items):
                self._write_block(db, tenant, some)
        # With the spans: a count that the next flush writes could be lost before it.
        self._tally.write(db, self._changes.counts)

    def written(self, waiting: Any) -> None:
        """See `durable.Part`."""
        self._owners.update(self._changes.owners)
        self._sizes.update(self._changes.sizes)
        for key, count in self._changes.counts.items():
            self._tally.written_already(key, count)

    def give_back(self, waiting: Any) -> None:
        """See `durable.Part`."""
        self._waiting[:0] = waiting
        self._waiting_bytes += sum(len(item.body) for item in waiting)

    def _write_block(self, db: apsw.Connection, tenant: str, items: Sequence[_Waiting]) -> None:
        now = self._clock()
        body = zlib.compress(b"".join(framed(item.body) for item in items), 1)
        block = int(db.execute(_BLOCK, (tenant, int(now.timestamp()), body)).get)
        parts = by_part(item.spans for item in items)
        kept = repeated = too_many = size = 0
        for (trace_id, owner), spans in parts.items():
            again, over = self._write_part(db, trace_id, owner, spans, block, now)
            repeated, too_many = repeated + again, too_many + over
            kept += len(spans) - again - over
            size += _PART_BYTES + ID_BYTES * len(spans)
        malformed = sum(item.items for item in items) - kept - repeated - too_many
        self._count(PASSED, tenant, "", kept)
        for reason, count in (("malformed", malformed), ("duplicate", repeated), ("trace_too_large", too_many)):
            self._count(DROPPED, tenant, reason, count)
        if kept:
            size += _PART_BYTES + len(body)
            db.execute("UPDATE trace_blocks SET size = ? WHERE id = ?", (size, block))
            self._changes.sizes[tenant] += size
        else:
            db.execute("DELETE FROM trace_blocks WHERE id = ?", (block,))

    def _write_part(
        self, db: apsw.Connection, trace_id: bytes, owner: Owner, spans: Sequence[Span], block: int, now: datetime
    ) -> tuple[int, int]:
        number = self._owner(db, owner)
        row: Any = db.execute(_FIND, (trace_id, number)).fetchone()
        old = Part._make(row[2:]) if row is not None else None
        part, repeated, too_many = grown(old, spans, block, int(now.timestamp() * 1e9))
        if part is not None and part is not old:
            db.execute(_PUT, (trace_id, number, *part))
        return repeated, too_many

    def _owner(self, db: apsw.Connection, owner: Owner) -> int:
        number = self._owners.get(owner) or self._changes.owners.get(owner)
        if number is None:
            number = int(db.execute(_OWN, owner).get)
            self._changes.owners[owner] = number
        return number

    def _count(self, kind: str, tenant: str, reason: str, count: int) -> None:
        if count > 0:
            self._changes.counts[kind, STORE, "span", tenant, reason] += count

    # -- forgetting

    def prune(self, db: apsw.Connection) -> tuple[Counter[str], bool]:
        """Forgets some of what is too old or too much, on a thread.

        Returns:
            How much was too much, `{tenant: bytes}`, and whether there is more to forget.

        Raises:
            apsw.Error: the file can't be written.
        """
        too_much: Counter[str] = Counter()
        is_more = False
        oldest_s = int((self._clock() - self._retention).timestamp())
        with transaction(db):
            sizes: list[Any] = db.execute(_SIZES).fetchall()
            left = Counter(dict(sizes))
            for tenant in list(left):
                count, size = self._forget(db, db.execute(_EXPIRED, (tenant, oldest_s, _FORGOTTEN_AT_ONCE)).fetchall())
                left[tenant] -= size
                is_more = is_more or count == _FORGOTTEN_AT_ONCE
            if left.total() > self._max_size_bytes:
                tenant = max(left, key=left.__getitem__)
                _, size = self._forget(db, db.execute(_OLDEST, (tenant, _FORGOTTEN_AT_ONCE)).fetchall())
                left[tenant] -= size
                too_much[tenant] = size
                is_more = is_more or (size > 0 and left.total() > self._max_size_bytes)
        self._sizes = left
        return too_much, is_more

    def _forget(self, db: apsw.Connection, blocks: Sequence[Any]) -> tuple[int, int]:
        """Deletes blocks, and the parts that have no others; returns how many, and how many bytes."""
        if not blocks:
            return 0, 0
        newest = max(block for block, _, _ in blocks)
        for _, _, body in blocks:
            for trace_id, owner in by_part(read_block(body)):
                key = (trace_id, self._owners.get(owner, 0))
                row: Any = db.execute(_FIND, key).fetchone()
                # Blocks of a tenant are forgotten in their order.
                if row is not None and block_numbers(Part._make(row[2:]))[-1] <= newest:
                    db.execute("DELETE FROM trace_parts WHERE trace_id = ? AND owner = ?", key)
        db.executemany("DELETE FROM trace_blocks WHERE id = ?", ((block,) for block, _, _ in blocks))
        return len(blocks), sum(size for _, size, _ in blocks)


def _blocks(items: Sequence[_Waiting]) -> Iterator[Sequence[_Waiting]]:
    some: list[_Waiting] = []
    size = 0
    for item in items:
        if some and size + len(item.body) > _BLOCK_BYTES:
            yield some
            some, size = [], 0
        some.append(item)
        size += len(item.body)
    if some:
        yield some
