"""Bounds on spans that programs send: what is too much is cut, what is no span is refused.

Source: OpenTelemetry specification, "SDK: span limits"; W3C Trace Context for the ids.
"""

from collections.abc import Callable
from typing import Final

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from meshwarden.agents.telemetry.attribute import (
    MAX_ATTRIBUTES,
    MAX_KEY,
    MAX_NAME,
    MAX_OF_PART,
    MAX_SCOPES,
    Bounded,
    bound_attributes,
    bound_resource,
    bound_scope,
    bound_text,
    replace_all,
    shorten,
)

_MAX_SPAN_BYTES: Final = 262_144
_MAX_EVENTS: Final = 128
_MAX_LINKS: Final = 128


def bound_spans(message: ResourceSpans, most: int, is_late: Callable[[], bool]) -> Bounded:
    """Bounds a message in place.

    Args:
        message: the message.
        most: how many spans may stay.
        is_late: asked before each span; once true, the rest goes.
    """
    found = Bounded()
    bound_resource(message)
    found.too_many += shorten(message.scope_spans, MAX_SCOPES)
    for scope in message.scope_spans:
        bound_scope(scope)
        _bound_spans_of(scope, most, is_late, found)
    return found


def _bound_spans_of(scope: ScopeSpans, most: int, is_late: Callable[[], bool], found: Bounded) -> None:
    found.too_many += shorten(scope.spans, most - found.kept)
    kept = []
    for index, span in enumerate(scope.spans):
        if is_late():
            found.too_many += len(scope.spans) - index
            break
        if not _is_span(span):
            found.malformed += 1
        elif not _is_small(span):
            found.too_many += 1
        else:
            _bound_span(span)
            kept.append(span)
    replace_all(scope, "spans", kept)
    found.kept += len(kept)


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


def _bound_span(span: Span) -> None:
    if len(span.name) > MAX_NAME:
        span.name = span.name[:MAX_NAME]
    if len(span.trace_state) > MAX_KEY * 2:
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
        link.trace_state = link.trace_state if len(link.trace_state) <= MAX_KEY * 2 else ""
        link.dropped_attributes_count += bound_attributes(link.attributes, MAX_OF_PART)
