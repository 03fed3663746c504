"""OTLP over the agent's socket: the real exporter, as a program of the mesh has it, and callers that mean no good."""

import asyncio
import json
import signal
import sys
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from meshwarden.agents.start import OWN_NAME
from meshwarden.v1.report_pb2 import CallStat, CallTable, Drop, Histogram
from meshwarden.v1.workload_service_pb2 import ReportCallsRequest

# Only what any program with OpenTelemetry does: all else comes from the environment that `exec` gives.
TRACED = """
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
said = {"mesh.tenant": "globex", "mesh.service": "bank", "service.name": "bank.globex", "color": "red"}
provider = TracerProvider(resource=Resource.create(said))
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter()))
with provider.get_tracer("test").start_as_current_span("work"):
    pass
provider.shutdown()
print("done", flush=True)
import sys; sys.stdin.read()
"""
# Sends what it is told, "trace HEX", "logs HEX" or "report HEX", to the agent's socket; answers status and answer.
SENDER = """
import grpc, os, sys
METHODS = {"trace": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
           "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
           "report": "/meshwarden.v1.WorkloadService/Report"}
channel = grpc.insecure_channel("unix:" + os.environ["MESHWARDEN_AGENT_SOCKET"])
for line in sys.stdin:
    what, body = line.split(" ")
    try:
        print("OK", channel.unary_unary(METHODS[what])(bytes.fromhex(body), timeout=60).hex(), flush=True)
    except grpc.RpcError as error:
        print(error.code().name, flush=True)
"""


def all_spans(control_plane: Any) -> list[tuple[str, ResourceSpans]]:
    """What came up, with the name of whose it is."""
    found = [ResourceSpans.FromString(body) for export in control_plane.exports for body in export.resource_spans]
    named = [{pair.key: pair.value.string_value for pair in spans.resource.attributes} for spans in found]
    return [(name["service.name"], spans) for name, spans in zip(named, found, strict=True)]


def spans(control_plane: Any) -> list[ResourceSpans]:
    return [spans for name, spans in all_spans(control_plane) if name != "meshwarden-agent"]


def own_spans(control_plane: Any) -> dict[str, Span]:
    """The agent's own, by their names."""
    own = [spans for name, spans in all_spans(control_plane) if name == "meshwarden-agent"]
    return {span.name: span for spans in own for scope in spans.scope_spans for span in scope.spans}


def calls(control_plane: Any) -> list[CallStat]:
    return [stat for export in control_plane.exports for stat in export.calls]


