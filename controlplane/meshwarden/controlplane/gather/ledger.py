"""The ledger of calls: unsampled counts per minute, kept for a while, for whatever wants to replay them.

It lies in an SQLite file of its own, 0600. Rows wait in memory and are added up there; `flush` writes them in one
transaction, together with which batches they came in. So what was flushed outlives the process, and a batch that an
agent sends again counts once; a machine that loses its power may lose the last flushes (`synchronous = NORMAL`).

A tenant's rows are bounded per minute, and where the file is full the tenant that has most of it loses its oldest, so
nobody's history can be pushed out by another.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import apsw

from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.metrics import overflown
from meshwarden.v1.report_pb2 import CallStat

RETENTION = timedelta(days=7)
MAX_SIZE_BYTES = 512 * 1024 * 1024
# Different rows that one tenant may add in a minute; the rest is added up under `overflow`.
ROWS_PER_TENANT = 20_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
  minute INTEGER NOT NULL, owner TEXT NOT NULL,
  source TEXT NOT NULL, destination TEXT NOT NULL, method TEXT NOT NULL, tenant TEXT NOT NULL,
  decision INTEGER NOT NULL, revision INTEGER NOT NULL, reporter INTEGER NOT NULL, status TEXT NOT NULL,
  count INTEGER NOT NULL, sum_s REAL NOT NULL,
  PRIMARY KEY (minute, owner, source, destination, method, tenant, decision, revision, reporter, status)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (
  node TEXT NOT NULL, run_id TEXT NOT NULL, run TEXT NOT NULL, UNIQUE (node, run_id)
)
"""
_ADD = """
INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET count = count + excluded.count, sum_s = sum_s + excluded.sum_s
"""
_LIST = """
SELECT minute, source, destination, method, decision, revision, reporter, status, count, sum_s FROM calls
WHERE minute >= :start AND minute < :end
  AND (:tenant = '' OR tenant = :tenant OR (destination >= :tenant || '/' AND destination < :tenant || '0'))
ORDER BY minute, source, destination, method LIMIT :limit
"""

_TOTALS = """
SELECT owner, source, destination, reporter, status, decision, sum(count), min(minute), max(minute) FROM calls
GROUP BY owner, source, destination, reporter, status, decision
"""

_GREEDIEST = "SELECT owner FROM calls GROUP BY owner ORDER BY count(*) DESC LIMIT 1"
# (minute, owner, source, destination, method, tenant, decision, revision, reporter, status)
_Key = tuple[int, str, str, str, str, str, int, int, int, str]


class Total(NamedTuple):
    """All calls of one source, destination, status and decision that a side has told; times in seconds since 1970."""

    owner: str
    source: str
    destination: str
    reporter: int
    status: str
    decision: int
    calls: int
    first_s: int
    last_s: int


