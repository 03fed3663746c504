"""The port to the audit log.

AuditError
├── AuditBroken       what is stored isn't what was written
└── AuditUnavailable  an event can't be stored now; what it reports must not happen
"""

from collections.abc import Mapping, Sequence
from typing import Protocol


class AuditError(Exception):
    """The audit log fails; the message says where."""


class AuditBroken(AuditError):
    """The chain of events is broken: lines were changed, removed or added."""


class AuditUnavailable(AuditError):
    """An event can't be stored now."""


class AuditLog(Protocol):
    """Stores events. Fields are JSON's types; whatever else is stored as its text, a secret as asterisks."""

    async def record(self, event: str, **fields: object) -> None:
        """Stores an event; it is durable on return.

        Raises:
            AuditUnavailable: it isn't stored. Don't do, or don't hand out, what it was to report.
        """
        ...

    async def record_all(self, event: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Stores several events of one kind, durable on return, for the price of one.

        Raises:
            AuditUnavailable: not all of them are stored.
        """
        ...

    def note(self, event: str, **fields: object) -> None:
        """Stores an event soon, from code that can't wait.

        It is for what strangers cause, refused calls above all: past a rate only their number is stored.
        """
        ...
