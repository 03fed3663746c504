"""Series of calls: their names and labels, how they end, and what they cost a tenant."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.metrics.duration import templated
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.sdk.red.histogram import bucket_of
from meshwarden.v1.report_pb2 import CallStat, Exemplar

ALLOWED, DENIED, LIMITED = CallStat.ALLOWED, CallStat.DENIED, CallStat.LIMITED


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> Metrics:
    return Metrics(series_per_tenant=20, idle=timedelta(hours=1), monotonic_s=clock)


def call(**changes: Any) -> Call:
    duration_s = changes.pop("duration_s", 0.02)
    plain: dict[str, Any] = {
        "source_tenant": "acme",
        "source_service": "web",
        "destination_tenant": "platform",
        "destination_service": "orders",
        "method": "/shop.Orders/List",
        "status": "OK",
        "decision": ALLOWED,
        "reporter": CallStat.SOURCE,
        "revision": 1,
        "minute": 0,
        "count": 1,
        "sum_s": duration_s,
        "durations": {bucket_of(duration_s): 1},
        "source_region": "eu",
        "destination_region": "us",
    }
    return Call(**{**plain, **changes})


def samples(metrics: Metrics, name: str) -> list[Any]:
    # Read by another parser than our own words: what it takes is well-formed.
    text = generate_latest(metrics.registry).decode()
    return [one for family in text_string_to_metric_families(text) for one in family.samples if one.name == name]


def test_counts_have_both_sides_regions_and_an_outcome(metrics: Metrics) -> None:
    metrics.add([call(), call(status="NOT_FOUND"), call(status="UNAVAILABLE", reporter=CallStat.DESTINATION)])
    found = samples(metrics, "meshwarden_requests_total")
    assert [one.labels["status_class"] for one in found] == ["ok", "client_error", "server_error"]
    assert found[0].labels == {
        "source_tenant": "acme",
        "source_service": "web",
        "source_region": "eu",
        "destination_tenant": "platform",
        "destination_service": "orders",
        "destination_region": "us",
        "method": "/shop.Orders/List",
        "status": "OK",
        "status_class": "ok",
        "decision": "allowed",
        "tenant": "acme",
        "reporter": "source",
    }


@pytest.mark.parametrize(
    ("changes", "name", "labels"),
    [
        ({}, "rpc_client_call_duration_seconds", ("grpc", "shop.Orders/List", "OK", "")),
        (
            {"status": "NOT_FOUND"},
            "rpc_client_call_duration_seconds",
            ("grpc", "shop.Orders/List", "NOT_FOUND", "NOT_FOUND"),
        ),
        (
            {"status": "NOT_FOUND", "reporter": CallStat.DESTINATION},
            "rpc_server_call_duration_seconds",
            ("grpc", "shop.Orders/List", "NOT_FOUND", ""),
        ),
        (
            {"status": "PERMISSION_DENIED", "decision": DENIED, "reporter": CallStat.DESTINATION},
            "rpc_server_call_duration_seconds",
            ("grpc", "shop.Orders/List", "PERMISSION_DENIED", "denied"),
        ),
        (
            {"method": "GET /invoices/17", "status": "503"},
            "http_client_request_duration_seconds",
            ("GET", "/invoices/{id}", "503", "503"),
        ),
        (
            {"method": "_OTHER", "status": "429", "decision": LIMITED, "reporter": CallStat.DESTINATION},
            "http_server_request_duration_seconds",
            ("_OTHER", "_OTHER", "429", "limited"),
        ),
    ],
)
def test_durations_bear_the_conventions_names(
    metrics: Metrics, changes: dict[str, Any], name: str, labels: tuple[str, ...]
) -> None:
    metrics.add([call(**changes)])
    (count,) = samples(metrics, f"{name}_count")
    assert tuple(count.labels.values())[:4] == labels or set(labels) <= set(count.labels.values())
    assert {key: value for key, value in count.labels.items() if key.startswith("mesh_")} == {
        "mesh_source_tenant": "acme",
        "mesh_source_service": "web",
        "mesh_source_region": "eu",
        "mesh_destination_tenant": "platform",
        "mesh_destination_service": "orders",
        "mesh_destination_region": "us",
        "mesh_tenant": "acme",
    }


def test_one_status_under_two_decisions_is_two_histograms(metrics: Metrics) -> None:
    metrics.add([call(status="PERMISSION_DENIED"), call(status="PERMISSION_DENIED", decision=DENIED)])
    found = {one.labels["error_type"]: one.value for one in samples(metrics, "rpc_client_call_duration_seconds_count")}
    assert found == {"PERMISSION_DENIED": 1, "denied": 1}


def test_buckets_carry_the_newest_exemplar(metrics: Metrics) -> None:
    first = Exemplar(trace_id=b"\x01" * 16, span_id=b"\x02" * 8, duration_s=0.02, time={"seconds": 5})  # type: ignore[arg-type]
    second = Exemplar(trace_id=b"\x03" * 16, span_id=b"\x04" * 8, duration_s=0.021, time={"seconds": 6})  # type: ignore[arg-type]
    metrics.add([call(exemplars=(first,)), call(exemplars=(second,))])
    buckets = samples(metrics, "rpc_client_call_duration_seconds_bucket")
    (bucket,) = [one for one in buckets if one.exemplar]
    assert (bucket.labels["le"], bucket.value) == ("0.025", 2)
    assert bucket.exemplar.labels == {"trace_id": "03" * 16, "span_id": "04" * 8}
    assert (bucket.exemplar.value, float(bucket.exemplar.timestamp)) == (0.021, 6.0)


def test_a_series_ends_when_nothing_was_heard_of_it_and_gives_its_room_back(metrics: Metrics, clock: Clock) -> None:
    metrics.add(call(method=f"/a/{number}") for number in range(25))
    assert len(samples(metrics, "meshwarden_requests_total")) == 21
    clock.now_s += 3599
    metrics.add([call(method="/a/0")])
    clock.now_s += 3
    (left,) = samples(metrics, "meshwarden_requests_total")
    assert (left.labels["method"], left.value) == ("/a/0", 2)
    assert len(samples(metrics, "rpc_client_call_duration_seconds_count")) == 1
    assert [one.value for one in samples(metrics, "meshwarden_series")] == [1]
    metrics.add(call(method=f"/b/{number}") for number in range(19))
    assert len(samples(metrics, "meshwarden_requests_total")) == 20
    # What went over stays told.
    assert [one.value for one in samples(metrics, "meshwarden_series_overflow_total")] == [5]


def test_a_tenant_beyond_its_share_stays_right_in_its_outcomes_and_takes_nobody_elses(metrics: Metrics) -> None:
    metrics.add(call(method=f"/a/{number}", status="UNAVAILABLE") for number in range(50))
    metrics.add([call(source_tenant="globex", method="/theirs/1")])
    found = samples(metrics, "meshwarden_requests_total")
    assert sum(one.value for one in found) == 51
    (over,) = [one for one in found if one.labels["method"] == "overflow"]
    assert (over.labels["status_class"], over.labels["source_tenant"], over.value) == ("server_error", "acme", 30)
    assert [one.value for one in found if one.labels["source_tenant"] == "globex"] == [1]


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("GET /invoices/17", "GET /invoices/{id}"),
        ("GET /a/0b2c1a10-9b57-4c0e-9d0e-52f00f3e0d11/b", "GET /a/{id}/b"),
        ("GET /blobs/9f86d081884c7d659a2feaa0c55ad015", "GET /blobs/{id}"),
        ("GET /deadbeefdeadbeef", "GET /deadbeefdeadbeef"),
        ("GET /v1/x", "GET /v1/x"),
        ("GET /", "GET /"),
        ("/shop.Orders/17", "/shop.Orders/17"),
        ("_OTHER", "_OTHER"),
    ],
)
def test_paths_lose_what_names_one_thing_among_many(method: str, wanted: str) -> None:
    assert templated(method) == wanted


@given(st.text())
def test_any_path_has_a_template_that_is_its_own(method: str) -> None:
    assert templated(templated(method)) == templated(method)
