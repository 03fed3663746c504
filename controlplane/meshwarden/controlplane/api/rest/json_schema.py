"""Messages as JSON Schema: their types, comments and rules, out of the schema that validates them.

What JSON Schema can't say stands in descriptions: rules that look at several fields, and the bounds of durations.

Source: JSON Schema 2020-12; protobuf's JSON mapping; protovalidate's rules.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from meshwarden.controlplane.resources.described import Comments, message_rules_of, rules_of
from meshwarden.controlplane.resources.model import KINDS
from meshwarden.controlplane.resources.validate import PATTERNS, schema

PACKAGE: Final = "meshwarden.v1."
COMPONENTS: Final = "#/components/schemas/"
RESOURCE: Final = f"{PACKAGE}Resource"
_WHOLE: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
}
_LONG: Final = {
    FieldDescriptor.CPPTYPE_INT64: "^-?(0|[1-9][0-9]{0,18})$",
    FieldDescriptor.CPPTYPE_UINT64: "^(0|[1-9][0-9]{0,18})$",
}
_KNOWN: Final[Mapping[str, dict[str, Any]]] = {
    "google.protobuf.Duration": {
        "type": "string",
        "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$",
        "examples": ["1.5s"],
    },
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Struct": {"type": "object"},
}
# {rule: keyword}, as they are.
_STRINGS: Final = {"min_len": "minLength", "max_len": "maxLength", "const": "const", "pattern": "pattern"}
_NUMBERS: Final = {"gte": "minimum", "lte": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
_LISTS: Final = {"min_items": "minItems", "max_items": "maxItems", "unique": "uniqueItems"}


class JsonSchemas:
    """Makes schemas, each message once; `components` are those that were asked for, {name: schema}."""

    def __init__(self) -> None:
        loaded = schema()
        self._pool: Any = loaded.pool
        self.comments = Comments(loaded.files.file)
        self._made: dict[str, dict[str, Any]] = {}

    @property
    def components(self) -> dict[str, Any]:
        """The messages, by their names."""
        return dict(sorted(self._made.items()))

    def message(self, full_name: str) -> Any:
        """The descriptor of a message, with its rules."""
        return self._pool.FindMessageTypeByName(full_name)

    def reference(self, descriptor: Any) -> dict[str, Any]:
        """A reference to a message's schema, which is made if it isn't there yet."""
        if descriptor.full_name in _KNOWN:
            return dict(_KNOWN[descriptor.full_name])
        name = descriptor.full_name.removeprefix(PACKAGE)
        if name not in self._made:
            self._made[name] = {}  # a message may hold itself
            self._made[name] = self._resource() if descriptor.full_name == RESOURCE else self.object(descriptor)
        return {"$ref": COMPONENTS + name}

    def object(self, descriptor: Any, leave_out: Iterable[str] = ()) -> dict[str, Any]:
        """The schema of a message itself, without some of its fields."""
        out = frozenset(leave_out)
        fields = [field for field in descriptor.fields if field.name not in out]
        needed = self.required(descriptor)
        made: dict[str, Any] = {"type": "object"}
        if text := self._description(descriptor):
            made["description"] = text
        made["properties"] = {field.json_name: self.field(field) for field in fields}
        if required := [field.json_name for field in fields if field.name in needed]:
            made["required"] = required
        if exclusive := list(self._exclusive(descriptor, needed)):
            made["allOf"] = exclusive
        made["additionalProperties"] = False
        return made

    def field(self, field: Any) -> dict[str, Any]:
        """The schema of a field, with its comment."""
        rules = {rule.name: value for rule, value in rules_of(field).ListFields()}
        made = self._of(field, rules)
        comment = self.comments[f"{field.containing_type.full_name}.{field.name}"]
        said = " ".join([comment, *_in_words(rules)]).strip()
        return {"description": said, **made} if said else made

    def _of(self, field: Any, rules: Mapping[str, Any]) -> dict[str, Any]:
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            value = inner.fields_by_name["value"]
            made: dict[str, Any] = {"type": "object"}
            said = _values(rules.get("map"))
            if "max_pairs" in said:
                made["maxProperties"] = said["max_pairs"]
            if "keys" in said:
                made["propertyNames"] = self._single(inner.fields_by_name["key"], _named(said["keys"]))
            made["additionalProperties"] = self._single(value, _named(said.get("values")))
            return made
        if not field.is_repeated:
            return self._single(field, rules)
        said = _values(rules.get("repeated"))
        made = {"type": "array", "items": self._single(field, _named(said.get("items")))}
        return made | {keyword: said[rule] for rule, keyword in _LISTS.items() if said.get(rule)}

    def _single(self, field: Any, rules: Mapping[str, Any]) -> dict[str, Any]:
        if field.message_type is not None:
            return self.reference(field.message_type)
        kind = field.cpp_type
        if field.enum_type is not None:
            return _enum(field, _values(rules.get("enum")))
        if kind == field.CPPTYPE_BOOL:
            return {"type": "boolean"}
        if field.type == field.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64"}
        if kind == field.CPPTYPE_STRING:
            return _string(_values(rules.get("string")))
        if kind in _LONG:
            return {"type": "string", "pattern": _LONG[kind]}
        said = _values(next((value for name, value in rules.items() if "int" in name or name == "double"), None))
        bounds = {keyword: said[rule] for rule, keyword in _NUMBERS.items() if rule in said}
        if kind in _WHOLE:
            low, high = _WHOLE[kind]
            return {"type": "integer", "minimum": low, "maximum": high} | bounds
        return {"type": "number"} | bounds

    def _resource(self) -> dict[str, Any]:
        kinds = [self.message(PACKAGE + kind) for kind in KINDS]
        return {
            "description": self.comments[RESOURCE],
            "oneOf": [self.reference(kind) for kind in kinds],
            "discriminator": {
                "propertyName": "kind",
                "mapping": {kind.name: f"{COMPONENTS}{kind.name}" for kind in kinds},
            },
        }

    def _description(self, descriptor: Any) -> str:
        text = "\n\n".join(self.comments.paragraphs(descriptor.full_name))
        rules = [rule.message for rule in message_rules_of(descriptor).cel if rule.message]
        return "\n\n".join([text, *(f"Rule: {rule}." for rule in rules)]).strip()

    def required(self, descriptor: Any) -> frozenset[str]:
        """The fields and oneofs without which a message is refused: those that an empty one is blamed for."""
        fields = (violation.proto.field for violation in schema().violations(descriptor.full_name, b""))
        return frozenset(field.elements[0].field_name for field in fields if field is not None)

    @staticmethod
    def _exclusive(descriptor: Any, needed: frozenset[str]) -> Iterator[dict[str, Any]]:
        for group in descriptor.oneofs:
            names = [field.json_name for field in group.fields]
            if len(names) < 2:
                continue  # a field of its own that knows whether it is set
            if group.name in needed:
                yield {"oneOf": [{"required": [name]} for name in names]}
            else:
                pairs = itertools.combinations(names, 2)
                yield {"not": {"anyOf": [{"required": list(pair)} for pair in pairs]}}


def _values(rules: Any) -> dict[str, Any]:
    """{rule: value} of the rules of one kind."""
    return {rule.name: value for rule, value in rules.ListFields()} if rules is not None else {}


def _named(rules: Any) -> dict[str, Any]:
    """{kind: rules} of the rules of an item, a key or a value."""
    return _values(rules)


def _string(said: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "string"}
    made |= {keyword: said[rule] for rule, keyword in _STRINGS.items() if said.get(rule)}
    if "in" in said:
        made["enum"] = list(said["in"])
    if said.get("ip"):
        made["anyOf"] = [{"format": "ipv4"}, {"format": "ipv6"}]
    return made


def _enum(field: Any, said: Mapping[str, Any]) -> dict[str, Any]:
    refused = set(said.get("not_in", ()))
    return {"type": "string", "enum": [value.name for value in field.enum_type.values if value.number not in refused]}


def _in_words(rules: Mapping[str, Any]) -> Iterator[str]:
    """What JSON Schema can't say of a field, or says so that only programs understand it."""
    duration = _values(rules.get("duration"))
    for rule, words in (("gte", "At least"), ("gt", "More than"), ("lte", "At most"), ("lt", "Less than")):
        if rule in duration:
            yield f"{words} {duration[rule].seconds + duration[rule].nanos / 1e9:.10g}s."
    pattern = _values(rules.get("string")).get("pattern", "")
    if pattern in PATTERNS:
        yield f"It {PATTERNS[pattern]}."
    for cel in rules.get("cel", ()):
        if cel.message:
            yield f"Rule: {cel.message}."
