"""Forwarding to a real OTLP collector, Rotel: over both protocols, over its absence, sampled, and to the span."""

import asyncio
import random
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
import rotel
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status
from prometheus_client import CollectorRegistry

from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.forward.backend import Backend, GrpcTransport, HttpTransport
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.gather.metrics.own_metrics import OwnMetrics
from meshwarden.controlplane.gather.tail.policy import TailPolicy
from meshwarden.controlplane.local.port import free_port
from meshwarden.sdk.red.histogram import bucket_of, to_proto
from meshwarden.v1.report_pb2 import CallStat, ExportRequest

BINARY = Path(rotel.__file__).parent / "rotel-agent"
NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
BATCHES, SPANS = 8, 100
DEADLINE_S = 60.0


class Sink(TraceServiceServicer):
    """Where the collector hands on what it has taken."""

    def __init__(self) -> None:
        self.taken: list[ResourceSpans] = []
        self.measured: list[ResourceMetrics] = []
        self.endpoint = ""

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.taken.extend(request.resource_spans)
        return otlp.ExportTraceServiceResponse()

    async def metrics(self, request: Any, context: Any) -> Any:
        self.measured.extend(request.resource_metrics)
        return metrics_service_pb2.ExportMetricsServiceResponse()

    def points(self, name: str) -> dict[tuple[str, ...], Any]:
        """The newest point of each series of a metric, by its attributes and whose it is."""
        found: dict[tuple[str, ...], Any] = {}
        for item in self.measured:
            owner = next((one.value.string_value for one in item.resource.attributes if one.key == "mesh.tenant"), "")
            for metric in [metric for scope in item.scope_metrics for metric in scope.metrics if metric.name == name]:
                for point in getattr(metric, str(metric.WhichOneof("data"))).data_points:
                    said = sorted(f"{pair.key}={pair.value.string_value}" for pair in point.attributes)
                    found[owner, *said] = point
        return found

    def spans(self) -> list[tuple[str, Span]]:
        """(whose, span) of all that has come."""
        found = []
        for item in self.taken:
            said = {pair.key: pair.value.string_value for pair in item.resource.attributes}
            owner = f"{said['mesh.tenant']}/{said['mesh.service']} on {said['mesh.node']} in {said['mesh.region']}"
            found += [(owner, span) for scope in item.scope_spans for span in scope.spans]
        return found


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    sink, server = Sink(), grpc.aio.server()
    add_TraceServiceServicer_to_server(sink, server)
    other = MetricsServiceServicer()
    other.Export = sink.metrics
    add_MetricsServiceServicer_to_server(other, server)
    sink.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield sink
    await server.stop(None)


