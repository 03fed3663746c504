"""What of a resource the last release doesn't know: it would leave that out without a word.

The last release's schema is `released.binpb` beside this one's.
"""

import functools
import importlib.resources
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool

from meshwarden.controlplane.resources.model import KINDS, ROOT, unwrap
from meshwarden.v1.resources_pb2 import Resource

_PACKAGE: Final = "meshwarden.v1."
# A `google.protobuf.descriptor.Descriptor`, whose stubs don't know what belongs to which kind of field.
Described = Any


@functools.cache
def _released() -> descriptor_pool.DescriptorPool:
    data = importlib.resources.files("meshwarden.v1").joinpath("released.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    return pool


def _known(kind: str) -> Described:
    try:
        return _released().FindMessageTypeByName(_PACKAGE + kind)
    except KeyError:
        return None


def unreleased(resource: Resource) -> tuple[str, ...]:
    """The fields that the last release doesn't know, `spec.rules[0].timeout` for one; "kind" if it is all of it."""
    message = unwrap(resource)
    known = _known(message.DESCRIPTOR.name)
    return tuple(_fields(message, known, "")) if known is not None else ("kind",)


@functools.cache
def may_be_unreleased(kind: str) -> bool:
    """Whether there is anything in a kind of resource that the last release doesn't know."""
    known = _known(kind)
    now = KINDS.get(kind)
    return known is None or now is None or _differs(now.DESCRIPTOR, known, frozenset())


def kind_of_key(key: str) -> str:
    """The kind in the key of a stored resource, whichever it is."""
    return key.removeprefix(ROOT).partition("/")[0]


def _fields(message: Any, known: Described, path: str) -> Iterator[str]:
    for field, value in message.ListFields():
        place = f"{path}.{field.json_name}" if path else field.json_name
        before = known.fields_by_number.get(field.number)
        if before is None:
            yield place
        elif field.enum_type is not None:
            values = set(value) if field.is_repeated else {value}
            if values - _values(before):
                yield place
        elif field.message_type is None or field.message_type.GetOptions().map_entry:
            continue  # of our maps none holds messages
        elif not field.is_repeated:
            yield from _fields(value, before.message_type, place)
        else:
            for number, item in enumerate(value):
                yield from _fields(item, before.message_type, f"{place}[{number}]")


def _differs(now: Described, known: Described, above: frozenset[str]) -> bool:
    for field in now.fields:
        before = known.fields_by_number.get(field.number)
        if before is None:
            return True
        if field.enum_type is not None and _values(field) - _values(before):
            return True
        inner = field.message_type
        is_new = inner is not None and inner.full_name not in above
        if is_new and _differs(inner, before.message_type, above | {inner.full_name}):
            return True
    return False


def _values(field: Any) -> set[int]:
    return set(field.enum_type.values_by_number)
