"""The ledger of calls: unsampled counts per minute, kept for a while, for whatever wants to replay them.

A tenant's rows are bounded per minute, and where the ledger is full the tenant that has most of it loses its oldest, so
nobody's history can be pushed out by another.

Other regions' rows lie beside ours, under the region that counted them. A row of ours has the number of its last
change, which only grows: who has all up to a number asks for what has changed since, and gets totals, which replace
what was known. So the same page twice changes nothing. The numbers are those of one file, which its incarnation names:
what a region counts into a new file stands beside what it has told of its old one.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import apsw

from meshwarden.controlplane.gather.call import UNKNOWN, Call
from meshwarden.controlplane.gather.durable import Durable, transaction
from meshwarden.controlplane.gather.graph.trim import trim
from meshwarden.controlplane.gather.metrics.metrics import overflown
from meshwarden.sdk.red import histogram
from meshwarden.v1.report_pb2 import CallStat, Histogram

RETENTION = timedelta(days=7)
MAX_SIZE_BYTES = 512 * 1024 * 1024
# Different rows that one tenant may add in a minute; the rest is added up under `overflow`.
ROWS_PER_TENANT = 20_000

_KEY: Final = (
    "minute, region, incarnation, owner, source, destination, destination_region, method, tenant, decision, revision,"
    " reporter, status"
)
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS ledger (
  minute INTEGER NOT NULL, region TEXT NOT NULL, incarnation TEXT NOT NULL, owner TEXT NOT NULL,
  source TEXT NOT NULL, destination TEXT NOT NULL, destination_region TEXT NOT NULL, method TEXT NOT NULL,
  tenant TEXT NOT NULL, decision INTEGER NOT NULL, revision INTEGER NOT NULL, reporter INTEGER NOT NULL,
  status TEXT NOT NULL,
  count INTEGER NOT NULL, sum_s REAL NOT NULL, durations BLOB NOT NULL, changed INTEGER NOT NULL,
  PRIMARY KEY ({_KEY})
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ledger_changed ON ledger (incarnation, changed);
CREATE TABLE IF NOT EXISTS ledger_state (incarnation TEXT NOT NULL, changed INTEGER NOT NULL);
"""
_INSERT: Final = (
    "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
)
_ADD: Final = f"""{_INSERT} count = count + excluded.count, sum_s = sum_s + excluded.sum_s,
durations = added(durations, excluded.durations), changed = excluded.changed
"""
_REPLACE: Final = f"""{_INSERT} count = excluded.count, sum_s = excluded.sum_s, durations = excluded.durations
"""
_FIND: Final = f"""
SELECT count, sum_s, durations FROM ledger
WHERE ({_KEY}) = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""  # noqa: S608 - names of our own
_TOLD: Final = "minute, region, source, destination, destination_region, method, decision, revision, reporter, status"
_LIST: Final = f"""
SELECT {_TOLD}, count, sum_s FROM ledger
WHERE minute >= :start AND minute < :end
  AND (:tenant = '' OR tenant = :tenant OR (destination >= :tenant || '/' AND destination < :tenant || '0'))
