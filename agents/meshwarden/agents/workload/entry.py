"""The entries that name this node, and how a program says which it is.

Errors: `RegistrationRefused`, with the kind of refusal, so that the API maps it to a status once.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from meshwarden.v1 import resources_pb2 as resources

_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ENTRY: Final = re.compile(rf"(?:{_LABEL}/)?{_LABEL}")
_INSTANCE: Final = re.compile(_LABEL)


class Refusal(Enum):
    """A kind of refusal."""

    INVALID = "invalid"
    UNKNOWN = "unknown"
    TAKEN = "taken"
    UNFIT = "unfit"
    FULL = "full"
    USER_SHARED = "user shared"


class RegistrationRefused(Exception):
    """A process is not taken as what it says it is; the message says why and what to do."""

    def __init__(self, kind: Refusal, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Entry:
    """A workload entry that names this node, with its service."""

    entry: resources.WorkloadEntry
    service: resources.Service

    @property
    def name(self) -> str:
        """`<tenant>/<entry>`."""
        return f"{self.entry.metadata.tenant}/{self.entry.metadata.name}"


def choose(entries: Mapping[str, Entry], name: str) -> Entry:
    """The entry that a name means, by itself or with its tenant.

    Args:
        entries: `{tenant/entry: Entry}`.
        name: as the caller said it.

    Raises:
        RegistrationRefused: none has that name, or several have.
    """
    exact = entries.get(name)
    if exact is not None:
        return exact
    found = [entry for entry in entries.values() if entry.entry.metadata.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(entry.name for entry in found))
        raise RegistrationRefused(Refusal.INVALID, f"several entries are called {name}: say one of {names}")
    known = [*entries, *(entry.entry.metadata.name for entry in entries.values())]
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(entries)[:10]) or 'none'}"
    raise RegistrationRefused(Refusal.UNKNOWN, f"this node has no entry {name}: {hint}")


def check_names(name: str, port: int, instance: str) -> None:
    """Holds what a program says of itself against its bounds.

    Raises:
        RegistrationRefused: one of them is out of bounds.
    """
    if not _ENTRY.fullmatch(name):
        raise RegistrationRefused(Refusal.INVALID, "entry: say NAME or TENANT/NAME, in lower case")
    if instance and not _INSTANCE.fullmatch(instance):
        raise RegistrationRefused(Refusal.INVALID, "instance: at most 63 of a-z, 0-9 and -")
    if not 0 <= port <= 65535:
        raise RegistrationRefused(Refusal.INVALID, "port: 0 to 65535")
