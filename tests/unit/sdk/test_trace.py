"""The trace from the calls served to the calls made, with OpenTelemetry and without."""

import contextvars
import re
from collections.abc import Iterator

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshwarden.sdk.tracing.otel import OtelTracer
from meshwarden.sdk.tracing.trace import Carrier, is_parent, sampled_ids, with_headers

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"


def carried(*metadata: tuple[str, str | bytes]) -> dict[str, str]:
    def serve() -> dict[str, str]:
        tracer = Carrier()
        tracer.server("/a/B", metadata, "spiffe://m/x")
        return dict(tracer.client("/c/D", "orders").headers)

    return contextvars.Context().run(serve)


def test_the_headers_of_the_call_being_served_go_on() -> None:
    assert carried(("traceparent", PARENT), ("tracestate", "k=v")) == {"traceparent": PARENT, "tracestate": "k=v"}
    assert carried() == {}
    assert dict(contextvars.Context().run(lambda: Carrier().client("/c/D", "orders").headers)) == {}


@pytest.mark.parametrize(
    "parent",
    [
        "",
        PARENT.upper(),
        PARENT + "\n",
        PARENT + "-more",
        f"ff-{'a' * 32}-{'b' * 16}-01",
        f"00-{'0' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'0' * 16}-01",
        b"\x00\xff",
    ],
)
def test_a_malformed_parent_is_not_handed_on(parent: str | bytes) -> None:
    assert carried(("traceparent", parent), ("tracestate", "k=v")) == {}


def test_a_state_without_measure_is_left_behind() -> None:
    assert carried(("traceparent", PARENT), ("tracestate", "x" * 513)) == {"traceparent": PARENT}


@given(st.text(st.characters(), max_size=80))
def test_any_text_is_survived(parent: str) -> None:
    assert set(carried(("traceparent", parent)).values()) <= {parent}


W3C = r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"


@given(
    st.from_regex(r"[0-9a-f]{2}-([0-9a-f]{32}|0{32})-([0-9a-f]{16}|0{16})-[0-9a-f]{2}", fullmatch=True),
    st.integers(0, 54),
    st.sampled_from(["", "0", "f", "F", "g", "-", "--", "\n", "é", "\ud800", "\0"]),
)
def test_a_parent_is_what_the_standard_says(parent: str, place: int, mark: str) -> None:
    for text in (parent, parent[:place] + mark + parent[place + 1 :], parent + mark, f"ff{parent[2:]}"):
        assert is_parent(text) == (re.fullmatch(W3C, text) is not None)


def test_a_parent_that_the_program_has_set_stands() -> None:
    own = [("traceparent", "mine"), ("a", "b")]
    assert with_headers(own, (("traceparent", PARENT),)) == own
    assert with_headers(None, (("traceparent", PARENT),)) == [("traceparent", PARENT)]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
    yield exporter
    provider.shutdown()


def test_client_spans_are_below_the_server_span_and_that_below_the_caller(spans: InMemorySpanExporter) -> None:
    def serve() -> dict[str, str]:
        tracer = OtelTracer()
        served = tracer.server("/a.B/C", [("traceparent", PARENT)], "spiffe://m/x")
        made = tracer.client("/c.D/E", "orders")
        made.end(grpc.StatusCode.OK, "")
        served.end(grpc.StatusCode.OK, "")
        return dict(made.headers)

    headers = contextvars.Context().run(serve)
    client, server = spans.get_finished_spans()
    assert server.parent is not None
    assert (f"{server.context.trace_id:032x}", f"{server.parent.span_id:016x}") == ("a" * 32, "b" * 16)
    assert client.parent is not None
    assert client.parent.span_id == server.context.span_id
    assert headers["traceparent"] == f"00-{'a' * 32}-{client.context.span_id:016x}-01"
    assert (client.name, client.kind, server.kind) == ("c.D/E", trace.SpanKind.CLIENT, trace.SpanKind.SERVER)


@pytest.mark.parametrize(
    ("code", "client_fails", "server_fails"),
    [
        (grpc.StatusCode.OK, False, False),
        (grpc.StatusCode.NOT_FOUND, True, False),
        (grpc.StatusCode.CANCELLED, True, False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, True, True),
        (grpc.StatusCode.UNKNOWN, True, True),
    ],
)
def test_each_side_has_its_own_idea_of_an_error(
    spans: InMemorySpanExporter, code: grpc.StatusCode, client_fails: bool, server_fails: bool
) -> None:
    tracer = OtelTracer()
    tracer.client("/a.B/C", "orders").end(code, "why")
    contextvars.Context().run(lambda: tracer.server("/a.B/C", [], "spiffe://m/x").end(code, "why"))
    failed = [not span.status.is_unset for span in spans.get_finished_spans()]
    assert failed == [client_fails, server_fails]
    assert {span.attributes["rpc.response.status_code"] for span in spans.get_finished_spans()} == {code.name}


@pytest.mark.parametrize(("flags", "is_sampled"), [("01", True), ("00", False), ("03", True), ("fe", False)])
def test_where_a_call_is_recorded_is_told_by_a_sampled_parent_alone(flags: str, is_sampled: bool) -> None:
    found = sampled_ids(f"{PARENT[:-2]}{flags}")
    assert found == ((b"\xaa" * 16, b"\xbb" * 8) if is_sampled else None)
    assert sampled_ids(PARENT + "\n") is None


def test_a_span_says_where_it_is_recorded(spans: InMemorySpanExporter) -> None:
    made = OtelTracer().client("/a.B/C", "orders")
    made.end(grpc.StatusCode.OK, "")
    (span,) = spans.get_finished_spans()
    assert made.sampled == (span.context.trace_id.to_bytes(16, "big"), span.context.span_id.to_bytes(8, "big"))


def test_a_span_that_nobody_records_says_so() -> None:
    assert OtelTracer().client("/a.B/C", "orders").sampled is None
