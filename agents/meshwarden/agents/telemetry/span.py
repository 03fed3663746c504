"""Bounds on spans that programs send: what is too much is cut, what is no span is refused.

Source: OpenTelemetry specification, "Common: attribute limits", "SDK: span limits"; W3C Trace Context for the ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

_MAX_SCOPES: Final = 128
_MAX_SPAN_BYTES: Final = 262_144
_MAX_ATTRIBUTES: Final = 128
_MAX_EVENTS: Final = 128
_MAX_LINKS: Final = 128
_MAX_OF_PART: Final = 32  # attributes of an event or a link
_MAX_KEY: Final = 256
_MAX_TEXT: Final = 4096
_MAX_NAME: Final = 1024
_MAX_VALUES: Final = 64  # of an array or a map
_MAX_DEPTH: Final = 4
_CUT: Final = 0.25  # of _MAX_TEXT in characters: no character has more than four bytes


@dataclass
class Bounded:
    """How many spans a message had.

    Attributes:
        kept: are still in it.
        malformed: were no spans.
        too_many: were too many or too large, or came too late.
    """

    kept: int = 0
    malformed: int = 0
    too_many: int = 0


def bound_spans(message: ResourceSpans, most: int, is_late: Callable[[], bool]) -> Bounded:
    """Bounds a message in place.

    Args:
        message: the message.
        most: how many spans may stay.
        is_late: asked before each span; once true, the rest goes.
    """
    found = Bounded()
    message.DiscardUnknownFields()
    message.schema_url = message.schema_url[:_MAX_KEY]
    _bound_attributes(message.resource.attributes, _MAX_ATTRIBUTES)
    del message.resource.entity_refs[:]
    found.too_many += _shorten(message.scope_spans, _MAX_SCOPES)
    for scope in message.scope_spans:
        scope.schema_url = scope.schema_url[:_MAX_KEY]
        scope.scope.name = scope.scope.name[:_MAX_KEY]
        scope.scope.version = scope.scope.version[:_MAX_KEY]
        _bound_attributes(scope.scope.attributes, _MAX_OF_PART)
        _bound_scope(scope, most, is_late, found)
    return found


def _bound_scope(scope: ScopeSpans, most: int, is_late: Callable[[], bool], found: Bounded) -> None:
    found.too_many += _shorten(scope.spans, most - found.kept)
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
    if len(kept) < len(scope.spans):
        whole = ScopeSpans(spans=kept)
        scope.ClearField("spans")
        scope.MergeFrom(whole)
    found.kept += len(kept)


def _is_span(span: Span) -> bool:
    return _is_id(span.trace_id, 16) and _is_id(span.span_id, 8) and len(span.parent_span_id) in (0, 8)


def _is_small(span: Span) -> bool:
    """Whether a span is small enough to be looked at in full, once what is plainly too much of it is gone."""
    if span.ByteSize() <= _MAX_SPAN_BYTES:
        return True
    _shorten_span(span)
    for pairs in (span.attributes, *(event.attributes for event in span.events)):
        for pair in pairs[:_MAX_ATTRIBUTES]:
            _bound_text(pair.value)
    return span.ByteSize() <= _MAX_SPAN_BYTES


def _shorten_span(span: Span) -> None:
    span.dropped_attributes_count += _shorten(span.attributes, _MAX_ATTRIBUTES)
    span.dropped_events_count += _shorten(span.events, _MAX_EVENTS)
    span.dropped_links_count += _shorten(span.links, _MAX_LINKS)


def _is_id(value: bytes, length: int) -> bool:
    return len(value) == length and any(value)


def _bound_span(span: Span) -> None:
    if len(span.name) > _MAX_NAME:
        span.name = span.name[:_MAX_NAME]
    if len(span.trace_state) > _MAX_KEY * 2:
        span.trace_state = ""  # half of it would say something else
    if len(span.status.message) > _MAX_NAME:
        span.status.message = span.status.message[:_MAX_NAME]
    _shorten_span(span)
    span.dropped_attributes_count += _bound_attributes(span.attributes, _MAX_ATTRIBUTES)
    for event in span.events:
        event.name = event.name[:_MAX_NAME]
        event.dropped_attributes_count += _bound_attributes(event.attributes, _MAX_OF_PART)
    for index in range(len(span.links) - 1, -1, -1):
        link = span.links[index]
        if not _is_id(link.trace_id, 16) or not _is_id(link.span_id, 8):
            del span.links[index]
            continue
        link.trace_state = link.trace_state if len(link.trace_state) <= _MAX_KEY * 2 else ""
        link.dropped_attributes_count += _bound_attributes(link.attributes, _MAX_OF_PART)


def _shorten(items: Any, most: int) -> int:
    over = max(0, len(items) - most)
    if over:
        del items[most:]
    return over


def _bound_attributes(pairs: Any, most: int) -> int:
    """Bounds attributes in place; returns how many went."""
    before = len(pairs)
    _shorten(pairs, most)
    for index in range(len(pairs) - 1, -1, -1):
        pair: KeyValue = pairs[index]
        if not pair.key or len(pair.key) > _MAX_KEY or not _bound_value(pair.value, _MAX_DEPTH):
            del pairs[index]
    return before - len(pairs)


def _bound_value(value: AnyValue, depth: int) -> bool:
    """Bounds a value in place; False if it is nested too deeply to be kept."""
    kind = value.WhichOneof("value")
    if kind in ("string_value", "bytes_value"):
        _bound_text(value)
    elif kind == "array_value":
        _shorten(value.array_value.values, _MAX_VALUES)
        return depth > 0 and _all_bound(value.array_value.values, depth)
    elif kind == "kvlist_value":
        _shorten(value.kvlist_value.values, _MAX_VALUES)
        return depth > 0 and _all_bound([pair.value for pair in value.kvlist_value.values], depth)
    return True


def _bound_text(value: AnyValue) -> None:
    if len(value.string_value) > _MAX_TEXT * _CUT:
        value.string_value = value.string_value.encode()[:_MAX_TEXT].decode(errors="ignore")
    elif len(value.bytes_value) > _MAX_TEXT:
        value.bytes_value = value.bytes_value[:_MAX_TEXT]


def _all_bound(values: Sequence[AnyValue], depth: int) -> bool:
    return all(_bound_value(value, depth - 1) for value in values)
