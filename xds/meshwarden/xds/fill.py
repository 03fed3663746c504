"""Fills a message from its JSON form, by setters that are made once for each kind of message.

protobuf's `json_format` looks every field up anew; that was nine tenths of compiling a mesh. What an `Any` holds is
serialised deterministically here, so that equal content is equal bytes in every process.
"""

import base64
from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

Setter = Callable[[Any, Any], None]
FindClass = Callable[[str], type[Message]]

_WRAPPERS: Final = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String")
)


class Misfit(Exception):
    """A field is unknown or its value does not fit; the message says which."""


class Filler:
    """Fills the messages of one pool."""

    def __init__(self, pool: DescriptorPool, find_class: FindClass) -> None:
        """Takes the pool, and what finds a class in it by its full name."""
        self._pool, self._find_class = pool, find_class
        self._setters: dict[Descriptor, dict[str, Setter]] = {}

    def fill(self, message: Any, fields: Mapping[str, Any]) -> None:
        """Sets the fields given, by their names in the schema or in JSON; None leaves a field as it is.

        Raises:
            Misfit: a field is unknown or its value does not fit. What `find_class` raises for the type of an `Any`
                comes through as it is.
        """
        kind: Descriptor = message.DESCRIPTOR
        setters = self._setters.get(kind)
        if setters is None:
            setters = self._setters[kind] = self._make_setters(kind)
        for name, value in fields.items():
            if value is None:
                continue
            setter = setters.get(name)
            if setter is None:
                raise Misfit(f"{kind.full_name} has no field {name!r}")
            try:
                setter(message, value)
            except (TypeError, ValueError, KeyError, AttributeError, json_format.ParseError) as error:
                raise Misfit(f"{kind.full_name}.{name}: {value!r:.200}: {error}") from error

    def _make_setters(self, kind: Descriptor) -> dict[str, Setter]:
        found: dict[str, Setter] = {}
        for field in kind.fields:
            found[field.name] = found[field.json_name] = self._setter(field)
        return found

    def _setter(self, field: FieldDescriptor) -> Setter:
        name, kind = field.name, field.message_type
        if kind is None:
            return _scalar(field)
        if kind.GetOptions().map_entry:
            return self._map(name, kind.fields_by_name["value"])
        into = self._into(kind)

        def each(message: Any, values: Any) -> None:
            items = getattr(message, name)
            for value in _listed(values):
                into(items.add(), value)

        def one(message: Any, value: Any) -> None:
            inner = getattr(message, name)
            inner.SetInParent()
            into(inner, value)

        return each if field.is_repeated else one

    def _map(self, name: str, of_value: FieldDescriptor) -> Setter:
        if of_value.message_type is None:
            return lambda message, values: getattr(message, name).update(values)
        into = self._into(of_value.message_type)

        def put(message: Any, values: Any) -> None:
            items = getattr(message, name)
            for key, value in values.items():
                into(items[key], value)

        return put

    def _into(self, kind: Descriptor) -> Setter:
        """What fills a message of a kind from its JSON form, which is no mapping of fields for some."""
        name: str = kind.full_name
        if name == "google.protobuf.Any":
            return self._fill_any
        if name == "google.protobuf.Duration":
            return lambda message, value: message.FromJsonString(value)
        if name in _WRAPPERS:
            return lambda message, value: setattr(message, "value", value)
        if name.startswith("google.protobuf."):
            return lambda message, value: json_format.ParseDict(value, message, descriptor_pool=self._pool)
        return self.fill

    def _fill_any(self, message: Any, value: Any) -> None:
        fields = dict(value)
        url = fields.pop("@type")
        inner = self._find_class(url.rpartition("/")[2])()
        self.fill(inner, fields)
        message.type_url, message.value = url, inner.SerializeToString(deterministic=True)


def _scalar(field: FieldDescriptor) -> Setter:
    name = field.name
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda message, value: setattr(message, name, base64.b64decode(value, validate=True))
    if field.is_repeated:
        return lambda message, values: getattr(message, name).extend(_listed(values))
    return lambda message, value: setattr(message, name, value)


def _listed(values: Any) -> Any:
    if not isinstance(values, list | tuple):
        raise TypeError("must be a list")
    return values
