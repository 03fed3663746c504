"""Backends: what was taken goes on to each, over refusals, outages and restarts, and every span is accounted for."""

import contextlib
import gzip
import random
import socket
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
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.forward.backend import Away, Backend, GrpcTransport, HttpTransport
from meshwarden.controlplane.gather.forward.forward import MAX_ASKED_S
from meshwarden.controlplane.gather.forward.header import OWN, BadHeader, Headers
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.metrics.metrics import Metrics
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
        self.headers: list[dict[str, str]] = []
        self.limited: set[str] = set()
        self.chokes_on: str = ""
        self.says: bytes = b""
        self.retry_after = ""
        self.endpoint = ""
        self.tried = 0

    def answer(
        self, request: otlp.ExportTraceServiceRequest, headers: dict[str, str]
    ) -> int | otlp.ExportTraceServiceResponse:
        self.tried += 1
        self.headers.append(headers)
        if headers.get("x-scope-orgid") in self.limited:
            return 429
        if self.failures:
            return self.failures.pop(0)
        if self.chokes_on and any(self.chokes_on in names(spans) for spans in request.resource_spans):
            return 503
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
        found = self.taking.answer(request, {key: str(value) for key, value in context.invocation_metadata()})
        if isinstance(found, int):
            code = STATUS.get(found, grpc.StatusCode.RESOURCE_EXHAUSTED)
            await context.abort(code, LARGE if found == 413 else "no", self._details(code))
        return found

    def _details(self, code: grpc.StatusCode) -> tuple[tuple[str, bytes], ...]:
        said = self.taking.retry_after
        if not said.isdecimal() or len(said) > 10:
            return (("grpc-status-details-bin", said.encode()),) if said else ()
        status, info = status_pb2.Status(code=code.value[0], message="no"), error_details_pb2.RetryInfo()
        info.retry_delay.FromSeconds(int(said))
        status.details.add().Pack(info)
        return (("grpc-status-details-bin", status.SerializeToString()),)


class Handler(BaseHTTPRequestHandler):
    taking: Taking

    def do_POST(self) -> None:
        body = gzip.decompress(self.rfile.read(int(self.headers["content-length"])))
        assert (self.path, self.headers["content-type"]) == ("/base/v1/traces", "application/x-protobuf")
        request = otlp.ExportTraceServiceRequest.FromString(body)
        found = self.taking.answer(request, {key.lower(): value for key, value in self.headers.items()})
        answer = b"" if isinstance(found, int) else found.SerializeToString()
        if self.taking.says:
            self.wfile.write(self.taking.says)
            self.close_connection = True
            return
        self.send_response(found if isinstance(found, int) else 200)
        if isinstance(found, int) and self.taking.retry_after:
            self.send_header("retry-after", self.taking.retry_after)
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
    taking: Taking, protocol: str, name: str = "one", most: int = 1 << 20, headers: Headers | None = None
) -> Backend:
    transport = (GrpcTransport if protocol == "grpc" else HttpTransport)(taking.endpoint, headers)
    return Backend(name, transport, frozenset({"span"}), most)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "gather.sqlite"


async def test_spans_arrive_after_failures_and_at_shutdown(path: Path, backend: Taking, protocol: str) -> None:
    backend.failures = [503, 429, 503]
    secret = Headers({"Authorization": "Bearer s3cret", "X-Api-Key": "k3y"})
    mesh = Mesh(path, backend_of(backend, protocol, headers=secret))
    await mesh.take(*(request(number) for number in range(1, 21)))
    assert backend.names == [f"acme {number}.0" for number in range(1, 21)]
    said = {(headers["authorization"], headers["x-api-key"]) for headers in backend.headers}
    assert said == {("Bearer s3cret", "k3y")}
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
    monkeypatch.setattr("meshwarden.controlplane.gather.forward.queue._SOME", 4)
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
    monkeypatch.setattr("meshwarden.controlplane.gather.forward.queue._SOME", 1)
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


