"""Calls under the provider that `telemetry` installs: what is recorded of them, and what goes on, as the SDK has it."""

import contextvars
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased
from tests.unit.sdk.carrier import Kept

from meshwarden.sdk.tracing.otel import OtelTracer
from meshwarden.sdk.tracing.provider import Provider
from meshwarden.sdk.tracing.recorder import Recorder
from meshwarden.sdk.tracing.sampling import PolicySampler, RevisionStamp
from meshwarden.sdk.tracing.span import Tracer

OK = grpc.StatusCode.OK
GET, LIST, WEB = "/o.Orders/Get", "/o.Orders/List", "spiffe://mesh.test/tenant/acme/service/web"
TRACE, SPAN = "a" * 32, "b" * 16
SAMPLED, NOT = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


class World:
    """A program with a provider, ours or the SDK's, which are to behave alike."""

    def __init__(self, is_ours: bool, monkeypatch: pytest.MonkeyPatch, ratio: float = 1.0) -> None:
        self.exporter = InMemorySpanExporter()
        self.ratio = ratio
        self.provider: TracerProvider
        if is_ours:
            self.provider = Provider(Kept(self.exporter), lambda: self.ratio, lambda: 7, shutdown_on_exit=False)
        else:
            sampler = ParentBased(PolicySampler(lambda: self.ratio))
            self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
            self.provider.add_span_processor(RevisionStamp(lambda: 7))
            self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        monkeypatch.setattr(trace, "get_tracer", lambda name: self.provider.get_tracer(name))
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: self.provider)
        self.tracer: Tracer = OtelTracer()

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        self.provider.force_flush()
        return self.exporter.get_finished_spans()

    def serve(self, *metadata: tuple[str, str | bytes], handler: Callable[[], Any] = lambda: None) -> Any:
        """Serves a call as grpc does, in a context of its own; returns what the handler does."""

        def run() -> Any:
            served = self.tracer.server(GET, metadata, WEB)
            try:
                return handler()
            finally:
                served.end(OK, "")

        return contextvars.Context().run(run)

    def call(self) -> dict[str, str]:
        """Makes a call; returns its headers."""
        made = self.tracer.client(LIST, "stock")
        made.end(OK, "")
        return dict(made.headers)