@contextmanager
def running(grpc_port: int, http_port: int, sink: Sink, directory: Path) -> Iterator[None]:
    """A collector on these ports that hands on to the sink."""
    command = [str(BINARY), "start", "--exporter", "otlp", "--otlp-exporter-endpoint", sink.endpoint]
    command += ["--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}", "--otlp-http-endpoint", f"127.0.0.1:{http_port}"]
    command += ["--batch-timeout", "100ms", "--pid-file", str(directory / "rotel.pid")]
    with open(directory / "rotel.log", "ab") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=directory, env={})
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def batch(number: int) -> ExportRequest:
    resource = Resource(attributes=[KeyValue(key="service.name", value=AnyValue(string_value="web.acme"))])
    spans = [
        Span(
            trace_id=bytes([number, at]) * 8,
            span_id=bytes([number, at]) * 4,
            name="GET",
            attributes=[KeyValue(key="n", value=AnyValue(int_value=at))],
            trace_state="a=b",
            start_time_unix_nano=1,
            end_time_unix_nano=2,
        )
        for at in range(1, SPANS + 1)
    ]
    body = ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=spans)]).SerializeToString()
    return ExportRequest(first_sequence=number, sequence=number, run_id="r", resource_spans=[body])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_a_collector_gets_every_span_once_it_is_there(protocol: str, sink: Sink, tmp_path: Path) -> None:
    ports = {"grpc": free_port(random.SystemRandom()), "http": free_port(random.SystemRandom())}
    transport = (GrpcTransport if protocol == "grpc" else HttpTransport)(f"http://127.0.0.1:{ports[protocol]}")
    durable = Durable(tmp_path / "gather.sqlite")
    mesh: dict[str, Any] = {"owns": lambda *_: True, "trust_domain": "mesh.test", "region": "eu"}
    ledger = Ledger(durable, "mesh.test", lambda: NOW)
    backends = [Backend("rotel", transport, frozenset({"span"}), 1 << 24)]
    gather = Gather(durable, ledger, Metrics(), backends, lambda: NOW, random.Random(1), first_backoff_s=0.05, **mesh)
    async with anyio.create_task_group() as group:
        group.start_soon(gather.run)
        for number in range(1, BATCHES // 2 + 1):
            gather.ingest("n1", batch(number))
            await gather.settle()
        with running(ports["grpc"], ports["http"], sink, tmp_path):
            for number in range(BATCHES // 2 + 1, BATCHES + 1):
                gather.ingest("n1", batch(number))
                await gather.settle()
            async with asyncio.timeout(DEADLINE_S):
                while len({span.span_id for _, span in sink.spans()}) < BATCHES * SPANS:  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            group.cancel_scope.cancel()
    durable.close()
    sent = Counter(
        (span.trace_id, span.span_id)
        for number in range(1, BATCHES + 1)
        for span in ResourceSpans.FromString(batch(number).resource_spans[0]).scope_spans[0].spans
    )
    assert Counter((span.trace_id, span.span_id) for _, span in sink.spans()) == sent
    assert {owner for owner, _ in sink.spans()} == {"acme/web on n1 in eu"}
    assert {span.trace_state for _, span in sink.spans()} == {"a=b"}
    totals = gather.tally.totals()
    of_backend = {key: count for key, count in totals.items() if key[1] == "backend.rotel"}
    assert of_backend == {
        ("received", "backend.rotel", "span", "acme", ""): BATCHES * SPANS,
        ("passed", "backend.rotel", "span", "acme", ""): BATCHES * SPANS,
    }


def counted(number: int) -> ExportRequest:
    """Calls of three methods, some of which fail."""
    calls = [
        CallStat(
            source="spiffe://mesh.test/tenant/acme/service/web",
            destination="platform/orders",
            method=f"/shop.Orders/Get{number % 3}",
            status=status,
            decision=CallStat.ALLOWED,
            reporter=CallStat.SOURCE,
            count=number,
            duration_sum_s=0.02 * number,
            durations=to_proto({bucket_of(0.02): number}),
        )
        for status in ("OK", "UNAVAILABLE")
    ]
    for call in calls:
        call.minute.FromDatetime(NOW)
    return ExportRequest(first_sequence=number, sequence=number, run_id="r", calls=calls)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_a_collector_has_the_counts_that_the_page_has(protocol: str, sink: Sink, tmp_path: Path) -> None:
    ports = {"grpc": free_port(random.SystemRandom()), "http": free_port(random.SystemRandom())}
    transport = (GrpcTransport if protocol == "grpc" else HttpTransport)(f"http://127.0.0.1:{ports[protocol]}")
    durable, metrics = Durable(tmp_path / "gather.sqlite"), Metrics(clock=lambda: NOW)
    mesh: dict[str, Any] = {"owns": lambda *_: True, "trust_domain": "mesh.test", "region": "eu"}
    ledger = Ledger(durable, "mesh.test", lambda: NOW)
    backends = [Backend("rotel", transport, frozenset({"point"}), 1 << 24)]
    gather = Gather(durable, ledger, metrics, backends, lambda: NOW, random.Random(1), first_backoff_s=0.05, **mesh)
    own = OwnMetrics(
        metrics,
        gather.tally,
        (),
        CollectorRegistry(),
        gather.take_own_points,
        lambda: NOW,
        region="eu",
        interval=timedelta(hours=1),
    )
    async with anyio.create_task_group() as group:
        group.start_soon(gather.run)
        for number in range(1, 5):
            gather.ingest("n1", counted(number))
            await own.tell()
            await gather.settle()
        with running(ports["grpc"], ports["http"], sink, tmp_path):
            for number in range(5, 9):
                gather.ingest("n1", counted(number))
                await own.tell()
                await gather.settle()
            page = {
                (one.labels["method"], one.labels["status"]): one.value
                for family in metrics.collect()
                for one in family.samples
                if one.name == "meshwarden_requests_total"
            }
            async with asyncio.timeout(DEADLINE_S):
                while taken(sink) != page:  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            group.cancel_scope.cancel()
    durable.close()
    durations = sink.points("rpc.client.call.duration")
    assert sum(point.count for point in durations.values()) == sum(page.values())
    assert {key[0] for key in durations} == {"acme"}
    assert {point.start_time_unix_nano for point in durations.values()} == {int(NOW.timestamp()) * 10**9}
    of_backend = {key: count for key, count in gather.tally.totals().items() if key[1] == "backend.rotel"}
    assert {key[0] for key in of_backend} == {"received", "passed"}
    assert sum(count for key, count in of_backend.items() if key[0] == "passed") == sum(
        count for key, count in of_backend.items() if key[0] == "received"
    )


def taken(sink: Sink) -> dict[tuple[str, str], float]:
    """The counts that have come: {(method, status): calls}."""
    found = {}
    for key, point in sink.points("meshwarden.requests").items():
        said = dict(pair.split("=", 1) for pair in key[1:])
        found[said["mesh.method"], said["mesh.status"]] = float(point.as_int)
    return found


async def test_a_collector_gets_what_tail_sampling_keeps(sink: Sink, tmp_path: Path) -> None:
    """Every tenth trace has failed; of the others three quarters are kept, by the last 56 bits of the trace id."""
    port = free_port(random.SystemRandom())
    durable = Durable(tmp_path / "gather.sqlite")
    mesh: dict[str, Any] = {"owns": lambda *_: True, "trust_domain": "mesh.test", "region": "eu"}
    ledger = Ledger(durable, "mesh.test", lambda: NOW)
    backends = [Backend("rotel", GrpcTransport(f"http://127.0.0.1:{port}"), frozenset({"span"}), 1 << 24)]
    tail = TailPolicy(ratio=0.75, grace_s=0.2)
    gather = Gather(durable, ledger, Metrics(), backends, lambda: NOW, random.Random(1), tail=tail, **mesh)
    expected = {}
    async with anyio.create_task_group() as group:
        group.start_soon(gather.run)
        with running(port, free_port(random.SystemRandom()), sink, tmp_path):
            for number in range(1, BATCHES + 1):
                request = batch(number)
                message = ResourceSpans.FromString(request.resource_spans[0])
                for at, span in enumerate(message.scope_spans[0].spans, 1):
                    has_failed = at % 10 == 0
                    if has_failed:
                        span.status.code = Status.STATUS_CODE_ERROR
                    if has_failed or span.trace_id[9] >= 0x40:
                        expected[span.trace_id] = "ot=th:0,a=b" if has_failed else "ot=th:4,a=b"
                request.resource_spans[0] = message.SerializeToString()
                gather.ingest("n1", request)
                await gather.settle()
            async with asyncio.timeout(DEADLINE_S):
                while gather.tail.load()[0] or len(sink.spans()) < len(expected):  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            group.cancel_scope.cancel()
    durable.close()
    assert {span.trace_id: span.trace_state for _, span in sink.spans()} == expected
    assert len(sink.spans()) == len(expected)
    totals = gather.tally.totals()
    dropped = totals["dropped", "control.sample", "span", "acme", "sampled"]
    assert totals["passed", "backend.rotel", "span", "acme", ""] == len(expected) == BATCHES * SPANS - dropped
    assert totals["passed", "control.store", "span", "acme", ""] == BATCHES * SPANS
