"""An RPC's answer as JSON: protobuf's mapping, but that a resource is as in a manifest, without the union around it."""

import functools
import json
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from meshwarden.v1.resources_pb2 import Resource

_RESOURCE = Resource.DESCRIPTOR.full_name


def to_json(message: Message) -> bytes:
    """Returns the JSON of a message, in one line."""
    return dump(to_dict(message))


def dump(value: Any) -> bytes:
    """Returns the JSON of a value, in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class Shared:
    """The JSON of messages that go to many, each made once: of the newest, which nobody changes any more."""

    def __init__(self, most: int = 16) -> None:
        self._most = most
        # By identity, which is that message's as long as it is kept here.
        self._made: dict[int, tuple[Message, bytes]] = {}

    def to_json(self, message: Message) -> bytes:
        """Returns the JSON of a message, in one line."""
        found = self._made.get(id(message))
        if found is None:
            while len(self._made) >= self._most:
                del self._made[next(iter(self._made))]
            found = self._made[id(message)] = message, to_json(message)
        return found[1]


def to_dict(message: Message) -> Any:
    """Returns the values of JSON that a message is."""
    found: Any = MessageToDict(message)
    descriptor: Any = message.DESCRIPTOR
    if descriptor.full_name == _RESOURCE:
        return _inner(found)
    for way in _ways(descriptor):
        _unwrap(found, way)
    return found


@functools.cache
def _ways(descriptor: Descriptor) -> tuple[tuple[str, ...], ...]:
    """The ways from a message to the resources in it, each the names in JSON."""
    return tuple(_walk(descriptor, ()))


def _walk(descriptor: Any, within: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for field in descriptor.fields:
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry or inner.full_name in within:
            continue
        if inner.full_name == _RESOURCE:
            yield (field.json_name,)
        elif inner.full_name.startswith("meshwarden."):
            for rest in _walk(inner, (*within, inner.full_name)):
                yield (field.json_name, *rest)


def _unwrap(value: dict[str, Any], way: tuple[str, ...]) -> None:
    name, *rest = way
    if name not in value:
        return
    child = value[name]
    if not rest:
        value[name] = [_inner(one) for one in child] if isinstance(child, list) else _inner(child)
        return
    for one in child if isinstance(child, list) else (child,):
        _unwrap(one, tuple(rest))


def _inner(resource: dict[str, Any]) -> Any:
    return next(iter(resource.values()), {})
