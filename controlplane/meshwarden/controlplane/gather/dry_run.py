"""What access policies in dry run would have changed, counted by rule, caller, callee and method.

Bounded: what is too much of a tenant's policies is counted under `overflow`. The counts go on over restarts; what does
not happen for a week is forgotten.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import apsw
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.metrics import duration
from meshwarden.v1.report_pb2 import CallStat

ROWS_PER_TENANT: Final = 1000
RETENTION: Final = timedelta(days=7)
OVERFLOW: Final = "overflow"
_LABELS: Final = (
    *("policy", "rule", "would", "source_tenant", "source_service"),
    *("destination_tenant", "destination_service", "method"),
)
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS dry_run (
  policy TEXT NOT NULL, rule TEXT NOT NULL, would TEXT NOT NULL, source_tenant TEXT NOT NULL,
  source_service TEXT NOT NULL, destination_tenant TEXT NOT NULL, destination_service TEXT NOT NULL,
  method TEXT NOT NULL, count INTEGER NOT NULL, last_s INTEGER NOT NULL,
  PRIMARY KEY (policy, rule, would, source_tenant, source_service, destination_tenant, destination_service, method)
) WITHOUT ROWID
"""
_PUT: Final = "INSERT OR REPLACE INTO dry_run VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FORGET: Final = "DELETE FROM dry_run WHERE last_s < ?"


class What(NamedTuple):
    """Calls of one kind.

    Attributes:
        policy: "platform/orders".
        rule: "allow[0]" or "deny[0]".
        would: "allow" or "deny": what it would do to calls to which the opposite was done.
    """

    policy: str
    rule: str
    would: str
    source_tenant: str
    source_service: str
    destination_tenant: str
    destination_service: str
    method: str


@dataclass(frozen=True)
class Seen:
    """How many, and when the last came, in seconds since 1970."""

    count: int = 0
    last_s: int = 0


class DryRuns(Collector):
    """The counts. A part of `Durable`, and shown to Prometheus."""

    def __init__(self, clock: Callable[[], datetime], *, rows_per_tenant: int = ROWS_PER_TENANT) -> None:
        """Starts empty.

        Args:
            clock: the present, aware.
            rows_per_tenant: how many rows the policies of one tenant may have.
        """
        self._clock, self._rows_per_tenant = clock, rows_per_tenant
        # Prometheus reads on another thread.
        self._lock = threading.Lock()
        self._seen: dict[What, Seen] = {}
        self._rows: dict[str, int] = {}
        self._changed: set[What] = set()

    def add(self, calls: Iterable[Call]) -> None:
        """Counts those calls of which a policy in dry run would have made something else."""
        for call in calls:
            if call.dry_run:
                self._add(call)

    def rows(self) -> list[tuple[What, Seen]]:
        """All of them, that of most calls first."""
        with self._lock:
            return sorted(self._seen.items(), key=lambda item: (-item[1].count, item[0]))

    def collect(self) -> Iterable[Metric]:
        """Shows all there is, to Prometheus."""
        text = "Calls of which an access policy in dry run would have made the opposite."
        family = CounterMetricFamily("meshwarden_access_dry_run", text, labels=_LABELS)
        for what, seen in self.rows():
            family.add_metric(what, seen.count)
        yield family

    def _add(self, call: Call) -> None:
        policy, _, rule = call.dry_run.partition("#")
        would = "allow" if call.decision == CallStat.DENIED else "deny"
        if not rule.startswith(would):
            return  # no such rule makes that of it
        sides = call.source_tenant, call.source_service, call.destination_tenant, call.destination_service
        what = What(policy, rule, would, *sides, duration.templated(call.method))
        with self._lock:
            known = self._seen.get(what)
            if known is None and self._rows.get(call.destination_tenant, 0) >= self._rows_per_tenant:
                what = what._replace(
                    policy=f"{call.destination_tenant}/{OVERFLOW}",
                    rule=OVERFLOW,
                    source_tenant=OVERFLOW,
                    source_service=OVERFLOW,
                    destination_service=OVERFLOW,
                    method=OVERFLOW,
                )
                known = self._seen.get(what)
            if known is None:
                self._rows[what.destination_tenant] = self._rows.get(what.destination_tenant, 0) + 1
            count = (known.count if known is not None else 0) + call.count
            self._seen[what] = Seen(count, int(self._clock().timestamp()))
            self._changed.add(what)

    def create(self, db: apsw.Connection) -> None:
        """See `Part`."""
        db.execute(_SCHEMA)
        for *what, count, last_s in db.execute("SELECT * FROM dry_run"):
            found = What(*what)
            self._seen[found] = Seen(count, last_s)
            self._rows[found.destination_tenant] = self._rows.get(found.destination_tenant, 0) + 1

    def take(self) -> Any:
        """See `Part`."""
        with self._lock:
            changed, self._changed = self._changed, set()
            return {what: self._seen[what] for what in changed if what in self._seen} or None

    def write(self, db: apsw.Connection, waiting: Any) -> None:
        """See `Part`."""
        db.executemany(_PUT, ((*what, seen.count, seen.last_s) for what, seen in waiting.items()))

    def forget(self, db: apsw.Connection) -> None:
        """Forgets what has long not happened, between two flushes.

        Raises:
            apsw.Error: the file can't be written; then it comes back with the next start.
        """
        oldest_s = int((self._clock() - RETENTION).timestamp())
        with self._lock:
            for what in [what for what, seen in self._seen.items() if seen.last_s < oldest_s]:
                del self._seen[what]
                self._rows[what.destination_tenant] -= 1
        db.execute(_FORGET, (oldest_s,))

    def written(self, waiting: Any) -> None:
        """See `Part`."""

    def give_back(self, waiting: Any) -> None:
        """See `Part`."""
        with self._lock:
            self._changed.update(waiting)
