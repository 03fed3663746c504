"""The ledger of calls: unsampled counts per minute, kept for a while, for whatever wants to replay them.

It lies in an SQLite file of its own, 0600. Rows wait in memory and are added up there; `flush` writes them in one
transaction. A crash loses what came after the last flush, at most.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import apsw

from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.metrics import overflown
from meshwarden.v1.report_pb2 import CallStat

RETENTION = timedelta(days=7)
MAX_SIZE_BYTES = 512 * 1024 * 1024
# Different rows that one tenant may have waiting; the rest is added up under `overflow`.
ROWS_PER_TENANT = 20_000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
  minute INTEGER NOT NULL, source TEXT NOT NULL, destination TEXT NOT NULL, method TEXT NOT NULL, tenant TEXT NOT NULL,
  decision INTEGER NOT NULL, revision INTEGER NOT NULL, reporter INTEGER NOT NULL, status TEXT NOT NULL,
  count INTEGER NOT NULL, sum_s REAL NOT NULL,
  PRIMARY KEY (minute, source, destination, method, tenant, decision, revision, reporter, status)
) WITHOUT ROWID
"""
_ADD = """
INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET count = count + excluded.count, sum_s = sum_s + excluded.sum_s
"""
_LIST = """
SELECT minute, source, destination, method, decision, revision, reporter, status, count, sum_s FROM calls
WHERE minute >= :start AND minute < :end
  AND (:tenant = '' OR tenant = :tenant OR (destination >= :tenant || '/' AND destination < :tenant || '0'))
ORDER BY minute, source, destination, method LIMIT :limit
"""

_Key = tuple[int, str, str, str, str, int, int, int, str]


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
        self._rows: dict[str, int] = {}
        self._lock = anyio.Lock()
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._db = apsw.Connection(str(path))
        self._db.set_busy_timeout(5000)
        for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = NORMAL"):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        self._db.execute(_SCHEMA)

    def add(self, calls: Iterable[Call]) -> None:
        """Takes calls, to be written by the next flush."""
        for call in calls:
            key = _key(call)
            if key not in self._waiting:
                rows = self._rows.get(call.owner, 0)
                if rows >= self._rows_per_tenant:
                    key = _key(overflown(call))
                else:
                    self._rows[call.owner] = rows + 1
            count, sum_s = self._waiting.get(key, (0, 0.0))
            self._waiting[key] = (count + call.count, sum_s + call.sum_s)

    async def flush(self) -> None:
        """Writes what waits and forgets what is too old. What can't be written waits on.

        Raises:
            apsw.Error: the file can't be written.
        """
        async with self._lock:
            if not self._waiting:
                return
            rows, self._waiting, self._rows = self._waiting, {}, {}
            try:
                await anyio.to_thread.run_sync(self._write, rows)
            except apsw.Error:
                for key, (count, sum_s) in rows.items():
                    later_count, later_sum_s = self._waiting.get(key, (0, 0.0))
                    self._waiting[key] = (count + later_count, sum_s + later_sum_s)
                raise

    def _write(self, rows: dict[_Key, tuple[int, float]]) -> None:
        with self._db:
            self._db.executemany(_ADD, ((*key, count, sum_s) for key, (count, sum_s) in rows.items()))
            oldest = int((self._clock() - self._retention).timestamp())
            self._db.execute("DELETE FROM calls WHERE minute < ?", (oldest,))
            while self._size_bytes() > self._max_size_bytes:
                # The oldest tenth of the minutes goes; the newest stays in any case.
                minutes = self._db.execute("SELECT DISTINCT minute FROM calls ORDER BY minute").fetchall()
                if len(minutes) < 2:
                    break
                until = minutes[max(1, len(minutes) // 10)][0]
                self._db.execute("DELETE FROM calls WHERE minute < ?", (until,))
        self._db.execute("PRAGMA incremental_vacuum").fetchall()

    def _size_bytes(self) -> int:
        pages = self._db.pragma("page_count") - self._db.pragma("freelist_count")
        return int(pages * self._db.pragma("page_size"))

    async def list(self, start: datetime, end: datetime, tenant: str = "", limit: int = 1000) -> list[CallStat]:
        """Returns rows of minutes in [start, end), the oldest first.

        Args:
            start: from when, aware.
            end: until when, aware.
            tenant: only calls from or to this tenant; empty for all.
            limit: how many at most.
        """
        await self.flush()
        values = {"start": int(start.timestamp()), "end": int(end.timestamp()), "tenant": tenant, "limit": limit}
        async with self._lock:
            rows = await anyio.to_thread.run_sync(lambda: self._db.execute(_LIST, values).fetchall())
        return [self._stat(row) for row in rows]

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
        call.source,
        call.destination,
        call.method,
        call.tenant,
        call.decision,
        call.revision,
        call.reporter,
        call.status,
    )
