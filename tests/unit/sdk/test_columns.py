"""Spans read as one: nothing is read that OTLP can't read, and what isn't flat or has no ids is told."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from meshwarden.sdk.tracing import columns

TEXT = AnyValue(string_value="text")
TEXTS = [KeyValue(key="a", value=TEXT), KeyValue(key="b", value=TEXT)]
HOLDERS = (
    AnyValue(array_value=ArrayValue(values=[TEXT])),
    AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=TEXT)])),
    AnyValue(array_value=ArrayValue(values=[AnyValue()])),
)
values = st.sampled_from(
    [*HOLDERS, TEXT, AnyValue(), AnyValue(int_value=7), AnyValue(array_value=ArrayValue()), AnyValue(bytes_value=b"j")]
)
attributes = st.lists(st.builds(KeyValue, key=st.sampled_from(["k", "j"]), value=values), max_size=3)
spans = st.builds(
    Span,
    trace_id=st.sampled_from([b"\x01" * 16, b"\x00" * 15 + b"\x01", bytes(16), b"\x01" * 15, b""]),
    span_id=st.sampled_from([b"\x01" * 8, b"\x01" + bytes(7), bytes(8), b"\x01" * 9, b""]),
    parent_span_id=st.sampled_from([b"", b"\x02" * 8]),
    name=st.sampled_from(["", "name"]),
    start_time_unix_nano=st.integers(0, 2**64 - 1),
    attributes=attributes,
    events=st.lists(st.builds(Span.Event, name=st.just("e"), attributes=attributes), max_size=2),
    links=st.lists(st.builds(Span.Link, trace_id=st.just(b"\x03" * 16), attributes=attributes), max_size=2),
    status=st.sampled_from([None, Status(code=Status.STATUS_CODE_ERROR, message="why")]),
)
scopes = st.builds(
    ScopeSpans,
    scope=st.builds(InstrumentationScope, name=st.just("lib"), attributes=attributes),
    spans=st.lists(spans, max_size=4),
)
requests = st.builds(
    ExportTraceServiceRequest,
    resource_spans=st.lists(
        st.builds(
            ResourceSpans, resource=st.builds(Resource, attributes=attributes), scope_spans=st.lists(scopes, max_size=2)
        ),
        max_size=2,
    ),
)


def pairs_of(request: ExportTraceServiceRequest) -> list[KeyValue]:
    found = []
    for resource in request.resource_spans:
        found += resource.resource.attributes
        for scope in resource.scope_spans:
            found += scope.scope.attributes
            for span in scope.spans:
                for part in (span, *span.events, *span.links):
                    found += part.attributes
    return found


def all_spans(request: ExportTraceServiceRequest) -> list[Span]:
    return [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]


@given(requests)
def test_it_tells_what_a_walk_through_all_spans_tells(request: ExportTraceServiceRequest) -> None:
    read = columns.Request.FromString(request.SerializeToString())
    holding = [pair for pair in pairs_of(request) if pair.value.array_value.values or pair.value.kvlist_value.values]
    assert columns.is_flat(read) is not bool(holding)
    sent, merged = all_spans(request), read.resource_spans.scope_spans.spans
    assert list(merged.trace_id) == [span.trace_id for span in sent if span.trace_id]
    assert list(merged.span_id) == [span.span_id for span in sent if span.span_id]
    assert list(merged.parent_span_id) == [span.parent_span_id for span in sent if span.parent_span_id]
    assert merged.HasField("links") is any(span.links for span in sent)
    expected = all(
        (len(span.trace_id), len(span.span_id)) == (16, 8) and any(span.trace_id) and any(span.span_id) for span in sent
    )
    assert columns.are_ids(merged, len(sent)) is expected


@given(requests, st.integers(0, 2000), st.integers(0, 255), st.booleans())
def test_it_reads_what_otlp_reads(request: ExportTraceServiceRequest, at: int, byte: int, is_cut: bool) -> None:
    body = bytearray(request.SerializeToString())
    if body:
        body[at % len(body)] = byte
        del body[at % len(body) + 1 if is_cut else len(body) :]
    try:
        ExportTraceServiceRequest.FromString(bytes(body))
        is_read = True
    except DecodeError:
        is_read = False
    try:
        flat = columns.is_flat(columns.Request.FromString(bytes(body)))
    except DecodeError:
        assert not is_read
        return
    # What a value holds is not looked at: what holds any is to be read by OTLP's own class.
    assert is_read or not flat


@pytest.mark.parametrize("value", HOLDERS)
def test_a_value_that_holds_others_is_told_behind_one_that_holds_none(value: AnyValue) -> None:
    among = ScopeSpans(
        spans=[Span(attributes=[*TEXTS, KeyValue(key="c", value=value), *TEXTS]), Span(attributes=TEXTS)]
    )
    assert not columns.is_flat_scope(columns.Scope.FromString(among.SerializeToString()))
