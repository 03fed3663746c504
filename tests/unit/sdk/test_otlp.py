"""What an answer to OTLP means for a batch, over real gRPC; and that nothing is lost uncounted when a program ends."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.trace import TracerProvider

from meshwarden.sdk.tracing import otlp as sdk_otlp
from meshwarden.sdk.tracing.numbered import Numbers, find
from meshwarden.sdk.tracing.otlp import OtlpCarrier
from meshwarden.sdk.tracing.span_queue import Away, Refused
from meshwarden.v1 import workload_service_pb2 as pb
from meshwarden.v1 import workload_service_pb2_grpc as pb_grpc

Code = grpc.StatusCode


class Agent(TraceServiceServicer, pb_grpc.WorkloadServiceServicer):
    """Answers as it is told to, and notes what it hears."""

    def __init__(self, socket: Path) -> None:
        self.target = f"unix:{socket}"
        self.code, self.details = Code.OK, b""
        self.go_on = threading.Event()
        self.go_on.set()
        self.metadata: dict[str, Any] = {}
        self.heard: list[tuple[Any, Any]] = []
        self.lost: Counter[tuple[str, str]] = Counter()
        self._server = grpc.server(ThreadPoolExecutor(4))
        add_TraceServiceServicer_to_server(self, self._server)
        pb_grpc.add_WorkloadServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(self.target)
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        self.heard.append((find(context.invocation_metadata()), request))
        self.go_on.wait(60)
        if self.code is not Code.OK:
            context.set_trailing_metadata((("grpc-status-details-bin", self.details),))
            context.abort(self.code, "as told")
        return otlp.ExportTraceServiceResponse()

    def Report(self, request: pb.ReportCallsRequest, context: Any) -> pb.ReportCallsResponse:  # noqa: N802
        for drop in request.drops:
            self.lost[drop.signal, drop.reason] += drop.count
        return pb.ReportCallsResponse()

    def stop(self) -> None:
        self.go_on.set()
        self._server.stop(0).wait()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    found = Agent(tmp_path / "a")
    yield found
    found.stop()


@pytest.fixture
def carrier(agent: Agent) -> Iterator[OtlpCarrier]:
    found = OtlpCarrier(agent.target)
    yield found
    found.close()


def retry_info(seconds: float) -> bytes:
    status, info = status_pb2.Status(code=8), error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(seconds * 1e9))
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="first"))
    status.details.add().Pack(info)
    return status.SerializeToString()


def test_spans_come_as_they_were_under_their_number(agent: Agent, carrier: OtlpCarrier) -> None:
    with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("work") as span:
        pass
    number = Numbers().next()
    carrier.send(carrier.pack([span]), number)  # type: ignore[list-item]
    ((heard, request),) = agent.heard
    assert heard == number
    assert [span.name for span in request.resource_spans[0].scope_spans[0].spans] == ["work"]


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.ABORTED, Code.CANCELLED, Code.DEADLINE_EXCEEDED])
def test_a_batch_whose_fate_is_not_known_goes_again(agent: Agent, carrier: OtlpCarrier, code: Code) -> None:
    agent.code = code
    with pytest.raises(Away, match=f"{code.name}: as told"):
        carrier.send(b"", Numbers().next())


def test_so_does_one_whose_answer_is_late(agent: Agent, carrier: OtlpCarrier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk_otlp, "TIMEOUT_S", 0.5)
    agent.go_on.clear()
    with pytest.raises(Away, match="DEADLINE_EXCEEDED"):
        carrier.send(b"", Numbers().next())


@pytest.mark.parametrize(("asked_s", "retry_s"), [(0.25, 0.25), (86_400.0, 30.0), (-5.0, 0.0)])
def test_one_that_is_limited_goes_when_it_may(
    agent: Agent, carrier: OtlpCarrier, asked_s: float, retry_s: float
) -> None:
    agent.code, agent.details = Code.RESOURCE_EXHAUSTED, retry_info(asked_s)
    with pytest.raises(Away) as away:
        carrier.send(b"", Numbers().next())
    assert away.value.retry_s == retry_s


@pytest.mark.parametrize("details", [b"", b"\xff\xff"])
def test_one_that_is_too_much_for_ever_does_not(agent: Agent, carrier: OtlpCarrier, details: bytes) -> None:
    agent.code, agent.details = Code.RESOURCE_EXHAUSTED, details
    with pytest.raises(Refused, match="RESOURCE_EXHAUSTED: as told"):
        carrier.send(b"", Numbers().next())


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED, Code.UNIMPLEMENTED])
def test_nor_does_what_nobody_wants(agent: Agent, carrier: OtlpCarrier, code: Code) -> None:
    agent.code = code
    with pytest.raises(Refused, match=f"{code.name}: as told"):
        carrier.send(b"", Numbers().next())


def test_where_nobody_is_all_goes_again(tmp_path: Path) -> None:
    carrier = OtlpCarrier(f"unix:{tmp_path}/none")
    with pytest.raises(Away, match="UNAVAILABLE"):
        carrier.send(b"", Numbers().next())
    carrier.close()
    with pytest.raises(Away, match="closed"):
        carrier.send(b"", Numbers().next())


def test_the_environments_headers_go_along(agent: Agent, monkeypatch: pytest.MonkeyPatch, carrier: OtlpCarrier) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20token")
    OtlpCarrier(agent.target).send(b"", Numbers().next())
    assert agent.metadata["authorization"] == "Bearer token"


# Its spans go when it ends, and are refused then.
PROGRAM = """
from opentelemetry import trace
from meshwarden.sdk import telemetry
assert telemetry.configure()
tracer = trace.get_tracer("test")
for _ in range(5):
    tracer.start_span("work").end()
"""


def test_what_is_lost_at_the_end_is_told(agent: Agent, tmp_path: Path) -> None:
    agent.code = Code.INVALID_ARGUMENT
    environment = {
        **os.environ,
        "MESHWARDEN_AGENT_SOCKET": str(tmp_path / "a"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": agent.target,
    }
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, timeout=60, check=True)
    assert agent.lost == {("span", "refused"): 5}
