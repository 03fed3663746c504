"""Whether OTLP's spans are flat: whether no attribute in them holds other values.

Protobuf is asked for all spans of a request at once: it reads the request inside so many envelopes that its own bound
on nesting is reached by any value that holds others.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from meshwarden.sdk.wire import head

_PACKAGE: Final = "meshwarden.flat"
_MESSAGE: Final = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
_OPTIONAL: Final = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
_REQUEST: Final = 2
_SPAN: Final = 3
# How much deeper a span lies in a request than by itself.
_SPAN_DEPTH: Final = 3
_MAX_ENVELOPES: Final = 512


def _depend(file: FileDescriptor, pool: descriptor_pool.DescriptorPool, known: set[str]) -> None:
    if file.name in known:
        return
    known.add(file.name)
    for other in file.dependencies:
        _depend(other, pool, known)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    pool.Add(proto)


def _envelope() -> Any:
    """A message that holds a request, a span or another of its kind. In a pool of its own."""
    pool = descriptor_pool.DescriptorPool()
    _depend(trace_pb.DESCRIPTOR, pool, set())
    file = descriptor_pb2.FileDescriptorProto(name="meshwarden/flat.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.append(trace_pb.DESCRIPTOR.name)
    kinds = {
        1: f".{_PACKAGE}.Envelope",
        _REQUEST: f".{trace_pb.ExportTraceServiceRequest.DESCRIPTOR.full_name}",
        _SPAN: f".{Span.DESCRIPTOR.full_name}",
    }
    envelope = file.message_type.add(name="Envelope")
    for number, kind in kinds.items():
        envelope.field.add(name=f"in_{number}", number=number, type=_MESSAGE, label=_OPTIONAL, type_name=kind)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Envelope"))


_Envelope: Final = _envelope()


def is_flat(request: bytes) -> bool:
    """Whether a request can be read and no attribute in it holds other values: no list that has any, no map."""
    return _is_read(_REQUEST, request, _ENVELOPES)


def is_flat_span(span: bytes) -> bool:
    """The same of a span by itself."""
    return _is_read(_SPAN, span, _ENVELOPES + _SPAN_DEPTH)


def _is_read(number: int, body: bytes, envelopes: int) -> bool:
    if envelopes < 0:
        return False
    heads = [head(number, len(body))]
    size = len(body) + len(heads[0])
    for _ in range(envelopes):
        heads.append(head(1, size))
        size += len(heads[-1])
    heads.reverse()
    heads.append(body)
    try:
        _Envelope.FromString(b"".join(heads))
    except DecodeError:
        return False
    return True


def _envelopes() -> int:
    """How many it takes until a list with something in it can't be read; -1 if that has no bound."""
    listed = AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1)]))
    request = trace_pb.ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(attributes=[KeyValue(key="k", value=listed)])
    deep = request.SerializeToString()
    del span.attributes[:]
    span.events.add(attributes=[KeyValue(key="k", value=AnyValue(int_value=1))])
    flat = request.SerializeToString()
    for envelopes in range(_MAX_ENVELOPES):
        if not _is_read(_REQUEST, deep, envelopes):
            return envelopes if _is_read(_REQUEST, flat, envelopes) else -1
    return -1


_ENVELOPES: Final = _envelopes()
