"""Backends: what was taken goes on to each, over refusals, outages and restarts, and every span is accounted for."""

import gzip
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
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

from meshwarden.controlplane.gather.backend import Backend, GrpcTransport, HttpTransport
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.ledger import Ledger
from meshwarden.controlplane.gather.metrics import Metrics
from meshwarden.v1.report_pb2 import ExportRequest

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
STATUS = {
    503: grpc.StatusCode.UNAVAILABLE,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    400: grpc.StatusCode.INVALID_ARGUMENT,
}
LARGE = "grpc: received message larger than max (5 vs. 4)"


class Taking:
    """What a backend takes, and how it fails before it takes anything."""

    def __init__(self) -> None:
        self.failures: list[int] = []
        self.bad: str = ""
        self.rejects = 0
        self.taken: list[ResourceSpans] = []
        self.authorizations: set[str] = set()
        self.endpoint = ""
        self.tried = 0

    def answer(
        self, request: otlp.ExportTraceServiceRequest, authorization: str
    ) -> int | otlp.ExportTraceServiceResponse:
        self.tried += 1
        self.authorizations.add(authorization)
        if self.failures:
            return self.failures.pop(0)
        if self.bad and any(self.bad in names(spans) for spans in request.resource_spans):
            return 400
        self.taken.extend(request.resource_spans)
        answer = otlp.ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = self.rejects
        return answer

    @property
    def names(self) -> list[str]:
        return [name for spans in self.taken for name in names(spans)]


def names(spans: ResourceSpans) -> list[str]:
    return [span.name for scope in spans.scope_spans for span in scope.spans]


class Servicer(TraceServiceServicer):
    def __init__(self, taking: Taking) -> None:
        self.taking = taking

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = self.taking.answer(request, str(dict(context.invocation_metadata()).get("authorization", "")))
        if isinstance(found, int):
            await context.abort(STATUS.get(found, grpc.StatusCode.RESOURCE_EXHAUSTED), LARGE if found == 413 else "no")
        return found


class Handler(BaseHTTPRequestHandler):
    taking: Taking

    def do_POST(self) -> None:
        body = gzip.decompress(self.rfile.read(int(self.headers["content-length"])))
        assert (self.path, self.headers["content-type"]) == ("/base/v1/traces", "application/x-protobuf")
        request = otlp.ExportTraceServiceRequest.FromString(body)
        found = self.taking.answer(request, self.headers.get("authorization", ""))
        answer = b"" if isinstance(found, int) else found.SerializeToString()
        self.send_response(found if isinstance(found, int) else 200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def backend(protocol: str) -> AsyncIterator[Taking]:
    taking = Taking()
    if protocol == "grpc":
        server = grpc.aio.server()
        add_TraceServiceServicer_to_server(Servicer(taking), server)
        taking.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        yield taking
        await server.stop(None)
    else:
        web = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"taking": taking}))
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        taking.endpoint = f"http://127.0.0.1:{web.server_port}/base"
        yield taking
        await anyio.to_thread.run_sync(web.shutdown)
        thread.join()
        web.server_close()


def request(sequence: int, tenant: str = "acme", spans: int = 1, size: int = 0) -> ExportRequest:
    resource = Resource(attributes=[KeyValue(key="service.name", value=AnyValue(string_value=f"web.{tenant}"))])
    found = [Span(name=f"{tenant} {sequence}.{number}" + "x" * size) for number in range(spans)]
    body = ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=found)]).SerializeToString()
    return ExportRequest(first_sequence=sequence, sequence=sequence, run_id=tenant, resource_spans=[body])