async def test_the_real_exporter_needs_nothing_but_its_environment(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", TRACED)
    assert (await asyncio.to_thread(program.stdout.readline)).strip() == "done", program.stderr.read()
    (received,) = await until(lambda: spans(control_plane), "a span has come")
    assert [span.name for scope in received.scope_spans for span in scope.spans] == ["work"]
    said = {pair.key: pair.value.string_value for pair in received.resource.attributes}
    # Who it is was said by its socket, not by itself.
    assert (said["mesh.tenant"], said["mesh.service"], said["mesh.node"]) == ("acme", "web", "node-a")
    assert (said["service.name"], said["color"]) == ("web.acme", "red")
    keys = [pair.key for pair in received.resource.attributes]
    assert (keys.count("mesh.tenant"), keys.count("service.name")) == (1, 1)


async def test_the_agent_traces_its_own_calls(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()
    program = agent.exec("web", "cat")
    made = {"/meshwarden.v1.NodeService/SignWorkload", "/meshwarden.v1.WorkloadService/Register"}
    await until(lambda: made <= own_spans(control_plane).keys(), "its spans have come")
    signing = own_spans(control_plane)["/meshwarden.v1.NodeService/SignWorkload"]
    registering = own_spans(control_plane)["/meshwarden.v1.WorkloadService/Register"]
    assert (signing.kind, registering.kind) == (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER)
    # The control plane goes on with the trace; what is said once a second is not traced.
    assert [parent.split("-")[2] for parent in control_plane.signed_below] == [signing.span_id.hex()]
    assert not [name for name in own_spans(control_plane) if name.endswith(("/Export", "/Report", "/Sync"))]
    assert await asyncio.to_thread(agent.stop) == 0
    assert program.poll() is None


async def test_a_stranger_is_refused(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()
    async with grpc.aio.insecure_channel(f"unix:{agent.socket}") as channel:
        request = ExportTraceServiceRequest(resource_spans=[_span(b"\x01" * 16)])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await TraceServiceStub(channel).Export(request, timeout=60)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "meshwarden-agent exec" in str(caught.value.details())
    await until(lambda: control_plane.dropped().get(("span", "unidentified", "")) == 1, "it is counted")
    assert not spans(control_plane)


async def test_hostile_input_costs_its_sender_alone(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", SENDER)

    async def send(what: str, body: bytes) -> list[str]:
        def ask() -> str:
            program.stdin.write(f"{what} {body.hex()}\n")
            program.stdin.flush()
            return str(program.stdout.readline())

        return (await asyncio.wait_for(asyncio.to_thread(ask), 60)).split()

    assert (await send("trace", b"\xff\xff\xff"))[0] == "INVALID_ARGUMENT"
    assert (await send("trace", _deep(200)))[0] == "INVALID_ARGUMENT"
    assert (await send("trace", _named(b"\xff\xfe")))[0] == "INVALID_ARGUMENT"
    assert (await send("trace", b"\x0a" + _varint(5 << 20) + bytes(5 << 20)))[0] == "RESOURCE_EXHAUSTED"
    bad = ExportTraceServiceRequest(resource_spans=[_span(b"\x00" * 16), _span(b"\x01" * 16)])
    status, answer = await send("trace", bad.SerializeToString())
    assert status == "OK"
    assert bytes.fromhex(answer)  # a partial success: one was not taken
    assert (await send("logs", _logs(20_000).SerializeToString()))[0] == "OK"
    lost = Drop(signal="span", reason="queue_full", tenant="globex", stage="agent.spool", count=2**64 - 1)
    assert (await send("report", ReportCallsRequest(drops=[lost] * 33).SerializeToString()))[0] == "INVALID_ARGUMENT"
    table = ReportCallsRequest(call_tables=[CallTable(kinds=[b""], counts=[1])])
    assert (await send("report", table.SerializeToString()))[0] == "INVALID_ARGUMENT"
    assert (await send("report", ReportCallsRequest(drops=[lost]).SerializeToString()))[0] == "OK"
    forged = _logs(1, {"mesh.reporter": "source", "mesh.upstream_cluster": "secret.globex|v1", "duration_ms": "nan"})
    assert (await send("logs", forged.SerializeToString()))[0] == "OK"
    await until(
        lambda: (
            control_plane.dropped()
            == {
                ("span", "malformed", "acme"): 4,
                ("log", "too_large", "acme"): 20_000 - 4096,
                ("span", "queue_full", "acme"): 10**9,
            }
        ),
        "what was dropped is counted",
    )
    await until(lambda: spans(control_plane), "the good span has come")
    (call,) = await until(lambda: calls(control_plane), "the call has come")
    # It may say that it called, but not whom it does not see.
    assert (call.source, call.destination) == ("spiffe://mesh.test/tenant/acme/service/web", "unknown/unknown")
    assert json.loads((await agent.command("status", "--socket", str(agent.socket), "-o", "json")).stdout)["connected"]


# An agent that has little time for what programs send: a busy machine may not give it as much as it would spend.
FRUGAL = """
from meshwarden.agents import cli
from meshwarden.agents.api import workload
from meshwarden.agents.telemetry import intake
from meshwarden.sdk.backpressure.allowance import Share
workload._REPORTS = intake._SHARES["span"] = Share(part=0.001, burst_s=0.02)
cli.main()
"""


def _links() -> bytes:
    """Little to send, much to read: links that lead nowhere."""
    span = _span(b"\x01" * 16)
    span.scope_spans[0].spans[0].links.extend([Span.Link()] * 128)
    span.scope_spans[0].spans.extend([span.scope_spans[0].spans[0]] * 2000)
    return ExportTraceServiceRequest(resource_spans=[span]).SerializeToString()


def _counts() -> bytes:
    stats = [
        CallStat(
            destination="orders",
            method="/o.Orders/Get",
            status="OK",
            decision=CallStat.ALLOWED,
            reporter=CallStat.SOURCE,
            revision=number,
            count=1,
            durations=Histogram(buckets=[1], counts=[1]),
        )
        for number in range(4096)
    ]
    return ReportCallsRequest(calls=stats).SerializeToString()


@pytest.mark.parametrize(("what", "signal"), [("trace", "span"), ("report", "call")])
async def test_a_flood_is_refused_and_costs_its_sender_alone(
    agent: Any, control_plane: Any, until: Any, what: str, signal: str
) -> None:
    agent.program = [sys.executable, "-c", FRUGAL]
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", SENDER)
    line = f"{what} {(_links() if what == 'trace' else _counts()).hex()}\n"

    def flood() -> bool:
        for _ in range(400):
            program.stdin.write(line)
            program.stdin.flush()
            if program.stdout.readline().strip() == "RESOURCE_EXHAUSTED":
                return True
        return False

    assert await asyncio.wait_for(asyncio.to_thread(flood), 60)
    await until(lambda: control_plane.dropped().get((signal, "rate_limited", "acme")), "it is counted")
    program.stdin.write(f"logs {_logs(1).SerializeToString().hex()}\n")  # of another kind, with a share of its own
    program.stdin.flush()
    assert (await asyncio.to_thread(program.stdout.readline)).startswith("OK")


METERED = """
import logging, sys, time
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
meters.get_meter("test").create_counter("rounds").add(3, {"mesh.tenant": "globex"})
meters.shutdown()
logs = LoggerProvider()
logs.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter()))
logging.getLogger().addHandler(LoggingHandler(logger_provider=logs))
logging.error("something happened")
logs.shutdown()
print("done", flush=True)
sys.stdin.read()
"""


async def test_metrics_and_logs_of_programs_go_up_too(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()
    program = agent.exec("web", sys.executable, "-W", "ignore", "-c", METERED)
    assert (await asyncio.to_thread(program.stdout.readline)).strip() == "done", program.stderr.read()

    def metrics() -> list[ResourceMetrics]:
        bodies = [body for export in control_plane.exports for body in export.resource_metrics]
        return [ResourceMetrics.FromString(body) for body in bodies]

    def logs() -> list[ResourceLogs]:
        return [ResourceLogs.FromString(body) for export in control_plane.exports for body in export.resource_logs]

    (points,) = await until(metrics, "a metric has come")
    (records,) = await until(logs, "a log has come")
    (point,) = points.scope_metrics[0].metrics[0].sum.data_points
    assert (points.scope_metrics[0].metrics[0].name, point.as_int) == ("rounds", 3)
    assert records.scope_logs[0].log_records[0].body.string_value == "something happened"
    for resource in (points.resource, records.resource):
        said = {pair.key: pair.value.string_value for pair in resource.attributes}
        assert (said["mesh.tenant"], said["service.name"], said["mesh.region"]) == ("acme", "web.acme", "eu")
    assert not calls(control_plane)


async def test_what_was_reported_last_goes_up_before_the_agent_ends(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()
    await until(lambda: control_plane.last("workloads") is not None, "the session stands")
    program = agent.exec("web", sys.executable, "-c", SENDER)
    record = {"mesh.reporter": "source", "mesh.upstream_cluster": "orders.platform|v1"}
    bodies = {
        "trace": ExportTraceServiceRequest(resource_spans=[_span(b"\x01" * 16)]).SerializeToString(),
        "logs": _logs(3, record).SerializeToString(),
    }
    for what, body in bodies.items():
        program.stdin.write(f"{what} {body.hex()}\n")
        program.stdin.flush()
        assert (await asyncio.to_thread(program.stdout.readline)).startswith("OK")
    assert await asyncio.to_thread(agent.stop) == 0
    assert len(spans(control_plane)) == 1
    assert sum(call.count for call in calls(control_plane)) == 3


def is_own(spans: ResourceSpans) -> bool:
    """Whether they are the agent's own."""
    return any(pair.value.string_value == OWN_NAME for pair in spans.resource.attributes if pair.key == "service.name")


async def test_kill_9_of_the_agent_loses_nothing_that_was_answered(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()
    await until(lambda: control_plane.last("workloads") is not None, "the session stands")
    program = agent.exec("web", sys.executable, "-c", SENDER)

    def send(what: str, body: bytes) -> str:
        program.stdin.write(f"{what} {body.hex()}\n")
        program.stdin.flush()
        return str(program.stdout.readline().split()[0])

    record = {"mesh.reporter": "source", "mesh.upstream_cluster": "orders.platform|v1"}
    answered: list[bytes] = []
    counted = 0
    for life in range(3):
        if life == 1:
            await control_plane.stop()
        for number in range(20):
            trace_id = bytes([life + 1, number, *([7] * 14)])
            request = ExportTraceServiceRequest(resource_spans=[_span(trace_id)])
            if await asyncio.to_thread(send, "trace", request.SerializeToString()) == "OK":
                answered.append(trace_id)
            if await asyncio.to_thread(send, "logs", _logs(3, record).SerializeToString()) == "OK":
                counted += 3
        await asyncio.to_thread(agent.stop, signal.SIGKILL)
        await agent.ready()
    assert len(answered) > 40
    await control_plane.start_again()

    def ids() -> list[bytes]:
        once = {(export.run_id, export.sequence): export for export in control_plane.exports}
        bodies = [ResourceSpans.FromString(body) for export in once.values() for body in export.resource_spans]
        return sorted(body.scope_spans[0].spans[0].trace_id for body in bodies if not is_own(body))

    def calls_once() -> int:
        once = {(export.run_id, export.sequence): export for export in control_plane.exports}
        return sum(call.count for export in once.values() for call in export.calls)

    await until(lambda: ids() == answered, "each span has come, and once")
    await until(lambda: calls_once() == counted, "each call is counted, and once")


def _span(trace_id: bytes) -> ResourceSpans:
    found = ResourceSpans()
    found.scope_spans.add().spans.add(trace_id=trace_id, span_id=b"\x02" * 8, name="x")
    return found


def _logs(count: int, attributes: dict[str, str] | None = None) -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    for _ in range(count):
        record = scope.log_records.add()
        for key, value in (attributes or {}).items():
            record.attributes.add(key=key).value.string_value = value
    return request


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _named(name: bytes) -> bytes:
    """A request with a resource attribute of this name, which may be no UTF-8."""
    pair = b"\x0a" + _varint(len(name)) + name
    resource = b"\x0a" + _varint(len(pair)) + pair
    spans = b"\x0a" + _varint(len(resource)) + resource
    return b"\x0a" + _varint(len(spans)) + spans


def _deep(depth: int) -> bytes:
    """A span with an attribute whose value is maps in maps, deeper than any parser likes."""
    value = b"\x0a\x01x"
    for _ in range(depth):
        pair = b"\x12" + _varint(len(value)) + value
        pairs = b"\x0a" + _varint(len(pair)) + pair
        value = b"\x32" + _varint(len(pairs)) + pairs
    pair = b"\x0a\x01k\x12" + _varint(len(value)) + value
    resource = b"\x0a" + _varint(len(pair)) + pair
    spans = b"\x0a" + _varint(len(resource)) + resource
    return b"\x0a" + _varint(len(spans)) + spans
