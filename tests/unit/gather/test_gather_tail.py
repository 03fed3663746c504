"""Tail sampling where reports come in: what counts of calls say of traces, and what an operator is shown."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.forward.backend import Backend
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.gather.tail.policy import TailPolicy
from meshwarden.sdk.red.histogram import bucket_of, to_proto
from meshwarden.v1.report_pb2 import CallStat, Exemplar, ExportRequest

NOW = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)


class Nowhere:
    """A backend that is never there: what is to go on lies in its queue."""

    async def send(self, signal: str, bodies: Any) -> int:
        raise AssertionError

    async def close(self) -> None:
        pass


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Durable]:
    durable = Durable(tmp_path / "gather.sqlite")
    yield durable
    durable.close()


def make(durable: Durable, tail: TailPolicy | None, signals: frozenset[str] = frozenset({"span", "log"})) -> Gather:
    backends = [Backend("one", Nowhere(), signals, 1 << 20)]
    mesh: dict[str, Any] = {"owns": lambda *_: True, "trust_domain": "mesh.test", "region": "eu"}
    ledger = Ledger(durable, "mesh.test", lambda: NOW)
    return Gather(durable, ledger, Metrics(), backends, lambda: NOW, random.Random(1), tail=tail, **mesh)


def trace_id(number: int) -> bytes:
    return number.to_bytes(16, "big")  # rejected by any share but all


def call(number: int, **changes: Any) -> CallStat:
    values: dict[str, Any] = {
        "source": "spiffe://mesh.test/tenant/acme/service/web",
        "destination": "platform/orders",
        "method": "/shop.Orders/List",
        "status": "OK",
        "decision": CallStat.ALLOWED,
        "reporter": CallStat.SOURCE,
        "count": 1,
        "durations": to_proto({bucket_of(0.02): 1}),
        "exemplars": [Exemplar(trace_id=trace_id(number), span_id=b"12345678", duration_s=0.02)],
    }
    made = CallStat(**{**values, **changes})
    made.minute.seconds = int(NOW.timestamp()) - 30
    return made


def spans(*numbers: int, name: str = "web.acme") -> bytes:
    made = [Span(trace_id=trace_id(number), span_id=b"12345678", parent_span_id=b"parents ") for number in numbers]
    message = ResourceSpans(scope_spans=[ScopeSpans(spans=made)])
    message.resource.attributes.append(KeyValue(key="service.name", value=AnyValue(string_value=name)))
    return message.SerializeToString()


def batch(sequence: int, *calls: CallStat, bodies: list[bytes]) -> ExportRequest:
    return ExportRequest(first_sequence=sequence, sequence=sequence, run_id="r", calls=calls, resource_spans=bodies)


async def waiting(durable: Durable, gather: Gather) -> int:
    """How many spans lie in the backend's queue."""
    await durable.flush()
    return gather.queue.load("one")[0]


async def test_calls_that_no_one_was_known_to_make_have_their_traces_kept(durable: Durable) -> None:
    gather = make(durable, TailPolicy(ratio=0))
    gather.ingest("a", batch(1, call(1), bodies=[spans(1, 2, 3)]))
    assert await waiting(durable, gather) == 1
    assert gather.tail.decided() == {"new_edge": 1}
    gather.ingest("a", batch(2, call(4), call(5, destination="platform/billing"), bodies=[spans(4, 5)]))
    assert gather.tail.decided() == {"new_edge": 2}
    again = make(durable, TailPolicy(ratio=0))  # the ledger knows them
    await durable.flush()
    again.ingest("a", batch(3, call(6), bodies=[spans(6)]))
    assert again.tail.decided() == {}


async def test_of_many_calls_that_no_one_was_known_to_make_a_few_have_their_traces_kept(durable: Durable) -> None:
    gather = make(durable, TailPolicy(ratio=0))
    gather.ingest("a", batch(1, *map(call, range(1, 20)), bodies=[spans(*range(1, 20))]))
    assert await waiting(durable, gather) == 4
    assert gather.tail.decided() == {"new_edge": 4}


async def test_refused_calls_have_their_traces_kept(durable: Durable) -> None:
    gather = make(durable, TailPolicy(ratio=0))
    first = call(1, exemplars=[])
    denied = call(2, decision=CallStat.DENIED, status="OK")
    gather.ingest("a", batch(1, first, denied, call(3, decision=CallStat.LIMITED), bodies=[spans(1, 2, 3)]))
    assert await waiting(durable, gather) == 2
    assert gather.tail.decided() == {"denied": 1, "limited": 1}


async def test_what_agents_and_the_control_plane_did_goes_on(durable: Durable) -> None:
    gather = make(durable, TailPolicy(ratio=0))
    gather.ingest("a", batch(1, bodies=[spans(1, name="meshwarden-agent"), spans(2)]))
    gather.take_own(spans(3, name="meshwarden-controlplane"), 1)
    assert await waiting(durable, gather) == 2
    assert gather.tail.decided() == {"mesh": 2}


async def test_an_operator_is_shown_how_it_does(durable: Durable) -> None:
    assert make(durable, None).tail_sampling() is None
    gather = make(durable, TailPolicy(ratio=0.25))
    gather.ingest("a", batch(1, call(1), bodies=[spans(1, 2, 3)]))
    state = gather.tail_sampling()
    assert state is not None
    assert (state.ratio, state.waiting, state.passed, state.dropped) == (0.25, 2, 1, 0)
    assert state.waiting_bytes > 2048
    assert dict(state.decided) == {"new_edge": 1}
    shown = {sample.name: sample.value for family in gather.tail.collect() for sample in family.samples}
    assert shown == {
        "meshwarden_tail_waiting_spans": 2,
        "meshwarden_tail_waiting_bytes": state.waiting_bytes,
        "meshwarden_tail_traces_total": 1,
    }


async def test_where_no_backend_takes_traces_none_are_sampled(durable: Durable) -> None:
    gather = make(durable, TailPolicy(ratio=0), frozenset({"log"}))
    gather.ingest("a", batch(1, bodies=[spans(1)]))
    await durable.flush()
    assert gather.tail.load() == (0, 0)
    assert not [key for key in gather.tally.totals() if key[1] == "control.sample"]


@pytest.mark.parametrize("is_on", [True, False])
async def test_the_store_of_recent_traces_has_all(durable: Durable, is_on: bool) -> None:
    gather = make(durable, TailPolicy(ratio=0, wait_s=0) if is_on else None)
    gather.ingest("a", batch(1, bodies=[spans(1, 2)]))
    gather.tail.decide()
    assert await waiting(durable, gather) == (0 if is_on else 2)
    assert gather.tally.totals()["passed", "control.store", "span", "acme", ""] == 2