class Mesh:
    """A gather with one backend or more on a file."""

    def __init__(self, path: Path, *backends: Backend) -> None:
        self.durable = Durable(path)
        ledger = Ledger(self.durable, "mesh.test", lambda: NOW)
        mesh = {"owns": lambda *_: True, "trust_domain": "mesh.test", "region": "eu", "first_backoff_s": 0.01}
        self.gather = Gather(
            self.durable,
            ledger,
            Metrics(),
            backends,
            lambda: NOW,
            random.Random(1),
            **mesh,  # type: ignore[arg-type]
        )

    async def take(self, *requests: ExportRequest, together: bool = False) -> None:
        """Takes batches; ends once all that can be sent is sent."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.gather.run)
            for item in requests:
                assert self.gather.ingest("a", item)
                if not together:
                    await self.gather.settle()
            group.cancel_scope.cancel()

    def counts(self, stage: str) -> dict[tuple[str, ...], int]:
        """{(kind, tenant, reason): spans} of a stage."""
        return {
            (kind, tenant, reason): count
            for (kind, at, signal, tenant, reason), count in self.gather.tally.totals().items()
            if (at, signal) == (stage, "span")
        }


def backend_of(
    taking: Taking, protocol: str, name: str = "one", most: int = 1 << 20, secret: str | None = None
) -> Backend:
    transport = (GrpcTransport if protocol == "grpc" else HttpTransport)(taking.endpoint, secret)
    return Backend(name, transport, frozenset({"span"}), most)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gather.sqlite"


async def test_spans_arrive_after_failures_and_at_shutdown(path: Path, backend: Taking, protocol: str) -> None:
    backend.failures = [503, 429, 503]
    mesh = Mesh(path, backend_of(backend, protocol, secret="Bearer s3cret"))
    await mesh.take(*(request(number) for number in range(1, 21)))
    assert backend.names == [f"acme {number}.0" for number in range(1, 21)]
    assert backend.authorizations == {"Bearer s3cret"}
    attributes = {pair.key: pair.value.string_value for pair in backend.taken[0].resource.attributes}
    assert attributes == {
        "service.name": "web.acme",
        "mesh.node": "a",
        "mesh.region": "eu",
        "mesh.tenant": "acme",
        "mesh.service": "web",
    }
    assert mesh.counts("backend.one") == {("received", "acme", ""): 20, ("passed", "acme", ""): 20}
    mesh.durable.close()


async def test_one_that_is_refused_for_good_costs_no_other(path: Path, backend: Taking, protocol: str) -> None:
    backend.bad = "acme 4.1"
    mesh = Mesh(path, backend_of(backend, protocol))
    await mesh.take(*(request(number, spans=2) for number in range(1, 9)), request(1, "globex"), together=True)
    assert sorted(backend.names) == sorted(
        [f"acme {number}.{part}" for number in range(1, 9) for part in range(2) if number != 4] + ["globex 1.0"]
    )
    assert mesh.counts("backend.one") == {
        ("received", "acme", ""): 16,
        ("passed", "acme", ""): 14,
        ("dropped", "acme", "rejected"): 2,
        ("received", "globex", ""): 1,
        ("passed", "globex", ""): 1,
    }
    mesh.durable.close()


async def test_what_is_too_large_together_goes_one_by_one(path: Path, backend: Taking, protocol: str) -> None:
    backend.failures = [413]
    mesh = Mesh(path, backend_of(backend, protocol))
    await mesh.take(*(request(number) for number in range(1, 9)), together=True)
    assert backend.names == [f"acme {number}.0" for number in range(1, 9)]
    assert mesh.counts("backend.one") == {("received", "acme", ""): 8, ("passed", "acme", ""): 8}
    mesh.durable.close()


async def test_what_a_backend_says_it_rejected_is_counted(path: Path, backend: Taking, protocol: str) -> None:
    backend.rejects = 2
    mesh = Mesh(path, backend_of(backend, protocol))
    await mesh.take(request(1, spans=5))
    assert mesh.counts("backend.one") == {
        ("received", "acme", ""): 5,
        ("passed", "acme", ""): 3,
        ("dropped", "acme", "rejected"): 2,
    }
    mesh.durable.close()


async def test_a_long_outage_costs_the_oldest_of_whoever_has_most(
    path: Path, backend: Taking, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshwarden.controlplane.gather.gather.SHUTDOWN_S", 0.05)
    monkeypatch.setattr("meshwarden.controlplane.gather.queue._SOME", 4)
    backend.failures = [503] * 1000
    mesh = Mesh(path, backend_of(backend, protocol, most=20_000))
    requests = [request(1, "globex"), *(request(number, size=1000) for number in range(1, 51))]
    await mesh.take(*requests)
    assert mesh.gather.queue.load("one")[1] <= 20_000
    mesh.durable.close()
    backend.failures = []
    # On a busy machine all of it takes its time to go.
    monkeypatch.setattr("meshwarden.controlplane.gather.gather.SHUTDOWN_S", 60.0)
    after = Mesh(path, backend_of(backend, protocol, most=20_000))  # a restart loses nothing of it
    await after.take()
    dropped = after.counts("backend.one")["dropped", "acme", "queue_full"]
    assert dropped >= 30
    assert Counter(name.split()[0] for name in backend.names) == {"acme": 50 - dropped, "globex": 1}
    assert any(name.startswith("acme 50.") for name in backend.names)
    assert after.counts("backend.one")["passed", "acme", ""] == 50 - dropped
    assert after.gather.queue.load("one") == (0, 0)
    after.durable.close()


async def test_what_is_under_way_is_not_dropped_as_well(
    path: Path, backend: Taking, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshwarden.controlplane.gather.queue._SOME", 1)
    backend.failures = [503] * 3
    mesh = Mesh(path, backend_of(backend, protocol, most=3000))
    await mesh.take(*(request(number, spans=2, size=400) for number in range(1, 201)))
    counts = mesh.counts("backend.one")
    assert counts["received", "acme", ""] == 400
    assert len(backend.names) == counts["passed", "acme", ""]
    assert 400 - len(backend.names) == counts.get(("dropped", "acme", "queue_full"), 0)
    assert mesh.gather.queue.load("one") == (0, 0)
    mesh.durable.close()


async def test_a_backend_that_is_away_holds_up_no_other(
    path: Path, backend: Taking, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshwarden.controlplane.gather.gather.SHUTDOWN_S", 1.0)
    away = Taking()
    away.endpoint = "http://127.0.0.1:1"
    mesh = Mesh(path, backend_of(away, protocol, "away"), backend_of(backend, protocol))
    await mesh.take(*(request(number) for number in range(1, 6)))
    assert len(backend.names) == 5
    assert mesh.gather.queue.load("away")[0] == 5
    mesh.durable.close()
    without = Mesh(path, backend_of(backend, protocol))
    await without.take()
    assert without.counts("backend.away") == {("received", "acme", ""): 5, ("dropped", "acme", "removed"): 5}
    without.durable.close()
