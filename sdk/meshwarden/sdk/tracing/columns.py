"""OTLP's spans read as columns: protobuf is asked once for what all of them say, whatever their number.

Python takes longer to be handed one span than protobuf to read ten. By protobuf's rules a message that is there several
times where the schema has it once is merged. So the classes here are those of OTLP with nothing repeated in them: all
spans of a request become one, and the fields that are wanted of each are repeated in it. Bytes that can be read by one
of them can be read by OTLP's own class, and the other way round, but for what lies in values that hold others: that is
not read, and `is_flat` tells whether there is any.

Source: Protocol Buffers, "Encoding", §"Last One Wins".
"""

from types import ModuleType
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

_Field: Final = descriptor_pb2.FieldDescriptorProto
# Of each span; all others are merged into the last that was said.
_COLUMNS: Final = frozenset({"trace_id", "span_id", "trace_state", "parent_span_id"})
_HOLDERS: Final = frozenset({"ArrayValue", "KeyValueList"})
_TRACE_HEAD: Final = b"\x0a\x10"  # how protobuf begins a trace id of 16 bytes: its tag, its length
_SPAN_HEAD: Final = b"\x12\x08"


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    modules: tuple[ModuleType, ...] = (common_pb2, resource_pb2, trace_pb2, trace_service_pb2)
    for module in modules:
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        for message in file.message_type:
            _merge(message)
        pool.Add(file)
    return pool


def _merge(message: Any) -> None:
    """Has the parts of a message merged, and not handed out one by one."""
    for field in message.field:
        # What one of several says would hide another.
        field.ClearField("oneof_index")
        field.ClearField("proto3_optional")
        if message.name in _HOLDERS:
            field.type = _Field.TYPE_BYTES
            field.ClearField("type_name")
        elif field.type == _Field.TYPE_MESSAGE:
            field.label = _Field.LABEL_OPTIONAL
        elif message.name == "Span" and field.name in _COLUMNS:
            field.label = _Field.LABEL_REPEATED
    del message.oneof_decl[:]
    for nested in message.nested_type:
        _merge(nested)


def _class(pool: descriptor_pool.DescriptorPool, message: Any) -> Any:
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(message.DESCRIPTOR.full_name))


_POOL: Final = _pool()
Request: Final = _class(_POOL, trace_service_pb2.ExportTraceServiceRequest)
"""`ExportTraceServiceRequest`."""
Scope: Final = _class(_POOL, trace_pb2.ScopeSpans)
"""`ScopeSpans`."""
Span: Final = _class(_POOL, trace_pb2.Span)
"""`Span`, of one or of all."""


def is_flat(request: Any) -> bool:
    """Whether no attribute in a `Request` holds other values: no list that has any, no map that has any."""
    resource = request.resource_spans
    return not _holds(resource.resource.attributes) and is_flat_scope(resource.scope_spans)


def is_flat_scope(scope: Any) -> bool:
    """The same of a `Scope`."""
    return not _holds(scope.scope.attributes) and is_flat_span(scope.spans)


def is_flat_span(span: Any) -> bool:
    """The same of a `Span`."""
    return not any(map(_holds, (span.attributes, span.events.attributes, span.links.attributes)))


def _holds(pair: Any) -> bool:
    value = pair.value
    return bool(value.array_value.values or value.kvlist_value.values)


def are_ids(span: Any, count: int) -> bool:
    """Whether so many spans, read as one, have ids, each one of a trace and one of its own; some may have two of each.

    Source: W3C Trace Context §3.2.2.
    """
    if not len(span.trace_id) == len(span.span_id) == count:
        return False
    # Protobuf writes a column as fields one behind the other: where all have one length, at equal distances.
    written = span.SerializeToString()
    traces_end = count * 18
    traces, ids = written[:traces_end], written[traces_end : traces_end + count * 10]
    return _are_fields(traces, _TRACE_HEAD, 16, count) and _are_fields(ids, _SPAN_HEAD, 8, count)


def _are_fields(written: bytes, head: bytes, size: int, count: int) -> bool:
    """Whether bytes are so many fields of one size, none of them all zeros: no head is, so no zeros are of two."""
    step = len(head) + size
    heads_fit = all(written[at::step] == head[at : at + 1] * count for at in range(len(head)))
    return heads_fit and len(written) == step * count and bytes(size) not in written
