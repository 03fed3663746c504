"""The control plane's metrics by OTLP: the numbers of /metrics, begun when they say, each tenant's by itself."""

import random
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE, ResourceMetrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.forward.backend import Backend
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.gather.metrics.own_metrics import OwnMetrics
from meshwarden.controlplane.gather.metrics.own_point import POINTS_PER_BODY
from meshwarden.controlplane.gather.tally import Tally
from meshwarden.sdk.red.histogram import bucket_of
from meshwarden.v1.report_pb2 import CallStat, Exemplar

BEGAN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
NS = 1_000_000_000


class Clock:
    now = BEGAN

    def __call__(self) -> datetime:
        return self.now

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def ns(self) -> int:
        return int(self.now.timestamp()) * NS

    def monotonic_s(self) -> float:
        return self.now.timestamp()


class Vitals(Collector):
    def collect(self) -> Iterable[Metric]:
        gauge = GaugeMetricFamily("meshwarden_svid_expiry_seconds", "Left.", labels=["kind", "tenant"])
        gauge.add_metric(["workload", "acme"], 12.5)
        gauge.add_metric(["root", ""], float("inf"))
        yield gauge
        counter = CounterMetricFamily("meshwarden_denials", "Refused.", labels=["event"])
        counter.add_metric(["rpc.refused"], 3)
        yield counter
        yield CounterMetricFamily("process_cpu_seconds", "CPU.", value=1.5)
        yield GaugeMetricFamily("process_start_time_seconds", "Start.", value=1)


