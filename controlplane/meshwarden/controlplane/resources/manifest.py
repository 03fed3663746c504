"""Manifests: resources as YAML, the JSON mapping of the schema, one or more documents a text.

    for located in parse(text, "mesh.yaml"):
        ...

`ManifestFaults` carries every fault, each "file:line: field: message".
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from google.protobuf.json_format import MessageToDict

from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import KINDS, AnyResource, normalise, ref_of, title, unwrap, wrap
from meshwarden.controlplane.resources.shape import Filler
from meshwarden.controlplane.resources.tree import Node, read, scalar
from meshwarden.controlplane.resources.validate import resource_faults, rule_faults
from meshwarden.v1.resources_pb2 import Resource

# The mesh's own word, which is not taken from a manifest.
STATUS = frozenset({"status"})


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault of a manifest; line 0 is the file as a whole."""

    source: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}" if self.line else self.source
        return f"{where}: " + (f"{self.field}: " if self.field else "") + self.message


class ManifestFaults(Exception):
    """The manifests can't be taken; `faults` has every reason, in the order of the text."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = sorted(set(faults))
        super().__init__("\n".join(map(str, self.faults)))


@dataclass(frozen=True, slots=True)
class Located:
    """A resource and where it stands."""

    resource: Resource
    source: str
    lines: Mapping[str, int]

    def line_of(self, field: str) -> int:
        """Returns the line of a field, or of the nearest thing around it: where a missing one belongs."""
        while field not in self.lines:
            cut = max(field.rfind("."), field.rfind("["))
            field = field[: max(cut, 0)]
        return self.lines[field]

    def fault(self, fault: FieldFault) -> Fault:
        """Places a fault of a field, as the API tells it, in the text."""
        return Fault(self.source, self.line_of(fault.field), fault.field, fault.message)


def parse(text: str, source: str) -> list[Located]:
    """Reads a manifest.

    Raises:
        ManifestFaults: something is wrong with it.
    """
    return parse_all([(source, text)])


def parse_all(texts: Iterable[tuple[str, str]]) -> list[Located]:
    """Reads several manifests, given as (source, text), as one batch.

    Raises:
        ManifestFaults: something is wrong with any of them.
    """
    located: list[Located] = []
    faults: list[Fault] = []
    for source, text in texts:
        documents = read(text)
        faults += [Fault(source, fault.line, "", fault.message) for fault in documents.faults]
        for node in documents.nodes:
            found, wrong = _document(node, source)
            faults += wrong
            if found is not None:
                located.append(found)
    first: dict[str, Located] = {}
    for item in located:
        name = title(ref_of(item.resource))
        other = first.setdefault(name, item)
        if other is not item:
            place = f"{other.source}:{other.line_of('')}"
            faults.append(item.fault(FieldFault("metadata.name", f"{name} stands at {place} already")))
    if faults:
        raise ManifestFaults(faults)
    return located


def _document(node: Node, source: str) -> tuple[Located | None, list[Fault]]:
    if not isinstance(node.value, dict):
        return None, [Fault(source, node.line, "", "must be a resource: a mapping with kind, metadata and spec")]
    kind = node.value.get("kind")
    if kind is None:
        return None, [Fault(source, node.line, "kind", f"is required: one of {', '.join(KINDS)}")]
    if not isinstance(kind.value, str) or kind.value not in KINDS:
        close = difflib.get_close_matches(str(kind.value)[:60].title(), KINDS, n=1)
        text = f"there is no kind {str(kind.value)[:60]!r}" + (f"; did you mean {close[0]}?" if close else "")
        return None, [Fault(source, kind.line, "kind", text)]
    filler = Filler()
    message = KINDS[kind.value]()
    filler.fill(message, node, skip=STATUS)
    located = Located(wrap(message), source, filler.lines)
    if filler.faults:
        # What did not fit its field is missing from the message: only faults of other fields are told beside it.
        wrong = {path for _, path, _ in filler.faults}
        beside = [fault for fault in rule_faults(message) if not any(_touches(fault.field, path) for path in wrong)]
        shape = [Fault(source, line, path, text) for line, path, text in filler.faults]
        return None, shape + [located.fault(fault) for fault in beside]
    found = rule_faults(message) or resource_faults(located.resource)
    if found:
        return None, [located.fault(fault) for fault in found]
    record = unwrap(located.resource).metadata.record
    resource = normalise(located.resource)
    unwrap(resource).metadata.record.revision = record.revision
    if not record.revision:
        unwrap(resource).metadata.ClearField("record")
    return Located(resource, source, filler.lines), []


def _touches(field: str, wrong: str) -> bool:
    """Whether a fault may follow from a wrong one: on the same field, around it or inside it."""
    parent = wrong[: max(wrong.rfind("."), wrong.rfind("["), 0)]
    return field.startswith(wrong) or wrong.startswith(field) or field.rpartition(".")[0] == parent


def to_dict(resource: Resource | AnyResource) -> dict[str, Any]:
    """Returns the JSON mapping of a resource, fields in the schema's order."""
    message = unwrap(resource) if isinstance(resource, Resource) else resource
    return MessageToDict(message)


def dump(*resources: Resource | AnyResource, record: bool = True) -> str:
    """Writes resources as a manifest, in the schema's order; without `record`, as one would write it by hand."""
    documents = []
    for resource in resources:
        document = to_dict(resource)
        if not record:
            document.get("metadata", {}).pop("record", None)
        documents.append(_labels_sorted(document))
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _labels_sorted(document: dict[str, Any]) -> dict[str, Any]:
    labels = document.get("metadata", {}).get("labels")
    if labels:
        document["metadata"]["labels"] = dict(sorted(labels.items()))
    return document


class _Dumper(yaml.SafeDumper):
    """Writes what `read` reads back as the same: text that looks like anything else is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        """Writes every value out."""
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        """Quotes what would be read as something else, "1e5" for one, and escapes what folds as a line's end."""
        plain = scalar(data) is data and data.isprintable()
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if plain else '"')


_Dumper.add_representer(str, _Dumper.represent_text)
