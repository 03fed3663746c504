"""A part of a trace: what one service has in it, told from its spans.

A span is known by trace, service and span id: the ids in a trace are known to all whom it passes, so one service may
not use up another's.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

ID_BYTES: Final = 8
TRACE_ID_BYTES: Final = 16
_NO_TRACE: Final = bytes(TRACE_ID_BYTES)
_NO_SPAN: Final = bytes(ID_BYTES)
_NAME_CHARS: Final = 256
MAX_NS: Final = 2**63 - 1  # SQLite has no greater integers

Owner = tuple[str, str]
"""(tenant, service); the mesh's own parts have no tenant."""
Spans = dict[bytes, Span]
"""By their ids."""


class Part(NamedTuple):
    """What one service has in one trace, or in a block of it."""

    start_ns: int
    end_ns: int
    longest_ns: int
    spans: int
    errors: int
    is_root: bool
    name: str


def owner_of(spans: ResourceSpans) -> Owner:
    """Whose spans these are, by what the control plane has written into them."""
    said = {pair.key: pair.value.string_value for pair in spans.resource.attributes}
    tenant = said.get("mesh.tenant", "")
    return tenant, said.get("mesh.service" if tenant else "service.name", "")


def by_part(items: Iterable[ResourceSpans]) -> tuple[dict[Owner, dict[bytes, Spans]], int]:
    """The sound spans, by owner and trace, and how many came more than once.

    One without a trace id or an id of its own can't be found by anybody.
    """
    parts: dict[Owner, dict[bytes, Spans]] = {}
    repeated = 0
    for item in items:
        traces = parts.setdefault(owner_of(item), {})
        for scope in item.scope_spans:
            for span in scope.spans:
                trace_id, span_id = span.trace_id, span.span_id
                if not is_sound(trace_id, span_id):
                    continue
                spans = traces.get(trace_id)
                if spans is None:
                    traces[trace_id] = {span_id: span}
                elif span_id in spans:
                    repeated += 1
                else:
                    spans[span_id] = span
    return parts, repeated


def is_sound(trace_id: bytes, span_id: bytes) -> bool:
    """Whether these are ids. Source: W3C Trace Context §3.2.2."""
    are_long = len(trace_id) == TRACE_ID_BYTES and len(span_id) == ID_BYTES
    return are_long and trace_id != _NO_TRACE and span_id != _NO_SPAN


def summed(spans: Iterable[Span], now_ns: int) -> Part:
    """What spans of one service in one trace, at least one, are together.

    Args:
        spans: the spans.
        now_ns: the present: a clock that is ahead doesn't put a span before others for ever.
    """
    start_ns, end_ns, longest_ns, count, errors = MAX_NS, 0, 0, 0, 0
    first: Span | None = None
    first_is_root, first_ns = False, 0
    for span in spans:
        begun_ns = span.start_time_unix_nano
        took_ns = span.end_time_unix_nano - begun_ns
        if took_ns < 0:
            took_ns = 0
        # What has no parent names the part; else what began first.
        if not span.parent_span_id:
            if not first_is_root or begun_ns < first_ns:
                first, first_ns, first_is_root = span, begun_ns, True
        elif first is None or (not first_is_root and begun_ns < first_ns):
            first, first_ns = span, begun_ns
        if begun_ns > now_ns:
            begun_ns = now_ns
        if begun_ns < start_ns:
            start_ns = begun_ns
        if begun_ns + took_ns > end_ns:
            end_ns = begun_ns + took_ns
        if took_ns > longest_ns:
            longest_ns = took_ns
        if span.HasField("status") and span.status.code == Status.STATUS_CODE_ERROR:
            errors += 1
        count += 1
    name = first.name[:_NAME_CHARS] if first is not None else ""
    return Part(start_ns, min(end_ns, MAX_NS), min(longest_ns, MAX_NS), count, errors, first_is_root, name)


def merged(parts: Iterable[Part]) -> Part:
    """What the parts of several blocks, at least one, are together."""
    parts = list(parts)
    named = min(parts, key=lambda part: (not part.is_root, part.start_ns))
    return Part(
        start_ns=min(part.start_ns for part in parts),
        end_ns=max(part.end_ns for part in parts),
        longest_ns=max(part.longest_ns for part in parts),
        spans=sum(part.spans for part in parts),
        errors=sum(part.errors for part in parts),
        is_root=named.is_root,
        name=named.name,
    )
