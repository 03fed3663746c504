"""Instruments: sums, buckets, and a bound on series."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from meshwarden.examples.daena.error import Away
from meshwarden.examples.daena.metric import MAX_SERIES, Meter


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """What OpenTelemetry has been told; a process has one provider, so the test has one of its own."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter", provider.get_meter)
    yield reader
    provider.shutdown()


def test_series_are_told_apart_by_their_attributes_whatever_the_order() -> None:
    meter = Meter()
    counter = meter.counter("a", "1")
    counter.add(1, {"x": "1", "y": "2"})
    counter.add(2, {"y": "2", "x": "1"})
    counter.add(5)
    found = {tuple(sorted(point.attributes.items())): point.value for point in meter.stats().points}
    assert found == {(("x", "1"), ("y", "2")): 3, (): 5}


def test_what_finds_no_room_is_summed_in_one_series_that_says_so() -> None:
    meter = Meter()
    counter = meter.counter("a", "1")
    for number in range(MAX_SERIES + 10):
        counter.add(1, {"x": str(number)})
    points = meter.stats().points
    (overflow,) = [point for point in points if "otel.metric.overflow" in point.attributes]
    assert overflow.value == 10
    assert sum(point.value for point in points) == MAX_SERIES + 10


@given(st.lists(st.floats(0, 100)))
def test_a_value_is_in_the_first_bucket_that_reaches_it(values: list[float]) -> None:
    meter = Meter()
    histogram = meter.histogram("a", "s", (1.0, 10.0))
    for value in values:
        histogram.record(value)
    wanted = [sum(v <= 1 for v in values), sum(1 < v <= 10 for v in values), sum(v > 10 for v in values)]
    points = meter.stats().points
    assert [list(point.buckets) for point in points] == ([wanted] if values else [])
    assert all(point.count == len(values) for point in points)


def test_a_gauge_is_read_when_it_is_asked_for() -> None:
    meter, now = Meter(), [1.0]
    meter.gauge("a", "By", lambda: [(now[0], {"tier": "hot"})])
    assert meter.stats().points[0].value == 1
    now[0] = 2
    assert meter.stats().points[0].value == 2


def test_what_stats_shows_is_told_to_opentelemetry(told: InMemoryMetricReader) -> None:
    meter = Meter()
    meter.counter("c", "{record}").add(2, {"tier": "hot"})
    histogram = meter.histogram("h", "s", (1.0, 10.0))
    for value in (0.5, 5, 50):
        histogram.record(value)
    meter.gauge("g", "By", lambda: [(7, {"tier": "hot"})])
    stats = {point.name: point for point in meter.stats().points}
    meter.gauge("ended", "By", ended)
    found = told.get_metrics_data()
    assert found is not None
    sent = {metric.name: metric for one in found.resource_metrics[0].scope_metrics for metric in one.metrics}
    points: dict[str, Any] = {name: metric.data.data_points[0] for name, metric in sent.items()}
    assert {name: metric.unit for name, metric in sent.items()} == {"c": "{record}", "h": "s", "g": "By"}
    assert (points["c"].value, points["c"].attributes) == (stats["c"].value, stats["c"].attributes)
    assert (points["g"].value, points["g"].attributes) == (stats["g"].value, stats["g"].attributes)
    assert (list(points["h"].bucket_counts), list(points["h"].explicit_bounds)) == ([1, 1, 1], [1, 10])


def ended() -> Iterator[tuple[float, dict[str, str]]]:
    """A gauge of something that is closed."""
    yield from ()
    raise Away("the memory is closed")
