"""Telemetry on its way up, in one process: the agent's intake, spool and outbox, then the control plane's gather.

What is left out is the way between them: gRPC and TLS. As a program it serves OTLP over gRPC before all that:

    python -m benchmarks.ingest DIRECTORY      it writes DIRECTORY/port, and answers each line once all is on disk
"""

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import apsw
import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.process import Broken
from meshwarden.agents.telemetry.aggregate import Aggregator
from meshwarden.agents.telemetry.budget import Rate
from meshwarden.agents.telemetry.intake import Intake
from meshwarden.agents.telemetry.outbox import Outbox
from meshwarden.agents.telemetry.receive import Receiver
from meshwarden.agents.telemetry.spool import Spool
from meshwarden.agents.workload.bootstrap import NodePlace
from meshwarden.agents.workload.workload import Workload
from meshwarden.certs.clock import utc_now
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.api.report import parts
from meshwarden.controlplane.api.validation import check
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.gather.trace.store import MAX_SIZE_BYTES
from meshwarden.sdk.heap import settle
from meshwarden.sdk.red.call_table import Row, Table
from meshwarden.sdk.red.histogram import bucket_of
from meshwarden.v1 import report_pb2, resources_pb2

DOMAIN, NODE, REGION = "bench.test", "node-a", "eu"
SPANS = 512
REQUESTS = 16
CALLEES = 8
METHODS = 4
_SPANS = """
CREATE TABLE IF NOT EXISTS spans (
  trace_id BLOB, span_id BLOB, parent_span_id BLOB, service TEXT, name TEXT, kind INTEGER, start_ns INTEGER,
  end_ns INTEGER, status INTEGER, method TEXT, address TEXT
);
CREATE INDEX IF NOT EXISTS spans_of ON spans (trace_id)
"""
_ADD_SPAN = "INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass
class River:
    """Both ends, of one node."""

    intake: Intake
    spool: Spool
    outbox: Outbox
    gather: Gather
    durable: Durable
    path: Path
    workload: Workload

    async def take(self, bodies: list[bytes]) -> float:
        """Takes requests, each with the counts of its calls, as far as the disk of the control plane.

        Returns:
            The CPU time of this process, in seconds.
        """
        tables = [calls_of() for _ in bodies]
        begun_s = time.process_time()
        for body, table in zip(bodies, tables, strict=True):
            self.intake.take("span", body, self.workload)
            self.take_calls(table)
        if not await self.outbox.flush():
            raise Broken("the control plane took not all of it")
        if lost := self.gather.tally.drops():
            raise Broken(f"some of it was dropped: {lost}")
        return time.process_time() - begun_s

    def take_calls(self, table: bytes) -> None:
        """Takes what a program reports of its calls, as the agent's API does."""
        read = report_pb2.CallTable.FromString(table)
        tables = self.intake.counts.stamp([read], self.workload.spiffe_id)
        self.intake.take_calls((), "acme", tables=tables)

    async def size_bytes(self) -> int:
        """What the file of the control plane takes."""
        return await self.durable.read(lambda db: int(db.pragma("page_count")) * int(db.pragma("page_size")))


@asynccontextmanager
async def river(directory: Path, *, keeps_traces: bool) -> AsyncIterator[River]:
    """Opens both ends in a directory."""
    place = NodePlace(NODE, REGION, "z", directory / "a.sock", directory / "w.sock")
    spool = Spool(directory / "spool", lambda: os.urandom(16))
    path = directory / "gather.sqlite"
    durable = Durable(path)
    ledger = Ledger(durable, DOMAIN, utc_now, region=REGION)
    mesh = {"owns": owns, "trust_domain": DOMAIN, "region": REGION}
    most = MAX_SIZE_BYTES if keeps_traces else 0
    gather = Gather(durable, ledger, Metrics(), [], utc_now, random.Random(1), **mesh, traces_max_bytes=most)

    async def export(batch: bytes, timeout_s: float) -> report_pb2.ExportResponse:
        request = check(report_pb2.ExportRequest.FromString(batch))
        gather.ingest(NODE, request, parts(request, reads_spans=gather.reads_spans))
        await gather.settle()
        return report_pb2.ExportResponse(sequence=request.sequence)

    intake = Intake(place, Aggregator(utc_now), spool, lambda: 1, Rate(1 << 40, 1 << 40))
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(gather.run)
            yield River(intake, spool, Outbox(spool, export), gather, durable, path, workload_in(directory))
            group.cancel_scope.cancel()
    finally:
        spool.close()
        durable.close()


def rows_of(bodies: list[bytes], path: Path) -> float:
    """The other bare loop: reads requests and inserts a row for each span, with an index on its trace.

    Args:
        bodies: the requests; eight go into one transaction, which is as large as a batch of an agent is.
        path: the database, which there may be already.

    Returns:
        The CPU time of this process, in seconds.
    """
    begun_s = time.process_time()
    db = apsw.Connection(str(path))
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -16384"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    db.execute(_SPANS)
    for at in range(0, len(bodies), 8):
        db.execute("BEGIN IMMEDIATE")
        for body in bodies[at : at + 8]:
            db.executemany(_ADD_SPAN, _rows(body))
        db.execute("COMMIT")
    db.close()
    return time.process_time() - begun_s