class World:
    """A control plane's metrics, and what it has told of them."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.metrics = Metrics(clock=self.clock, monotonic_s=self.clock.monotonic_s, **limits)
        self.tally = Tally(self.clock)
        self.told: list[tuple[str, int, ResourceMetrics]] = []
        self.own = OwnMetrics(
            self.metrics,
            self.tally,
            (),
            Vitals(),
            lambda tenant, count, body: self.told.append((tenant, count, ResourceMetrics.FromString(body))),
            self.clock,
            region="eu",
            interval=timedelta(seconds=60),
        )

    async def tell(self) -> list[tuple[str, Any, Any]]:
        """What is told now: [(tenant, metric, point)]."""
        self.told.clear()
        await self.own.tell()
        found = []
        for tenant, count, message in self.told:
            said = {pair.key: pair.value.string_value for pair in message.resource.attributes}
            assert said.get("mesh.tenant", "") == tenant
            assert (said["service.name"], said["service.instance.id"]) == ("meshwarden-controlplane", "eu")
            metrics = [metric for scope in message.scope_metrics for metric in scope.metrics]
            points = [(tenant, metric, point) for metric in metrics for point in points_of(metric)]
            assert len(points) == count <= POINTS_PER_BODY
            found += points
        return found


@pytest.fixture
def world() -> World:
    return World()


def points_of(metric: Any) -> Any:
    data = getattr(metric, metric.WhichOneof("data"))
    if metric.WhichOneof("data") != "gauge":
        assert data.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    return data.data_points


def attributes(point: Any) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in point.attributes}


def number(point: Any) -> float:
    return float(getattr(point, point.WhichOneof("value")))


def call(**changes: Any) -> Call:
    plain: dict[str, Any] = {
        "source_tenant": "acme",
        "source_service": "web",
        "destination_tenant": "platform",
        "destination_service": "orders",
        "method": "/shop.Orders/List",
        "status": "OK",
        "decision": CallStat.ALLOWED,
        "reporter": CallStat.SOURCE,
        "revision": 1,
        "minute": 0,
        "count": 3,
        "sum_s": 0.06,
        "durations": {bucket_of(0.02): 3},
        "source_region": "eu",
    }
    return Call(**{**plain, **changes})


async def test_calls_have_opentelemetrys_names(world: World) -> None:
    exemplar = Exemplar(duration_s=0.02, trace_id=b"\x01" * 16, span_id=b"\x02" * 8)
    exemplar.time.seconds = 7
    http = {"method": "GET /orders/7", "status": "503", "reporter": CallStat.DESTINATION}
    world.metrics.add([call(exemplars=(exemplar,)), call(**http)])
    found = {(metric.name, metric.unit): (tenant, point) for tenant, metric, point in await world.tell()}
    tenant, grpc = found["rpc.client.call.duration", "s"]
    assert tenant == "acme"
    assert attributes(grpc) == {
        "rpc.system.name": "grpc",
        "rpc.method": "shop.Orders/List",
        "rpc.response.status_code": "OK",
        "mesh.source.tenant": "acme",
        "mesh.source.service": "web",
        "mesh.source.region": "eu",
        "mesh.destination.tenant": "platform",
        "mesh.destination.service": "orders",
        "mesh.destination.region": "unknown",
        "mesh.tenant": "acme",
    }
    assert (grpc.count, grpc.sum, list(grpc.explicit_bounds)[:3]) == (3, 0.06, [0.005, 0.01, 0.025])
    assert list(grpc.bucket_counts) == [0, 0, 3] + [0] * 12
    (kept,) = grpc.exemplars
    assert (kept.as_double, kept.trace_id, kept.span_id, kept.time_unix_nano) == (
        0.02,
        b"\x01" * 16,
        b"\x02" * 8,
        7 * NS,
    )
    tenant, http_point = found["http.server.request.duration", "s"]
    assert tenant == "platform"  # whose side reports
    said = attributes(http_point)
    assert (said["http.response.status_code"], said["http.route"], said["error.type"]) == (503, "/orders/{id}", "503")


async def test_the_meshs_own_have_units_and_no_empty_attributes(world: World) -> None:
    world.tally.received("agent.receive", "span", "acme", 4)
    found = {}
    for tenant, metric, point in await world.tell():
        found[metric.name, metric.unit, tenant, *sorted(attributes(point).items())] = number(point)
    assert found == {
        ("meshwarden.svid_expiry", "s", "acme", ("mesh.kind", "workload"), ("mesh.tenant", "acme")): 12.5,
        ("meshwarden.svid_expiry", "s", "", ("mesh.kind", "root")): float("inf"),
        ("meshwarden.denials", "", "", ("mesh.event", "rpc.refused")): 3,
        ("process.cpu.time", "s", ""): 1.5,
        (
            "meshwarden.telemetry_received",
            "",
            "acme",
            ("mesh.signal", "span"),
            ("mesh.stage", "agent.receive"),
            ("mesh.tenant", "acme"),
        ): 4,
    }


async def test_the_numbers_are_those_of_the_page(world: World) -> None:
    rng = random.Random(1)
    statuses = ("OK", "UNAVAILABLE", "PERMISSION_DENIED", "200", "404")
    for _ in range(500):
        changes = {"status": rng.choice(statuses), "source_tenant": rng.choice("abc"), "count": 2}
        world.metrics.add([call(**changes, reporter=rng.choice((CallStat.SOURCE, CallStat.DESTINATION)))])
    told = await world.tell()
    calls = Counter(dict.fromkeys("abc", 0))
    for _, metric, point in told:
        if metric.name == "meshwarden.requests":
            calls[attributes(point)["mesh.source.tenant"]] += point.as_int
    durations = sum(point.count for _, metric, point in told if metric.WhichOneof("data") == "histogram")
    page = [one for family in world.metrics.collect() for one in family.samples]
    shown = Counter[str]()
    for one in page:
        if one.name == "meshwarden_requests_total":
            shown[one.labels["source_tenant"]] += int(one.value)
    assert calls == shown
    assert durations == sum(one.value for one in page if one.name.endswith("_seconds_count"))


async def test_a_series_began_when_it_says(world: World) -> None:
    world.metrics.add([call()])
    world.clock.later(30)
    world.metrics.add([call(), call(method="/shop.Orders/Get")])
    begun = {
        attributes(point)["mesh.method"]: (point.start_time_unix_nano, point.time_unix_nano, point.as_int)
        for _, metric, point in await world.tell()
        if metric.name == "meshwarden.requests"
    }
    began, now = int(BEGAN.timestamp()) * NS, world.clock.ns()
    assert begun == {"/shop.Orders/List": (began, now, 6), "/shop.Orders/Get": (began + 30 * NS, now, 3)}


async def test_a_series_that_was_forgotten_begins_anew(world: World) -> None:
    world.metrics.add([call(count=5)])
    world.clock.later(7200)
    assert not [1 for _, metric, _ in await world.tell() if metric.name.startswith(("meshwarden.requests", "rpc"))]
    world.metrics.add([call(count=9)])
    found = [
        (metric, point) for _, metric, point in await world.tell() if metric.name.startswith(("meshwarden.req", "rpc"))
    ]
    assert len(found) == 2
    assert {point.start_time_unix_nano for _, point in found} == {world.clock.ns()}


async def test_what_cannot_be_read_ends_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Iterable[Metric]:
        raise OSError("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(world.own._vitals, "collect", fails)
        assert await world.tell() == []
    assert await world.tell()


async def test_what_outlives_a_restart_began_before_it(tmp_path: Path) -> None:
    clock = Clock()
    for _ in range(2):
        durable, tally = Durable(tmp_path / "gather.sqlite"), Tally(clock)
        durable.add(tally)
        assert tally.began_ns == int(BEGAN.timestamp()) * NS
        durable.close()
        clock.later(100)


async def test_a_tenants_share_holds_here_too() -> None:
    world = World(series_per_tenant=10)
    for at in range(40):
        world.metrics.add([call(method=f"/shop.Orders/Get{at}")])
    found = [point for _, metric, point in await world.tell() if metric.name == "meshwarden.requests"]
    assert len(found) == 11
    (overflow,) = [point for point in found if attributes(point)["mesh.method"] == "overflow"]
    assert (overflow.as_int, sum(point.as_int for point in found)) == (90, 120)


async def test_many_points_go_in_pieces(world: World) -> None:
    for at in range(POINTS_PER_BODY + 300):
        world.metrics.add([call(method=f"/shop.Orders/Get{at}")])
    told = await world.tell()  # `tell` holds each piece to its size
    points = [point for _, metric, point in told if metric.name == "meshwarden.requests"]
    assert len({attributes(point)["mesh.method"] for point in points}) == len(points) == POINTS_PER_BODY + 300


class Deaf:
    """A backend that is away."""

    async def send(self, signal: str, bodies: Any) -> int:
        raise AssertionError("nothing is to be sent here")

    async def close(self) -> None:
        """Nothing is open."""


async def test_they_wait_for_backends_that_take_metrics_within_their_bounds(tmp_path: Path) -> None:
    clock, durable = Clock(), Durable(tmp_path / "gather.sqlite")
    backends = [
        Backend("metrics", Deaf(), frozenset({"point"}), 4096),
        Backend("traces", Deaf(), frozenset({"span"}), 4096),
    ]
    mesh: dict[str, Any] = {"owns": lambda *_: True, "trust_domain": "mesh.test", "region": "eu"}
    ledger = Ledger(durable, "mesh.test", clock)
    gather = Gather(durable, ledger, Metrics(), backends, clock, random.Random(1), **mesh)
    for _ in range(100):
        gather.take_own_points("acme", 7, b"x" * 500)
    await durable.flush()
    gather.queue.trimmed(await durable.work(gather.queue.trim))
    waiting, size = gather.queue.load("metrics")
    assert size <= 4096
    totals = gather.tally.totals()
    assert totals["received", "backend.metrics", "point", "acme", ""] == 700
    assert totals["dropped", "backend.metrics", "point", "acme", "queue_full"] == 700 - waiting
    assert gather.queue.load("traces") == (0, 0)
    durable.close()
