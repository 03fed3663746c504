"""What differs between two states of a resource, field by field."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from meshwarden.controlplane.resources.manifest import to_dict
from meshwarden.v1.resources_pb2 import Resource


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field's old and new JSON value; None where it is absent."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        if self.old is None:
            return f"+ {self.field}: {self.new}"
        return f"- {self.field}: {self.old}" if self.new is None else f"~ {self.field}: {self.old} → {self.new}"


def diff(old: Resource | None, new: Resource | None) -> list[FieldChange]:
    """Returns what differs, in the order of the fields; where the records stand does not count."""
    before, after = (dict(_leaves(_plain(resource), "")) for resource in (old, new))
    fields = dict.fromkeys([*after, *before])
    return [
        FieldChange(field, before.get(field), after.get(field))
        for field in fields
        if before.get(field) != after.get(field)
    ]


def _plain(resource: Resource | None) -> dict[str, Any]:
    if resource is None:
        return {}
    plain = to_dict(resource)
    plain.get("metadata", {}).pop("record", None)
    return plain


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves(child, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from _leaves(child, f"{path}[{number}]")
    else:
        yield path, value
