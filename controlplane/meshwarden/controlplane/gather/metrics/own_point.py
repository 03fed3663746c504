"""The control plane's metrics as OTLP: the counts of calls and the mesh's own, by OpenTelemetry's names.

All sums and histograms are cumulative. `/metrics` shows the same numbers.

Source: OpenTelemetry metrics data model; semantic conventions 1.44, RPC, HTTP, process and CPython metrics.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    Exemplar,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from prometheus_client.core import Metric as Family

from meshwarden.controlplane.gather.metrics import duration
from meshwarden.controlplane.gather.metrics.metrics import REQUEST_LABELS, Counted, Timed
from meshwarden.controlplane.gather.resource import OWN_NAME
from meshwarden.sdk.red.histogram import BOUNDS_S

POINTS_PER_BODY: Final = 1000
REQUESTS: Final = "meshwarden.requests"
_SCOPE: Final = "meshwarden.controlplane"
_MESH: Final = "mesh_"
_REQUEST_KEYS: Final = tuple(
    f"mesh.{name.replace('source_', 'source.').replace('destination_', 'destination.')}" for name in REQUEST_LABELS
)
_KEYS: Final = {
    "rpc_system_name": "rpc.system.name",
    "rpc_method": "rpc.method",
    "rpc_response_status_code": "rpc.response.status_code",
    "http_request_method": "http.request.method",
    "http_route": "http.route",
    "http_response_status_code": "http.response.status_code",
    "error_type": "error.type",
    "generation": "cpython.gc.generation",
}
# Those of the process that have a name already; (name, unit).
_KNOWN: Final = {
    "process_cpu_seconds": ("process.cpu.time", "s"),
    "process_resident_memory_bytes": ("process.memory.usage", "By"),
    "process_virtual_memory_bytes": ("process.memory.virtual", "By"),
    "process_open_fds": ("process.unix.file_descriptor.count", "{file_descriptor}"),
    "python_gc_collections": ("cpython.gc.collections", "{collection}"),
    "python_gc_objects_collected": ("cpython.gc.collected_objects", "{object}"),
    "python_gc_objects_uncollectable": ("cpython.gc.uncollectable_objects", "{object}"),
}
# What says nothing that changes.
_LEFT_OUT: Final = frozenset({"process_start_time_seconds", "process_max_fds"})
_UNITS: Final = {"_seconds": "s", "_bytes": "By"}


@dataclass
class _Points:
    """The points of one metric that concern one tenant."""

    metric: Metric
    points: list[Any]


class Batch:
    """Metrics on their way to becoming bodies, each tenant's by itself, of one moment."""

    def __init__(self, region: str, now_ns: int) -> None:
        """Starts empty; `now_ns` is since 1970."""
        self._region, self._now_ns = region, now_ns
        self._found: dict[tuple[str, str], _Points] = {}

    def add_requests(self, counted: Iterable[Counted]) -> None:
        """Takes the counts of calls."""
        side = {
            "source": REQUEST_LABELS.index("source_tenant"),
            "destination": REQUEST_LABELS.index("destination_tenant"),
        }
        for one in counted:
            of = self._of(one.labels[side[one.labels[-1]]], REQUESTS, "{request}", _sum, "Calls.")
            of.points.append(self._number(zip(_REQUEST_KEYS, one.labels, strict=True), one.count, one.began_ns))

    def add_durations(self, name: str, timed: Iterable[Timed]) -> None:
        """Takes a histogram of `duration.FAMILIES`."""
        text, names = duration.FAMILIES[name]
        owner = names.index("mesh_destination_tenant" if "_server_" in name else "mesh_source_tenant")
        keys = [_key(label) for label in names]
        for one in timed:
            of = self._of(one.labels[owner], _dotted(name.removesuffix("_seconds")), "s", _histogram, text)
            of.points.append(self._histogram(zip(keys, one.labels, strict=True), one))

    def add_family(self, family: Family, began_ns: int) -> None:
        """Takes a counter or a gauge as Prometheus has it, which began at 0 then."""
        if family.name in _LEFT_OUT or family.type not in ("counter", "gauge"):
            return
        name, unit = _named(family.name)
        make = _sum if family.type == "counter" else _gauge
        for sample in family.samples:
            pairs = ((_key(label), value) for label, value in sample.labels.items())
            of = self._of(sample.labels.get("tenant", ""), name, unit, make, family.documentation)
            of.points.append(self._number(pairs, sample.value, began_ns if make is _sum else 0))

    def bodies(self) -> Iterator[tuple[str, int, bytes]]:
        """Serialised `ResourceMetrics`: (whose, how many points, body)."""
        by_tenant: dict[str, list[_Points]] = {}
        for (tenant, _), found in self._found.items():
            by_tenant.setdefault(tenant, []).append(found)
        for tenant, metrics in by_tenant.items():
            for some in _chunks(metrics):
                scope = ScopeMetrics(metrics=some)
                scope.scope.name = _SCOPE
                message = ResourceMetrics(resource=self._resource(tenant), scope_metrics=[scope])
                yield tenant, sum(len(_points(metric)) for metric in some), message.SerializeToString()

    def _resource(self, tenant: str) -> Resource:
        said = {
            "service.name": OWN_NAME,
            # A region has one control plane.
            "service.instance.id": self._region,
            "mesh.region": self._region,
            "mesh.tenant": tenant,
        }
        return Resource(attributes=_pairs(said.items()))

    def _of(self, tenant: str, name: str, unit: str, make: Callable[[Metric], Any], text: str = "") -> _Points:
        found = self._found.get((tenant, name))
        if found is None:
            metric = Metric(name=name, unit=unit, description=text)
            make(metric)
            found = self._found[tenant, name] = _Points(metric, [])
        return found

    def _number(self, pairs: Iterable[tuple[str, str]], value: float, began_ns: int) -> NumberDataPoint:
        point = NumberDataPoint(attributes=_pairs(pairs), start_time_unix_nano=began_ns, time_unix_nano=self._now_ns)
        if float(value).is_integer() and abs(value) < 2**63:
            point.as_int = int(value)
        else:
            point.as_double = value
        return point

    def _histogram(self, pairs: Iterable[tuple[str, str]], one: Timed) -> HistogramDataPoint:
        return HistogramDataPoint(
            attributes=_pairs(pairs),
            start_time_unix_nano=one.began_ns,
            time_unix_nano=self._now_ns,
            count=sum(one.buckets),
            sum=one.sum_s,
            bucket_counts=one.buckets,
            explicit_bounds=BOUNDS_S,
            exemplars=[
                Exemplar(
                    time_unix_nano=_nanos(exemplar.time),
                    as_double=exemplar.duration_s,
                    span_id=exemplar.span_id,
                    trace_id=exemplar.trace_id,
                )
                for exemplar in one.exemplars.values()
            ],
        )