async def test_each_tenant_goes_under_its_name_and_a_limit_there_holds_up_no_other(
    path: Path, backend: Taking, protocol: str, until: Any
) -> None:
    backend.limited, backend.retry_after = {"acme"}, "1"
    mesh = Mesh(path, backend_of(backend, protocol, headers=Headers(tenant="X-Scope-OrgID")))
    async with anyio.create_task_group() as group:
        group.start_soon(mesh.gather.run)
        for number in range(1, 6):
            for tenant in ("acme", "globex"):
                assert mesh.gather.ingest("a", request(number, tenant))
        mesh.gather.take_own(ResourceSpans(scope_spans=[ScopeSpans(spans=[Span(name="own")])]).SerializeToString(), 1)
        await until(lambda: len(backend.names) == 6 and mesh.gather.backends()[0].waiting == 5, "the others' are sent")
        assert "acme" in mesh.gather.backends()[0].error
        assert not any(name.startswith("acme") for name in backend.names)
        backend.limited = set()
        await until(lambda: not mesh.gather.backends()[0].waiting, "acme's are sent")
        assert not mesh.gather.backends()[0].error
        group.cancel_scope.cancel()
    assert {headers["x-scope-orgid"] for headers in backend.headers} == {"acme", "globex", OWN}
    assert Counter(name.split()[0] for name in backend.names) == {"acme": 5, "globex": 5, "own": 1}
    assert mesh.counts("backend.one")["passed", "acme", ""] == 5
    mesh.durable.close()


async def test_what_a_backend_chokes_on_holds_up_nobody_elses(
    path: Path, backend: Taking, protocol: str, until: Any
) -> None:
    backend.chokes_on = "acme 1.0"
    mesh = Mesh(path, backend_of(backend, protocol))
    async with anyio.create_task_group() as group:
        group.start_soon(mesh.gather.run)
        for number in range(1, 6):
            for tenant in ("acme", "globex", "initech"):
                assert mesh.gather.ingest("a", request(number, tenant))
            await mesh.gather.settle()
        await until(lambda: len(backend.names) == 10 and mesh.gather.backends()[0].waiting == 5, "the others' are sent")
        assert mesh.gather.backends()[0].error
        backend.chokes_on = ""
        await until(lambda: not mesh.gather.backends()[0].waiting, "acme's are sent")
        assert not mesh.gather.backends()[0].error
        group.cancel_scope.cancel()
    assert Counter(name.split()[0] for name in backend.names) == {"acme": 5, "globex": 5, "initech": 5}
    mesh.durable.close()


@pytest.mark.parametrize("protocol", ["http"])
@pytest.mark.parametrize(
    "says",
    [
        b"Content-Length: 100\r\n\r\nabc",
        b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Content-Length: 3\r\n\r\n\xff\xff\xff",
    ],
)
async def test_an_answer_that_cannot_be_read_is_as_good_as_its_status(
    path: Path, backend: Taking, protocol: str, says: bytes
) -> None:
    backend.says = b"HTTP/1.1 200 OK\r\n" + says
    mesh = Mesh(path, backend_of(backend, protocol))
    await mesh.take(*(request(number) for number in range(1, 4)))
    assert backend.names == [f"acme {number}.0" for number in range(1, 4)]
    assert mesh.counts("backend.one") == {("received", "acme", ""): 3, ("passed", "acme", ""): 3}
    mesh.durable.close()


