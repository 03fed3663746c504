"""Spans that programs send, bounded as bytes: what is plainly within all bounds stays as it came.

A span is plain if it is small, nothing in it is nested, its ids are ids, its state is short, and it has no links. So
small a span goes beyond no bound on other texts; what a bound on keys or numbers would cut of it is less than it is.
Who writes an id twice in one span and none in another has a span that the control plane won't store. All others are
read, one by one, and bounded by `span`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from meshwarden.agents.telemetry.attribute import MAX_SCOPES, Bounded, bound_scope
from meshwarden.agents.telemetry.span import MAX_STATE, bound_span
from meshwarden.agents.xds.in_force import RevisionAt
from meshwarden.sdk.tracing import columns, wire

_SMALL_BYTES: Final = 1024
_SMALL_SCOPE_BYTES: Final = 256
# What a field of a span takes beside it, at most.
_FRAME_BYTES: Final = 3
_MAX_REVISION: Final = 2**63 - 1


def sift(
    scopes: Sequence[bytes], most: int, is_late: Callable[[], bool], *, is_plain: bool
) -> tuple[list[bytes], Bounded]:
    """Bounds the spans of a resource.

    Args:
        scopes: serialised `ScopeSpans`, which protobuf can read.
        most: how many spans may stay.
        is_late: asked before each span that is read; once true, the rest goes.
        is_plain: whether their request is known to be, as `are_plain` says.

    Returns:
        The scopes as they may go on, and how many spans that is.
    """
    found = Bounded(too_many=max(0, len(scopes) - MAX_SCOPES))
    kept = []
    for body in scopes[:MAX_SCOPES]:
        scope = wire.Scope.FromString(body)
        spans = scope.spans[:]
        sizes = list(map(len, spans))
        room = most - found.kept
        rest = len(body) - sum(sizes) - _FRAME_BYTES * len(spans)
        are_small = len(spans) <= room and rest <= _SMALL_SCOPE_BYTES and max(sizes, default=0) <= _SMALL_BYTES
        if are_small and (is_plain or _are_plain(body, len(spans))):
            kept.append(body)
            found.kept += len(spans)
            continue
        found.too_many += max(0, len(spans) - room)
        bounded = _bound(spans[: max(0, room)], is_late, found)
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


def are_plain(request: bytes) -> bool:
    """Whether all spans of a request are known to be plain, but for their sizes; False where it can't be read."""
    try:
        read = columns.Request.FromString(request)
        count = len(wire.AllResources.FromString(request).resource_spans.scope_spans.spans)
    except DecodeError:
        return False
    return columns.is_flat(read) and _are_sound(read.resource_spans.scope_spans.spans, count)


def _are_plain(scope: bytes, count: int) -> bool:
    """The same of a scope that can be read, of so many spans."""
    read = columns.Scope.FromString(scope)
    return columns.is_flat_scope(read) and _are_sound(read.spans, count)


def _is_plain(body: bytes) -> bool:
    """Whether a span that can be read is."""
    if len(body) > _SMALL_BYTES:
        return False
    read = columns.Span.FromString(body)
    return columns.is_flat_span(read) and _are_sound(read, 1)


def _are_sound(spans: Any, count: int) -> bool:
    """Whether so many spans, read as one, have ids, short states and no links."""
    return (
        columns.are_ids(spans, count)
        and set(map(len, spans.parent_span_id[:])) <= {0, 8}
        and not spans.HasField("links")
        and max(map(len, spans.trace_state[:]), default=0) <= MAX_STATE
    )


def _bound(spans: Sequence[bytes], is_late: Callable[[], bool], found: Bounded) -> list[bytes]:
    kept = []
    for index, body in enumerate(spans):
        if is_late():
            found.too_many += len(spans) - index
            break
        if _is_plain(body):
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
