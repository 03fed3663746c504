"""Forwarding to a real OTLP collector, Rotel: over both protocols, over its absence, and to the span."""

import asyncio
import random
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
import rotel
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from meshwarden.controlplane.gather.backend import Backend, GrpcTransport, HttpTransport
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.ledger import Ledger
from meshwarden.controlplane.gather.metrics import Metrics
from meshwarden.v1.report_pb2 import ExportRequest

BINARY = Path(rotel.__file__).parent / "rotel-agent"
NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
BATCHES, SPANS = 8, 100
DEADLINE_S = 60.0


class Sink(TraceServiceServicer):
    """Where the collector hands on what it has taken."""

    def __init__(self) -> None:
        self.taken: list[ResourceSpans] = []
        self.endpoint = ""

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.taken.extend(request.resource_spans)
        return otlp.ExportTraceServiceResponse()

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
    sink.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield sink
    await server.stop(None)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


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
    ports = {"grpc": free_port(), "http": free_port()}
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
