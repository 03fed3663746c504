"""The ledger of calls: unsampled counts per minute, kept for a while, for whatever wants to replay them.

A tenant's rows are bounded per minute, and where the ledger is full the tenant that has most of it loses its oldest, so
nobody's history can be pushed out by another.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import apsw

from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.durable import Durable, size_bytes, transaction
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
) WITHOUT ROWID
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
    """Counts of calls per minute. A part of `Durable`; `trust_domain` names the sources anew when read."""

    def __init__(
        self,
        durable: Durable,
        trust_domain: str,
        clock: Callable[[], datetime],
        *,
        retention: timedelta = RETENTION,
        max_size_bytes: int = MAX_SIZE_BYTES,
        rows_per_tenant: int = ROWS_PER_TENANT,
    ) -> None:
        """Becomes a part of the file.

        Raises:
            apsw.Error: the file can't be written.
        """
        self._trust_domain = trust_domain
        self._clock = clock
        self._retention = retention
        self._max_size_bytes = max_size_bytes
        self._rows_per_tenant = rows_per_tenant
        self._waiting: dict[_Key, tuple[int, float]] = {}
        self._waiting_of: Counter[str] = Counter()
        # Which rows each tenant has added within the minute, by their hashes.
        self._added: dict[str, set[int]] = {}
        self._minute = 0
        self._durable = durable
        durable.add(self)

    def totals(self) -> Iterator[Total]:
        """What was written when the file was opened, added up over its minutes and methods."""
        return iter(self._totals)

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

    def create(self, db: apsw.Connection) -> None:
        """See `Part`."""
        db.execute(_SCHEMA)
        self._totals = [Total._make(row) for row in db.execute(_TOTALS)]

    def take(self) -> Any:
        """See `Part`."""
        waiting, self._waiting, self._waiting_of = self._waiting, {}, Counter()
        return waiting or None

    def write(self, db: apsw.Connection, waiting: Any) -> None:
        """See `Part`."""
        db.executemany(_ADD, ((*key, count, sum_s) for key, (count, sum_s) in waiting.items()))

    def written(self, waiting: Any) -> None:
        """See `Part`."""

    def give_back(self, waiting: Any) -> None:
        """See `Part`."""
        for key, (count, sum_s) in waiting.items():
            self._wait(key, count, sum_s)

    def prune(self, db: apsw.Connection, others_bytes: int) -> Counter[str]:
        """Forgets what is too old or too much, on a thread; returns how much of the latter: {tenant: rows}.

        Args:
            db: the file.
            others_bytes: how much of it is not the ledger.

        Raises:
            apsw.Error: the file can't be written.
        """
        forgotten: Counter[str] = Counter()
        with transaction(db):
            oldest = int((self._clock() - self._retention).timestamp())
            db.execute("DELETE FROM calls WHERE minute < ?", (oldest,))
            while size_bytes(db) - others_bytes > self._max_size_bytes:
                owner = db.execute(_GREEDIEST).get
                # The oldest tenth of the tenant's minutes goes; its newest stays in any case.
                select = "SELECT DISTINCT minute FROM calls WHERE owner = ? ORDER BY minute"
                minutes = db.execute(select, (owner,)).fetchall()
                if len(minutes) < 2:
                    break
                until = minutes[max(1, len(minutes) // 10)][0]
                db.execute("DELETE FROM calls WHERE owner = ? AND minute < ?", (owner, until))
                forgotten[owner] += db.changes()
        db.execute("PRAGMA incremental_vacuum").fetchall()
        return forgotten

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
        rows: Sequence[tuple[Any, ...]] = await self._durable.read(lambda db: db.execute(_LIST, values).fetchall())
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