async def test_a_defect_of_ours_in_sending_ends_nothing(
    path: Path, backend: Taking, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = backend_of(backend, protocol)
    send, defects = one.transport.send, [RuntimeError("a defect"), RuntimeError("another")]

    async def failing(*args: Any) -> int:
        if defects:
            raise defects.pop()
        return await send(*args)

    monkeypatch.setattr(one.transport, "send", failing)
    mesh = Mesh(path, one)
    await mesh.take(request(1))
    assert backend.names == ["acme 1.0"]
    mesh.durable.close()


@pytest.mark.parametrize("said", ["2", "99999999", "-1", "Wed, 21 Oct 2015 07:28:00 GMT", "1" * 50, "\x7f~", "1e9"])
async def test_a_backend_is_left_alone_as_long_as_it_asks_and_no_longer_than_is_right(
    backend: Taking, protocol: str, said: str
) -> None:
    backend.failures, backend.retry_after = [503], said
    transport = (GrpcTransport if protocol == "grpc" else HttpTransport)(backend.endpoint)
    with pytest.raises(Away) as caught:
        await transport.send("span", "acme", [ResourceSpans().SerializeToString()])
    asked_s = min(caught.value.retry_s, MAX_ASKED_S)
    assert asked_s == {"2": 2.0, "99999999": MAX_ASKED_S}.get(said, 0.0)
    await transport.close()


async def test_what_a_span_says_goes_on_whole(path: Path, backend: Taking, protocol: str) -> None:
    """Kinds, parents, links, events, scopes and statuses, as Jaeger and Tempo put traces together of."""
    span = Span(
        trace_id=b"t" * 16,
        span_id=b"s" * 8,
        parent_span_id=b"p" * 8,
        trace_state="ot=th:8",
        flags=0x101,
        name="shop.Orders/Get",
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=5,
        end_time_unix_nano=9,
        attributes=[KeyValue(key="server.address", value=AnyValue(string_value="orders.platform"))],
        events=[Span.Event(name="exception", time_unix_nano=6)],
        links=[Span.Link(trace_id=b"l" * 16, span_id=b"k" * 8, trace_state="a=b")],
        status=Status(code=Status.STATUS_CODE_ERROR, message="UNAVAILABLE"),
    )
    scope = ScopeSpans(scope=InstrumentationScope(name="meshwarden.sdk", version="1"), spans=[span], schema_url="u")
    resource = Resource(attributes=[KeyValue(key="service.name", value=AnyValue(string_value="web.acme"))])
    body = ResourceSpans(resource=resource, scope_spans=[scope]).SerializeToString()
    mesh = Mesh(path, backend_of(backend, protocol))
    await mesh.take(ExportRequest(first_sequence=1, sequence=1, run_id="acme", resource_spans=[body]))
    (taken,) = backend.taken
    assert list(taken.scope_spans) == [scope]
    mesh.durable.close()


@pytest.mark.parametrize(
    ("fixed", "tenant"),
    [
        ({"x-key": "a\r\nx-evil: 1"}, ""),
        ({"x-key": " s3cret"}, ""),
        ({"x-key": "s3cret\u00e9"}, ""),
        ({"x-key": "s3cret" * 2000}, ""),
        ({"content-length": "s3cret"}, ""),
        ({"host": "s3cret"}, ""),
        ({"grpc-timeout": "s3cret"}, ""),
        ({"x-key-bin": "s3cret"}, ""),
        ({"bad name": "s3cret"}, ""),
        ({"x-key": "s3cret", "X-Key": "s3cret"}, ""),
        ({"x-scope-orgid": "s3cret"}, "X-Scope-OrgID"),
        ({}, "content-type"),
    ],
)
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(fixed: dict[str, str], tenant: str) -> None:
    with pytest.raises(BadHeader) as caught:
        Headers(fixed, tenant)
    assert "s3cret" not in str(caught.value)


def test_no_header_shows_its_value() -> None:
    assert "s3cret" not in repr(Headers({"authorization": "s3cret"}))


def drip(listener: socket.socket, begins: bytes, is_over: threading.Event) -> None:
    """Answers each connection byte by byte, without an end."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(begins)
                while not is_over.wait(0.01):
                    connection.sendall(b"x")


@pytest.mark.parametrize(
    ("begins", "deadline_s", "is_taken"),
    [
        (b"", 0.3, False),
        (b"HTTP/1.1 2", 0.3, False),
        (b"HTTP/1.1 200 OK\r\nx", 0.3, False),
        (b"HTTP/1.1 503 No\r\ncontent-length: 60000\r\n\r\n", 0.3, False),
        # Its status is known, on however slow a machine.
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n", 3.0, True),
    ],
)
async def test_an_answer_that_drips_ends_by_a_deadline(begins: bytes, deadline_s: float, is_taken: bool) -> None:
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener, begins, is_over))
        thread.start()
        transport = HttpTransport(f"http://127.0.0.1:{listener.getsockname()[1]}", deadline_s=deadline_s)
        guard = threading.Timer(60, is_over.set)  # a thread can't be cancelled
        guard.start()
        try:
            if is_taken:
                assert await transport.send("span", "acme", [b""]) == 0
            else:
                with pytest.raises(Away):
                    await transport.send("span", "acme", [b""])
            assert not is_over.is_set()
        finally:
            guard.cancel()
            is_over.set()
            listener.shutdown(socket.SHUT_RDWR)
            await anyio.to_thread.run_sync(thread.join)
            await transport.close()
