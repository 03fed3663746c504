"""How long one waits for a trace, and for a search, with a million spans in the store.

The reference is a table of SQLite with a row for each of the same spans, an index by trace and one by service and time,
on a connection that is open: what it answers are rows, where ours are a message with whose spans the asker may see, and
which parents are missing.
"""

import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import anyio
import apsw
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from benchmarks.ingest import DOMAIN, NODE, REGION
from benchmarks.process import Broken, say
from benchmarks.result import Case
from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.gather.trace.query import Question, nanoseconds
from meshwarden.v1.report_pb2 import ExportRequest

SPANS = 1_000_000
ASKED = 40
"""Questions of each kind in a round."""
SHOWN = 20
_HOUR = timedelta(hours=1)
_BATCH = 64  # traces that a node sends at once
# Who has how many spans of a trace.
_PARTS = (("acme", "web", 3), ("platform", "orders", 3), ("platform", "billing", 2))
_PER_TRACE = sum(spans for _, _, spans in _PARTS)
_RARE = 0.01  # traces with an error, and slow ones
_SLOW_NS = 1_000_000_000
_SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE spans (
  trace_id BLOB, span_id BLOB, parent BLOB, tenant TEXT, service TEXT, name TEXT, start_ns INTEGER, end_ns INTEGER,
  status INTEGER, attributes TEXT
)
"""
_INDEX = "CREATE INDEX by_trace ON spans (trace_id); CREATE INDEX by_service ON spans (service, start_ns)"
_FIND = "SELECT * FROM spans WHERE trace_id = ? ORDER BY start_ns"
_SEARCH = """
SELECT DISTINCT trace_id, max(start_ns) FROM spans
WHERE service = :service AND start_ns BETWEEN :start AND :end AND end_ns - start_ns >= :longest AND status >= :status
GROUP BY trace_id ORDER BY max(start_ns) DESC LIMIT :most
"""


class _Batch(NamedTuple):
    bodies: list[bytes]
    rows: list[tuple[object, ...]]
    trace_ids: list[bytes]


async def cases(directory: Path, rounds: int) -> AsyncIterator[Case]:
    """Yields the cases; each side has its turn in each round."""
    say("gather: traces")
    place = directory / "traces"
    place.mkdir()
    indexed = "an indexed lookup of the same rows in SQLite"
    by_id = Case("gather", "trace by id, 1M spans", indexed, "ms")
    searches = {
        name: Case("gather", f"trace search, 1M spans, {name}", "the same in SQLite, indexed by service and time", "ms")
        for name in _questions()
    }
    with closing(apsw.Connection(str(place / "rows.sqlite"))) as db:
        async with _store(place) as gather:
            trace_ids = await _fill(gather, db)
            rng = random.Random(2)
            for number in range(rounds):
                asked = rng.sample(trace_ids, ASKED)
                ours_ms = await _median_ms([lambda one=one: _found(gather, one) for one in asked])
                theirs_ms = await _median_ms([lambda one=one: _looked_up(db, one) for one in asked])
                by_id.add(ours_ms, theirs_ms)
                said = [f"by id {ours_ms:.2f} / {theirs_ms:.2f} ms"]
                for name, question in _questions().items():
                    ours_ms = await _median_ms([lambda question=question: _searched(gather, question)] * 5)
                    theirs_ms = await _median_ms([lambda question=question: _queried(db, question)] * 5)
                    searches[name].add(ours_ms, theirs_ms)
                    said.append(f"{name} {ours_ms:.1f} / {theirs_ms:.1f} ms")
                say(f"  {number + 1}: {', '.join(said)}")
    yield by_id
    for case in searches.values():
        yield case


def _questions() -> dict[str, Question]:
    now = utc_now()
    start_ns, end_ns = nanoseconds(now - 2 * _HOUR), nanoseconds(now)
    old_ns = nanoseconds(now - _HOUR / 2)
    return {
        "newest": Question("orders", False, 0, start_ns, end_ns),
        "failed": Question("orders", True, 0, start_ns, end_ns),
        "slow": Question("orders", False, _SLOW_NS, start_ns, end_ns),
        "half an hour ago": Question("orders", True, 0, start_ns, old_ns),
        "nothing": Question("orders", True, 100 * _SLOW_NS, start_ns, end_ns),
    }


async def _found(gather: Gather, trace_id: bytes) -> None:
    answer = await gather.traces.find(trace_id, lambda _: True)
    if answer is None or len(answer.spans) != _PER_TRACE:
        raise Broken("a trace has not all its spans")


async def _looked_up(db: apsw.Connection, trace_id: bytes) -> None:
    if len(db.execute(_FIND, (trace_id,)).fetchall()) != _PER_TRACE:
        raise Broken("a trace has not all its rows")


async def _searched(gather: Gather, question: Question) -> None:
    await gather.traces.search(question, lambda _: True, SHOWN)


async def _queried(db: apsw.Connection, question: Question) -> None:
    asked = {
        "service": question.service,
        "start": question.start_ns,
        "end": question.end_ns,
        "longest": question.longest_ns,
        "status": 2 if question.failed else 0,
        "most": SHOWN,
    }
    db.execute(_SEARCH, asked).fetchall()


async def _median_ms(questions: list[Callable[[], Awaitable[None]]]) -> float:
    took_s = []
    for question in questions:
        begun_s = time.perf_counter()
        await question()
        took_s.append(time.perf_counter() - begun_s)
    return statistics.median(took_s) * 1e3


@asynccontextmanager
async def _store(place: Path) -> AsyncIterator[Gather]:
    durable = Durable(place / "gather.sqlite")
    ledger = Ledger(durable, DOMAIN, utc_now, region=REGION)
    gather = Gather(
        durable,
        ledger,
        Metrics(),
        [],
        utc_now,
        random.Random(1),
        owns=lambda node, tenant, service: True,
        trust_domain=DOMAIN,
        region=REGION,
    )
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(gather.run)
            yield gather
            group.cancel_scope.cancel()
    finally:
        durable.close()


async def _fill(gather: Gather, db: apsw.Connection) -> list[bytes]:
    db.execute(_SCHEMA).fetchall()
    trace_ids: list[bytes] = []
    for number, batch in enumerate(_batches(random.Random(1)), 1):
        request = ExportRequest(run_id="bench", first_sequence=number, sequence=number, resource_spans=batch.bodies)
        gather.ingest(NODE, request)
        if number % 4 == 0:  # as many nodes are answered together
            await gather.settle()
        with db:
            db.executemany("INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", batch.rows)
        trace_ids += batch.trace_ids
    await gather.settle()
    db.execute(_INDEX)
    if lost := gather.tally.drops():
        raise Broken(f"some of it was dropped: {lost}")
    return trace_ids


def _batches(rng: random.Random) -> Iterator[_Batch]:
    """A million spans of the last hour, as nodes send them."""
    traces = SPANS // _PER_TRACE
    begin_ns = nanoseconds(utc_now() - _HOUR)
    step_ns = int(_HOUR.total_seconds() * 1e9) // traces
    for first in range(0, traces, _BATCH):
        parts = [ResourceSpans() for _ in _PARTS]
        for resource, (tenant, service, _) in zip(parts, _PARTS, strict=True):
            resource.resource.attributes.add(key="service.name").value.string_value = f"{service}.{tenant}"
            resource.scope_spans.add()
        batch = _Batch([], [], [])
        for number in range(first, min(first + _BATCH, traces)):
            batch.trace_ids.append(rng.randbytes(16))
            batch.rows.extend(_trace(rng, batch.trace_ids[-1], parts, begin_ns + number * step_ns))
        batch.bodies.extend(part.SerializeToString() for part in parts)
        yield batch


def _trace(
    rng: random.Random, trace_id: bytes, parts: list[ResourceSpans], start_ns: int
) -> Iterator[tuple[object, ...]]:
    """Puts a trace's spans into the bodies of those whose they are, and yields them as rows."""
    parent = b""
    is_failed, is_slow = rng.random() < _RARE, rng.random() < _RARE
    for resource, (tenant, service, count) in zip(parts, _PARTS, strict=True):
        for number in range(count):
            took_ns = rng.randrange(1_000_000, 50_000_000) + is_slow * _SLOW_NS
            span = resource.scope_spans[0].spans.add(trace_id=trace_id, span_id=rng.randbytes(8), parent_span_id=parent)
            span.name, span.kind = f"bench.{service}/Method{number}", Span.SPAN_KIND_SERVER
            span.start_time_unix_nano, span.end_time_unix_nano = start_ns, start_ns + took_ns
            span.status.code = 2 if is_failed else 0
            attributes = {"rpc.system.name": "grpc", "rpc.method": span.name, "order.id": f"{rng.getrandbits(48):x}"}
            for key, text in attributes.items():
                span.attributes.add(key=key).value.string_value = text
            yield (
                trace_id,
                span.span_id,
                parent,
                tenant,
                service,
                span.name,
                start_ns,
                start_ns + took_ns,
                span.status.code,
                json.dumps(attributes),
            )
            parent = span.span_id
