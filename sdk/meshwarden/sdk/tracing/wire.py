"""OTLP's trace requests as the bytes they are: cut open where spans begin and end, read no further, put together again.

Python takes longer to look at one span than protobuf to read ten. So what is to be known of all of them is asked of
protobuf at once: it reads messages that have of OTLP's what is wanted, and passes over the rest.
"""

from collections.abc import Iterable
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE: Final = "meshwarden.wire"
_BYTES: Final = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
_MESSAGE: Final = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
_REPEATED: Final = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
_OPTIONAL: Final = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
# {message: {field: its number in OTLP's}}, of repeated bytes
_FIELDS: Final = {
    "Request": {},
    "Resource": {"resource": 1, "scope_spans": 2, "schema_url": 3},
    "Scope": {"scope": 1, "spans": 2, "schema_url": 3},
    "AllScopes": {"resource": 1},
    "AllResources": {},
}
# {message: (field, number, message)}: as if there were one. What protobuf reads several of it then makes one of.
_MERGED: Final = {"AllScopes": ("scope_spans", 2, "Scope"), "AllResources": ("resource_spans", 1, "AllScopes")}
# {message: (field, number, message)}, of which there may be several.
_NESTED: Final = {"Request": ("resource_spans", 1, "Resource")}


def _classes() -> dict[str, Any]:
    """In a pool of their own."""
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="meshwarden/wire.proto", package=_PACKAGE, syntax="proto3")
    for name, numbers in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number in numbers.items():
            message.field.add(name=field, number=number, type=_BYTES, label=_REPEATED)
        for label, known in ((_OPTIONAL, _MERGED), (_REPEATED, _NESTED)):
            if name in known:
                field, number, of = known[name]
                message.field.add(name=field, number=number, type=_MESSAGE, label=label, type_name=f".{_PACKAGE}.{of}")
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _FIELDS}


_CLASSES: Final = _classes()
Request: Final = _CLASSES["Request"]
"""`ExportTraceServiceRequest`."""
Resource: Final = _CLASSES["Resource"]
"""`ResourceSpans`."""
Scope: Final = _CLASSES["Scope"]
"""`ScopeSpans`."""
AllScopes: Final = _CLASSES["AllScopes"]
"""`ResourceSpans`, all its scopes in one, with the spans of all of them."""
AllResources: Final = _CLASSES["AllResources"]
"""`ExportTraceServiceRequest`, all its resources in one."""


def framed(number: int, body: bytes) -> bytes:
    """A field of a message that holds these bytes."""
    return head(number, len(body)) + body


def all_framed(number: int, bodies: Iterable[bytes]) -> bytes:
    """A repeated field of a message."""
    parts = []
    for body in bodies:
        parts.append(head(number, len(body)))
        parts.append(body)
    return b"".join(parts)


def head(number: int, length: int) -> bytes:
    """What stands before the bytes of a field."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
