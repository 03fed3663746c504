"""What came to each stage of the up river, what it passed on and what it dropped, counted where the rest is written.

At every stage received = passed + dropped, but for what is in it at the moment. The counts go on over restarts. Those
of a tenant of which nothing has come for a week are forgotten, all of them at once.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Final

import apsw
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.gather.resource import nanos

SDK: Final = "sdk"
RECEIVE: Final = "agent.receive"
SPOOL: Final = "agent.spool"
AGENT_STAGES: Final = (SDK, RECEIVE, SPOOL)
"""The stages before `INGEST`, in the order in which things pass them."""
INGEST: Final = "control.ingest"
STORE: Final = "control.store"
METRICS: Final = "control.metrics"
SAMPLE: Final = "control.sample"
RECEIVED: Final = "received"
PASSED: Final = "passed"
DROPPED: Final = "dropped"
OVERFLOW: Final = "overflow"
MAX_SERIES: Final = 20_000
RETENTION: Final = timedelta(days=7)
"""How long the counts of a tenant are shown of which nothing comes any more."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS tally_began (at_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS tally (
  kind TEXT NOT NULL, stage TEXT NOT NULL, signal TEXT NOT NULL, tenant TEXT NOT NULL, reason TEXT NOT NULL,
  count INTEGER NOT NULL, PRIMARY KEY (kind, stage, signal, tenant, reason)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tally_tenants (tenant TEXT PRIMARY KEY, changed_s INTEGER NOT NULL) WITHOUT ROWID
