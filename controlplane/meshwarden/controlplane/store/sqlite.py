"""The embedded engine: one SQLite file in WAL mode, which several processes of one machine may share.

Each process has one writer thread, which commits whatever waits in one transaction (one flush to the disk), and one
reader thread; a single record is read without it while it has nothing to do. A transaction begins IMMEDIATE: one that
reads first and writes later fails at once when another process wrote in between, whatever the timeout.
`synchronous=FULL` flushes before a commit is acknowledged.
"""

import asyncio
import os
import secrets
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import apsw

from meshwarden.controlplane.store.limit import MAX_PAGE_BYTES, Limited
from meshwarden.controlplane.store.port import (
    Batch,
    Compacted,
    Event,
    Future,
    Lease,
    Op,
    Page,
    Record,
    Store,
    Unavailable,
    Unusable,
)
from meshwarden.controlplane.store.sqlite_writer import BUSY_MS, Result, Writer, failure, rows
from meshwarden.controlplane.store.wake import Wake

FORMAT = 2
# What the last release opens. The tables are the same: see `Store.mark`.
RELEASED = 1
APPLICATION_ID = 0x6D657368  # "mesh"
POLL_S = 1.0
WATCH_ROWS = 1000
# Several of the largest commits: the last one read may be cut short.
WATCH_BYTES = 4_000_000

# `execute` of several statements is lazy and stops at the first that returns rows: one statement a call.
SCHEMA = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE record (key BLOB PRIMARY KEY, revision INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID",
    # The history: what each revision wrote; a NULL value is a deletion.
    "CREATE TABLE event (key BLOB, revision INTEGER, value BLOB, PRIMARY KEY (revision, key)) WITHOUT ROWID",
    "CREATE INDEX event_key ON event (key, revision)",
    # Outside what is watched. The deadline is on the monotonic clock of one boot.
    "CREATE TABLE lease (name BLOB PRIMARY KEY, owner TEXT NOT NULL, token INTEGER NOT NULL,"
    " deadline_s REAL NOT NULL, boot TEXT NOT NULL) WITHOUT ROWID",
    "INSERT INTO meta VALUES ('revision', 0), ('compacted', 0)",
)
RANGE = "SELECT key, value, revision FROM record WHERE key >= ?1 AND (?2 IS NULL OR key < ?2) ORDER BY key LIMIT ?3"
# Beside max(), SQLite takes the other columns from the same row.
RANGE_AT = (
    "SELECT key, value, revision FROM (SELECT key, value, max(revision) AS revision FROM event"
    " WHERE key >= ?1 AND (?2 IS NULL OR key < ?2) AND revision <= ?4 GROUP BY key)"
    " WHERE value IS NOT NULL ORDER BY key LIMIT ?3"
)
CHANGES = (
    "SELECT revision, key, value FROM event WHERE revision > ?1 AND key >= ?2 AND (?3 IS NULL OR key < ?3)"
    " ORDER BY revision, key LIMIT ?4"
)


def _bounds(prefix: str) -> tuple[bytes, bytes | None]:
    """The first key below a prefix and the first past it; None where there is no end."""
    low = prefix.encode()
    # UTF-8 has no byte 0xff, so that the last byte can always be raised by one.
    return low, low[:-1] + bytes([low[-1] + 1]) if low else None


