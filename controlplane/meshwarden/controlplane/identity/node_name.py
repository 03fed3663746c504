"""Node names made from what a proof says: "{common_name}", "rack-{entity_metadata.rack}". Pure."""

import re
from collections.abc import Collection, Mapping

NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_FIELD = re.compile(r"\{([a-z_]+(?:\.[A-Za-z0-9_-]+)?)\}")
_TEMPLATE = re.compile(rf"(?:[a-z0-9-]|{_FIELD.pattern})*")
MAX_TEMPLATE = 255


class InvalidTemplate(ValueError):
    """A template can't be used."""


class NoName(Exception):
    """A proof makes no node's name; the message says why."""


class NameTemplate:
    """Makes names."""

    def __init__(self, text: str, fields: Collection[str]) -> None:
        """Reads a template.

        Args:
            text: lower-case letters, digits and "-" as they are, and fields in braces.
            fields: which there are; "metadata." stands for any name after it.

        Raises:
            InvalidTemplate: it is none, names no field, or one that there isn't.
        """
        self.text = text
        if len(text) > MAX_TEMPLATE or _TEMPLATE.fullmatch(text) is None:
            raise InvalidTemplate(f"{text[:100]!r}: write a-z, 0-9, '-' and fields in braces")
        self.fields = tuple(found[1] for found in _FIELD.finditer(text))
        if not self.fields:
            raise InvalidTemplate(f"{text!r}: names no field, so that every node would be the same one")
        for name in self.fields:
            head, dot, _ = name.partition(".")
            if head + dot not in fields:
                known = ", ".join(
                    f"{{{known}…}}" if known.endswith(".") else f"{{{known}}}" for known in sorted(fields)
                )
                raise InvalidTemplate(f"{{{name}}}: there is no such field; known: {known}")

    def name(self, values: Mapping[str, str]) -> str:
        """Returns the node's name.

        Raises:
            NoName: a field has no value, or what comes out is no node's name.
        """
        for name in self.fields:
            if not values.get(name):
                raise NoName(f"it says no {name}, of which the node's name is made ({self.text})")
        made = _FIELD.sub(lambda found: values[found[1]], self.text)
        if NODE_NAME.fullmatch(made) is None:
            raise NoName(f"{made[:100]!r} ({self.text}) is no node's name: a-z, 0-9 and inner '-', at most 63")
        return made
