"""From a tree of JSON values to a message, by the message's descriptor; every fault of shape is told at once.

Source: protobuf's JSON mapping, taken strictly: names in camelCase alone, enums by name, no null, no number as text.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from meshwarden.controlplane.resources.tree import Node

_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_LONG = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
SHOWN = 60


class Filler:
    """Fills messages; gathers `faults` as (line, path, text) and `lines` as {path: line}."""

    def __init__(self) -> None:
        self.faults: list[tuple[int, str, str]] = []
        self.lines: dict[str, int] = {}

    def fill(self, message: Message, node: Node, path: str = "", skip: frozenset[str] = frozenset()) -> None:
        """Sets the fields of `message` from the mapping `node`; `skip` names keys that are none of its."""
        self.lines[path] = node.line
        if not isinstance(node.value, dict):
            self._fault(node, path, f"must be a mapping of fields, not {_what(node.value)}")
            return
        fields: dict[str, Any] = {field.json_name: field for field in message.DESCRIPTOR.fields}
        taken: dict[str, str] = {}
        for name, child in node.value.items():
            place = f"{path}.{name}" if path else name
            if name in skip:
                continue
            field = fields.get(name)
            if field is None:
                self._fault(child, place, f"unknown field{_meant(name, fields)}")
                continue
            group = field.containing_oneof
            if group is not None and len(group.fields) > 1:
                if group.name in taken:
                    self._fault(child, place, f"only one of {taken[group.name]} and {name} may be given")
                    continue
                taken[group.name] = name
            self._field(message, field, child, place)

    def _field(self, message: Message, field: FieldDescriptor, node: Node, path: str) -> None:
        self.lines[path] = node.line
        if node.value is None:
            self._fault(node, path, "is empty: give a value, or leave the field out")
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._map(message, field, node, path)
        elif field.is_repeated:
            self._list(message, field, node, path)
        elif field.message_type is not None:
            self._message(getattr(message, field.name), node, path)
        else:
            value = self._scalar(field, node, path)
            if value is not None:
                setattr(message, field.name, value)

    def _list(self, message: Message, field: FieldDescriptor, node: Node, path: str) -> None:
        if not isinstance(node.value, list):
            self._fault(node, path, f"must be a list, not {_what(node.value)}")
            return
        items = getattr(message, field.name)
        for number, child in enumerate(node.value):
            place = f"{path}[{number}]"
            self.lines[place] = child.line
            if child.value is None:
                self._fault(child, place, "is empty")
            elif field.message_type is not None:
                self._message(items.add(), child, place)
            else:
                value = self._scalar(field, child, place)
                if value is not None:
                    items.append(value)

    def _map(self, message: Message, field: FieldDescriptor, node: Node, path: str) -> None:
        if not isinstance(node.value, dict):
            self._fault(node, path, f"must be a mapping, not {_what(node.value)}")
            return
        items = getattr(message, field.name)
        assert field.message_type is not None  # noqa: S101 - the caller has looked
        of_value = field.message_type.fields_by_name["value"]
        for key, child in node.value.items():
            place = f'{path}["{key}"]'
            self.lines[place] = child.line
            value = None if child.value is None else self._scalar(of_value, child, place)
            if child.value is None:
                self._fault(child, place, 'is empty: write ""')
            elif value is not None:
                items[key] = value

    def _message(self, message: Message, node: Node, path: str) -> None:
        name = message.DESCRIPTOR.full_name
        if name not in (Duration.DESCRIPTOR.full_name, Timestamp.DESCRIPTOR.full_name):
            message.SetInParent()
            self.fill(message, node, path)
            return
        example = '"1.5s"' if name.endswith("Duration") else '"2026-01-31T12:00:00Z"'
        if not isinstance(node.value, str):
            self._fault(node, path, f"must be text such as {example}, not {_what(node.value)}")
            return
        try:
            message.FromJsonString(node.value)  # type: ignore[attr-defined]
        except (ValueError, OverflowError):
            self._fault(node, path, f"must be text such as {example}, not {_shown(node.value)}")

    def _scalar(self, field: FieldDescriptor, node: Node, path: str) -> Any:
        """The value for a field, or None after a fault."""
        value, kind = node.value, field.cpp_type
        wanted = ""
        if kind == FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES or not isinstance(value, str):
                wanted = "text" if isinstance(value, dict | list) else "text (put it in quotes)"
        elif kind == FieldDescriptor.CPPTYPE_BOOL:
            wanted = "" if isinstance(value, bool) else "true or false"
        elif kind == FieldDescriptor.CPPTYPE_ENUM:
            return self._enum(field, node, path)
        elif kind in _BITS:
            # The JSON mapping writes 64 bits as text.
            if kind in _LONG and isinstance(value, str) and len(value) < 21 and value.isascii() and value.isdigit():
                value = int(value)
            low, high = _BITS[kind]
            if not isinstance(value, int) or isinstance(value, bool):
                wanted = "a whole number"
            elif not low <= value <= high:
                wanted = f"between {low} and {high}"
        elif not isinstance(value, int | float) or isinstance(value, bool):
            wanted = "a number"
        if wanted:
            self._fault(node, path, f"must be {wanted}, not {_shown(value)}")
            return None
        return value

    def _enum(self, field: FieldDescriptor, node: Node, path: str) -> int | None:
        of: EnumDescriptor | None = field.enum_type
        assert of is not None  # noqa: S101 - the caller has looked
        names = [value.name for value in of.values if value.number]
        if isinstance(node.value, str) and node.value in of.values_by_name:
            return int(of.values_by_name[node.value].number)
        meant = _meant(node.value.upper(), names) if isinstance(node.value, str) else ""
        self._fault(node, path, f"must be one of {', '.join(names)}, not {_shown(node.value)}{meant}")
        return None

    def _fault(self, node: Node, path: str, text: str) -> None:
        self.faults.append((node.line, path, text))


def _meant(name: str, known: Iterable[str]) -> str:
    names = list(known)
    folded = {candidate.lower(): candidate for candidate in names}
    exact = folded.get(name.replace("_", "").replace("-", "").lower())
    close = [exact] if exact else difflib.get_close_matches(name[:SHOWN], names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _what(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return _what(value)
    if isinstance(value, bool):
        return str(value).lower()
    text = "nothing" if value is None else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
