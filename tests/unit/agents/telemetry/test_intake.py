"""Requests that go again, and what is counted of those that are refused."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from meshwarden.agents.telemetry.access_log import Call
from meshwarden.agents.telemetry.account import Drops
from meshwarden.agents.telemetry.aggregate import Aggregator
from meshwarden.agents.telemetry.budget import Rate
from meshwarden.agents.telemetry.intake import Intake, IntakeRefused
from meshwarden.agents.telemetry.pack import unpacked_bytes
from meshwarden.agents.telemetry.segment import Items
from meshwarden.agents.telemetry.spool import SpoolFull
from meshwarden.agents.workload.bootstrap import NodePlace
from meshwarden.agents.workload.workload import Workload
from meshwarden.certs.clock import utc_now
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.api.report import parts
from meshwarden.sdk.tracing.numbered import Number, Numbers
from meshwarden.v1 import report_pb2 as report_pb
from meshwarden.v1 import resources_pb2 as resources
from meshwarden.xds.telemetry_names import DESTINATION_SIDE, DURATION_MS, HTTP_STATUS, METHOD, PATH, REPORTER

LOST = Drops({("sdk", "span", "queue_full", "acme"): 5})


class Kept:
    """A spool on a disk that is full or not."""

    def __init__(self) -> None:
        self.is_full = False
        self.room: int | None = None
        self.items = 0
        self.drops = Drops()
        self.payloads: list[bytes] = []

    def put(self, tenant: str, payload: bytes, items: Items, *, entries: int, drops: Drops | None) -> None:
        if self.is_full or self.room == 0:
            raise SpoolFull("full")
        self.room = self.room - 1 if self.room is not None else None
        self.items += sum(items)
        self.payloads.append(payload)
        self.drops += drops or Drops()

    def drop(self, drops: Drops) -> None:
        self.drops += drops


class Heard(Aggregator):
    """One that tells what calls of Envoys were counted under."""

    def __init__(self) -> None:
        super().__init__(utc_now)
        self.revisions: list[int] = []

    def add_call(self, call: Call, revision: int) -> None:
        self.revisions.append(revision)
        super().add_call(call, revision)


class World:
    """An intake and one workload."""

    def __init__(self, rate: Rate) -> None:
        self.spool = Kept()
        place = NodePlace("node-a", "eu", "z", Path("/a.sock"), Path("/w.sock"))
        spool: Any = self.spool
        self.calls = Heard()
        self.intake = Intake(place, self.calls, spool, lambda: 1, rate)
        self.workload = Workload(
            id="acme/web#1",
            entry=resources.WorkloadEntry(metadata=resources.Metadata(tenant="acme", name="web")),
            service=resources.Service(),
            spiffe_id=SpiffeId.workload("mesh.test", "acme", "web"),
            pid=1,
            start_time=1,
            pidfd=-1,
            uid=0,
            gid=0,
            port=0,
            directory=Path("/nowhere"),
            number=1,
        )

    def send(self, body: bytes, number: Number | None) -> grpc.StatusCode:
        try:
            self.intake.take("span", body, self.workload, number=number)
        except IntakeRefused as refusal:
            return refusal.code
        return grpc.StatusCode.OK


def spans(count: int) -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(count):
        scope.spans.add(trace_id=b"\x01" * 16, span_id=(number + 1).to_bytes(8, "big"), name="x")
    return request.SerializeToString()


def access_log(*begun_ns: int) -> bytes:
    request = ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    for begun in begun_ns:
        record = scope.log_records.add(time_unix_nano=begun)
        said = {REPORTER: DESTINATION_SIDE, METHOD: "GET", PATH: "/", HTTP_STATUS: "200", DURATION_MS: "1"}
        for key, value in said.items():
            record.attributes.add(key=key).value.string_value = value
    return request.SerializeToString()


def calls_of_two() -> report_pb.CallStat:
    stat = report_pb.CallStat(
        source="spiffe://mesh.test/tenant/acme/service/web",
        destination="acme/web",
        method="/a/B",
        status="OK",
        decision=report_pb.CallStat.ALLOWED,
        reporter=report_pb.CallStat.DESTINATION,
        count=2,
        durations=report_pb.Histogram(buckets=[1], counts=[2]),
    )
    stat.minute.GetCurrentTime()
    return stat


@pytest.fixture
def world() -> World:
    return World(Rate(1 << 40, 1 << 40))


def test_a_request_that_goes_again_is_taken_once(world: World) -> None:
    numbers = Numbers()
    first, second = numbers.next(), numbers.next()
    for number in (first, first, second, first):
        assert world.send(spans(3), number) is grpc.StatusCode.OK
    assert (world.spool.items, world.spool.drops) == (6, Drops())


def test_one_without_a_number_is_taken_as_often_as_it_comes(world: World) -> None:
    for _ in range(2):
        assert world.send(spans(3), None) is grpc.StatusCode.OK
    assert world.spool.items == 6


def test_who_numbers_its_requests_has_what_is_refused_still(world: World) -> None:
    number = Numbers().next()
    world.spool.is_full = True
    assert world.send(spans(3), number) is grpc.StatusCode.UNAVAILABLE
    assert world.send(b"\xff", number) is grpc.StatusCode.INVALID_ARGUMENT
    assert world.spool.drops == Drops()
    world.spool.is_full = False
    assert world.send(spans(3), number) is grpc.StatusCode.OK
    assert (world.spool.items, world.spool.drops) == (3, Drops())


@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_what_is_behind_a_record_that_is_not_kept_is_counted_too(
    world: World, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr("meshwarden.agents.telemetry.intake._RECORD_BYTES", 1)  # each resource is a record of its own
    world.spool.room = room
    request = b"".join(spans(count) for count in (1, 10, 100))
    assert world.send(request, None) is (grpc.StatusCode.OK if room == 3 else grpc.StatusCode.UNAVAILABLE)
    assert world.spool.items == (0, 1, 11, 111)[room]
    lost = {("agent.receive", "span", "disk_full", "acme"): 111 - world.spool.items} if room < 3 else {}
    assert world.spool.drops == lost


@pytest.mark.parametrize("room", [0, 1])
def test_so_are_calls_of_a_table_that_is_not_tried(world: World, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr("meshwarden.agents.telemetry.aggregate.TABLE_BYTES", 1)
    world.spool.room = room
    stats = [calls_of_two(), calls_of_two(), calls_of_two()]
    for number, stat in enumerate(stats):
        stat.method = f"/a/{number}"
    with pytest.raises(IntakeRefused):
        world.intake.take_calls(stats, "acme")
    assert world.spool.items == 2 * room
    assert world.spool.drops == {("agent.receive", "call", "disk_full", "acme"): 6 - 2 * room}


def test_of_who_does_not_it_is_lost(world: World) -> None:
    world.spool.is_full = True
    assert world.send(spans(3), None) is grpc.StatusCode.UNAVAILABLE
    assert world.send(b"\xff", None) is grpc.StatusCode.INVALID_ARGUMENT
    assert world.spool.drops == {
        ("agent.receive", "span", "disk_full", "acme"): 3,
        ("agent.receive", "span", "malformed", "acme"): 1,
    }


@pytest.mark.parametrize(("number", "dropped"), [(None, 1), (Numbers().next(), 0)])
def test_a_request_beyond_the_tenants_rate_is_lost_to_who_does_not_send_it_again(
    number: Number | None, dropped: int
) -> None:
    world = World(Rate(size_bytes=1, items=1, burst_s=1.0))
    assert world.send(spans(3), Numbers().next()) is grpc.StatusCode.OK
    assert world.send(spans(3), number) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert world.spool.drops["agent.receive", "span", "rate_limited", "acme"] == dropped


def test_what_a_program_has_lost_is_kept_with_its_calls_or_by_itself(world: World) -> None:
    world.intake.take_calls([calls_of_two()], "acme", LOST)
    assert (world.spool.items, world.spool.drops) == (2, LOST)
    world.intake.take_calls([], "acme", LOST)
    assert (world.spool.items, world.spool.drops) == (2, LOST + LOST)


@pytest.mark.parametrize("is_numbered", [False, True])
def test_it_is_not_lost_itself_where_the_disk_is_full(world: World, is_numbered: bool) -> None:
    world.spool.is_full = True
    with pytest.raises(IntakeRefused):
        world.intake.take_calls([calls_of_two()], "acme", LOST, is_numbered=is_numbered)
    calls = Drops({("agent.receive", "call", "disk_full", "acme"): 2})
    assert world.spool.drops == (Drops() if is_numbered else LOST + calls)


def test_a_call_of_an_envoy_is_of_the_revision_that_this_envoy_ran_when_it_began(world: World) -> None:
    body = access_log(0, 5, 15, 2**64 - 1)
    world.intake.take("log", body, world.workload, revision_at=lambda moment: 8 if moment > 10 else 7)
    world.intake.take("log", access_log(5), world.workload)  # of somebody of whom nobody knows
    assert world.calls.revisions == [7, 7, 8, 8, 1]
    assert (world.spool.items, world.spool.drops) == (5, Drops())


def test_packed_spans_say_whose_and_how_many_they_are(world: World) -> None:
    assert world.send(spans(100) + spans(20), None) is grpc.StatusCode.OK
    (payload,) = world.spool.payloads
    (packed,) = report_pb.ExportRequest.FromString(payload).packed_spans
    assert (packed.reporter, packed.count) == ("web.acme", 120)
    (part,) = parts(report_pb.ExportRequest.FromString(payload))
    read = [ResourceSpans.FromString(body) for body in part.resource_spans]
    assert [sum(len(scope.spans) for scope in one.scope_spans) for one in read] == [100, 20]
    names = [pair.value.string_value for one in read for pair in one.resource.attributes if pair.key == "service.name"]
    assert names == ["web.acme"] * 2
    assert unpacked_bytes(payload) == part.ByteSize()


def test_few_spans_go_as_they_are(world: World) -> None:
    assert world.send(spans(1), None) is grpc.StatusCode.OK
    (payload,) = world.spool.payloads
    assert len(report_pb.ExportRequest.FromString(payload).resource_spans) == 1
    assert unpacked_bytes(payload) == len(payload)


def test_calls_of_models_go_up_with_the_spans_that_tell_of_them(world: World) -> None:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    # What it says of itself counts for nothing.
    resource.resource.attributes.add(key="service.name").value.string_value = "bank.globex"
    scope = resource.scope_spans.add()
    for number, said in enumerate(({"gen_ai.request.model": "o3", "gen_ai.usage.input_tokens": 7}, {"mesh.tenant": 1})):
        span = scope.spans.add(trace_id=b"\x01" * 16, span_id=(number + 1).to_bytes(8, "big"), name="x")
        for key, value in said.items():
            into = span.attributes.add(key=key).value
            setattr(into, "int_value" if isinstance(value, int) else "string_value", value)
    assert world.send(request.SerializeToString(), None) is grpc.StatusCode.OK
    (payload,) = world.spool.payloads
    part = report_pb.ExportRequest.FromString(payload)
    (told,) = (report_pb.ModelCalls.FromString(one) for one in part.model_calls)
    assert told.reporter == "web.acme"
    assert [(call.model, call.input_tokens) for call in told.calls] == [("o3", 7)]
    assert (world.spool.items, len(part.resource_spans) + len(part.packed_spans)) == (2, 1)
