"""Bounds on spans that programs send: what is too much is cut, what is no span is refused.

Source: OpenTelemetry specification, "SDK: span limits"; W3C Trace Context for the ids.
"""

from typing import Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from meshwarden.agents.telemetry.attribute import (
    MAX_ATTRIBUTES,
    MAX_KEY,
    MAX_NAME,
    MAX_OF_PART,
    Bounded,
    bound_attributes,
    bound_text,
    shorten,
)

_MAX_SPAN_BYTES: Final = 262_144
_MAX_EVENTS: Final = 128
_MAX_LINKS: Final = 128
MAX_STATE: Final = MAX_KEY * 2


def bound_span(span: Span, found: Bounded) -> bool:
    """Bounds a span in place; if it can't stay, counts it by why, and returns False."""
    if not _is_span(span):
        found.malformed += 1
        return False
    if not _is_small(span):
        found.too_many += 1
        return False
    _cut(span)
    return True


def _is_span(span: Span) -> bool:
    return _is_id(span.trace_id, 16) and _is_id(span.span_id, 8) and len(span.parent_span_id) in (0, 8)


def _is_small(span: Span) -> bool:
    """Whether a span is small enough to be looked at in full, once what is plainly too much of it is gone."""
    if span.ByteSize() <= _MAX_SPAN_BYTES:
        return True
    _shorten_span(span)
    for pairs in (span.attributes, *(event.attributes for event in span.events)):
        for pair in pairs[:MAX_ATTRIBUTES]:
            bound_text(pair.value)
    return span.ByteSize() <= _MAX_SPAN_BYTES


def _shorten_span(span: Span) -> None:
    span.dropped_attributes_count += shorten(span.attributes, MAX_ATTRIBUTES)
    span.dropped_events_count += shorten(span.events, _MAX_EVENTS)
    span.dropped_links_count += shorten(span.links, _MAX_LINKS)


def _is_id(value: bytes, length: int) -> bool:
    return len(value) == length and any(value)


def _cut(span: Span) -> None:
    if len(span.name) > MAX_NAME:
        span.name = span.name[:MAX_NAME]
    if len(span.trace_state) > MAX_STATE:
        span.trace_state = ""  # half of it would say something else
    if len(span.status.message) > MAX_NAME:
        span.status.message = span.status.message[:MAX_NAME]
    _shorten_span(span)
    span.dropped_attributes_count += bound_attributes(span.attributes, MAX_ATTRIBUTES)
    for event in span.events:
        event.name = event.name[:MAX_NAME]
        event.dropped_attributes_count += bound_attributes(event.attributes, MAX_OF_PART)
    for index in range(len(span.links) - 1, -1, -1):
        link = span.links[index]
        if not _is_id(link.trace_id, 16) or not _is_id(link.span_id, 8):
            del span.links[index]
            continue
        link.trace_state = link.trace_state if len(link.trace_state) <= MAX_STATE else ""
        link.dropped_attributes_count += bound_attributes(link.attributes, MAX_OF_PART)
