"""Hostile metrics and logs: bounded, counted and never fatal; and what each tenant may send."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    Exemplar,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Summary,
    SummaryDataPoint,
)

from meshwarden.agents.telemetry.attribute import Bounded
from meshwarden.agents.telemetry.budget import Budget, Rate
from meshwarden.agents.telemetry.point import bound_points
from meshwarden.agents.telemetry.record import bound_records


def pairs(count: int, text: str = "v") -> list[KeyValue]:
    return [KeyValue(key=f"k{number}", value=AnyValue(string_value=text)) for number in range(count)]


def nested(depth: int) -> AnyValue:
    value = AnyValue(string_value="deep")
    for _ in range(depth):
        value = AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=value)]))
    return value


def metrics(*items: Metric) -> ResourceMetrics:
    return ResourceMetrics(scope_metrics=[ScopeMetrics(metrics=items)])


def gauge(*points: NumberDataPoint, name: str = "load") -> Metric:
    return Metric(name=name, gauge=Gauge(data_points=points))


def bound(message: ResourceMetrics, most: int = 100) -> Bounded:
    return bound_points(message, most, lambda: False)


def test_points_beyond_the_bound_go() -> None:
    message = metrics(gauge(*[NumberDataPoint(as_int=1)] * 60), gauge(*[NumberDataPoint(as_int=1)] * 60, name="more"))
    assert bound(message) == Bounded(kept=100, too_many=20)
    assert [len(metric.gauge.data_points) for metric in message.scope_metrics[0].metrics] == [60, 40]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (Metric(name="nothing"), Bounded(malformed=1)),
        (gauge(NumberDataPoint(), NumberDataPoint(), name=""), Bounded(malformed=2)),
        (gauge(NumberDataPoint(), name="n" * 256), Bounded(malformed=1)),
        (gauge(NumberDataPoint(attributes=pairs(65))), Bounded(too_many=1)),
        (gauge(NumberDataPoint(attributes=[KeyValue(key="k", value=nested(5))])), Bounded(too_many=1)),
        (gauge(NumberDataPoint(attributes=pairs(40, "x" * 4000))), Bounded(too_many=1)),
        (
            Metric(name="h", histogram=Histogram(data_points=[HistogramDataPoint(bucket_counts=[1, 2, 3])])),
            Bounded(malformed=1),
        ),
        (
            Metric(
                name="h",
                histogram=Histogram(
                    data_points=[
                        HistogramDataPoint(bucket_counts=[1] * 600, explicit_bounds=[float(n) for n in range(599)])
                    ]
                ),
            ),
            Bounded(malformed=1),
        ),
        (
            Metric(
                name="e",
                exponential_histogram=ExponentialHistogram(
                    data_points=[
                        ExponentialHistogramDataPoint(
                            positive=ExponentialHistogramDataPoint.Buckets(bucket_counts=[1] * 600)
                        )
                    ]
                ),
            ),
            Bounded(malformed=1),
        ),
        (
            Metric(
                name="s",
                summary=Summary(
                    data_points=[
                        SummaryDataPoint(quantile_values=[SummaryDataPoint.ValueAtQuantile(quantile=0.5)] * 600)
                    ]
                ),
            ),
            Bounded(malformed=1),
        ),
    ],
)
def test_what_is_no_point_is_refused_and_the_rest_kept(metric: Metric, expected: Bounded) -> None:
    message = metrics(metric, gauge(NumberDataPoint(as_double=0.5)))
    found = bound(message)
    assert found == Bounded(kept=1, malformed=expected.malformed, too_many=expected.too_many)
    assert [metric.name for metric in message.scope_metrics[0].metrics] == ["load"]


def test_exemplars_are_cut() -> None:
    exemplars = [Exemplar(filtered_attributes=pairs(50))] * 50
    message = metrics(gauge(NumberDataPoint(exemplars=exemplars)))
    assert bound(message) == Bounded(kept=1)
    (point,) = message.scope_metrics[0].metrics[0].gauge.data_points
    assert (len(point.exemplars), len(point.exemplars[0].filtered_attributes)) == (8, 8)


def logs(*records: LogRecord) -> ResourceLogs:
    return ResourceLogs(scope_logs=[ScopeLogs(log_records=records)])


def test_records_are_cut_to_their_bounds() -> None:
    record = LogRecord(
        body=AnyValue(string_value="é" * 9000),
        attributes=pairs(300, "x" * 900),
        severity_text="S" * 900,
        trace_id=b"short",
        span_id=b"\x01" * 8,
    )
    message = logs(record, LogRecord(body=nested(5)), LogRecord(body=AnyValue(string_value="fine")))
    found = bound_records(message, 100, lambda: False, lambda _: False)
    assert found == Bounded(kept=2, too_many=1)
    first = message.scope_logs[0].log_records[0]
    assert len(first.body.string_value.encode()) == 4096
    assert (len(first.attributes), first.dropped_attributes_count) == (128, 172)
    assert (len(first.severity_text), first.trace_id, first.span_id) == (63, b"", b"")


def test_records_that_are_calls_are_counted_elsewhere() -> None:
    message = logs(*(LogRecord(severity_text=str(number)) for number in range(10)))
    found = bound_records(message, 8, lambda: False, lambda record: int(record.severity_text) % 2 == 0)
    assert found == Bounded(kept=4, too_many=2, claimed=4)
    assert [record.severity_text for record in message.scope_logs[0].log_records] == ["1", "3", "5", "7"]


@given(st.binary(max_size=400))
def test_nothing_that_can_be_parsed_breaks_the_bounds(body: bytes) -> None:
    for kind in (ResourceMetrics, ResourceLogs):
        try:
            message = kind.FromString(body)
        except DecodeError:
            continue
        if isinstance(message, ResourceMetrics):
            bound(message)
        else:
            bound_records(message, 10, lambda: False, lambda _: False)
        message.SerializeToString()


# -- budgets


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_tenant_may_send_its_rate_and_a_burst() -> None:
    clock = Clock()
    budget = Budget(Rate(size_bytes=1000, items=10, burst_s=2.0), clock)
    budget.spend("acme", 1999, 1)
    assert budget.wait_s("acme") == 0
    budget.spend("acme", 1001, 1)
    assert budget.wait_s("acme") == pytest.approx(1.0)
    assert budget.wait_s("globex") == 0
    clock.now += 1.001
    assert budget.wait_s("acme") == 0


def test_things_count_as_bytes_do() -> None:
    clock = Clock()
    budget = Budget(Rate(size_bytes=1000, items=10, burst_s=2.0), clock)
    budget.spend("acme", 1, 50)
    assert budget.wait_s("acme") == pytest.approx(3.0)
    clock.now += 1000
    assert budget.wait_s("acme") == 0
    budget.spend("acme", 1, 19)  # what was not used does not add up
    assert budget.wait_s("acme") == 0
    budget.spend("acme", 1, 2)
    assert budget.wait_s("acme") == pytest.approx(0.1)
