"""Spans of calls as OTLP: what OpenTelemetry's own encoder makes of the same spans, to the field."""

import contextvars
import random
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from meshwarden.sdk.tracing.call_otlp import write_calls
from meshwarden.sdk.tracing.call_span import CallSpan
from meshwarden.sdk.tracing.recorder import Recorder

RESOURCE = Resource({"service.name": "orders", "n": 1}, "https://example.test/schema")
SCOPE = InstrumentationScope("meshwarden.sdk", "")
TRACE, SPAN = "a" * 32, "b" * 16


class World:
    """A recorder, and the spans that it has kept."""

    def __init__(self, ratio: float = 1.0, revision: int = 7) -> None:
        self.kept: list[CallSpan] = []
        self.recorder = Recorder(lambda: ratio, lambda: revision, self.no_start, self.kept.append, lambda: False)

    def no_start(self, _: CallSpan) -> Any:
        raise AssertionError("nobody writes to it")

    def serve(self, code: grpc.StatusCode, details: str, *metadata: tuple[str, str], method: str = "/o.O/Get") -> None:
        """Serves a call, and makes one below it."""

        def run() -> None:
            served = self.recorder.server(method, metadata, "spiffe://mesh.test/tenant/acme/service/web")
            self.recorder.client("/s.S/List", "stock").end(code, details)
            served.end(code, details)

        contextvars.Context().run(run)


def theirs(calls: list[CallSpan]) -> ExportTraceServiceRequest:
    made: ExportTraceServiceRequest = encode_spans([call.readable(RESOURCE, SCOPE) for call in calls])
    return made


def ours(calls: list[CallSpan]) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest.FromString(write_calls(calls, RESOURCE, SCOPE))


@pytest.mark.parametrize("revision", [0, 7, 2**40])
@pytest.mark.parametrize("flags", ["01", "03", ""])
@pytest.mark.parametrize("state", ["", "k=v,ot=th:8"])
def test_every_status_and_place(flags: str, state: str, revision: int) -> None:
    world = World(revision=revision)
    parent = (("traceparent", f"00-{TRACE}-{SPAN}-{flags}"), ("tracestate", state)) if flags else ()
    for code in grpc.StatusCode:
        for details in ("", "no such order", "\u00e4\U0001f600" * 40, "x" * 20_000):
            world.serve(code, details, *parent)
    assert len(world.kept) == 2 * 4 * len(grpc.StatusCode)
    assert ours(world.kept) == theirs(world.kept)
    assert ours(world.kept[:1]) == theirs(world.kept[:1])


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), st.text(max_size=300), st.floats(0.01, 1))
def test_any_method_and_details(method: str, details: str, ratio: float) -> None:
    world = World(ratio)
    for code in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL):
        world.serve(code, details.encode(errors="replace").decode(), method=f"/{method}")
    if world.kept:
        assert ours(world.kept) == theirs(world.kept)


def test_details_that_are_no_text_lose_no_span() -> None:
    world = World()
    world.serve(grpc.StatusCode.INTERNAL, "bad \udcff")
    assert ours(world.kept).resource_spans[0].scope_spans[0].spans[0].status.message == "bad ?"


def test_requests_one_after_the_other_are_one() -> None:
    world = World()
    world.serve(grpc.StatusCode.OK, "")
    written = write_calls(world.kept, RESOURCE, SCOPE) + theirs(world.kept).SerializeToString()
    both = ExportTraceServiceRequest.FromString(written)
    assert both.resource_spans[0] == both.resource_spans[1] == theirs(world.kept).resource_spans[0]


def test_a_thousand_methods_are_each_themselves() -> None:
    world = World()
    for _ in range(3000):
        number = random.randrange(2000)
        world.serve(grpc.StatusCode.OK, "", method=f"/o.O/{number}")
    assert ours(world.kept) == theirs(world.kept)
