"""Spans of a program's own: parents, links, and what remains without OpenTelemetry."""

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshwarden.examples import trace

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace.trace, "get_tracer", provider.get_tracer)
    return exporter


def test_a_linked_span_is_a_trace_of_its_own(spans: InMemorySpanExporter) -> None:
    with trace.span("process", kind="consumer", link=TRACEPARENT):
        pass
    (span,) = spans.get_finished_spans()
    assert span.parent is None
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [TRACEPARENT[3:35]]
    assert span.kind.name == "CONSUMER"


@pytest.mark.parametrize("link", ["", "00-x", TRACEPARENT + "0", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_what_is_no_traceparent_is_no_link_even_inside_a_span(spans: InMemorySpanExporter, link: str) -> None:
    with trace.span("outer", kind="internal"), trace.span("inner", kind="consumer", link=link):
        pass
    assert [list(span.links) for span in spans.get_finished_spans()] == [[], []]


def test_spans_nest_and_say_what_they_are_told(spans: InMemorySpanExporter) -> None:
    with trace.span("outer", {"Traceparent": TRACEPARENT}, kind="server") as outer:
        outer.set({"a": 1})
        found = trace.trace_id()
        with trace.span("inner", kind="internal", attributes={"b": "c"}):
            assert trace.headers()["traceparent"][3:35] == found
    inner, outer_span = spans.get_finished_spans()
    assert found == TRACEPARENT[3:35]
    assert inner.parent is not None
    assert inner.parent.span_id == outer_span.context.span_id
    assert (dict(inner.attributes or {}), dict(outer_span.attributes or {})) == ({"b": "c"}, {"a": 1})


def test_without_opentelemetry_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "HAS_SPANS", False)
    opened: Any
    with trace.span("outer", link=TRACEPARENT, attributes={"a": 1}) as opened:
        opened.set({"b": 2})
        assert trace.headers() == {}
        assert trace.trace_id() == ""