class Ledger:
    """Counts of calls per minute. One process writes a file; `trust_domain` names the sources anew when read."""

    def __init__(
        self,
        path: Path,
        trust_domain: str,
        clock: Callable[[], datetime],
        *,
        retention: timedelta = RETENTION,
        max_size_bytes: int = MAX_SIZE_BYTES,
        rows_per_tenant: int = ROWS_PER_TENANT,
    ) -> None:
        """Opens the file, or makes it.

        Raises:
            apsw.Error: the file is no ledger, or can't be written.
        """
        self._trust_domain = trust_domain
        self._clock = clock
        self._retention = retention
        self._max_size_bytes = max_size_bytes
        self._rows_per_tenant = rows_per_tenant
        self._waiting: dict[_Key, tuple[int, float]] = {}
        self._waiting_of: Counter[str] = Counter()
        self._runs: dict[tuple[str, str], str] = {}
        # Which rows each tenant has added within the minute, by their hashes.
        self._added: dict[str, set[int]] = {}
        self._minute = 0
        self._path = path
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._db = apsw.Connection(str(path))
        self._db.set_busy_timeout(5000)
        for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = NORMAL"):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        self._db.execute(_SCHEMA)

    def runs(self) -> Iterator[tuple[str, str, str]]:
        """Which batches were written, as (node, run id, run), each node's in the order of `keep_runs`."""
        for node, run_id, run in self._db.execute("SELECT node, run_id, run FROM runs ORDER BY rowid"):
            yield str(node), str(run_id), str(run)

    def totals(self) -> Iterator[Total]:
        """What was written, added up over its minutes and methods; reads the whole file."""
        return map(Total._make, self._db.execute(_TOTALS))

    def keep_runs(self, node: str, runs: Mapping[str, str]) -> None:
        """Takes runs of a node, {run id: run}, "" for one to forget; the next flush writes them with the calls."""
        for run_id, run in runs.items():
            self._runs.pop((node, run_id), None)
            self._runs[node, run_id] = run

    def add(self, calls: Iterable[Call]) -> None:
        """Takes calls, to be written by the next flush."""
        minute = int(self._clock().timestamp()) // 60
        if minute != self._minute:
            self._minute = minute
            self._added.clear()
        for call in calls:
            key = _key(call)
            if key not in self._waiting and not self._has_room(call.owner, key):
                key = _key(overflown(call))
            self._wait(key, call.count, call.sum_s)

    def _has_room(self, owner: str, key: _Key) -> bool:
        added = self._added.setdefault(owner, set())
        if self._waiting_of[owner] >= self._rows_per_tenant:  # the disk is full
            return False
        if hash(key) not in added and len(added) >= self._rows_per_tenant:
            return False
        added.add(hash(key))
        return True

    def _wait(self, key: _Key, count: int, sum_s: float) -> None:
        if key not in self._waiting:
            self._waiting_of[key[1]] += 1
        old_count, old_sum_s = self._waiting.get(key, (0, 0.0))
        self._waiting[key] = (old_count + count, old_sum_s + sum_s)

    async def flush(self) -> None:
        """Writes what waits; what can't be written waits on. For one task alone, the same that prunes.

        Raises:
            apsw.Error: the file can't be written.
        """
        if not self._waiting and not self._runs:
            return
        rows, runs = self._waiting, self._runs
        self._waiting, self._runs, self._waiting_of = {}, {}, Counter()
        try:
            await anyio.to_thread.run_sync(self._write, rows, runs)
        except BaseException:
            for key, (count, sum_s) in rows.items():
                self._wait(key, count, sum_s)
            self._runs = {**runs, **self._runs}
            raise

    def _write(self, rows: dict[_Key, tuple[int, float]], runs: Mapping[tuple[str, str], str]) -> None:
        with self._db:
            self._db.executemany(_ADD, ((*key, count, sum_s) for key, (count, sum_s) in rows.items()))
            # Replaced and not updated: the rows lie in the order in which the runs were heard of.
            kept = ((node, run_id, run) for (node, run_id), run in runs.items() if run)
            self._db.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", kept)
            gone = (key for key, run in runs.items() if not run)
            self._db.executemany("DELETE FROM runs WHERE node = ? AND run_id = ?", gone)

    async def prune(self) -> Counter[str]:
        """Forgets what is too old or too much; returns how much of the latter: {tenant: rows}.

        Raises:
            apsw.Error: the file can't be written.
        """
        return await anyio.to_thread.run_sync(self._prune)

    def _prune(self) -> Counter[str]:
        forgotten: Counter[str] = Counter()
        with self._db:
            oldest = int((self._clock() - self._retention).timestamp())
            self._db.execute("DELETE FROM calls WHERE minute < ?", (oldest,))
            while self._size_bytes() > self._max_size_bytes:
                owner = self._db.execute(_GREEDIEST).get
                # The oldest tenth of the tenant's minutes goes; its newest stays in any case.
                select = "SELECT DISTINCT minute FROM calls WHERE owner = ? ORDER BY minute"
                minutes = self._db.execute(select, (owner,)).fetchall()
                if len(minutes) < 2:
                    break
                until = minutes[max(1, len(minutes) // 10)][0]
                self._db.execute("DELETE FROM calls WHERE owner = ? AND minute < ?", (owner, until))
                forgotten[owner] += self._db.changes()
        self._db.execute("PRAGMA incremental_vacuum").fetchall()
        return forgotten

    def _size_bytes(self) -> int:
        pages = self._db.pragma("page_count") - self._db.pragma("freelist_count")
        return int(pages * self._db.pragma("page_size"))

    async def list(self, start: datetime, end: datetime, tenant: str = "", limit: int = 1000) -> list[CallStat]:
        """Returns flushed rows of minutes in [start, end), the oldest first.

        Args:
            start: from when, aware.
            end: until when, aware.
            tenant: only calls from or to this tenant; empty for all.
            limit: how many at most.
        """
        values: dict[str, object] = {
            "start": int(start.timestamp()),
            "end": int(end.timestamp()),
            "tenant": tenant,
            "limit": limit,
        }
        rows = await anyio.to_thread.run_sync(self._read, values)
        return [self._stat(row) for row in rows]

    def _read(self, values: dict[str, object]) -> Sequence[tuple[Any, ...]]:
        # A connection of its own: whoever asked may be gone before the answer, and the writer must not meet it.
        with contextlib.closing(apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY)) as reader:
            reader.set_busy_timeout(5000)
            return reader.execute(_LIST, values).fetchall()

    def _stat(self, row: Sequence[Any]) -> CallStat:
        minute, source, destination, method, decision, revision, reporter, status, count, sum_s = row
        tenant, _, service = source.partition("/")
        stat = CallStat(
            source=f"spiffe://{self._trust_domain}/tenant/{tenant}/service/{service}",
            destination=destination,
            method=method,
            status=status,
            decision=CallStat.Decision.ValueType(decision),
            reporter=CallStat.Reporter.ValueType(reporter),
            revision=revision,
            count=count,
            duration_sum_s=sum_s,
        )
        stat.minute.seconds = minute
        return stat

    def close(self) -> None:
        """Closes the file; flush first."""
        self._db.close()


def _key(call: Call) -> _Key:
    return (
        call.minute,
        call.owner,
        call.source,
        call.destination,
        call.method,
        call.tenant,
        call.decision,
        call.revision,
        call.reporter,
        call.status,
    )
