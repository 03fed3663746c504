"""Rate, errors and duration of calls for Prometheus, taken before any sampling.

The counts come in added up, by agents, so they are kept as plain sums and shown by a collector. Each tenant has a
bounded number of series; what is beyond it is counted under `overflow`, so that totals stay right and the loss is seen.
A series of which nothing was heard for a while is forgotten, and gives its room back.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.metrics import duration
from meshwarden.controlplane.gather.resource import nanos
from meshwarden.sdk.red.histogram import BOUNDS_S, bound_of, folded
from meshwarden.v1 import report_pb2
from meshwarden.v1.report_pb2 import CallStat

REQUEST_LABELS: Final = (
    "source_tenant",
    "source_service",
    "source_region",
    "destination_tenant",
    "destination_service",
    "destination_region",
    "method",
    "status",
    "status_class",
    "decision",
    "tenant",
    "reporter",
)
OVERFLOW: Final = "overflow"
SERIES_PER_TENANT: Final = 5000
MAX_SERIES: Final = 1_000_000
IDLE: Final = timedelta(hours=1)

DECISIONS: Final[dict[int, str]] = {number: name.lower() for name, number in CallStat.Decision.items()}
REPORTERS: Final[dict[int, str]] = {number: name.lower() for name, number in CallStat.Reporter.items()}

# One sample of a gauge: the values of its labels, and its value.
Sample = tuple[Sequence[str], float]
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Counted:
    """The calls of one series: the values of REQUEST_LABELS, how many since when, in nanoseconds since 1970."""

    labels: Labels
    count: int
    began_ns: int


@dataclass(slots=True)
class Timed:
    """The durations of one series.

    Attributes:
        labels: values of its family's.
        began_ns: since when it counts, in nanoseconds since 1970.
        buckets: how many fell into each bucket of BOUNDS_S, and into a last one.
        sum_s: all of them together.
        heard_s: when the last one came.
        exemplars: {number of a bucket: its newest}.
    """

    labels: Labels
    began_ns: int
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0
    heard_s: float = 0.0
    exemplars: dict[int, report_pb2.Exemplar] = field(default_factory=dict)


@dataclass(slots=True)
class _Requests:
    # Whose share it takes; None for one that all of a tenant's calls beyond its share are put into.
    owner: str | None
    began_ns: int
    count: int = 0
    heard_s: float = 0.0


_Series = TypeVar("_Series", _Requests, Timed)


class Metrics(Collector):
    """The metrics of the mesh, in a registry of their own."""

    def __init__(
        self,
        *,
        series_per_tenant: int = SERIES_PER_TENANT,
        max_series: int = MAX_SERIES,
        idle: timedelta = IDLE,
        monotonic_s: Callable[[], float] = time.monotonic,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Starts empty.

        Args:
            series_per_tenant: how many series of calls each tenant has.
            max_series: how many all of them have.
            idle: after how long without a call a series is forgotten.
            monotonic_s: a clock that never goes back.
            clock: the present, aware.
        """
        self.registry = CollectorRegistry()
        self._series_per_tenant, self._max_series = series_per_tenant, max_series
        self._idle_s = idle.total_seconds()
        self._monotonic_s, self._clock = monotonic_s, clock
        # Prometheus reads on another thread.
        self._lock = threading.Lock()
        self._requests: dict[Labels, _Requests] = {}
        self._durations: dict[str, dict[Labels, Timed]] = {name: {} for name in duration.FAMILIES}
        self._series: dict[str, int] = {}
        self._overflow: dict[str, int] = {}
        self._gauges: list[tuple[str, str, Sequence[str], Callable[[], Iterable[Sample]]]] = []
        self.registry.register(self)

    def gauge(self, name: str, help_text: str, labels: Sequence[str], read: Callable[[], Iterable[Sample]]) -> None:
        """Shows a gauge whose samples `read` gives at each scrape; `read` must be quick and safe on another thread."""
        self._gauges.append((name, help_text, tuple(labels), read))

    def add(self, calls: Iterable[Call]) -> None:
        """Counts calls."""
        with self._lock:
            for call in calls:
                self._add(call)

    def _add(self, call: Call) -> None:
        now_s, result, family = self._monotonic_s(), call.outcome, duration.family(call)
        call = replace(call, method=duration.templated(call.method))
        key = _request_labels(call, result)
        series = self._requests.get(key)
        if series is None:
            # The share is that of the reporting side's tenant: nobody can use up another's.
            owner: str | None = call.owner
            used = self._series.get(call.owner, 0)
            full = len(self._requests) >= self._max_series
            if full or used >= self._series_per_tenant:
                owner, call = None, lost(call) if full else overflown(call)
                self._overflow[call.owner] = self._overflow.get(call.owner, 0) + call.count
                key = _request_labels(call, result)
            else:
                self._series[call.owner] = used + 1
            series = self._requests.get(key)
            if series is None:
                series = self._requests[key] = _Requests(owner, nanos(self._clock()))
        series.count += call.count
        series.heard_s = now_s
        if call.durations:
            labels = duration.labels(call, family, result)
            found = self._durations[family].get(labels)
            if found is None:
                found = self._durations[family][labels] = Timed(labels, nanos(self._clock()))
            found.heard_s = now_s
            found.sum_s += call.sum_s
            for index, count in enumerate(folded(call.durations)):
                found.buckets[index] += count
            for exemplar in call.exemplars:
                found.exemplars[bound_of(exemplar.duration_s)] = exemplar

    def _forget_idle(self) -> None:
        since_s = self._monotonic_s() - self._idle_s
        for series in _removed(self._requests, since_s):
            if series.owner is not None:
                left = self._series[series.owner] - 1
                if left:
                    self._series[series.owner] = left
                else:
                    del self._series[series.owner]
        for durations in self._durations.values():
            _removed(durations, since_s)

    def calls(self) -> tuple[list[Counted], dict[str, list[Timed]]]:
        """The counts of calls as they are now, and their durations by the name of their family."""
        with self._lock:
            self._forget_idle()
            counted = [Counted(key, series.count, series.began_ns) for key, series in self._requests.items()]
            durations = {
                name: [replace(one, buckets=list(one.buckets), exemplars=dict(one.exemplars)) for one in found.values()]
                for name, found in self._durations.items()
            }
        return counted, durations

    def collect(self) -> Iterable[Metric]:
        """Shows all there is, to Prometheus."""
        counted, durations = self.calls()
        yield _counter(
            "meshwarden_requests",
            "Calls by source, destination, method and outcome.",
            REQUEST_LABELS,
            {one.labels: one.count for one in counted},
        )
        for name, found in durations.items():
            yield _histogram(name, found)
        yield from self.rest()

    def rest(self) -> Iterable[Metric]:
        """Shows all but the calls."""
        with self._lock:
            overflow, used = dict(self._overflow), dict(self._series)
        yield _counter(
            "meshwarden_series_overflow",
            "Calls counted under 'overflow' because their tenant has used up its series.",
            ("tenant",),
            {(tenant,): count for tenant, count in overflow.items()},
        )
        yield _gauge(
            "meshwarden_series",
            f"Series of calls that a tenant has, of {self._series_per_tenant}.",
            ("tenant",),
            [((tenant,), count) for tenant, count in used.items()],
        )
        for name, help_text, labels, read in self._gauges:
            yield _gauge(name, help_text, labels, read())


