"""Bounds on what all kinds of telemetry have in common: attributes, resources, scopes.

Source: OpenTelemetry specification, "Common: attribute limits".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

MAX_SCOPES: Final = 128
MAX_ATTRIBUTES: Final = 128
MAX_OF_PART: Final = 32  # attributes of a scope, an event or a link
MAX_KEY: Final = 256
MAX_NAME: Final = 1024
_MAX_TEXT: Final = 4096
_MAX_VALUES: Final = 64  # of an array or a map
_MAX_DEPTH: Final = 4
_CUT: Final = 0.25  # of _MAX_TEXT in characters: no character has more than four bytes


@dataclass
class Bounded:
    """How many things a message had.

    Attributes:
        kept: are still in it.
        malformed: were none.
        too_many: were too many or too large, or came too late.
        claimed: were something else, and have gone another way.
    """

    kept: int = 0
    malformed: int = 0
    too_many: int = 0
    claimed: int = 0


def bound_resource(message: Any) -> None:
    """Bounds what a `Resource…` says of its resource, in place."""
    message.DiscardUnknownFields()
    message.schema_url = message.schema_url[:MAX_KEY]
    bound_attributes(message.resource.attributes, MAX_ATTRIBUTES)
    del message.resource.entity_refs[:]


def bound_scope(scope: Any) -> None:
    """Bounds what a `Scope…` says of its scope, in place."""
    scope.schema_url = scope.schema_url[:MAX_KEY]
    scope.scope.name = scope.scope.name[:MAX_KEY]
    scope.scope.version = scope.scope.version[:MAX_KEY]
    bound_attributes(scope.scope.attributes, MAX_OF_PART)


def replace_all(scope: Any, field: str, kept: Sequence[Any]) -> None:
    """Leaves of a repeated field what is kept."""
    if len(kept) < len(getattr(scope, field)):
        whole = type(scope)(**{field: kept})
        scope.ClearField(field)
        scope.MergeFrom(whole)


def shorten(items: Any, most: int) -> int:
    """Cuts a repeated field; returns how many went."""
    over = max(0, len(items) - most)
    if over:
        del items[most:]
    return over


def bound_attributes(pairs: Any, most: int) -> int:
    """Bounds attributes in place; returns how many went."""
    before = len(pairs)
    shorten(pairs, most)
    for index in range(len(pairs) - 1, -1, -1):
        pair: KeyValue = pairs[index]
        if not pair.key or len(pair.key) > MAX_KEY or not bound_value(pair.value):
            del pairs[index]
    return before - len(pairs)


def bound_value(value: AnyValue, depth: int = _MAX_DEPTH) -> bool:
    """Bounds a value in place; False if it is nested too deeply to be kept."""
    kind = value.WhichOneof("value")
    if kind in ("string_value", "bytes_value"):
        bound_text(value)
    elif kind == "array_value":
        shorten(value.array_value.values, _MAX_VALUES)
        return depth > 0 and _all_bound(value.array_value.values, depth)
    elif kind == "kvlist_value":
        shorten(value.kvlist_value.values, _MAX_VALUES)
        return depth > 0 and _all_bound([pair.value for pair in value.kvlist_value.values], depth)
    return True


def bound_text(value: AnyValue) -> None:
    """Cuts a text or bytes in place."""
    if len(value.string_value) > _MAX_TEXT * _CUT:
        value.string_value = value.string_value.encode()[:_MAX_TEXT].decode(errors="ignore")
    elif len(value.bytes_value) > _MAX_TEXT:
        value.bytes_value = value.bytes_value[:_MAX_TEXT]


def _all_bound(values: Sequence[AnyValue], depth: int) -> bool:
    return all(bound_value(value, depth - 1) for value in values)