def _rows(body: bytes) -> Iterator[tuple[object, ...]]:
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = resource_spans.resource.attributes[0].value.string_value
        for scope in resource_spans.scope_spans:
            for span in scope.spans:
                said = {pair.key: pair.value.string_value for pair in span.attributes}
                yield (
                    span.trace_id,
                    span.span_id,
                    span.parent_span_id,
                    service,
                    span.name,
                    span.kind,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code,
                    said.get("rpc.method"),
                    said.get("server.address"),
                )


def edges_of(bodies: list[bytes]) -> tuple[float, Counter[tuple[str, str]]]:
    """The bare loop: reads requests and counts the edges of their client spans.

    Returns:
        The CPU time of this process in seconds, and the edges.
    """
    edges: Counter[tuple[str, str]] = Counter()
    begun_s = time.process_time()
    for body in bodies:
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            source = resource_spans.resource.attributes[0].value.string_value
            for scope in resource_spans.scope_spans:
                for span in scope.spans:
                    if span.kind == Span.SPAN_KIND_CLIENT:
                        for attribute in span.attributes:
                            if attribute.key == "server.address":
                                edges[source, attribute.value.string_value] += 1
    return time.process_time() - begun_s, edges


def bodies_of(rng: random.Random, requests: int = REQUESTS) -> list[bytes]:
    """OTLP requests of SPANS spans each, half of them of clients, with eight attributes; no id comes twice."""
    return [_body(rng) for _ in range(requests)]


def _body(rng: random.Random) -> bytes:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.add(key="service.name").value.string_value = "web.acme"
    scope = resource_spans.scope_spans.add()
    now_ns = time.time_ns()
    for number in range(SPANS // 2):
        trace_id, parent = rng.randbytes(16), b""
        for kind in (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT):
            span_id, callee = rng.randbytes(8), number % CALLEES
            method = f"bench.Service{callee}/Method{number % METHODS}"
            begun_ns = now_ns - rng.randrange(1_000_000, 50_000_000)
            span = scope.spans.add(trace_id=trace_id, span_id=span_id, parent_span_id=parent, name=method, kind=kind)
            span.start_time_unix_nano, span.end_time_unix_nano = begun_ns, now_ns
            texts = {
                "rpc.system.name": "grpc",
                "rpc.method": method,
                "server.address": f"service-{callee}",
                "rpc.response.status_code": "OK",
                "user.tier": "gold",
                "order.id": f"{rng.getrandbits(48):x}",
                "deployment": "blue",
            }
            for key, text in texts.items():
                span.attributes.add(key=key).value.string_value = text
            span.attributes.add(key="order.items").value.int_value = number
            parent = span_id
    return request.SerializeToString()


def calls_of() -> bytes:
    """What the SDK reports of the client spans of a request: counts by callee and method, a serialised `CallTable`."""
    count = SPANS // 2 // (CALLEES * METHODS)
    table = Table(int(utc_now().timestamp()) // 60 * 60)
    for callee in range(CALLEES):
        for method in range(METHODS):
            kind = report_pb2.CallStat(
                destination=f"platform/service-{callee}",
                method=f"/bench.Service{callee}/Method{method}",
                status="OK",
                decision=report_pb2.CallStat.ALLOWED,
                reporter=report_pb2.CallStat.SOURCE,
                revision=1,
            )
            table.add(Row(kind.SerializeToString(), count, count * 0.01, {bucket_of(0.01): count}))
    return table.message().SerializeToString()


def owns(node: str, tenant: str, service: str) -> bool:
    """Whether it is the one entry that there is."""
    return (node, tenant, service) == (NODE, "acme", "web")


def workload_in(directory: Path) -> Workload:
    """The one workload."""
    return Workload(
        id="acme/web#1",
        entry=resources_pb2.WorkloadEntry(metadata=resources_pb2.Metadata(tenant="acme", name="web")),
        service=resources_pb2.Service(),
        spiffe_id=SpiffeId.workload(DOMAIN, "acme", "web"),
        pid=os.getpid(),
        start_time=0,
        pidfd=-1,
        uid=os.getuid(),
        gid=os.getgid(),
        port=0,
        directory=directory,
        number=1,
    )


async def serve(directory: Path) -> None:
    """Takes OTLP over gRPC until standard input ends; for each line of it, sends all up and answers."""
    async with river(directory, keeps_traces=False) as opened:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 4 << 20)])
        Receiver(lambda _: opened.workload, opened.intake).add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        settle()
        (directory / "port").write_text(str(port))
        table = calls_of()  # once: to make it is the program's work
        while await anyio.to_thread.run_sync(sys.stdin.readline):
            for _ in range(REQUESTS):
                opened.take_calls(table)
            if not await opened.outbox.flush() or (lost := opened.gather.tally.drops()):
                raise Broken(f"not all of it was taken: {lost}")
            count = opened.gather.tally.totals()["passed", "control.ingest", "span", "acme", ""]
            print(json.dumps({"spans": count}), flush=True)
        await server.stop(None)


if __name__ == "__main__":
    anyio.run(serve, Path(sys.argv[1]))