def _request_labels(call: Call, result: str) -> Labels:
    return (
        call.source_tenant,
        call.source_service,
        call.source_region,
        call.destination_tenant,
        call.destination_service,
        call.destination_region,
        call.method,
        call.status,
        result,
        DECISIONS[call.decision],
        call.tenant,
        REPORTERS[call.reporter],
    )


def _removed(series: dict[Labels, _Series], since_s: float) -> list[_Series]:
    """Removes and returns those of which nothing was heard since then."""
    return [series.pop(key) for key in [key for key, one in series.items() if one.heard_s < since_s]]


def overflown(call: Call) -> Call:
    """The same calls with all that is unbounded put under `overflow`; the reporting side's tenant stays."""
    if call.reporter == CallStat.SOURCE:
        return replace(
            call,
            source_service=OVERFLOW,
            destination_tenant=OVERFLOW,
            destination_service=OVERFLOW,
            method=OVERFLOW,
            status=OVERFLOW,
            revision=0,
        )
    return replace(
        call,
        source_tenant=OVERFLOW,
        source_service=OVERFLOW,
        destination_service=OVERFLOW,
        method=OVERFLOW,
        status=OVERFLOW,
        revision=0,
    )


def lost(call: Call) -> Call:
    """The same calls with both sides put under `overflow`."""
    return replace(overflown(call), source_tenant=OVERFLOW, destination_tenant=OVERFLOW)


def _counter(name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(labels))
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def _gauge(name: str, text: str, labels: Sequence[str], samples: Iterable[Sample]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for values, value in samples:
        family.add_metric(list(values), value)
    return family


def _histogram(name: str, found: Iterable[Timed]) -> Metric:
    text, names = duration.FAMILIES[name]
    family = HistogramMetricFamily(name, text, labels=list(names))
    bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
    for one in found:
        total = 0
        rows: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        for index, (bound, count) in enumerate(zip(bounds, one.buckets, strict=True)):
            total += count
            exemplar = one.exemplars.get(index)
            rows.append((bound, float(total)) if exemplar is None else (bound, float(total), _exemplar(exemplar)))
        family.add_metric(list(one.labels), rows, sum_value=one.sum_s)
    return family


def _exemplar(exemplar: report_pb2.Exemplar) -> Exemplar:
    ids = {"trace_id": exemplar.trace_id.hex(), "span_id": exemplar.span_id.hex()}
    return Exemplar(ids, exemplar.duration_s, exemplar.time.seconds + exemplar.time.nanos / 1e9)