def _sum(metric: Metric) -> None:
    metric.sum.CopyFrom(Sum(aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE, is_monotonic=True))


def _gauge(metric: Metric) -> None:
    metric.gauge.CopyFrom(Gauge())


def _histogram(metric: Metric) -> None:
    metric.histogram.CopyFrom(Histogram(aggregation_temporality=AGGREGATION_TEMPORALITY_CUMULATIVE))


def _points(metric: Metric) -> Any:
    return getattr(metric, str(metric.WhichOneof("data"))).data_points


def _chunks(metrics: Sequence[_Points]) -> Iterator[list[Metric]]:
    """Metrics of so many points together."""
    some: list[Metric] = []
    room = POINTS_PER_BODY
    for one in metrics:
        for begin in range(0, len(one.points), POINTS_PER_BODY):
            points = one.points[begin : begin + POINTS_PER_BODY]
            if len(points) > room:
                yield some
                some, room = [], POINTS_PER_BODY
            metric = Metric()
            metric.CopyFrom(one.metric)
            _points(metric).extend(points)
            some.append(metric)
            room -= len(points)
    if some:
        yield some


def _pairs(said: Iterable[tuple[str, str]]) -> list[KeyValue]:
    # What is not said is left out: Prometheus takes an empty label for none.
    return [KeyValue(key=key, value=_value(key, text)) for key, text in said if text]


def _value(key: str, text: str) -> AnyValue:
    is_number = key == "http.response.status_code" and text.isdecimal()
    return AnyValue(int_value=int(text)) if is_number else AnyValue(string_value=text)


def _key(label: str) -> str:
    if label.startswith(_MESH):
        return _dotted(label)
    return _KEYS.get(label) or f"mesh.{label}"


def _dotted(name: str) -> str:
    return name.replace("_", ".")


def _named(name: str) -> tuple[str, str]:
    if name in _KNOWN:
        return _KNOWN[name]
    suffix = next((suffix for suffix in _UNITS if name.endswith(suffix)), "")
    return name.removesuffix(suffix).replace("_", ".", 1), _UNITS.get(suffix, "")


def _nanos(moment: Timestamp) -> int:
    return moment.seconds * 1_000_000_000 + moment.nanos
