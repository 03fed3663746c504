"""Spans that programs send, bounded as bytes: what is plainly within all bounds stays as it came.

A span is plain if it is small, nothing in it is nested, its ids are ids, its state is short, and it has no links. So
small a span goes beyond no bound on other texts; what a bound on keys or numbers would cut of it is less than it is.
Who writes an id twice in one span and none in another has a span that the control plane won't store. All others are
read, one by one, and bounded by `span`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from meshwarden.agents.in_force import RevisionAt
from meshwarden.agents.telemetry.attribute import MAX_SCOPES, Bounded, bound_scope
from meshwarden.agents.telemetry.flat import is_flat_span
from meshwarden.agents.telemetry.span import MAX_STATE, bound_span
from meshwarden.sdk import wire

_SMALL_BYTES: Final = 1024
_SMALL_SCOPE_BYTES: Final = 256
# What a field of a span takes beside it, at most.
_FRAME_BYTES: Final = 3
_MAX_REVISION: Final = 2**63 - 1
_NO_TRACE: Final = bytes(16)
_NO_SPAN: Final = bytes(8)


def sift(scopes: Sequence[bytes], most: int, is_late: Callable[[], bool], is_flat: bool) -> tuple[list[bytes], Bounded]:
    """Bounds the spans of a resource.

    Args:
        scopes: serialised `ScopeSpans`, which protobuf can read.
        most: how many spans may stay.
        is_late: asked before each span that is read; once true, the rest goes.
        is_flat: whether no attribute in them holds other values.

    Returns:
        The scopes as they may go on, and how many spans that is.
    """
    found = Bounded(too_many=max(0, len(scopes) - MAX_SCOPES))
    kept = []
    for body in scopes[:MAX_SCOPES]:
        scope = wire.Scope.FromString(body)
        spans = list(scope.spans)
        room = most - found.kept
        rest = len(body) - sum(map(len, spans)) - _FRAME_BYTES * len(spans)
        if is_flat and len(spans) <= room and rest <= _SMALL_SCOPE_BYTES and _are_plain(spans):
            kept.append(body)
            found.kept += len(spans)
            continue
        found.too_many += max(0, len(spans) - room)
        bounded = _bound(spans[: max(0, room)], is_late, is_flat, found)
        found.kept += len(bounded)
        kept.append(_head_of(scope) + wire.all_framed(2, bounded))
    return kept, found


def stamped(scopes: Sequence[bytes], revision_at: RevisionAt) -> list[bytes]:
    """The same scopes, each span with the revision that was in force when it began as `mesh.revision`."""
    found = []
    for body in scopes:
        scope = wire.Scope.FromString(body)
        spans = [span + _revision(revision_at(Span.FromString(span).start_time_unix_nano)) for span in scope.spans]
        head = (*(wire.framed(1, item) for item in scope.scope), *(wire.framed(3, url) for url in scope.schema_url))
        found.append(b"".join(head) + wire.all_framed(2, spans))
    return found


@functools.lru_cache(maxsize=64)
def _revision(revision: int) -> bytes:
    pair = KeyValue(key="mesh.revision", value=AnyValue(int_value=min(revision, _MAX_REVISION)))
    return bytes(Span(attributes=[pair]).SerializeToString())


def _are_plain(spans: Sequence[bytes]) -> bool:
    """Whether all of some flat spans are."""
    if not spans or max(map(len, spans)) > _SMALL_BYTES:
        return not spans
    all_of_them = wire.Spans.FromString(b"".join(spans))
    trace_ids, span_ids = all_of_them.trace_id[:], all_of_them.span_id[:]
    return (
        len(trace_ids) == len(span_ids) == len(spans)
        and set(map(len, trace_ids)) == {16}
        and set(map(len, span_ids)) == {8}
        and set(map(len, all_of_them.parent_span_id[:])) <= {0, 8}
        and _NO_TRACE not in trace_ids
        and _NO_SPAN not in span_ids
        and not all_of_them.links
        and max(map(len, all_of_them.trace_state[:]), default=0) <= MAX_STATE
    )


def _bound(spans: Sequence[bytes], is_late: Callable[[], bool], is_flat: bool, found: Bounded) -> list[bytes]:
    kept = []
    for index, body in enumerate(spans):
        if is_late():
            found.too_many += len(spans) - index
            break
        if _are_plain((body,)) and (is_flat or is_flat_span(body)):
            kept.append(body)
            continue
        span = Span.FromString(body)
        span.DiscardUnknownFields()
        if bound_span(span, found):
            kept.append(span.SerializeToString())
    return kept


def _head_of(scope: Any) -> bytes:
    """What a scope says of itself, bounded."""
    about = ScopeSpans(scope=InstrumentationScope.FromString(b"".join(scope.scope)))
    for url in scope.schema_url:
        about.schema_url = url.decode()
    about.DiscardUnknownFields()
    bound_scope(about)
    return bytes(about.SerializeToString())
