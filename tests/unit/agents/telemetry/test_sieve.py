"""Spans bounded as bytes: what is plain stays as it came, what isn't is read; nobody gets past by how it is written."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from meshwarden.agents.telemetry.attribute import Bounded
from meshwarden.agents.telemetry.sieve import are_plain, sift
from meshwarden.agents.telemetry.span import bound_span
from meshwarden.sdk.tracing import columns, wire
from meshwarden.sdk.tracing.wire import all_framed, framed

TEXT = AnyValue(string_value="text")
LIST = AnyValue(array_value=ArrayValue(values=[TEXT]))
LINK = Span.Link(trace_id=b"\x01" * 16, span_id=b"\x01" * 8)
MAP = AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k", value=TEXT)]))


def attribute(value: AnyValue, key: str = "key") -> KeyValue:
    return KeyValue(key=key, value=value)


def span(**fields: object) -> Span:
    return Span(**{"trace_id": b"\x01" * 16, "span_id": b"\x02" * 8, "name": "call", **fields})  # type: ignore[arg-type]


def request(*scopes: ScopeSpans) -> bytes:
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(scope_spans=scopes)]).SerializeToString()


def sifted(*scopes: ScopeSpans, most: int = 1000) -> tuple[list[bytes], Bounded]:
    bodies = [scope.SerializeToString() for scope in scopes]
    return sift(bodies, most, lambda: False, is_plain=are_plain(request(*scopes)))


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (span(), True),
        (span(attributes=[attribute(TEXT)], events=[Span.Event(name="e", attributes=[attribute(TEXT)])]), True),
        (span(links=[Span.Link(attributes=[attribute(TEXT)])]), True),
        (span(attributes=[attribute(LIST)]), False),
        (span(attributes=[attribute(MAP)]), False),
        (span(events=[Span.Event(attributes=[attribute(MAP)])]), False),
        (span(links=[Span.Link(attributes=[attribute(LIST)])]), False),
    ],
)
def test_what_holds_other_values_is_not_flat(item: Span, expected: bool) -> None:
    among = ScopeSpans(spans=[span(attributes=[attribute(TEXT)]), item, span(attributes=[attribute(TEXT)])])
    assert columns.is_flat(columns.Request.FromString(request(among))) is expected
    assert columns.is_flat_scope(columns.Scope.FromString(among.SerializeToString())) is expected
    assert columns.is_flat_span(columns.Span.FromString(item.SerializeToString())) is expected


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x05ab", framed(1, framed(2, framed(2, framed(5, b"\xff\xfe"))))])
def test_what_cannot_be_read_is_not_plain(body: bytes) -> None:
    assert not are_plain(body)
    with pytest.raises(DecodeError):
        ExportTraceServiceRequest.FromString(body)


def test_plain_spans_stay_as_they_came() -> None:
    scope = ScopeSpans(
        scope=InstrumentationScope(name="lib", version="1"),
        spans=[
            span(span_id=bytes([n + 1] * 8), parent_span_id=b"\x03" * 8, attributes=[attribute(TEXT)])
            for n in range(20)
        ],
    )
    assert sifted(scope) == ([scope.SerializeToString()], Bounded(kept=20))


@pytest.mark.parametrize(
    "odd",
    [
        span(trace_id=bytes(16)),
        span(span_id=bytes(8)),
        span(trace_id=b"\x01" * 15),
        span(parent_span_id=b"\x01" * 7),
        Span(name="without any id, but longer than an id is"),
        Span(),
    ],
)
def test_one_that_is_none_costs_no_other(odd: Span) -> None:
    plain = [span(span_id=bytes([n + 1] * 8)) for n in range(5)]
    scope = ScopeSpans(spans=[*plain[:2], odd, *plain[2:]])
    (kept,), found = sifted(scope)
    assert found == Bounded(kept=5, malformed=1)
    assert list(ScopeSpans.FromString(kept).spans) == plain


def test_what_is_odd_about_a_scope_is_cut() -> None:
    scope = ScopeSpans(scope=InstrumentationScope(name="n" * 5000), schema_url="u" * 5000, spans=[span()])
    body = scope.SerializeToString() + framed(999, b"x" * 100_000)
    (kept,), found = sift([body], 10, lambda: False, is_plain=True)
    assert found == Bounded(kept=1)
    assert len(kept) < 1000
    assert ScopeSpans.FromString(kept).spans[0] == span()


def test_scopes_said_twice_and_spans_with_more_than_we_know_are_bounded() -> None:
    large = span().SerializeToString() + framed(999, b"x" * 5000)
    body = framed(1, InstrumentationScope(name="a").SerializeToString()) * 200 + all_framed(2, [large] * 3)
    (kept,), found = sift([body], 10, lambda: False, is_plain=True)
    assert found == Bounded(kept=3)
    assert len(kept) < 300


values = st.sampled_from([TEXT, LIST, MAP, AnyValue(string_value="x" * 2000), AnyValue(bytes_value=b"j" * 5)])
attributes = st.lists(st.builds(attribute, values, st.sampled_from(["k", "j", "key"])), max_size=4)
some_spans = st.lists(
    st.builds(
        Span,
        trace_id=st.sampled_from([b"\x01" * 16, bytes(16), b"j" * 16, b"", b"\x01" * 17]),
        span_id=st.sampled_from([b"\x01" * 8, bytes(8), b"\x02" * 8, b"\x01"]),
        parent_span_id=st.sampled_from([b"", b"\x01" * 8, b"\x01"]),
        trace_state=st.sampled_from(["", "a=b", "x" * 600]),
        name=st.sampled_from(["", "name", "n" * 2000]),
        attributes=attributes,
        events=st.lists(st.builds(Span.Event, name=st.just("e"), attributes=attributes), max_size=2),
        links=st.lists(
            st.sampled_from([Span.Link(), Span.Link(trace_id=b"\x01" * 16, span_id=b"\x01" * 8)]), max_size=2
        ),
    ),
    max_size=8,
)


@given(some_spans, st.integers(0, 8))
def test_it_finds_what_reading_each_span_finds(items: list[Span], most: int) -> None:
    scope = ScopeSpans(spans=items)
    (kept,), found = sifted(scope, most=most)
    expected = Bounded(too_many=max(0, len(items) - most))
    whole = [
        item for item in ScopeSpans.FromString(scope.SerializeToString()).spans[:most] if bound_span(item, expected)
    ]
    expected.kept = len(whole)
    assert found == expected
    assert list(ScopeSpans.FromString(kept).spans) == whole


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_no_bytes_break_it(scopes: list[bytes]) -> None:
    body = framed(1, all_framed(2, scopes))
    try:
        ExportTraceServiceRequest.FromString(body)
    except DecodeError:
        assert not are_plain(body)
        return
    (resource,) = wire.Request.FromString(body).resource_spans
    kept, found = sift(resource.scope_spans, 100, lambda: False, is_plain=are_plain(body))
    assert sum(len(ScopeSpans.FromString(scope).spans) for scope in kept) == found.kept