class SqliteStore:
    """The engine; `open_store` makes one and puts the port's limits before it."""

    def __init__(self, path: Path) -> None:
        _prepare(path)
        self._path = path
        try:
            self._reading: apsw.Connection = _connect(path)
            self.incarnation: str = _initialise(self._reading, path)
            writing = _connect(path)
        except apsw.Error as error:
            raise failure(error) from error
        self._reader = ThreadPoolExecutor(1, "store-reader")
        # How many reads are with the reader; while there are none its connection is free.
        self._reads = 0
        self._loop = asyncio.get_running_loop()
        # {what wakes a watcher: below which prefix it watches}
        self._waiting: dict[asyncio.Event, str] = {}
        self._wake = Wake(path.with_name(path.name + ".wake"))
        self._wake.listen(self._notify_watchers)
        self._writer = Writer(writing, self._committed)

    async def get(self, key: str) -> tuple[Record | None, int]:
        """See `Store.get`."""

        def read(connection: apsw.Connection) -> tuple[Record | None, int]:
            found = rows(connection, "SELECT value, revision FROM record WHERE key = ?", key.encode())
            return Record(key, *found[0]) if found else None, _head(connection)[0]

        # One record is read sooner than another thread is woken for it.
        return await self._read(read) if self._reads else self._transact(read)

    async def range(self, prefix: str, *, start: str = "", limit: int = 500, at: int = 0) -> Page:
        """See `Store.range`."""

        def read(connection: apsw.Connection) -> Page:
            head, compacted = _head(connection)
            if at > head:
                raise Future(head)
            if at and at < compacted:
                raise Compacted(compacted)
            low, high = _bounds(prefix)
            low = max(low, start.encode())
            query = (RANGE_AT, (low, high, limit + 1, at)) if at else (RANGE, (low, high, limit + 1))
            records: list[Record] = []
            size = 0
            for key, value, revision in connection.execute(*query):
                if len(records) == limit or size >= MAX_PAGE_BYTES:
                    return Page(tuple(records), at or head, key.decode())
                records.append(Record(key.decode(), value, revision))
                size += len(value)
            return Page(tuple(records), at or head, "")

        return await self._read(read)

    async def commit(self, ops: Sequence[Op], *, fence: Lease | None = None) -> int:
        """See `Store.commit`."""
        return await self._writer.do(lambda transaction: transaction.commit(ops, fence))

    async def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Batch, None]:
        """See `Store.watch`."""
        wake = asyncio.Event()
        self._waiting[wake] = prefix
        told: int | None = None  # where the watcher stands; None until it has caught up once
        polled = False
        try:
            while True:
                wake.clear()
                batches, after, caught_up = await self._read(lambda connection: _changes(connection, prefix, after))  # noqa: B023
                for batch in batches:
                    yield batch
                    told = None if told is None else batch.revision
                if not caught_up:
                    continue
                # Changes elsewhere move the cursor too, so that compaction does not leave it behind.
                if told is None or (polled and after > told):
                    yield Batch(after, ())
                    told = after
                try:
                    async with asyncio.timeout(POLL_S):
                        await wake.wait()
                    polled = False
                except TimeoutError:
                    polled = True
        finally:
            del self._waiting[wake]

    async def compact(self, revision: int) -> None:
        """See `Store.compact`."""
        await self._writer.do(lambda transaction: transaction.compact(revision))

    async def mark(self, has_newer: bool) -> None:
        """See `Store.mark`."""
        await self._writer.do(lambda transaction: transaction.number(FORMAT if has_newer else RELEASED))

    async def acquire(self, name: str, owner: str, ttl_s: float) -> Lease:
        """See `Store.acquire`."""
        return await self._writer.do(lambda transaction: transaction.acquire(name, owner, ttl_s))

    async def renew(self, lease: Lease, *, release: bool = False) -> Lease:
        """See `Store.renew`."""
        return await self._writer.do(lambda transaction: transaction.renew(lease, release))

    async def close(self) -> None:
        """Writes what waits and closes the file."""
        await self._writer.close()
        self._reads += 1  # its connection is free no more
        await self._loop.run_in_executor(self._reader, self._reading.close)
        self._reader.shutdown()
        self._wake.close()

    async def _read(self, work: Callable[[apsw.Connection], Result]) -> Result:
        try:
            reading = self._loop.run_in_executor(self._reader, self._transact, work)
        except RuntimeError:
            raise Unavailable("the store is closed") from None
        self._reads += 1
        try:
            # Whoever asked may be cancelled; the reader is done when it says so.
            return await asyncio.shield(reading)
        finally:
            if reading.done():
                self._reads -= 1
            else:
                reading.add_done_callback(self._read_unasked)

    def _read_unasked(self, reading: "asyncio.Future[Result]") -> None:
        self._reads -= 1
        if not reading.cancelled():
            reading.exception()  # which nobody waits for any more

    def _transact(self, work: Callable[[apsw.Connection], Result]) -> Result:
        try:
            self._reading.execute("BEGIN")  # one snapshot for all that `work` reads
            try:
                return work(self._reading)
            finally:
                self._reading.execute("ROLLBACK")
        except apsw.ConnectionClosedError:
            raise Unavailable("the store is closed") from None
        except apsw.Error as error:
            raise failure(error) from error

    def _committed(self, keys: Collection[str]) -> None:
        """In the writer's thread: wakes those who watch what has changed, and all watchers elsewhere."""
        self._loop.call_soon_threadsafe(self._notify_watchers_of, keys)
        self._wake.notify()

    def _notify_watchers_of(self, keys: Collection[str]) -> None:
        for event, prefix in self._waiting.items():
            if any(key.startswith(prefix) for key in keys):
                event.set()

    def _notify_watchers(self) -> None:
        for event in self._waiting:
            event.set()