ORDER BY minute, region, source, destination, method LIMIT :limit
"""  # noqa: S608 - names of our own
_CHANGED: Final = f"""
SELECT {_TOLD}, count, sum_s, durations, changed FROM ledger
WHERE incarnation = ? AND changed > ? ORDER BY changed LIMIT ?
"""  # noqa: S608 - names of our own
_TOTALS: Final = """
SELECT region, owner, source, destination, reporter, status, decision, sum(count), min(minute), max(minute) FROM ledger
WHERE (incarnation = ?) = ? GROUP BY region, owner, source, destination, reporter, status, decision
"""
# (minute, region, incarnation, owner, source, destination, destination_region, method, tenant, decision, revision,
# reporter, status)
_Key = tuple[int, str, str, str, str, str, str, str, str, int, int, int, str]


class Total(NamedTuple):
    """All calls of one source, destination, status and decision that a side has told; times in seconds since 1970."""

    region: str
    owner: str
    source: str
    destination: str
    reporter: int
    status: str
    decision: int
    calls: int
    first_s: int
    last_s: int


class Page(NamedTuple):
    """Rows of ours that have changed, in the order of their changes, and the number of the last of them."""

    rows: list[CallStat]
    sequence: int


@dataclass(slots=True)
class _Sum:
    count: int = 0
    sum_s: float = 0.0
    durations: Counter[int] = field(default_factory=Counter)

    def add(self, other: "Call | _Sum") -> None:
        self.count += other.count
        self.sum_s += other.sum_s
        self.durations.update(other.durations)


class Ledger:
    """Counts of calls per minute. A part of `Durable`.

    Attributes:
        incarnation: names the file.
        sequence: the number of the last change that is written.
    """

    def __init__(
        self,
        durable: Durable,
        trust_domain: str,
        clock: Callable[[], datetime],
        *,
        region: str = UNKNOWN,
        retention: timedelta = RETENTION,
        max_size_bytes: int = MAX_SIZE_BYTES,
        rows_per_tenant: int = ROWS_PER_TENANT,
    ) -> None:
        """Becomes a part of the file.

        Args:
            durable: the file.
            trust_domain: names the sources anew when they are read.
            clock: the present, aware.
            region: ours.
            retention: how long rows are kept.
            max_size_bytes: how large all of them may become.
            rows_per_tenant: how many a tenant may add in a minute.

        Raises:
            apsw.Error: the file can't be written.
        """
        self._trust_domain, self._region = trust_domain, region
        self._clock = clock
        self._retention = retention
        self._max_size_bytes = max_size_bytes
        self._rows_per_tenant = rows_per_tenant
        self._waiting: dict[_Key, _Sum] = {}
        self._waiting_of: Counter[str] = Counter()
        # Which rows each tenant has added within the minute, by their hashes.
        self._added: dict[str, set[int]] = {}
        self._minute = 0
        self.incarnation, self.sequence = "", 0
        self._changed = 0
        self._durable = durable
        durable.add(self)

    def totals(self) -> Iterator[Total]:
        """What this region had written when the file was opened, added up over its minutes and methods."""
        return iter(self._totals)

    def totals_told(self) -> Iterator[Total]:
        """The same of what other regions had told."""
        return iter(self._totals_told)

    def oldest_s(self) -> int:
        """Since when rows are kept, in seconds since 1970."""
        return int((self._clock() - self._retention).timestamp())

    def add(self, calls: Iterable[Call]) -> None:
        """Takes calls, to be written by the next flush."""
        minute = int(self._clock().timestamp()) // 60
        if minute != self._minute:
            self._minute = minute
            self._added.clear()
        for call in calls:
            key = _key(call, self._region, self.incarnation)
            if key not in self._waiting and not self._has_room(call.owner, key):
                key = _key(overflown(call), self._region, self.incarnation)
            self._wait(key, call)

    def _has_room(self, owner: str, key: _Key) -> bool:
        added = self._added.setdefault(owner, set())
        if self._waiting_of[owner] >= self._rows_per_tenant:  # the disk is full
            return False
        if hash(key) not in added and len(added) >= self._rows_per_tenant:
            return False
        added.add(hash(key))
        return True

    def _wait(self, key: _Key, more: Call | _Sum) -> None:
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = _Sum()
            self._waiting_of[key[3]] += 1
        waiting.add(more)

    def create(self, db: apsw.Connection) -> None:
        """See `Part`."""
        added: Any = _added
        db.create_scalar_function("added", added, 2, deterministic=True)
        db.execute(_SCHEMA)
        with transaction(db):
            found = db.execute("SELECT incarnation, changed FROM ledger_state").fetchone()
            if found is None:
                found = (secrets.token_hex(8), 0)
                db.execute("INSERT INTO ledger_state VALUES (?, ?)", found)
        self.incarnation, self.sequence = found
        self._changed = self.sequence
        self._totals, self._totals_told = (
            [Total._make(row) for row in db.execute(_TOTALS, (self.incarnation, own))] for own in (1, 0)
        )

    def take(self) -> Any:
        """See `Part`."""
        waiting, self._waiting, self._waiting_of = self._waiting, {}, Counter()
        return waiting or None

    def write(self, db: apsw.Connection, waiting: Any) -> None:
        """See `Part`."""
        rows = []
        for key, one in waiting.items():
            self._changed += 1
            rows.append((*key, one.count, one.sum_s, _packed(one.durations), self._changed))
        db.executemany(_ADD, rows)
        db.execute("UPDATE ledger_state SET changed = ?", (self._changed,))

    def written(self, waiting: Any) -> None:
        """See `Part`."""
        self.sequence = self._changed

    def give_back(self, waiting: Any) -> None:
        """See `Part`."""
        for key, one in waiting.items():
            self._wait(key, one)

    def replace(self, db: apsw.Connection, region: str, incarnation: str, calls: Iterable[Call]) -> list[Call]:
        """Takes rows of another region for what they say now, within a transaction; returns what is new of each.

        Args:
            db: the file.
            region: whose they are.
            incarnation: of the file that they were in.
            calls: the rows.
        """
        found = []
        for call in calls:
            key = _key(call, region, incarnation)
            before = db.execute(_FIND, key).fetchone()
            db.execute(_REPLACE, (*key, call.count, call.sum_s, _packed(call.durations), 0))
            known_count, known_s, known = before or (0, 0.0, b"")
            if call.count > known_count:
                more = replace(
                    call,
                    count=call.count - known_count,
                    sum_s=max(0.0, call.sum_s - known_s),
                    durations=Counter(call.durations) - _unpacked(known),
                )
                found.append(more)
        return found

    def prune(self, db: apsw.Connection, others_bytes: int) -> Counter[str]:
        """Forgets what is too old or too much, on a thread; returns how much of the latter: {tenant: rows}.

        Args:
            db: the file.
            others_bytes: how much of it is not the ledger.

        Raises:
            apsw.Error: the file can't be written.
        """
        return trim(db, self._region, self.oldest_s(), self._max_size_bytes + others_bytes)

    async def list(self, start: datetime, end: datetime, tenant: str = "", limit: int = 1000) -> list[CallStat]:
        """Returns flushed rows of minutes in [start, end), the oldest first, of all regions.

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

    async def changed(self, after: int, limit: int) -> Page:
        """Returns flushed rows of ours that have changed since, with how their durations are spread.

        Args:
            after: the number of a change.
            limit: how many rows at most.
        """
        values = (self.incarnation, after, limit)
        rows: Sequence[tuple[Any, ...]] = await self._durable.read(lambda db: db.execute(_CHANGED, values).fetchall())
        stats = []
        for *told, durations, _ in rows:
            stat = self._stat(told)
            stat.ClearField("region")
            stat.durations.ParseFromString(durations)
            stats.append(stat)
        return Page(stats, rows[-1][-1] if rows else after)

    def _stat(self, row: Sequence[Any]) -> CallStat:
        minute, region, source, destination, there, method, decision, revision, reporter, status, count, sum_s = row
        tenant, _, service = source.partition("/")
        stat = CallStat(
            source=f"spiffe://{self._trust_domain}/tenant/{tenant}/service/{service}",
            destination=destination,
            destination_region="" if there == UNKNOWN else there,
            method=method,
            status=status,
            decision=CallStat.Decision.ValueType(decision),
            reporter=CallStat.Reporter.ValueType(reporter),
            revision=revision,
            count=count,
            duration_sum_s=sum_s,
            region=region,
        )
        stat.minute.seconds = minute
        return stat


def _key(call: Call, region: str, incarnation: str) -> _Key:
    return (
        call.minute,
        region,
        incarnation,
        call.owner,
        call.source,
        call.destination,
        call.destination_region,
        call.method,
        call.tenant,
        call.decision,
        call.revision,
        call.reporter,
        call.status,
    )


def _packed(durations: Any) -> bytes:
    return histogram.to_proto(durations).SerializeToString() if durations else b""


def _unpacked(packed: bytes) -> Counter[int]:
    return Counter(histogram.from_proto(Histogram.FromString(packed)))


def _added(one: Any, other: Any) -> Any:
    if not one or not other:
        return one or other
    counts, more = Histogram.FromString(one), Histogram.FromString(other)
    total = dict(zip(counts.buckets, counts.counts, strict=True))
    for bucket, count in zip(more.buckets, more.counts, strict=True):
        total[bucket] = total.get(bucket, 0) + count
    return _packed(total)
