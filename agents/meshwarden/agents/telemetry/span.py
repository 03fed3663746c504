"""Bounds on spans that programs send: what is too much is cut, what is no span is refused.

Source: OpenTelemetry specification, "Common: attribute limits", "SDK: span limits"; W3C Trace Context for the ids.
"""

from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

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


def bound_spans(message: ResourceSpans) -> int:
    """Bounds a message in place; removes what is no span and says how many that were."""
    message.DiscardUnknownFields()
    message.schema_url = message.schema_url[:_MAX_KEY]
    _bound_attributes(message.resource.attributes, _MAX_ATTRIBUTES)
    del message.resource.entity_refs[:]
    removed = 0
    for scope in message.scope_spans:
        scope.schema_url = scope.schema_url[:_MAX_KEY]
        scope.scope.name = scope.scope.name[:_MAX_KEY]
        scope.scope.version = scope.scope.version[:_MAX_KEY]
        _bound_attributes(scope.scope.attributes, _MAX_OF_PART)
        for index in range(len(scope.spans) - 1, -1, -1):
            if _is_span(scope.spans[index]):
                _bound_span(scope.spans[index])
            else:
                del scope.spans[index]
                removed += 1
    return removed


def count_spans(message: ResourceSpans) -> int:
    """How many spans there are in a message."""
    return sum(len(scope.spans) for scope in message.scope_spans)


def _is_span(span: Span) -> bool:
    return _is_id(span.trace_id, 16) and _is_id(span.span_id, 8) and len(span.parent_span_id) in (0, 8)


def _is_id(value: bytes, length: int) -> bool:
    return len(value) == length and any(value)


def _bound_span(span: Span) -> None:
    if len(span.name) > _MAX_NAME:
        span.name = span.name[:_MAX_NAME]
    if len(span.trace_state) > _MAX_KEY * 2:
        span.trace_state = ""  # half of it would say something else
    if len(span.status.message) > _MAX_NAME:
        span.status.message = span.status.message[:_MAX_NAME]
    span.dropped_attributes_count += _bound_attributes(span.attributes, _MAX_ATTRIBUTES)
    span.dropped_events_count += _shorten(span.events, _MAX_EVENTS)
    span.dropped_links_count += _shorten(span.links, _MAX_LINKS)
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
    if kind == "string_value":
        if len(value.string_value) > _MAX_TEXT * _CUT:
            value.string_value = value.string_value.encode()[:_MAX_TEXT].decode(errors="ignore")
    elif kind == "bytes_value":
        value.bytes_value = value.bytes_value[:_MAX_TEXT]
    elif kind == "array_value":
        _shorten(value.array_value.values, _MAX_VALUES)
        return depth > 0 and _all_bound(value.array_value.values, depth)
    elif kind == "kvlist_value":
        _shorten(value.kvlist_value.values, _MAX_VALUES)
        return depth > 0 and _all_bound([pair.value for pair in value.kvlist_value.values], depth)
    return True


def _all_bound(values: Sequence[AnyValue], depth: int) -> bool:
    return all(_bound_value(value, depth - 1) for value in values)