@asynccontextmanager
async def open_store(path: Path) -> AsyncIterator[Store]:
    """Opens the store at `path`, making it if there is none: 0600, in a directory that is made 0700 if it is missing.

    Raises:
        Unusable: the file has a newer format or is none of ours, or others may write into its directory.
        Unavailable: the disk is full, for one.
    """
    engine = SqliteStore(path)
    try:
        yield Limited(engine)
    finally:
        await engine.close()


def _prepare(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unusable(f"{path.parent}: others may write here; chmod it 0700")
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def _connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(BUSY_MS)
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA synchronous = FULL").fetchall()
        connection.execute("PRAGMA journal_size_limit = 67108864").fetchall()
    except apsw.NotADBError:
        connection.close()
        raise Unusable(f"{path}: not a store of Meshwarden") from None
    return connection


def _initialise(connection: apsw.Connection, path: Path) -> str:
    """Makes the tables of a new file; returns the incarnation."""
    rows(connection, "BEGIN IMMEDIATE")
    try:
        ((version,),) = rows(connection, "PRAGMA user_version")
        ((owner,),) = rows(connection, "PRAGMA application_id")
        if owner not in (0, APPLICATION_ID) or (not version and rows(connection, "SELECT 1 FROM sqlite_schema")):
            raise Unusable(f"{path}: not a store of Meshwarden")
        if version > FORMAT:
            raise Unusable(
                f"{path}: format {version}, and this Meshwarden knows up to {FORMAT}: run the newer one (there,"
                " `meshwarden way-back` lists what this one would misread), or restore a copy from before the upgrade"
            )
        if not version:
            for statement in SCHEMA:
                rows(connection, statement)
            rows(connection, f"PRAGMA user_version = {RELEASED}")
            rows(connection, f"PRAGMA application_id = {APPLICATION_ID}")
        incarnation = _incarnation(connection, path)
        rows(connection, "COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            rows(connection, "ROLLBACK")
        connection.close()
        raise
    return incarnation


def _incarnation(connection: apsw.Connection, path: Path) -> str:
    """The history's name; a copy put in the file's place is another file, and so another history."""
    status = path.stat()
    place = f"{status.st_dev}:{status.st_ino}"
    found = rows(connection, "SELECT value FROM meta WHERE name = 'incarnation'")
    name, _, known_place = (found[0][0] if found else "").partition("@")
    if known_place != place:
        name = secrets.token_hex(8)
        rows(connection, "INSERT OR REPLACE INTO meta VALUES ('incarnation', ?)", f"{name}@{place}")
    return str(name)


def _head(connection: apsw.Connection) -> tuple[int, int]:
    """The newest revision and the compacted one."""
    found = rows(connection, "SELECT name, value FROM meta WHERE name IN ('revision', 'compacted')")
    values = {name: int(value) for name, value in found}
    return values["revision"], values["compacted"]


def _changes(connection: apsw.Connection, prefix: str, after: int) -> tuple[list[Batch], int, bool]:
    """The batches after a revision, the revision that they reach, and whether that is the head."""
    head, compacted = _head(connection)
    if after > head:
        raise Future(head)
    if after < compacted:
        raise Compacted(compacted)
    found = connection.execute(CHANGES, (after, *_bounds(prefix), WATCH_ROWS))
    grouped: dict[int, list[Event]] = {}
    count = size = 0
    for revision, key, value in found:
        grouped.setdefault(revision, []).append(Event(key.decode(), value))
        count, size = count + 1, size + len(value or b"")
        if size > WATCH_BYTES:
            break
    caught_up = count < WATCH_ROWS and size <= WATCH_BYTES
    if not caught_up:
        # The last revision may be cut short; it holds at most MAX_OPS rows and MAX_COMMIT_BYTES, less than was read.
        grouped.popitem()
    batches = [Batch(revision, tuple(events)) for revision, events in grouped.items()]
    return batches, head if caught_up else batches[-1].revision, caught_up
