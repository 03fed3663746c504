"""Gather with its real neighbours: an OTLP backend, promtool, a scrape over HTTP."""

import random
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.lowlevel
import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span
from prometheus_client import generate_latest

from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.ledger import Ledger
from meshwarden.controlplane.gather.metrics import Metrics
from meshwarden.controlplane.gather.trace import TraceExporter
from meshwarden.v1.report_pb2 import CallStat, ExportRequest, Histogram

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


class Backend(TraceServiceServicer):
    """An OTLP backend that fails as often as it is told to before it takes anything."""

    def __init__(self) -> None:
        self.failures: list[grpc.StatusCode] = []
        self.taken: list[ResourceSpans] = []
        self.address = ""

    async def Export(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802
        if self.failures:
            await context.abort(self.failures.pop(), "not now")
        self.taken.extend(request.resource_spans)
        return otlp.ExportTraceServiceResponse()


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    backend, server = Backend(), grpc.aio.server()
    add_TraceServiceServicer_to_server(backend, server)
    backend.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield backend
    await server.stop(None)


def request(sequence: int) -> ExportRequest:
    resource = Resource(attributes=[KeyValue(key="service.name", value=AnyValue(string_value="web.acme"))])
    spans = ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=[Span(name=f"call {sequence}")])])
    stat = CallStat(
        source="spiffe://mesh.test/tenant/acme/service/web",
        destination="platform/orders",
        method="GET /a",
        status="200",
        decision=CallStat.ALLOWED,
        reporter=CallStat.SOURCE,
        count=1,
        durations=Histogram(buckets=[100], counts=[1]),
    )
    stat.minute.FromDatetime(NOW)
    return ExportRequest(sequence=sequence, run_id="run", calls=[stat], resource_spans=[spans.SerializeToString()])


def make(tmp_path: Path, endpoint: str, **limits: int) -> tuple[Gather, Metrics, Ledger]:
    metrics = Metrics()
    ledger = Ledger(tmp_path / "calls.db", "mesh.test", lambda: NOW)
    exporter = TraceExporter(endpoint, metrics.drop, random.Random(1), first_backoff_s=0.01, **limits)
    gather = Gather(ledger, metrics, exporter, lambda: NOW, owns=lambda *_: True, trust_domain="mesh.test", region="eu")
    return gather, metrics, ledger


async def test_spans_arrive_after_failures_and_at_shutdown(tmp_path: Path, backend: Backend) -> None:
    backend.failures = [grpc.StatusCode.UNAVAILABLE] * 3
    gather, metrics, ledger = make(tmp_path, f"http://{backend.address}")
    async with anyio.create_task_group() as group:
        group.start_soon(gather.run)
        await anyio.lowlevel.checkpoint()
        for sequence in range(1, 21):
            gather.ingest("a", request(sequence))
        group.cancel_scope.cancel()
    names = [spans.scope_spans[0].spans[0].name for spans in backend.taken]
    assert names == [f"call {sequence}" for sequence in range(1, 21)]
    attributes = {pair.key: pair.value.string_value for pair in backend.taken[0].resource.attributes}
    assert attributes == {
        "service.name": "web.acme",
        "mesh.node": "a",
        "mesh.region": "eu",
        "mesh.tenant": "acme",
        "mesh.service": "web",
    }
    assert metrics.drops() == {}
    assert len(await gather.ledger.list(NOW, datetime(2026, 1, 2, 3, 5, tzinfo=UTC))) == 1
    ledger.close()


async def test_what_a_backend_refuses_or_the_queue_cannot_hold_is_counted(tmp_path: Path, backend: Backend) -> None:
    backend.failures = [grpc.StatusCode.INVALID_ARGUMENT]
    one = len(request(1).resource_spans[0])
    gather, metrics, ledger = make(tmp_path, f"http://{backend.address}", max_queue_bytes=one * 4)
    for sequence in range(1, 9):
        gather.ingest("a", request(sequence))
    dropped = sum(metrics.drops().values())
    assert set(metrics.drops()) == {("backend.otlp", "span", "queue_full", "acme")}
    async with anyio.create_task_group() as group:
        group.start_soon(gather.run)
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert metrics.drops()["backend.otlp", "span", "rejected", "acme"] == 8 - dropped
    assert backend.taken == []
    ledger.close()


@pytest.mark.needs("promtool")
def test_promtool_has_nothing_to_say(tmp_path: Path) -> None:
    gather, metrics, ledger = make(tmp_path, "http://127.0.0.1:1")
    metrics.gauge("meshwarden_nodes", "Nodes with a session.", ("region",), lambda: [(("eu",), 2.0)])
    gather.ingest("a", request(1))
    text = generate_latest(metrics.registry)
    ledger.close()
    assert b"meshwarden_requests_total{" in text
    assert b'meshwarden_nodes{region="eu"} 2.0' in text
    result = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
