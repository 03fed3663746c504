"""What came to each stage of the up river, what it passed on and what it dropped, counted where the rest is written.

At every stage received = passed + dropped, but for what is in it at the moment. The counts go on over restarts.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

import apsw
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.gather.resource import nanos

SDK: Final = "sdk"
RECEIVE: Final = "agent.receive"
SPOOL: Final = "agent.spool"
INGEST: Final = "control.ingest"
STORE: Final = "control.store"
METRICS: Final = "control.metrics"
SAMPLE: Final = "control.sample"
RECEIVED: Final = "received"
PASSED: Final = "passed"
DROPPED: Final = "dropped"
OVERFLOW: Final = "overflow"
MAX_SERIES: Final = 20_000
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS tally_began (at_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS tally (
  kind TEXT NOT NULL, stage TEXT NOT NULL, signal TEXT NOT NULL, tenant TEXT NOT NULL, reason TEXT NOT NULL,
  count INTEGER NOT NULL, PRIMARY KEY (kind, stage, signal, tenant, reason)
) WITHOUT ROWID
"""
_ADD: Final = """
INSERT INTO tally VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count
"""
# (kind, stage, signal, tenant, reason)
_Key = tuple[str, str, str, str, str]


class Tally(Collector):
    """The counts. A part of `Durable`, and shown to Prometheus."""

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        """Starts empty.

        Args:
            clock: the present, aware.
        """
        self.began_ns = nanos(clock())
        """When all counts were 0, in nanoseconds since 1970."""
        # Prometheus reads on another thread.
        self._lock = threading.Lock()
        self._totals: Counter[_Key] = Counter()
        self._waiting: Counter[_Key] = Counter()

    def received(self, stage: str, signal: str, tenant: str, count: int) -> None:
        """Counts what came to a stage."""
        self._add((RECEIVED, stage, signal, tenant, ""), count)

    def passed(self, stage: str, signal: str, tenant: str, count: int) -> None:
        """Counts what a stage has handed on."""
        self._add((PASSED, stage, signal, tenant, ""), count)

    def drop(self, stage: str, signal: str, reason: str, tenant: str, count: int = 1) -> None:
        """Counts what a stage has dropped; `reason` is a short word."""
        self._add((DROPPED, stage, signal, tenant, reason), count)

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
        with self._lock:
            self._totals[key] += count

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

    def take(self) -> Any:
        """See `Part`."""
        with self._lock:
            waiting, self._waiting = self._waiting, Counter()
        return waiting or None

    def write(self, db: apsw.Connection, waiting: Any) -> None:
        """See `Part`."""
        db.executemany(_ADD, ((*key, count) for key, count in waiting.items()))

    def written(self, waiting: Any) -> None:
        """See `Part`."""

    def give_back(self, waiting: Any) -> None:
        """See `Part`."""
        with self._lock:
            self._waiting.update(waiting)