"""
_ADD: Final = """
INSERT INTO tally VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count
"""
_CHANGED: Final = "INSERT OR REPLACE INTO tally_tenants VALUES (?, ?)"
# What is of no tenant, or of too many to be told apart.
_LASTING: Final = frozenset({"", OVERFLOW})
# (kind, stage, signal, tenant, reason)
_Key = tuple[str, str, str, str, str]


class Tally(Collector):
    """The counts. A part of `Durable`, and shown to Prometheus."""

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        """Starts empty.

        Args:
            clock: the present, aware.
        """
        self._clock = clock
        self.began_ns = nanos(clock())
        """When all counts were 0, in nanoseconds since 1970."""
        # Prometheus reads on another thread.
        self._lock = threading.Lock()
        self._totals: Counter[_Key] = Counter()
        self._waiting: Counter[_Key] = Counter()
        self._changed_s: dict[str, int] = {}

    def received(self, stage: str, signal: str, tenant: str, count: int) -> None:
        """Counts what came to a stage."""
        self._add((RECEIVED, stage, signal, tenant, ""), count)

    def passed(self, stage: str, signal: str, tenant: str, count: int) -> None:
        """Counts what a stage has handed on."""
        self._add((PASSED, stage, signal, tenant, ""), count)

    def drop(self, stage: str, signal: str, reason: str, tenant: str, count: int = 1) -> None:
        """Counts what a stage has dropped; `reason` is a short word."""
        self._add((DROPPED, stage, signal, tenant, reason), count)

    def arrived(self, signal: str, tenant: str, count: int) -> None:
        """Counts what has come to `INGEST` through all stages before it."""
        for stage in AGENT_STAGES:
            self.received(stage, signal, tenant, count)
            self.passed(stage, signal, tenant, count)
        self.received(INGEST, signal, tenant, count)

    def took(self, signal: str, tenant: str, count: int) -> None:
        """Counts what has arrived and is believed."""
        self.arrived(signal, tenant, count)
        self.passed(INGEST, signal, tenant, count)

    def lost(self, stage: str, signal: str, reason: str, tenant: str, count: int) -> None:
        """Counts what a stage of an agent has dropped, and that it came through the stages before."""
        for before in AGENT_STAGES[: AGENT_STAGES.index(stage)]:
            self.received(before, signal, tenant, count)
            self.passed(before, signal, tenant, count)
        self.received(stage, signal, tenant, count)
        self.drop(stage, signal, reason, tenant, count)

    def totals(self) -> Counter[_Key]:
        """All counts, `{(kind, stage, signal, tenant, reason): count}`."""
        with self._lock:
            return Counter(self._totals)

    def drops(self) -> dict[tuple[str, str, str, str], int]:
        """What was dropped, `{(stage, signal, reason, tenant): count}`."""
        return {
            (stage, signal, reason, tenant): count
            for (kind, stage, signal, tenant, reason), count in self.totals().items()
            if kind == DROPPED
        }

    def written_already(self, key: _Key, count: int) -> None:
        """Takes note of a count that stands in the file."""
        now_s = self._now_s()
        with self._lock:
            self._totals[key] += count
            self._changed_s[key[3]] = now_s

    def collect(self) -> Iterable[Metric]:
        """Shows all there is, to Prometheus."""
        totals = self.totals()
        texts = {
            RECEIVED: "What came to each stage on telemetry's way up.",
            PASSED: "What each stage on telemetry's way up has handed on.",
            DROPPED: "What each stage on telemetry's way up has dropped, and why.",
        }
        for shown, text in texts.items():
            labels = ["stage", "signal", "tenant", *(["reason"] if shown == DROPPED else [])]
            family = CounterMetricFamily(f"meshwarden_telemetry_{shown}", text, labels=labels)
            for (kind, *values), count in totals.items():
                if kind == shown:
                    family.add_metric(values[: len(labels)], count)
            yield family

    def _add(self, key: _Key, count: int) -> None:
        if count <= 0:
            return
        with self._lock:
            if key not in self._totals and len(self._totals) >= MAX_SERIES:
                key = (*key[:3], OVERFLOW, OVERFLOW if key[4] else "")
            self._totals[key] += count
            self._waiting[key] += count

    def create(self, db: apsw.Connection) -> None:
        """See `Part`."""
        db.execute(_SCHEMA)
        known = db.execute("SELECT at_ns FROM tally_began").get
        if known is None:
            db.execute("INSERT INTO tally_began VALUES (?)", (self.began_ns,))
        else:
            self.began_ns = int(known)
        for *key, count in db.execute("SELECT kind, stage, signal, tenant, reason, count FROM tally"):
            self._totals[tuple(key)] = count
        now_s = self._now_s()
        self._changed_s = dict.fromkeys({key[3] for key in self._totals}, now_s)
        self._changed_s.update(db.execute("SELECT tenant, changed_s FROM tally_tenants"))

    def take(self) -> Any:
        """See `Part`."""
        now_s = self._now_s()
        with self._lock:
            waiting, self._waiting = self._waiting, Counter()
            self._changed_s.update(dict.fromkeys({key[3] for key in waiting}, now_s))
        return waiting or None

    def write(self, db: apsw.Connection, waiting: Any) -> None:
        """See `Part`."""
        now_s = self._now_s()
        db.executemany(_ADD, ((*key, count) for key, count in waiting.items()))
        db.executemany(_CHANGED, ((tenant, now_s) for tenant in {key[3] for key in waiting}))

    def forget(self, db: apsw.Connection) -> None:
        """Forgets the tenants of which nothing has come for long, between two flushes.

        Raises:
            apsw.Error: the file can't be written; then they come back with the next start.
        """
        oldest_s = self._now_s() - int(RETENTION.total_seconds())
        with self._lock:
            coming = {key[3] for key in self._waiting}
            gone = {tenant for tenant, at_s in self._changed_s.items() if at_s < oldest_s} - coming - _LASTING
            for key in [key for key in self._totals if key[3] in gone] if gone else ():
                del self._totals[key]
            for tenant in gone:
                del self._changed_s[tenant]
        for tenant in gone:
            db.execute("DELETE FROM tally WHERE tenant = ?", (tenant,))
            db.execute("DELETE FROM tally_tenants WHERE tenant = ?", (tenant,))

    def written(self, waiting: Any) -> None:
        """See `Part`."""

    def give_back(self, waiting: Any) -> None:
        """See `Part`."""
        with self._lock:
            self._waiting.update(waiting)

    def _now_s(self) -> int:
        return int(self._clock().timestamp())
