"""Workloads' own metrics: their names, what their points come to, whose they are, and what they may cost."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from meshwarden.controlplane.gather.call import Refused
from meshwarden.controlplane.gather.metrics.workload_metrics import WorkloadMetrics
from meshwarden.controlplane.gather.metrics.workload_name import name_of
from meshwarden.controlplane.gather.resource import Checked, check_resource
from meshwarden.controlplane.gather.tally import DROPPED, METRICS, PASSED, RECEIVED, Tally

CUMULATIVE, DELTA = pb.AGGREGATION_TEMPORALITY_CUMULATIVE, pb.AGGREGATION_TEMPORALITY_DELTA
MOST = 50


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class World:
    """The series, and who sends."""

    def __init__(self) -> None:
        self.tally, self.clock = Tally(), Clock()
        self.metrics = WorkloadMetrics(
            self.tally, samples_per_tenant=MOST, max_samples=3 * MOST, idle=timedelta(minutes=5), monotonic_s=self.clock
        )

    def send(self, *metrics: pb.Metric, tenant: str = "acme", said: Iterable[KeyValue] = (), scope: str = "") -> None:
        resource = Resource(attributes=[text("service.name", f"web.{tenant}"), *said])
        scopes = [pb.ScopeMetrics(scope=InstrumentationScope(name=scope), metrics=metrics)]
        body = pb.ResourceMetrics(resource=resource, scope_metrics=scopes).SerializeToString()
        self.metrics.add(check_resource("point", body, "node-a", "eu", lambda *_: True))

    def samples(self, name: str = "") -> list[Sample]:
        registry = CollectorRegistry()
        registry.register(self.metrics)
        # Read by another parser than our own words: what it takes is well-formed.
        families = text_string_to_metric_families(generate_latest(registry).decode())
        found = [one for family in families for one in family.samples]
        return [one for one in found if one.name == name or (not name and not one.name.startswith("meshwarden_"))]

    def values(self, name: str) -> list[float]:
        return [one.value for one in self.samples(name)]

    def counted(self) -> dict[tuple[str, str, str], int]:
        """How many points, {(kind, tenant, reason): count}."""
        return {(key[0], key[3], key[4]): count for key, count in self.tally.totals().items() if key[1] == METRICS}


@pytest.fixture
def world() -> World:
    return World()


def text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def number(value: float, **attributes: str) -> pb.NumberDataPoint:
    return pb.NumberDataPoint(as_double=value, attributes=[text(key, of) for key, of in attributes.items()])


def counter(value: float, name: str = "jobs", temporality: int = CUMULATIVE, **attributes: str) -> pb.Metric:
    points = [number(value, **attributes)]
    data = pb.Sum(data_points=points, aggregation_temporality=temporality, is_monotonic=True)  # type: ignore[arg-type]
    return pb.Metric(name=name, sum=data)


def gauge(value: float, name: str = "depth", unit: str = "", **attributes: str) -> pb.Metric:
    return pb.Metric(name=name, unit=unit, gauge=pb.Gauge(data_points=[number(value, **attributes)]))


def histogram(*counts: int, temporality: int = CUMULATIVE, **changes: Any) -> pb.Metric:
    values: dict[str, Any] = {"explicit_bounds": [1, 10], "count": sum(counts), "sum": 7, "bucket_counts": counts}
    point = pb.HistogramDataPoint(**{**values, **changes})
    data = pb.Histogram(data_points=[point], aggregation_temporality=temporality)  # type: ignore[arg-type]
    return pb.Metric(name="took", unit="s", histogram=data)


def exponential(offset: int, counts: list[int], temporality: int = CUMULATIVE, **changes: Any) -> pb.Metric:
    zeros, scale = changes.pop("zero_count", 0), changes.pop("scale", 0)
    point = pb.ExponentialHistogramDataPoint(
        scale=scale,
        zero_count=zeros,
        count=changes.pop("count", zeros + sum(counts)),
        positive=pb.ExponentialHistogramDataPoint.Buckets(offset=offset, bucket_counts=counts),
        **changes,
    )
    data = pb.ExponentialHistogram(data_points=[point], aggregation_temporality=temporality)  # type: ignore[arg-type]
    return pb.Metric(name="took", unit="s", exponential_histogram=data)


@pytest.mark.parametrize(
    ("name", "unit", "kind", "wanted"),
    [
        ("nbmf.read.duration", "s", "histogram", "nbmf_read_duration_seconds"),
        ("nbmf.compression.ratio", "1", "gauge", "nbmf_compression_ratio"),
        ("fill", "1", "gauge", "fill_ratio"),
        ("jobs.total", "{job}", "counter", "jobs"),
        ("sent", "By/s", "gauge", "sent_bytes_per_second"),
        ("7zip runs", "", "counter", "workload_7zip_runs"),
        ("größe", "", "gauge", "gr_e"),
        # None of them may pass for ours, or for Prometheus' own.
        ("meshwarden.requests", "", "counter", "workload_meshwarden_requests"),
        ("rpc.server.call.duration", "s", "histogram", "workload_rpc_server_call_duration_seconds"),
        ("up", "", "gauge", "workload_up"),
        ("ALERTS", "", "gauge", "workload_ALERTS"),
        ("envoy/cluster", "", "gauge", "workload_envoy_cluster"),
        ("__name__", "", "gauge", "name"),
    ],
)
def test_a_name_is_prometheus_own(name: str, unit: str, kind: str, wanted: str) -> None:
    assert name_of(name, unit, kind) == wanted


@given(st.text(max_size=300), st.text(max_size=70), st.sampled_from(["counter", "gauge", "histogram", "summary"]))
def test_whatever_is_sent_as_a_name_is_one_or_is_refused(name: str, unit: str, kind: str) -> None:
    try:
        found = name_of(name, unit, kind)
    except ValueError:
        return
    assert found.isascii()
    assert found.replace("_", "a").isalnum()
    assert not found[0].isdecimal()
    assert not found.startswith(("meshwarden_", "envoy_", "rpc_server_call_duration", "http_server_request_duration"))


def test_who_sends_is_said_by_the_mesh_alone(world: World) -> None:
    forged = {"mesh.tenant": "globex", "mesh_service": "x", "le": "1", "service.instance.id": "2", "__name__": "y"}
    metric = gauge(1)
    metric.gauge.data_points[0].attributes.extend(text(key, value) for key, value in forged.items())
    said = [text("service.instance.id", "1"), text("mesh.workload", "acme/web#0"), text("mesh.tenant", "globex")]
    world.send(metric, said=said, scope="lib")
    (found,) = world.samples()
    assert found.labels == {
        "mesh_tenant": "acme",
        "mesh_service": "web",
        "mesh_node": "node-a",
        "mesh_region": "eu",
        "mesh_workload": "acme/web#0",
        "service_instance_id": "1",
        "otel_scope_name": "lib",
        "exported_mesh_tenant": "globex",
        "exported_mesh_service": "x",
        "exported_le": "1",
        "exported_service_instance_id": "2",
        "name": "y",
    }


def test_attributes_of_every_kind_are_told_apart(world: World) -> None:
    metric = gauge(1)
    point = metric.gauge.data_points[0]
    array = AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue(bool_value=True)]))
    point.attributes.extend([text("a.b", "2"), text("a_b", "1"), KeyValue(key="list", value=array)])
    point.attributes.extend([KeyValue(key="1", value=AnyValue(double_value=0.5)), text("quote", 'a"b\nc\\')])
    world.send(metric)
    labels = world.samples()[0].labels
    wanted = {"a_b": "2;1", "list": "[1,true]", "key_1": "0.5", "quote": 'a"b\nc\\'}
    assert wanted.items() <= labels.items()


def test_what_is_told_in_total_stands_and_what_is_told_since_is_added(world: World) -> None:
    world.send(counter(5), counter(5, "done", DELTA))
    world.send(counter(7), counter(7, "done", DELTA))
    assert (world.values("jobs_total"), world.values("done_total")) == ([7], [12])
    world.send(counter(1))  # the program has started anew
    assert world.values("jobs_total") == [1]


def test_a_histogram_is_shown_with_its_buckets(world: World) -> None:
    world.send(histogram(1, 2, 3))
    world.send(histogram(2, 2, 3))
    found = {one.labels.get("le", one.name): one.value for one in world.samples()}
    assert found == {"1.0": 2, "10.0": 4, "+Inf": 7, "took_seconds_count": 7, "took_seconds_sum": 7}


def test_a_histogram_of_what_came_since_is_added_while_its_bounds_stay(world: World) -> None:
    world.send(histogram(1, 0, 0, temporality=DELTA))
    world.send(histogram(0, 2, 0, temporality=DELTA))
    assert world.values("took_seconds_bucket") == [1, 3, 3]
    assert world.values("took_seconds_sum") == [14]
    world.send(histogram(4, temporality=DELTA, explicit_bounds=[]))
    assert world.values("took_seconds_bucket") == [4]


def test_a_histogram_of_what_may_be_below_zero_has_buckets_alone(world: World) -> None:
    world.send(histogram(1, 2, 3, explicit_bounds=[-1, 1]))
    assert {one.name for one in world.samples()} == {"took_seconds_bucket"}
    world.send(histogram(1, 2, 3, sum=-4), tenant="globex")
    assert {one.name for one in world.samples()} == {"took_seconds_bucket"}


def test_an_exemplar_leads_to_its_trace(world: World) -> None:
    made = pb.Exemplar(as_double=3, time_unix_nano=5 * 10**9, trace_id=b"\x01" * 16, span_id=b"\x02" * 8)
    world.send(histogram(0, 1, 0, exemplars=[made, pb.Exemplar(as_double=3, trace_id=b"short")]))
    (found,) = [one for one in world.samples() if one.exemplar]
    assert found.labels["le"] == "10.0"
    assert found.exemplar is not None
    assert (found.exemplar.labels, found.exemplar.value) == ({"trace_id": "01" * 16, "span_id": "02" * 8}, 3)


def test_an_exponential_histogram_has_bounds_that_stay(world: World) -> None:
    world.send(exponential(-1, [1, 2], zero_count=4, temporality=DELTA))
    world.send(exponential(-2, [1, 1], temporality=DELTA, scale=1))
    found = {one.labels["le"]: one.value for one in world.samples("took_seconds_bucket")}
    # Zeros; (½, 1] has one and what (½, 1/√2] and (1/√2, 1] have; (1, 2] has two.
    assert found == {"0.0": 4, "1.0": 7, "2.0": 9, "+Inf": 9}


@given(st.integers(-8, 20), st.integers(-(2**31), 2**31 - 1), st.lists(st.integers(0, 9), max_size=300))
def test_an_exponential_histogram_never_has_too_many_buckets(scale: int, offset: int, counts: list[int]) -> None:
    world = World()
    world.metrics._samples_per_tenant = 1000
    world.send(exponential(offset, counts, scale=scale))
    found = world.samples("took_seconds_bucket")
    assert len(found) <= 163
    counted = world.counted()
    assert counted[RECEIVED, "acme", ""] == 1
    if found:
        assert [one.value for one in found] == sorted(one.value for one in found)
        assert (found[-1].value, found[-1].labels["le"]) == (sum(counts), "+Inf")
    else:
        assert counted[DROPPED, "acme", "malformed"] == 1


EXPONENTIAL = st.tuples(
    st.integers(-10, 20), st.integers(-(2**31), 2**31 - 1), st.lists(st.integers(0, 9), max_size=9), st.floats(0, 1e9)
)


@given(st.lists(EXPONENTIAL, max_size=5))
def test_whatever_is_added_up_can_be_shown(points: list[tuple[int, int, list[int], float]]) -> None:
    world = World()
    world.metrics._samples_per_tenant = 1000
    for scale, offset, counts, threshold in points:
        world.send(exponential(offset, counts, DELTA, scale=scale, zero_count=1, zero_threshold=threshold))
    found = world.samples("took_seconds_bucket")
    bounds, values = [float(one.labels["le"]) for one in found], [one.value for one in found]
    assert bounds == sorted(set(bounds))
    assert values == sorted(values)
    assert values[-1:] == world.values("took_seconds_count")


def test_a_summary_is_shown_with_its_quantiles(world: World) -> None:
    said = ((0.5, 1), (0.5, 3), (float("nan"), 7), (2, 9))
    values = [pb.SummaryDataPoint.ValueAtQuantile(quantile=quantile, value=value) for quantile, value in said]
    points = [pb.SummaryDataPoint(count=2, sum=6, quantile_values=values)]
    world.send(pb.Metric(name="took", summary=pb.Summary(data_points=points)))
    assert [(one.name, one.labels.get("quantile")) for one in world.samples()] == [
        ("took", "0.5"),
        ("took_count", None),
        ("took_sum", None),
    ]


@pytest.mark.parametrize(
    "metric",
    [
        counter(1, temporality=0),
        counter(-1),
        counter(float("nan")),
        counter(1, name="!"),
        gauge(1, name="x" * 256),
        gauge(1, long="x" * 2048),
        pb.Metric(name="empty", gauge=pb.Gauge(data_points=[pb.NumberDataPoint()])),
        histogram(1, 2, 3, count=7),
        histogram(1, 2),
        histogram(1, 2, 3, explicit_bounds=[10, 1]),
        histogram(1, 2, 3, explicit_bounds=[1, float("nan")]),
        histogram(1, 2, 3, explicit_bounds=[1, float("inf")]),
        histogram(*[0] * 500, explicit_bounds=range(499)),
        pb.Metric(name="below", summary=pb.Summary(data_points=[pb.SummaryDataPoint(count=1, sum=-1)])),
        exponential(0, [1], count=2),
        exponential(0, [1], scale=21),
        exponential(0, [1], scale=-11),
        exponential(0, [1], zero_count=1, zero_threshold=float("inf")),
        exponential(0, [0] * 2049),
    ],
    ids=lambda metric: f"{metric.name[:9]}-{metric.WhichOneof('data')}",
)
def test_a_point_that_makes_no_sense_is_counted_and_not_shown(world: World, metric: pb.Metric) -> None:
    world.send(metric, gauge(1))
    assert [one.name for one in world.samples()] == ["depth"]
    assert world.counted() == {
        (RECEIVED, "acme", ""): 2,
        (PASSED, "acme", ""): 1,
        (DROPPED, "acme", "malformed"): 1,
    }


def test_a_tenant_has_so_much_and_takes_nothing_of_anothers(world: World) -> None:
    for at in range(MOST + 20):
        world.send(gauge(at, at=str(at)))
    world.send(gauge(100, at="0"))
    world.send(gauge(1), tenant="globex")
    found = world.samples("depth")
    assert len([one for one in found if one.labels["mesh_tenant"] == "acme"]) == MOST
    assert [one.value for one in found if one.labels["mesh_tenant"] == "globex"] == [1]
    assert [one.value for one in found if one.labels.get("at") == "0"] == [100]  # what is there goes on
    counted = world.counted()
    assert counted[DROPPED, "acme", "series_full"] == 20
    assert counted[RECEIVED, "acme", ""] == counted[PASSED, "acme", ""] + 20
    used = {one.labels["tenant"]: one.value for one in world.samples("meshwarden_workload_samples")}
    assert used == {"acme": MOST, "globex": 1}


def test_a_histogram_costs_as_much_as_it_shows(world: World) -> None:
    world.send(histogram(1, 2, 3))
    assert world.values("meshwarden_workload_samples") == [len(world.samples())]


@pytest.mark.parametrize("kind", ["explicit", "exponential", "summary"])
def test_what_grows_takes_no_more_than_its_tenant_has(world: World, kind: str) -> None:
    def of(size: int, at: int) -> pb.Metric:
        said = {"attributes": [text("at", str(at))]}
        if kind == "explicit":
            return histogram(*([1] * (size + 1)), explicit_bounds=range(size), **said)
        if kind == "exponential":
            return exponential(0, [1] * size, **said)
        quantiles = [pb.SummaryDataPoint.ValueAtQuantile(quantile=one / size) for one in range(size)]
        point = pb.SummaryDataPoint(quantile_values=quantiles, count=1, **said)
        return pb.Metric(name="took", summary=pb.Summary(data_points=[point]))

    world.send(gauge(1), tenant="globex")
    for at in range(MOST // 5):
        world.send(of(1, at))
    for at in range(MOST // 5):
        world.send(of(MOST, at))
    world.send(gauge(2, at="new"), tenant="globex")
    used = {one.labels["tenant"]: one.value for one in world.samples("meshwarden_workload_samples")}
    assert used["globex"] == 2
    assert used["acme"] <= MOST
    assert len([one for one in world.samples() if one.labels["mesh_tenant"] == "acme"]) <= MOST
    assert world.counted()[DROPPED, "acme", "series_full"] == MOST // 5
    world.clock.now_s += 400  # what was idle makes room, for itself too
    world.send(of(MOST - 5, 0))
    used = {one.labels["tenant"]: one.value for one in world.samples("meshwarden_workload_samples")}
    assert 0 < len(world.samples()) <= used["acme"] <= MOST


def test_all_tenants_together_have_so_much(world: World) -> None:
    for at in range(5):
        for one in range(MOST):
            world.send(gauge(1, at=str(one)), tenant=f"t{at}")
    assert len(world.samples()) == 3 * MOST


def test_a_series_of_which_nothing_comes_is_forgotten_and_gives_its_room_back(world: World) -> None:
    for at in range(MOST):
        world.send(gauge(1, at=str(at)))
    world.clock.now_s += 200
    world.send(gauge(1, at="1"))
    world.clock.now_s += 200
    world.send(gauge(1, at="new"))  # there is room without a page having been asked for
    assert sorted(one.labels["at"] for one in world.samples("depth")) == ["1", "new"]
    world.clock.now_s += 301
    assert world.samples() == []
    assert world.samples("meshwarden_workload_samples") == []


def test_a_series_that_ends_says_so(world: World) -> None:
    world.send(gauge(1))
    ended = gauge(0)
    ended.gauge.data_points[0].flags = 1
    world.send(ended)
    assert world.samples() == []


def test_tenants_that_call_different_things_by_one_name_are_both_shown(world: World) -> None:
    world.send(gauge(1, name="took", unit="s"), counter(3, name="jobs"))
    world.send(histogram(1, 2, 3), gauge(5, name="jobs_total"), tenant="globex")
    world.send(gauge(4, name="alone"))
    assert {one.value for one in world.samples("took_seconds")} == {1}
    assert world.values("took_seconds_count") == [6]
    assert sorted(world.values("jobs_total")) == [3, 5]
    assert world.values("alone") == [4]


def test_a_node_says_of_its_own_workloads_alone() -> None:
    body = pb.ResourceMetrics(resource=Resource(attributes=[text("service.name", "web.acme")])).SerializeToString()
    checked = check_resource("point", body, "node-a", "eu", lambda *_: True)
    assert isinstance(checked, Checked)
    assert checked.tenant == "acme"


def seed() -> bytes:
    metrics = [
        counter(5),
        counter(5, "done", DELTA),
        gauge(1),
        histogram(1, 2, 3),
        exponential(-5, [1, 2], zero_count=2),
    ]
    resource = Resource(attributes=[text("service.name", "web.acme")])
    return pb.ResourceMetrics(resource=resource, scope_metrics=[pb.ScopeMetrics(metrics=metrics)]).SerializeToString()


SEED = seed()


@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_whatever_comes_the_page_can_be_read(changes: list[tuple[int, int]]) -> None:
    world, body = World(), bytearray(SEED)
    for at, byte in changes:
        body[at] = byte
    try:
        checked = check_resource("point", bytes(body), "node-a", "eu", lambda *_: True)
    except Refused:
        return
    world.metrics.add(checked)
    world.samples()
    totals = world.tally.totals()
    received = sum(count for key, count in totals.items() if key[:2] == (RECEIVED, METRICS))
    assert received == sum(count for key, count in totals.items() if key[0] != RECEIVED and key[1] == METRICS)
