"""The schema beside that of the last release: `make check` refuses what would break who still has that one.

    contract.py                     says what is told otherwise, and ends with 1 if something is
    contract.py --release COMMIT    from now on that commit's schema is the last release's

`buf breaking` sees fields that are gone or have become another type. It does not look at validation rules, of which
one that is new or narrower refuses what was taken before: that is looked at here. The last release's schema is
`meshwarden/v1/released.binpb`, which the control plane reads too.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

HERE = Path(__file__).parent
NOW, RELEASED = (HERE / "meshwarden/v1" / name for name in ("schema.binpb", "released.binpb"))
PACKAGE = "meshwarden.v1."
# A larger one of these refuses more.
FLOORS = ("gt", "gte", "min_len", "min_bytes", "min_items", "min_pairs")
CEILINGS = ("lt", "lte", "max_len", "max_bytes", "max_items", "max_pairs")
ACCEPTED = {
    "meshwarden.v1.RoutePolicySpec cel route_policy.some": "takes the place of a narrower one, that there are rules",
    "meshwarden.v1.LocalityPreference healthy_percent uint32.gte": "0 was read as 70, and is not in what is stored",
    **dict.fromkeys(
        (
            "meshwarden.v1.AccessRule methods repeated.items.string.pattern",
            "meshwarden.v1.MethodLimit method string.pattern",
            "meshwarden.v1.MethodLimit methods repeated.items.string.pattern",
            "meshwarden.v1.RouteMatch methods repeated.items.string.pattern",
        ),
        "paths are compared without their query, so a method with one fitted no call: a denial of it held nothing",
    ),
}
"""What may be narrower all the same, and why; empty again after a release."""
# More of these refuse more, fewer of those.
REFUSED, TAKEN = ("not_in",), ("in",)


class Schema:
    """A schema with its rules."""

    def __init__(self, data: bytes) -> None:
        self.pool = descriptor_pool.DescriptorPool()
        files = descriptor_pb2.FileDescriptorSet.FromString(data)
        for file in files.file:
            self.pool.Add(file)
        self.messages = {
            f"{file.package}.{name}"
            for file in files.file
            for name in _names(file.message_type)
            if f"{file.package}." == PACKAGE
        }

    def rules(self, name: str) -> dict[str, Any]:
        """What the rules of a message and its fields say, flat: {"spec.name string.max_len": 63}."""
        message, found = self.pool.FindMessageTypeByName(name), {}
        said = {
            "": (message, "buf.validate.message"),
            **{one.name: (one, "buf.validate.field") for one in message.fields},
        }
        said |= {one.name: (one, "buf.validate.oneof") for one in message.oneofs}
        for place, (described, extension) in said.items():
            for rule, value in _flat(self._options(described, extension)):
                found[f"{place} {rule}".strip()] = value
        return found

    def _options(self, described: Any, extension: str) -> Message:
        options = described.GetOptions()
        own = message_factory.GetMessageClass(self.pool.FindMessageTypeByName(options.DESCRIPTOR.full_name))
        # The stubs' own pool knows no rules: they are read anew as this one's.
        message: Message = own.FromString(options.SerializeToString()).Extensions[
            self.pool.FindExtensionByName(extension)
        ]
        return message


def _names(messages: Any, above: str = "") -> Iterator[str]:
    for message in messages:
        yield above + message.name
        yield from _names(message.nested_type, f"{above}{message.name}.")


def _flat(message: Message, above: str = "") -> Iterator[tuple[str, Any]]:
    for field, value in message.ListFields():
        name = f"{above}{field.name}"
        if field.name in ("cel", "cel_expression"):
            for rule in value:
                yield f"{name} {getattr(rule, 'id', rule)}", getattr(rule, "expression", rule)
        elif field.is_repeated:
            yield name, frozenset(map(str, value))
        elif field.message_type is None:
            yield name, value
        elif field.message_type.full_name == Duration.DESCRIPTOR.full_name:
            yield name, value.seconds + value.nanos / 1e9
        else:
            yield from _flat(value, f"{name}.")


def is_narrower(rule: str, old: Any, new: Any) -> bool:
    """Whether a rule refuses, or may refuse, what it took before; `old` is None where there was none."""
    kind = rule.rpartition(" ")[2].rpartition(".")[2]
    if kind == "example" or old == new or new is None:
        return False
    if old is None:
        return bool(new) and kind != "ignore"
    if kind in FLOORS:
        return bool(new > old)
    if kind in CEILINGS:
        return bool(new < old)
    if kind in REFUSED:
        return bool(new - old)
    if kind in TAKEN:
        return bool(old - new)
    return True


def narrowed(released: Schema, now: Schema) -> list[str]:
    """The rules of what there was already that take less than they did."""
    found = []
    for name in sorted(released.messages & now.messages):
        old, new = released.rules(name), now.rules(name)
        fields = {field.name for field in released.pool.FindMessageTypeByName(name).fields}
        for rule in sorted(new):
            place = rule.split(" ")[0]
            is_of_new_field = place in {field.name for field in _fields(now, name)} - fields
            known = is_of_new_field or f"{name} {rule}" in ACCEPTED
            if not known and is_narrower(rule, old.get(rule), new[rule]):
                found.append(f"{name} {rule}: {old.get(rule, 'none')} → {new[rule]}")
    return found


def _fields(schema: Schema, name: str) -> list[FieldDescriptor]:
    return list(schema.pool.FindMessageTypeByName(name).fields)


def check() -> int:
    """Says what breaks; returns how much does."""
    found = narrowed(Schema(RELEASED.read_bytes()), Schema(NOW.read_bytes()))
    for line in found:
        print(f"{line}: refuses what the last release took", file=sys.stderr)
    return len(found)


def release(commit: str) -> None:
    """Takes a commit's schema, without comments, for the last release's."""
    path = NOW.relative_to(HERE.parent)
    data = subprocess.run(["git", "show", f"{commit}:{path}"], cwd=HERE.parent, check=True, capture_output=True).stdout
    files = descriptor_pb2.FileDescriptorSet.FromString(data)
    for file in files.file:
        file.ClearField("source_code_info")
    RELEASED.write_bytes(files.SerializeToString(deterministic=True))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--release"] and len(sys.argv) == 3:
        release(sys.argv[2])
    else:
        sys.exit(1 if check() else 0)
