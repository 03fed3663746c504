"""Recent traces: spans on disk, compressed, found by trace or by time.

Spans of a tenant that are written together lie in one compressed block, with what one searches for; an entry for each
part of a trace in a block says which spans of it are there. Entries are few bytes in the order of their traces, so that
as few pages as possible change with each flush. Blocks are forgotten whole, the oldest first, and by tenant: where all
are too much, the one that has most loses its oldest.
"""

import itertools
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import apsw
import structlog

from meshwarden.controlplane.gather.durable import Durable, transaction
from meshwarden.controlplane.gather.pack import pack
from meshwarden.controlplane.gather.resource import Checked
from meshwarden.controlplane.gather.tally import DROPPED, PASSED, STORE, Tally
from meshwarden.controlplane.gather.trace import query as trace_query
from meshwarden.controlplane.gather.trace import under as trace_under
from meshwarden.controlplane.gather.trace.block import Row, Rows, ids_in, keys_of, pack_rows
from meshwarden.controlplane.gather.trace.part import ID_BYTES, Owner, Spans, by_part, summed
from meshwarden.controlplane.gather.trace.query import Page, Place, Question, Sees
from meshwarden.sdk.tracing.wire import all_framed
from meshwarden.v1 import admin_service_pb2 as v1

RETENTION: Final = timedelta(hours=24)
MAX_SIZE_BYTES: Final = 512 << 20
# What may wait while the disk is full.
WAITING_BYTES: Final = 64 << 20
# One service's share of one trace; more would make the trace unreadable.
MAX_SPANS: Final = 10_000
MAX_BLOCKS: Final = 512
_BLOCK_BYTES: Final = 128 << 10
_FORGOTTEN_AT_ONCE: Final = 32
# What a block takes beside what it holds.
_BLOCK_MORE_BYTES: Final = 1024
# What an entry takes beside its ids, where entries come in no order: a page is full by two thirds then.
_ENTRY_BYTES: Final = 22
_FILL: Final = 0.69
_FORMAT: Final = 2
_TABLES: Final = ("trace_owners", "trace_blocks", "trace_parts", "trace_ids", "trace_format")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS trace_format (format INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS trace_owners (
  id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, service TEXT NOT NULL, UNIQUE (tenant, service)
);
CREATE TABLE IF NOT EXISTS trace_blocks (
  id INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL, stored_s INTEGER NOT NULL, size INTEGER NOT NULL,
  oldest_ns INTEGER NOT NULL, newest_ns INTEGER NOT NULL, parts BLOB NOT NULL, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS trace_blocks_of ON trace_blocks (tenant, id, size, stored_s);
CREATE INDEX IF NOT EXISTS trace_blocks_when ON trace_blocks (newest_ns, oldest_ns, tenant);
CREATE TABLE IF NOT EXISTS trace_ids (
  trace INTEGER NOT NULL, owner INTEGER NOT NULL, block INTEGER NOT NULL, ids BLOB NOT NULL,
  PRIMARY KEY (trace, owner, block)
) WITHOUT ROWID
"""
_KNOWN: Final = "SELECT trace, owner, ids FROM trace_ids WHERE trace IN (SELECT value FROM carray(?))"
_PUT: Final = """
INSERT INTO trace_ids VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET ids = CAST(ids || excluded.ids AS BLOB)
"""
_OWN: Final = "INSERT INTO trace_owners (tenant, service) VALUES (?, ?) RETURNING id"
_BLOCK: Final = """
INSERT INTO trace_blocks (tenant, stored_s, size, oldest_ns, newest_ns, parts, body) VALUES (?, ?, ?, ?, ?, ?, ?)
RETURNING id
"""
_HAS: Final = "SELECT count(*) FROM sqlite_schema WHERE name = ?"
_SIZES: Final = "SELECT tenant, sum(size) FROM trace_blocks GROUP BY tenant"
_OLDEST: Final = "SELECT id, size, parts FROM trace_blocks WHERE tenant = ? ORDER BY id LIMIT ?"
_EXPIRED: Final = "SELECT id, size, parts FROM trace_blocks WHERE tenant = ? AND stored_s < ? ORDER BY id LIMIT ?"

log = structlog.get_logger()


@dataclass(frozen=True)
class Keep:
    """How long a tenant's spans are kept, and how much of them."""

    retention: timedelta
    max_size_bytes: int


class _Entry(NamedTuple):
    """A part of a trace in the block that is being written."""

    trace_id: bytes
    owner: int
    spans: Spans


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
        tenants: Mapping[str, Keep] | None = None,
    ) -> None:
        """Becomes a part of the file.

        Args:
            durable: the file.
            tally: counts what becomes of spans; a part of the file too.
            clock: the present, aware.
            retention: how long spans are kept.
            max_size_bytes: how much of them.
            tenants: what some tenants have instead, all of them together no more than that: `{tenant: …}`.

        Raises:
            apsw.Error: the file can't be written.
        """
        self._durable, self._tally, self._clock = durable, tally, clock
        self._keep, self._keep_of = Keep(retention, max_size_bytes), tenants or {}
        self._waiting: list[Checked] = []
        self._waiting_bytes = 0
        self._owners: dict[Owner, int] = {}
        self._sizes: Counter[str] = Counter()
        self._changes = _Changes()
        durable.add(self)

    def add(self, checked: Checked) -> None:
        """Takes spans, to be written by the next flush."""
        if not self._of(checked.tenant).max_size_bytes:
            return
        self._tally.received(STORE, "span", checked.tenant, checked.items)
        if self._waiting_bytes + len(checked.body) > WAITING_BYTES:
            self._tally.drop(STORE, "span", "disk_full", checked.tenant, checked.items)
            return
        self._waiting_bytes += len(checked.body)
        self._waiting.append(checked)

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

    async def under(self, revision: int, since_ns: int, but: bytes, sees: Sees) -> Sequence[v1.TraceSummary]:
        """Returns some of the flushed traces that ran under a revision; see `trace_under.under`."""
        return await self._durable.read(lambda db: trace_under.under(db, revision, since_ns, but, sees))

    # -- writing

    def create(self, db: apsw.Connection) -> None:
        """See `durable.Part`."""
        with transaction(db):
            if db.execute(_HAS, (_TABLES[1],)).get and _format(db) != _FORMAT:
                log.warning("recent traces forgotten: they are of another version")
                for table in _TABLES:
                    db.execute(f"DROP TABLE IF EXISTS {table}")
            db.execute(_SCHEMA)
            if _format(db) != _FORMAT:
                db.execute("INSERT INTO trace_format VALUES (?)", (_FORMAT,))
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
        by_tenant: dict[str, list[Checked]] = {}
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

    def _write_block(self, db: apsw.Connection, tenant: str, items: Sequence[Checked]) -> None:
        now = self._clock()
        parts, repeated = by_part(item.message for item in items)
        entries = [
            _Entry(trace_id, number, spans)
            for owner, traces in parts.items()
            for number in (self._owner(db, owner),)
            for trace_id, spans in traces.items()
        ]
        sound = sum(len(entry.spans) for entry in entries) + repeated
        self._count(DROPPED, tenant, "malformed", sum(item.items for item in items) - sound)
        keys = keys_of([entry.trace_id for entry in entries])
        again, too_many = _without_known(db, keys, entries)
        self._count(DROPPED, tenant, "duplicate", repeated + again)
        self._count(DROPPED, tenant, "trace_too_large", too_many)
        kept = sound - repeated - again - too_many
        if not kept:
            return
        self._count(PASSED, tenant, "", kept)
        now_ns = int(now.timestamp() * 1e9)
        rows = [Row(item.trace_id, item.owner, summed(item.spans.values(), now_ns)) for item in entries if item.spans]
        starts = [row.part.start_ns for row in rows]
        body, packed = pack(all_framed(1, (item.body for item in items))), pack_rows(rows)
        size = _size_of(len(body) + len(packed), len(rows), kept)
        values = (tenant, int(now.timestamp()), size, min(starts), max(starts), packed, body)
        block = int(db.execute(_BLOCK, values).get)
        written = [
            (key, item.owner, block, b"".join(item.spans))
            for key, item in zip(keys, entries, strict=True)
            if item.spans
        ]
        written.sort()
        db.executemany(_PUT, written)
        self._changes.sizes[tenant] += size

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
        with transaction(db):
            sizes: list[Any] = db.execute(_SIZES).fetchall()
            left = Counter(dict(sizes))
            for tenant in list(left):
                keep = self._of(tenant)
                oldest_s = int((self._clock() - keep.retention).timestamp())
                count, size = _forget(db, db.execute(_EXPIRED, (tenant, oldest_s, _FORGOTTEN_AT_ONCE)).fetchall())
                left[tenant] -= size
                is_more = is_more or count == _FORGOTTEN_AT_ONCE
                if left[tenant] > keep.max_size_bytes:
                    is_more = self._forget_oldest(db, tenant, left, too_much) or is_more
            if left.total() > self._keep.max_size_bytes:
                tenant = max(left, key=left.__getitem__)
                is_more = self._forget_oldest(db, tenant, left, too_much) or is_more
        self._sizes = left
        return too_much, is_more

    def _of(self, tenant: str) -> Keep:
        return self._keep_of.get(tenant, self._keep)

    def _forget_oldest(self, db: apsw.Connection, tenant: str, left: Counter[str], too_much: Counter[str]) -> bool:
        """Forgets some of what is too much of a tenant's; whether there is still too much."""
        over = max(left[tenant] - self._of(tenant).max_size_bytes, left.total() - self._keep.max_size_bytes)
        oldest: list[Any] = db.execute(_OLDEST, (tenant, _FORGOTTEN_AT_ONCE)).fetchall()
        enough = bisect_left(list(itertools.accumulate(size for _, size, _ in oldest)), over) + 1
        _, size = _forget(db, oldest[:enough])
        left[tenant] -= size
        too_much[tenant] += size
        return 0 < size < over


def _blocks(items: Sequence[Checked]) -> Iterator[Sequence[Checked]]:
    some: list[Checked] = []
    size = 0
    for item in items:
        if some and size + len(item.body) > _BLOCK_BYTES:
            yield some
            some, size = [], 0
        some.append(item)
        size += len(item.body)
    if some:
        yield some


def _without_known(db: apsw.Connection, keys: Sequence[int], entries: Sequence[_Entry]) -> tuple[int, int]:
    """Removes spans that are in the file, or that their part has no room for; returns how many of each."""
    known: dict[tuple[int, int], list[bytes]] = {}
    rows: list[Any] = db.execute(_KNOWN, (apsw.carray(array("q", keys)),)).fetchall() if keys else []
    for key, owner, ids in rows:
        known.setdefault((key, owner), []).append(ids)
    again = too_many = 0
    for key, (_, owner, spans) in zip(keys, entries, strict=True):
        blocks = known.get((key, owner), ())
        taken = 0
        for ids in blocks:
            taken += len(ids) // ID_BYTES
            for span_id in ids_in(ids):
                again += spans.pop(span_id, None) is not None
        room = MAX_SPANS - taken if len(blocks) < MAX_BLOCKS else 0
        for span_id in list(itertools.islice(spans, max(room, 0), None)) if len(spans) > room else ():
            del spans[span_id]
            too_many += 1
    return again, too_many


def _size_of(blob_bytes: int, entries: int, spans: int) -> int:
    """What a block takes in the file, about."""
    return blob_bytes + _BLOCK_MORE_BYTES + int((entries * _ENTRY_BYTES + spans * ID_BYTES) / _FILL)


def _forget(db: apsw.Connection, blocks: Sequence[Any]) -> tuple[int, int]:
    """Deletes blocks and what leads to them; returns how many, and how many bytes."""
    for block, _, parts in blocks:
        rows = list(Rows(parts))
        keys = keys_of([row.trace_id for row in rows])
        gone = sorted((key, row.owner, block) for key, row in zip(keys, rows, strict=True))
        db.executemany("DELETE FROM trace_ids WHERE trace = ? AND owner = ? AND block = ?", gone)
    db.executemany("DELETE FROM trace_blocks WHERE id = ?", ((block,) for block, _, _ in blocks))
    return len(blocks), sum(size for _, size, _ in blocks)


def _format(db: apsw.Connection) -> int:
    if not db.execute(_HAS, ("trace_format",)).get:
        return 0
    return int(db.execute("SELECT max(format) FROM trace_format").get or 0)
