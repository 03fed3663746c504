"""Counts of calls, kept per minute in bounded memory until the agent takes them."""

import collections
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from meshwarden.certs.clock import Clock
from meshwarden.sdk.red import histogram
from meshwarden.sdk.red.call_table import Row, Table
from meshwarden.sdk.red.exemplar import Exemplars, TraceIds
from meshwarden.v1 import report_pb2

MAX_STATS: Final = 4096
"""How many counts are kept; ReportCallsRequest takes as many."""
MAX_METHODS: Final = 200
OTHER: Final = "_OTHER"
_MAX_NAME: Final = 512
_FOLD: Final = 512
_MAX_KNOWN: Final = 1024
# A table may grow on its way: agents take twice as much.
_TABLE_BYTES: Final = 512 << 10
C = TypeVar("C")
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Call:
    """One call that has ended.

    Attributes:
        source: the caller's SPIFFE ID.
        destination: "<tenant>/<service>", or the name that was dialled where nobody has said what it stands for.
        method: "/package.Service/Method".
        status: the name of its gRPC status.
        decision: of `CallStat.Decision`.
        reporter: of `CallStat.Reporter`.
        revision: the store revision of the policies in force.
        dry_run: the rule in dry run by which the access policies would have said the opposite, if there is one.
    """

    source: str
    destination: str
    method: str
    status: str
    decision: report_pb2.CallStat.Decision.ValueType
    reporter: report_pb2.CallStat.Reporter.ValueType
    revision: int
    dry_run: str = ""


@dataclass
class _Sum:
    count: int = 0
    duration_s: float = 0.0
    durations: collections.Counter[int] = field(default_factory=collections.Counter)
    exemplars: Exemplars = field(default_factory=Exemplars)


class Counter:
    """Adds calls up until they are taken. Safe to share between threads.

    A call that ends is put in a row, and rows are added up at once: that is cheaper than each by itself, and it is done
    for the most part by the thread that takes the counts.
    """

    def __init__(self, clock: Clock, monotonic_s: Callable[[], float] = time.perf_counter) -> None:
        """Makes a counter.

        Args:
            clock: the present, asked when rows are added up.
            monotonic_s: what calls are timed by, in seconds.
        """
        self._clock = clock
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        # {call, when it began and ended by `monotonic_s`, where it is recorded}; appended to without the lock
        self._row: collections.deque[tuple[Call, float, float, TraceIds | None]] = collections.deque()
        self._sums: dict[tuple[Call, int], _Sum] = {}
        self._methods: set[str] = set()
        # {call: it, serialised}: what is counted comes again with each report
        self._kinds: dict[Call, bytes] = {}
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Calls that there was no room for."""
        with self._lock:
            self._fold()
            return self._dropped

    def add(self, call: Call, begun_s: float, trace: TraceIds | None = None) -> None:
        """Counts one call that has just ended.

        Args:
            call: which.
            begun_s: when it began, by `monotonic_s`.
            trace: where it is recorded, if it is.
        """
        row = self._row
        row.append((call, begun_s, self._monotonic_s(), trace))
        if len(row) >= _FOLD:
            self._add_up()

    def take(self) -> list[report_pb2.CallTable]:
        """Removes and returns all counts."""
        with self._lock:
            self._fold()
            sums, self._sums = self._sums, {}
            tables: dict[int, list[Table]] = {}
            for (call, minute), total in sums.items():
                of_minute = tables.setdefault(minute, [Table(minute)])
                if of_minute[-1].size_bytes >= _TABLE_BYTES:
                    of_minute.append(Table(minute))
                exemplars = tuple(total.exemplars.to_proto())
                of_minute[-1].add(Row(self._kind(call), total.count, total.duration_s, total.durations, exemplars))
        return [table.message() for of_minute in tables.values() for table in of_minute]

    def _kind(self, call: Call) -> bytes:
        known = self._kinds.get(call)
        if known is None:
            if len(self._kinds) >= MAX_STATS:
                self._kinds.clear()
            known = self._kinds[call] = _serialised(call)
        return known

    def _add_up(self) -> None:
        with self._lock:
            self._fold()

    def _fold(self) -> None:
        """Adds up the calls of the row; the lock is held."""
        before: tuple[Call | None, int] = (None, 0)
        total: _Sum | None = None
        offset_s = self._clock().timestamp() - self._monotonic_s()
        for _ in range(len(self._row)):  # others append meanwhile
            call, begun_s, ended_s, trace = self._row.popleft()
            minute = int(ended_s + offset_s) // 60 * 60
            if call is not before[0] or minute != before[1] or total is None:
                before = (call, minute)
                total = self._find((call if call.method in self._methods else self._bounded(call), minute), 1)
                if total is None:
                    continue
            duration_s = ended_s - begun_s
            total.count += 1
            total.duration_s += duration_s
            total.durations[histogram.bucket_of(duration_s)] += 1
            if trace is not None:
                total.exemplars.add(trace, duration_s, ended_s + offset_s)

    def _bounded(self, call: Call) -> Call:
        if len(self._methods) < MAX_METHODS and len(call.method) <= _MAX_NAME:
            self._methods.add(call.method)
            return call
        return replace(call, method=OTHER)

    def _find(self, key: tuple[Call, int], count: int) -> _Sum | None:
        total = self._sums.get(key)
        if total is None:
            if len(self._sums) >= MAX_STATS:
                self._dropped += count
                return None
            total = self._sums[key] = _Sum()
        return total


class Known(Generic[C, K]):
    """Counts calls of a few kinds, each the same as long as the configuration is. Safe to share between threads."""

    def __init__(self, counter: Counter, make: Callable[[C, K], Call]) -> None:
        """`make` makes a call of a configuration and of what else makes up its key."""
        self._counter = counter
        self._row, self._now_s = counter._row, counter._monotonic_s
        self._make = make
        # Both together, so that no call of one configuration is remembered for another.
        self._known: tuple[C | None, dict[K, Call]] = (None, {})

    def add(self, config: C, key: K, begun_s: float, trace: TraceIds | None = None) -> None:
        """Counts one call that has just ended, as `Counter.add` does: to call that would be one function more."""
        of, calls = self._known
        if of is not config or len(calls) >= _MAX_KNOWN:
            calls = {}
            self._known = (config, calls)
        call = calls.get(key)
        if call is None:
            call = calls[key] = self._make(config, key)
        row = self._row
        row.append((call, begun_s, self._now_s(), trace))
        if len(row) >= _FOLD:
            self._counter._add_up()


def _serialised(call: Call) -> bytes:
    stat = report_pb2.CallStat(
        source=call.source,
        destination=call.destination,
        method=call.method,
        status=call.status,
        decision=call.decision,
        reporter=call.reporter,
        revision=call.revision,
        dry_run=call.dry_run,
    )
    return stat.SerializeToString()