@pytest.fixture(params=["ours", "sdk"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(request.param == "ours", monkeypatch)
    yield made
    made.provider.shutdown()


def told(span: ReadableSpan) -> dict[str, Any]:
    """What an exporter sees of a span, but for ids and times."""
    assert span.context is not None
    return {
        "name": span.name,
        "kind": span.kind,
        "attributes": dict(span.attributes or {}),
        "status": (span.status.status_code, span.status.description),
        "flags": int(span.context.trace_flags),
        "state": dict(span.context.trace_state or {}),
        "parent": span.parent and (span.parent.trace_id, span.parent.span_id, span.parent.is_remote),
        "scope": span.instrumentation_scope and span.instrumentation_scope.name,
        "resource": dict(span.resource.attributes),
        "events": len(span.events),
    }


def seen(is_ours: bool, monkeypatch: pytest.MonkeyPatch, ratio: float) -> list[dict[str, Any]]:
    world = World(is_ours, monkeypatch, ratio)
    ends = ((OK, ""), (grpc.StatusCode.NOT_FOUND, "none"), (grpc.StatusCode.INTERNAL, "boom"))

    def serve(parent: str, state: str, code: grpc.StatusCode, details: str) -> None:
        served = world.tracer.server(GET, (("traceparent", parent), ("tracestate", state)), WEB)
        world.tracer.client(LIST, "stock").end(code, details)
        served.end(code, details)

    for code, details in ends:
        for parent in (
            SAMPLED,
            NOT,
            f"00-{TRACE}-{SPAN}-03",
            "nonsense",
            "",
            SAMPLED.upper(),
            f"01-{SAMPLED[3:]}-more",
        ):
            for state in ("k=v,ot=th:8", "", "=", "x" * 600):
                contextvars.Context().run(serve, parent, state, code, details)
    spans = list(world.spans)
    world.provider.shutdown()
    # Ids of parents of our own are drawn by lot.
    return [{**one, "parent": one["parent"] and one["parent"][0] == int(TRACE, 16)} for one in map(told, spans)]


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_spans_are_those_of_the_sdk(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    assert seen(True, monkeypatch, ratio) == seen(False, monkeypatch, ratio) != []


def test_ids_lead_from_the_caller_through_the_server_to_the_call_below(world: World) -> None:
    headers = world.serve(("traceparent", SAMPLED), ("tracestate", "k=v"), handler=world.call)
    client, server = world.spans
    assert server.context is not None
    assert server.parent is not None
    assert client.context is not None
    assert client.parent is not None
    assert (f"{server.context.trace_id:032x}", f"{server.parent.span_id:016x}") == (TRACE, SPAN)
    assert server.parent.is_remote
    assert (client.parent.trace_id, client.parent.span_id) == (server.context.trace_id, server.context.span_id)
    assert headers == {"traceparent": f"00-{TRACE}-{client.context.span_id:016x}-01", "tracestate": "k=v"}
    assert (server.end_time or 0) >= (server.start_time or 0) > 0


def test_what_is_not_recorded_goes_on_as_it_came(world: World) -> None:
    headers = world.serve(("traceparent", NOT), ("tracestate", "k=v"), handler=world.call)
    assert headers["traceparent"].startswith(f"00-{TRACE}-")
    assert headers["traceparent"].endswith("-00")
    assert headers["tracestate"] == "k=v"
    assert world.spans == ()


def test_as_many_traces_are_recorded_as_the_policy_says_and_they_say_so(world: World) -> None:
    world.ratio = 0.25
    headers = [world.call() for _ in range(400)]
    kept = [one for one in headers if one["traceparent"][-1] == "3"]
    assert {one["traceparent"][-2:] for one in headers} == {"02", "03"}  # of random ids, recorded or not
    assert {one.get("tracestate") for one in kept} == {"ot=th:c"}
    assert {one.get("tracestate") for one in headers if one not in kept} == {None}
    assert all(int(one["traceparent"][21:35], 16) >= 0xC << 52 for one in kept)
    assert 0 < len(kept) == len(world.spans) < 400
    world.ratio = 0.0  # from now on
    assert world.call()["traceparent"].endswith("-02")


def recorder(random_bits: Callable[[int], int]) -> Recorder:
    def nothing(_: Any) -> Any:
        raise AssertionError("nothing is recorded")

    return Recorder(lambda: 0.0, lambda: 7, nothing, nothing, lambda: False, random_bits)


def test_ids_are_each_drawn_once_and_none_is_zero() -> None:
    drawn = iter([0, 1, 1 << 64, *(number << 64 | number for number in range(1, 200))])
    ours = recorder(lambda bits: next(drawn))
    said = [dict(ours.client(LIST, "stock").headers)["traceparent"] for _ in range(128)]
    assert sorted(said) == [f"00-{number:032x}-{number:016x}-02" for number in range(1, 129)]


def test_a_child_made_by_fork_draws_other_ids_than_its_parent() -> None:
    program = """
import os, random
from meshwarden.sdk.tracing.recorder import Recorder
ours = Recorder(lambda: 0.0, lambda: 7, None, None, lambda: False)
said = lambda: " ".join(ours.client("/a/B", "stock").headers[0][1][:52] for _ in range(40)) + "\\n"
os.write(1, said().encode())
child = os.fork()
os.write(1, said().encode())  # in one piece: both write
if child:
    os.waitpid(child, 0)
"""
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert len(set(found)) == len(found) == 120


def test_a_call_not_recorded_is_one_trace_with_those_below_it(world: World) -> None:
    world.ratio = 0.0
    one, other = world.serve(handler=lambda: (world.call(), world.call()))
    assert one["traceparent"][:36] == other["traceparent"][:36]


def test_a_handler_may_write_to_the_span_of_its_call(world: World) -> None:
    def handler() -> None:
        span = trace.get_current_span()
        assert span.is_recording()
        span.set_attribute("order", "1")
        span.set_attributes({"a": 1})
        span.add_event("packed", {"boxes": 2})
        span.record_exception(ValueError("late"))
        span.update_name("orders")
        span.set_status(trace.StatusCode.ERROR, "late")
        with world.provider.get_tracer("app").start_as_current_span("inner"):
            world.call()

    world.serve(("traceparent", SAMPLED), handler=handler)
    client, inner, server = world.spans
    assert dict(server.attributes or {}) == {
        "rpc.system.name": "grpc",
        "rpc.method": "o.Orders/Get",
        "rpc.response.status_code": "OK",
        "mesh.source": WEB,
        "mesh.revision": 7,
        "order": "1",
        "a": 1,
    }
    assert [event.name for event in server.events] == ["packed", "exception"]
    assert (server.name, server.status.description) == ("orders", "late")
    assert server.context is not None
    assert f"{server.context.trace_id:032x}" == TRACE
    assert inner.parent is not None
    assert inner.parent.span_id == server.context.span_id
    assert client.parent == inner.context


def test_a_span_that_the_handler_keeps_takes_nothing_more_when_the_call_is_over(world: World) -> None:
    span = world.serve(handler=trace.get_current_span)
    assert not span.is_recording()
    (before,) = world.spans
    span.add_event("late")
    span.end()
    assert world.spans == (before,)
    assert before.events == ()


def test_a_handler_of_a_call_not_recorded_may_write_and_nothing_comes_of_it(world: World) -> None:
    def handler() -> None:
        span = trace.get_current_span()
        assert not span.is_recording()
        assert f"{span.get_span_context().trace_id:032x}" == TRACE
        span.set_attribute("order", "1")
        span.record_exception(ValueError("late"))
        span.end()
        with world.provider.get_tracer("app").start_as_current_span("inner"):
            pass

    world.serve(("traceparent", NOT), handler=handler)
    assert world.spans == ()


def test_baggage_goes_along_recorded_or_not(world: World) -> None:
    for parent in (SAMPLED, NOT, ""):
        headers = world.serve(("traceparent", parent), ("baggage", "who=me"), handler=world.call)
        assert headers["baggage"] == "who=me"
    token = context.attach(baggage.set_baggage("who", "you"))
    assert world.call()["baggage"] == "who=you"
    context.detach(token)


def test_headers_of_another_kind_are_those_that_go_along(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(propagate.textmap.TextMapPropagator):
        @property
        def fields(self) -> set[str]:
            return {"b3"}

        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
            ids = (int(part, 16) for part in carrier["b3"].split("-")[:2])
            known = trace.SpanContext(*ids, is_remote=True, trace_flags=trace.TraceFlags(1))
            return trace.set_span_in_context(trace.NonRecordingSpan(known), context)

        def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
            known = trace.get_current_span(context).get_span_context()
            carrier["b3"] = f"{known.trace_id:032x}-{known.span_id:016x}-1"

    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", Other())
    headers = world.serve(("b3", f"{TRACE}-{SPAN}-1"), ("traceparent", NOT), handler=world.call)
    assert set(headers) == {"b3"}
    assert headers["b3"].startswith(TRACE)
    assert len(world.spans) == 2


def test_a_processor_of_the_program_sees_spans_of_the_sdk_begin_and_end(world: World) -> None:
    began: list[str] = []
    ended: list[str] = []

    class Mine(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            span.set_attribute("mine", True)
            began.append(span.name)

        def on_end(self, span: ReadableSpan) -> None:
            ended.append(span.name)

    world.provider.add_span_processor(Mine())
    world.serve(("traceparent", SAMPLED), handler=world.call)
    assert (began, ended) == (["o.Orders/Get", "o.Orders/List"], ["o.Orders/List", "o.Orders/Get"])
    assert [(span.attributes or {})["mine"] for span in world.spans] == [True, True]


def test_turned_off_it_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    world = World(True, monkeypatch)
    world.serve(("traceparent", SAMPLED), handler=world.call)
    assert world.spans == ()
    world.provider.shutdown()


@given(st.text(max_size=80), st.text(max_size=80), st.text(max_size=80))
def test_any_headers_are_survived(parent: str, state: str, bags: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        world = World(True, patch, 0.0)
        headers = world.serve(("traceparent", parent), ("tracestate", state), ("baggage", bags), handler=world.call)
        assert len(headers["traceparent"]) == 55
        world.provider.shutdown()
