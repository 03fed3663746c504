"""A request's path, query, headers and body as the request of an RPC; every fault of shape is told at once.

What is read strictly is JSON's mapping of protobuf, as for manifests (`resources.shape`): names in camelCase, enums by
name, no null. A resource is as in a manifest, its kind in `kind`; what GET answers can be PUT.

Source: google/api/http.proto, "HTTP rules".
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from meshwarden.controlplane.api.rest.json_tree import NoJson, read
from meshwarden.controlplane.api.rest.route import Route, camel
from meshwarden.controlplane.api.validation import Misshapen
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import KINDS, field_of
from meshwarden.controlplane.resources.shape import Filler
from meshwarden.controlplane.resources.tree import Node
from meshwarden.v1.resources_pb2 import Resource

MAX_PARAMETERS: Final = 200
IF_REVISION: Final = "ifRevision"
_WHOLE: Final = re.compile(r"-?[0-9]{1,20}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][-+]?[0-9]{1,2})?")
_STATUS: Final = frozenset({"status"})
_LONG: Final = re.compile(r"[.\[]")


class _Filler(Filler):
    """Fills the request of an RPC: bytes are base64, a resource is told by its kind."""

    def _message(self, message: Message, node: Node, path: str) -> None:
        if not isinstance(message, Resource):
            super()._message(message, node, path)
            return
        kind = node.value.get("kind") if isinstance(node.value, dict) else None
        if kind is None:
            self._fault(node, f"{path}.kind", f"is required: one of {', '.join(KINDS)}")
        elif not isinstance(kind.value, str) or kind.value not in KINDS:
            self._fault(kind, f"{path}.kind", f"must be one of {', '.join(KINDS)}")
        else:
            inner = getattr(message, field_of(kind.value))
            inner.SetInParent()
            self.fill(inner, node, path, _STATUS)

    def _scalar(self, field: FieldDescriptor, node: Node, path: str) -> Any:
        if field.type != FieldDescriptor.TYPE_BYTES:
            return super()._scalar(field, node, path)
        try:
            return base64.b64decode(node.value, validate=True)
        except (TypeError, ValueError, binascii.Error):
            self._fault(node, path, "must be base64 with its padding")
            return None


def bind(
    route: Route,
    values: Sequence[str],
    query: Sequence[tuple[str, str]],
    conditions: Mapping[str, str],
    body: bytes | None,
) -> Message | Misshapen:
    """Reads a request.

    Args:
        route: what it is bound to.
        values: what the path says for the route's variables, decoded.
        query: its parameters, decoded, in their order.
        conditions: what headers say for fields of the request, by name in JSON: {"ifRevision": "7"}.
        body: None if there is none.
    """
    message, filler = route.request(), _Filler()
    outer = Node({}, 0)
    faults: list[FieldFault] = []
    for path, text in zip(route.variables.values(), values, strict=True):
        _put(outer, route, path, [text])
    texts: dict[str, list[str]] = {}
    for name, text in query:
        texts.setdefault(name, []).append(text)
    for name, text in conditions.items():
        texts.setdefault(name, []).append(text)
    taken = set(route.variables.values())
    for name, given in texts.items():
        path = snake(name)
        if path in taken or route.body == "*" or path.partition(".")[0] == route.body or camel_path(path) != name:
            faults.append(FieldFault(f"query.{name[:60]}", "there is no such parameter here"))
        elif (fault := _put(outer, route, path, given)) is not None:
            faults.append(FieldFault(f"query.{name[:60]}", fault))
    filler.fill(message, outer)
    faults += [FieldFault(place(route, path), text) for _, path, text in filler.faults]
    faults += _read_body(route, message, body)
    return Misshapen(faults) if faults else message


def place(route: Route, path: str) -> str:
    """Where in the HTTP request a field of the RPC's request stands, "body.spec.ports[0].number"."""
    for name, variable in route.variables.items():
        if path == camel_path(variable):
            return f"path.{name}"
    if route.body == "*":
        return f"body.{path}" if path else "body"
    head = _LONG.split(path, maxsplit=1)[0]
    if route.body and head == camel(route.body):
        return f"body{path[len(head) :]}"
    if path == IF_REVISION:
        return "header.If-Match"
    return f"query.{path}" if path else ""


def camel_path(path: str) -> str:
    """A field's path as JSON has it."""
    return ".".join(map(camel, path.split(".")))


def snake(name: str) -> str:
    """The path of a field whose path in JSON is given."""
    return re.sub(r"[A-Z]", lambda match: f"_{match[0].lower()}", name)


def _read_body(route: Route, message: Message, body: bytes | None) -> Iterable[FieldFault]:
    if not route.body:
        return [FieldFault("body", "there is none here")] if body else []
    if not body:
        if route.body != "*":
            return [FieldFault("body", "is required")]
        body = b"{}"
    try:
        node = read(body)
    except NoJson as error:
        return [FieldFault("body", str(error))]
    filler = _Filler()
    if route.body == "*":
        bound = {camel(path.partition(".")[0]) for path in route.variables.values()}
        if isinstance(node.value, dict) and (twice := sorted(bound & node.value.keys())):
            return [FieldFault(f"body.{name}", "is said by the path") for name in twice]
        filler.fill(message, node)
    else:
        field: Any = message.DESCRIPTOR.fields_by_name[route.body]
        filler._field(message, field, node, field.json_name)
    return [FieldFault(place(route, path), text) for _, path, text in filler.faults]


def _put(tree: Node, route: Route, path: str, texts: Sequence[str]) -> str | None:
    """Puts what text says for a field into a tree of JSON; returns what is wrong with it."""
    *parents, last = path.split(".")
    descriptor: Any = route.request.DESCRIPTOR
    here = tree
    for parent in parents:
        field = descriptor.fields_by_name.get(parent)
        if field is None or field.message_type is None or field.is_repeated:
            return "there is no such parameter here"
        descriptor = field.message_type
        here = here.value.setdefault(field.json_name, Node({}, 0))
        if not isinstance(here.value, dict):
            return "there is no such parameter here"
    field = descriptor.fields_by_name.get(last)
    if field is None or (field.message_type is not None and not _is_text(field)) or field.json_name in here.value:
        return "there is no such parameter here"
    nodes = [Node(_value(field, text), 0) for text in texts]
    if not field.is_repeated and len(nodes) > 1:
        return "stands twice"
    here.value[field.json_name] = Node(nodes, 0) if field.is_repeated else nodes[0]
    return None


def _is_text(field: Any) -> bool:
    return field.message_type.full_name in ("google.protobuf.Duration", "google.protobuf.Timestamp")


def _value(field: Any, text: str) -> Any:
    """The value that JSON would have; text that is none stays text, and is refused as such."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return {"true": True, "false": False}.get(text, text)
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return float(text) if _NUMBER.fullmatch(text) else text
    if kind in _INTEGERS:
        return int(text) if _WHOLE.fullmatch(text) else text
    return text


_INTEGERS: Final = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)
