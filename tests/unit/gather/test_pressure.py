"""More than can be written: nodes that come all at once wait their turn, and a full disk costs no memory for ever."""

import random
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from meshwarden.controlplane.api.report import ReportServicer
from meshwarden.controlplane.gather import gather as module
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.forward import queue
from meshwarden.controlplane.gather.forward.backend import Away, Backend
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.gather.tail.policy import TailPolicy
from meshwarden.controlplane.gather.trace import store as trace_store
from meshwarden.sdk.mtls import peer
from meshwarden.v1.report_pb2 import ExportRequest

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


class Nobody:
    """A backend that is away."""

    async def send(self, signal: str, tenant: str, bodies: Sequence[bytes]) -> int:
        raise Away("nobody is there")

    async def close(self) -> None:
        pass


class Identity:
    async def joined(self, node: str, _: str) -> str:
        return node


class Context:
    async def abort(self, code: grpc.StatusCode, _: str) -> None:
        raise ConnectionError(code.name)


def spans(count: int = 1, size: int = 0, name: str = "web.acme") -> bytes:
    resource = Resource(attributes=[KeyValue(key="service.name", value=AnyValue(string_value=name))])
    found = [
        Span(trace_id=secrets.token_bytes(16), span_id=secrets.token_bytes(8), name="x" * size) for _ in range(count)
    ]
    return ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=found)]).SerializeToString()


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Durable]:
    durable = Durable(tmp_path / "gather.sqlite")
    yield durable
    durable.close()


def make(durable: Durable, tail: TailPolicy | None = None) -> Gather:
    mesh: dict[str, Any] = {"owns": lambda *_: True, "trust_domain": "mesh.test", "region": "eu", "tail": tail}
    backend = Backend("one", Nobody(), frozenset({"span", "point"}), 1 << 30)
    ledger = Ledger(durable, "mesh.test", lambda: NOW)
    return Gather(durable, ledger, Metrics(), [backend], lambda: NOW, random.Random(1), **mesh)


def counts(gather: Gather, stage: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for (kind, of, *_), count in gather.tally.totals().items():
        if of == stage:
            found[kind] += count
    return found


async def test_nodes_that_come_all_at_once_lose_nothing(durable: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    # As after an outage, when all of them have full spools.
    monkeypatch.setattr(module, "UNWRITTEN_BYTES", 32 << 10)
    monkeypatch.setattr(trace_store, "WAITING_BYTES", 64 << 10)
    monkeypatch.setattr(peer, "current", lambda: "a")
    gather = make(durable)
    servicer: Any = ReportServicer(gather, Identity())  # type: ignore[arg-type]

    async def send(number: int) -> None:
        batch = ExportRequest(first_sequence=1, sequence=1, run_id=f"run-{number}", resource_spans=[spans(20, 1000)])
        assert (await servicer.Export(batch, Context())).sequence == 1

    async with anyio.create_task_group() as group:
        group.start_soon(gather.run)
        async with anyio.create_task_group() as nodes:
            for number in range(50):
                nodes.start_soon(send, number)
        group.cancel_scope.cancel()
    assert counts(gather, "control.store") == {"received": 1000, "passed": 1000}


@pytest.mark.parametrize("tail", [None, TailPolicy(ratio=0.5, wait_s=0.01, grace_s=0.0, max_waiting_bytes=16 << 10)])
async def test_a_full_disk_costs_so_much_memory(
    durable: Durable, monkeypatch: pytest.MonkeyPatch, tail: TailPolicy | None
) -> None:
    monkeypatch.setattr(queue, "UNWRITTEN_BYTES", 64 << 10)
    monkeypatch.setattr(trace_store, "WAITING_BYTES", 64 << 10)
    monkeypatch.setattr(peer, "current", lambda: "a")
    gather = make(durable, tail)
    servicer: Any = ReportServicer(gather, Identity())  # type: ignore[arg-type]
    batch = ExportRequest(first_sequence=1, sequence=1, run_id="run", resource_spans=[spans(20, 1000)])
    async with anyio.create_task_group() as group:
        group.start_soon(gather.run)
        await gather.settle()
        durable._db.pragma("max_page_count", 1)
        for _ in range(3):
            with pytest.raises(ConnectionError, match="UNAVAILABLE"):
                await servicer.Export(batch, Context())
        for number in range(200):
            another = ExportRequest(first_sequence=1, sequence=1, run_id=f"r{number}", resource_spans=[spans(20, 1000)])
            with pytest.raises(ConnectionError, match="UNAVAILABLE"):
                await servicer.Export(another, Context())
            # Of the mesh itself there is more all the time, whether or not it can be kept.
            gather.take_own(spans(1, 1000, "meshwarden-controlplane"), 1)
            gather.take_own_points("acme", 1, bytes(1000))
        assert gather.fault
        assert sum(len(body) for _, _, body in gather.queue._waiting.added) <= 64 << 10
        assert sum(len(row.body) for row in gather.tail._waiting.added.values()) <= 32 << 10
        durable._db.pragma("max_page_count", 1_000_000)
        assert (await servicer.Export(batch, Context())).sequence == 1
        group.cancel_scope.cancel()
    assert counts(gather, "control.ingest") == {"received": 20, "passed": 20}
    for stage, waiting in (("control.store", 0), ("backend.one", gather.queue.load("one")[0])):
        found = counts(gather, stage)
        assert found["received"] == found["passed"] + found["dropped"] + waiting
        assert found["dropped"] > 0
    assert gather.tally.drops()["backend.one", "point", "disk_full", "acme"] > 0
