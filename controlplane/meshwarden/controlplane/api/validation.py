"""Every request message is held against the schema's rules before a servicer sees it, and exceptions become statuses.

The bounds on a message's size are the server's options (`api/server.py`: 4 MiB); protobuf refuses what is nested deeper
than 100 levels.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from meshwarden.controlplane.api.errors import InvalidRequest, abort, refusal_in
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.validate import rule_faults
from meshwarden.sdk.edge import EdgeInterceptor, Malformed
from meshwarden.sdk.mtls import peer

OURS = "/meshwarden.v1."


class Misshapen(Malformed):
    """What stands for a message whose fields can't be read; `faults` has every one."""

    def __init__(self, faults: Sequence[FieldFault]) -> None:
        super().__init__("; ".join(fault.message for fault in faults[:3]))
        self.faults = list(faults)


class ValidationInterceptor(EdgeInterceptor):
    """Validates the requests of our own services, unary and streamed, and maps what their handlers raise."""

    def __init__(self, audit: AuditLog) -> None:
        """Takes the audit log, which is told of each call that is refused."""
        super().__init__(check, self._refuse, OURS)
        self._audit = audit

    async def _refuse(self, context: Any, error: Exception, method: str) -> None:
        """The edge: whatever it was becomes a status, and a log line if it is a defect."""
        refusal = refusal_in(error)
        if refusal is not None:
            self._audit.note("rpc.refused", caller=peer.caller_text(), method=method, reason=refusal)
        await abort(context, error, method)


def check(message: Message | Malformed, size_bytes: int | None = None) -> Any:
    """Returns the message.

    Args:
        message: the message.
        size_bytes: how large it was when it was read, where that is known.

    Raises:
        InvalidRequest: it breaks a rule of the schema.
    """
    if isinstance(message, Misshapen):
        raise InvalidRequest(message.faults)
    if isinstance(message, Malformed):
        raise InvalidRequest([FieldFault("", str(message))])
    if faults := rule_faults(message, size_bytes):
        raise InvalidRequest(faults)
    return message


def moment(stamp: Timestamp, field: str) -> datetime:
    """Returns the time that a field says.

    Raises:
        InvalidRequest: it is none; protobuf carries any number of seconds and nanoseconds.
    """
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except ValueError:
        raise InvalidRequest([FieldFault(field, "must be a time between the years 1 and 9999")]) from None
