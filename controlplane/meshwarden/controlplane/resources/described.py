"""What the schema says for people: its comments and, field by field, its rules."""

from collections.abc import Iterable
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from meshwarden.controlplane.resources.validate import schema


class Comments:
    """The schema's comments: {full name of a message, field, enum value, service or method: text}."""

    def __init__(self, files: Iterable[FileDescriptorProto]) -> None:
        self._texts: dict[str, str] = {}
        for file in files:
            for location in file.source_code_info.location:
                self._texts[_name(file, list(location.path))] = location.leading_comments

    def __getitem__(self, name: str) -> str:
        """The comment in one line; empty if there is none."""
        return " ".join(self._texts.get(name, "").split())

    def paragraphs(self, name: str) -> list[str]:
        """The comment by its paragraphs, each in one line."""
        parts = "\n".join(line.strip() for line in self._texts.get(name, "").splitlines()).split("\n\n")
        return [" ".join(part.split()) for part in parts if part.strip()]


def _name(file: Any, path: list[int]) -> str:
    """The full name of what stands at a path of (field number, index) pairs."""
    here, name = file, str(file.package)
    for number, index in zip(path[::2], path[1::2], strict=False):
        here = getattr(here, here.DESCRIPTOR.fields_by_number[number].name)[index]
        name += f".{here.name}"
    return name


def rules_of(field: Any) -> Any:
    """The rules of a field, as the schema's own pool knows them."""
    pool: Any = schema().pool
    options = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.FieldOptions"))
    return options.FromString(field.GetOptions().SerializeToString()).Extensions[
        pool.FindExtensionByName("buf.validate.field")
    ]


def message_rules_of(message: Any) -> Any:
    """The rules of a message as a whole, as the schema's own pool knows them."""
    pool: Any = schema().pool
    options = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.MessageOptions"))
    return options.FromString(message.GetOptions().SerializeToString()).Extensions[
        pool.FindExtensionByName("buf.validate.message")
    ]
