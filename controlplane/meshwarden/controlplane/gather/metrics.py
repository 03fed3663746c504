"""Rate, errors and duration of calls for Prometheus, taken before any sampling.

The counts come in added up, by agents, so they are kept as plain sums and shown by a collector. Each tenant has a
bounded number of series; what is beyond it is counted under `overflow`, so that totals stay right and the loss is seen.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from meshwarden.controlplane.gather.call import Call
from meshwarden.sdk.histogram import BOUNDS_S, folded
from meshwarden.v1.report_pb2 import CallStat

EDGE_LABELS = ("source_tenant", "source_service", "destination_tenant", "destination_service", "method")
REQUEST_LABELS = (*EDGE_LABELS, "status", "decision", "tenant", "region", "reporter")
DURATION_LABELS = (*EDGE_LABELS, "tenant", "region", "reporter")
OVERFLOW = "overflow"
SERIES_PER_TENANT = 5000

DECISIONS: dict[int, str] = {number: name.lower() for name, number in CallStat.Decision.items()}
REPORTERS: dict[int, str] = {number: name.lower() for name, number in CallStat.Reporter.items()}

# One sample of a gauge: the values of its labels, and its value.
Sample = tuple[Sequence[str], float]


@dataclass(slots=True)
class _Durations:
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0


class Metrics(Collector):
    """The metrics of the mesh, in a registry of their own."""

    def __init__(self, region: str, series_per_tenant: int = SERIES_PER_TENANT) -> None:
        self.registry = CollectorRegistry()
        self._region = region
        self._series_per_tenant = series_per_tenant
        # Prometheus reads on a thread of the HTTP server's.
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, ...], int] = {}
        self._durations: dict[tuple[str, ...], _Durations] = {}
        self._series: dict[str, int] = {}
        self._overflow: dict[str, int] = {}
        self._drops: dict[tuple[str, ...], int] = {}
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

    def drop(self, stage: str, signal: str, reason: str, tenant: str, count: int = 1) -> None:
        """Counts what was dropped or refused: signal is "call" or "span", reason a short word."""
        with self._lock:
            key = (stage, signal, reason, tenant)
            if key not in self._drops and len(self._drops) >= self._series_per_tenant:
                key = (stage, signal, OVERFLOW, OVERFLOW)
            self._drops[key] = self._drops.get(key, 0) + count

    def drops(self) -> dict[tuple[str, ...], int]:
        """What was dropped, by {(stage, signal, reason, tenant): count}."""
        with self._lock:
            return dict(self._drops)

    def _add(self, call: Call) -> None:
        request, edge = self._labels(call)
        if request not in self._requests:
            # The share is that of the reporting side's tenant: nobody can use up another's.
            used = self._series.get(call.owner, 0)
            if used >= self._series_per_tenant:
                self._overflow[call.owner] = self._overflow.get(call.owner, 0) + call.count
                request, edge = self._labels(overflown(call))
            else:
                self._series[call.owner] = used + 1
        self._requests[request] = self._requests.get(request, 0) + call.count
        if call.durations:
            durations = self._durations.setdefault(edge, _Durations())
            durations.sum_s += call.sum_s
            for index, count in enumerate(folded(call.durations)):
                durations.buckets[index] += count

    def _labels(self, call: Call) -> tuple[tuple[str, ...], tuple[str, ...]]:
        edge = (
            call.source_tenant,
            call.source_service,
            call.destination_tenant,
            call.destination_service,
            call.method,
        )
        last = (call.tenant, self._region, REPORTERS[call.reporter])
        return (*edge, call.status, DECISIONS[call.decision], *last), (*edge, *last)

    def collect(self) -> Iterable[Metric]:
        """Shows all there is, to Prometheus."""
        with self._lock:
            requests, drops, overflow = dict(self._requests), dict(self._drops), dict(self._overflow)
            durations = {key: (list(value.buckets), value.sum_s) for key, value in self._durations.items()}
        yield _counter(
            "meshwarden_requests", "Calls by source, destination, method and outcome.", REQUEST_LABELS, requests
        )
        yield _histogram(durations)
        yield _counter(
            "meshwarden_telemetry_dropped",
            "Calls and spans that were dropped or refused, by where and why.",
            ("stage", "signal", "reason", "tenant"),
            drops,
        )
        yield _counter(
            "meshwarden_series_overflow",
            "Calls counted under 'overflow' because their tenant has used up its series.",
            ("tenant",),
            {(tenant,): count for tenant, count in overflow.items()},
        )
        for name, help_text, labels, read in self._gauges:
            family = GaugeMetricFamily(name, help_text, labels=list(labels))
            for values, value in read():
                family.add_metric(list(values), value)
            yield family


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


def _counter(name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(labels))
    for key, value in values.items():
        family.add_metric(list(key), value)
    return family


def _histogram(durations: dict[tuple[str, ...], tuple[list[int], float]]) -> Metric:
    family = HistogramMetricFamily(
        "meshwarden_request_duration_seconds",
        "How long calls took, as the reporter saw it.",
        labels=list(DURATION_LABELS),
    )
    bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
    for labels, (buckets, sum_s) in durations.items():
        total, rows = 0, []
        for bound, count in zip(bounds, buckets, strict=True):
            total += count
            rows.append((bound, float(total)))
        family.add_metric(list(labels), rows, sum_value=sum_s)
    return family


class MetricsServer:
    """Serves `/metrics` in the clear, on loopback, from a thread of its own."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Starts to listen at once.

        Raises:
            OSError: the address can't be listened on.
        """
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        self.port: int = self._server.server_port
        host = f"[{host}]" if ":" in host else host
        self.url = f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stops to listen and ends the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
