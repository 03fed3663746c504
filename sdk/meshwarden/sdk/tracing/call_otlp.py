"""Writes spans of calls as OTLP, for a tenth of what it takes to make spans of OpenTelemetry's SDK and write those.

Most of a call's span is the same for all calls of a method, and is written once. What is left are ids, times and the
end of the call.

Source: OTLP 1.5, trace.proto; Protocol Buffers, "Encoding": a message is its fields in any order, and those of messages
written one after the other are the fields of one.
"""

import functools
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final

import grpc
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2 as pb
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind

from meshwarden.sdk.tracing.call_span import CallSpan
from meshwarden.sdk.tracing.status import ERROR, STATUS, failure_of

# Span: trace_id, 16 bytes; span_id, 8 bytes; start_time_unix_nano and end_time_unix_nano, fixed64; each after its tag.
_FIXED: Final = Struct("<2s16s2s8scQcQ")
_TRACE_STATE: Final = 3
_PARENT: Final = b"\x22\x08"
_STATUS: Final = 15
# Of ScopeSpans, ResourceSpans and ExportTraceServiceRequest.
_SPANS: Final = 2
_SCOPE_SPANS: Final = 2
_RESOURCE_SPANS: Final = 1
_KINDS: Final = {SpanKind.CLIENT: pb.Span.SPAN_KIND_CLIENT, SpanKind.SERVER: pb.Span.SPAN_KIND_SERVER}
_KNOWN_REMOTE: Final = pb.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_LOCAL: Final = pb.Span(flags=_KNOWN_REMOTE).SerializeToString()
_REMOTE: Final = pb.Span(flags=_KNOWN_REMOTE | pb.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK).SerializeToString()


def write_calls(calls: Sequence[CallSpan], resource: Resource, scope: InstrumentationScope) -> bytes:
    """Returns the ExportTraceServiceRequest of calls that have ended, one or more; others may be written after it."""
    one = ReadableSpan("", calls[0].context, resource=resource, instrumentation_scope=scope)
    (around,) = encode_spans([one]).resource_spans
    (scoped,) = around.scope_spans
    scoped.ClearField("spans")
    spans = scoped.SerializeToString() + b"".join([_field(_SPANS, _span(call)) for call in calls])
    around.ClearField("scope_spans")
    return _field(_RESOURCE_SPANS, around.SerializeToString() + _field(_SCOPE_SPANS, spans))


def _span(call: CallSpan) -> bytes:
    assert call.ended is not None  # noqa: S101  # so it was said
    code, details, ended_ns = call.ended
    said, above = call.said, call.above
    trace_id, span_id = bytes.fromhex(said[3:35]), bytes.fromhex(said[36:52])
    parts = [
        _FIXED.pack(b"\x0a\x10", trace_id, b"\x12\x08", span_id, b"\x39", call.begun_ns, b"\x41", ended_ns),
        call.attributes.written or _head(call),
        _end(code, call.kind),
    ]
    if above is None:
        parts.append(_LOCAL)
    else:
        parts += (_PARENT, bytes.fromhex(above.said[36:52]), _REMOTE if above.is_remote else _LOCAL)
    if call.state:
        parts.append(_field(_TRACE_STATE, call.state.encode()))
    if failure_of(code, details, call.kind) is not None:
        # The code is in `_end`. An error's text may be none that can be sent.
        status = pb.Status(message=details.encode(errors="replace").decode())
        parts.append(_field(_STATUS, status.SerializeToString()))
    return b"".join(parts)


def _head(call: CallSpan) -> bytes:
    """What is the same for all calls of a method."""
    attributes = [_attribute(name, value) for name, value in call.attributes.items()]
    span = pb.Span(name=call.attributes["rpc.method"], kind=_KINDS[call.kind], attributes=attributes)
    call.attributes.written = written = span.SerializeToString()
    return written


@functools.cache
def _end(code: grpc.StatusCode, kind: SpanKind) -> bytes:
    """What is the same for all calls with this status."""
    has_failed = failure_of(code, "", kind) is not None
    names = (STATUS, ERROR) if has_failed else (STATUS,)
    status = pb.Status(code=pb.Status.STATUS_CODE_ERROR if has_failed else pb.Status.STATUS_CODE_UNSET)
    return pb.Span(attributes=[_attribute(name, code.name) for name in names], status=status).SerializeToString()


def _attribute(name: str, value: Any) -> KeyValue:
    said = AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value)
    return KeyValue(key=name, value=said)


def _field(number: int, payload: bytes) -> bytes:
    """A field, of a number below 16, that has a length."""
    size, length = len(payload), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    length.append(size)
    return b"%c%b%b" % (number << 3 | 2, bytes(length), payload)
