"""From exceptions to gRPC statuses, in this one place.

    RequestError
      InvalidRequest   INVALID_ARGUMENT, with google.rpc.BadRequest
      NotFound         NOT_FOUND
      StillUsed        FAILED_PRECONDITION, with google.rpc.PreconditionFailure
      WrongPhase       FAILED_PRECONDITION
      Moved            ABORTED
      Busy             RESOURCE_EXHAUSTED
      Forgotten        OUT_OF_RANGE

A status travels in the trailers, of which a client takes 8 KiB unless it is told otherwise: details are cut to fit, and
say how many are left out. What comes by REST has no such bound: its context says so itself, in `detail_bytes`.
"""

import math
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from grpc_status import rpc_status

from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable
from meshwarden.certs.authority.slot import RootRefused, UnknownRoot
from meshwarden.certs.csr import InvalidCsr
from meshwarden.certs.deny import InvalidDeny
from meshwarden.certs.issue import IssueRefused
from meshwarden.controlplane.audit.port import AuditUnavailable
from meshwarden.controlplane.identity.deny import DeniedByMesh, DeniedElsewhere, NotDenied
from meshwarden.controlplane.identity.join_token import InvalidToken
from meshwarden.controlplane.identity.operators import TooManyOperators, UnknownOperator
from meshwarden.controlplane.identity.rate import Limited
from meshwarden.controlplane.identity.roster import InvalidNode, NoSuchNode, StillConnected
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.store import port
from meshwarden.sdk.mtls.peer import Refused

log = structlog.get_logger()

DETAIL_BYTES = 4500
MESSAGE_CHARS = 600
# What protobuf puts around two strings of a message in a list.
FRAME_BYTES = 12


class RequestError(Exception):
    """A request that can't be served, by the caller's doing."""


class InvalidRequest(RequestError):
    """Fields of a request are wrong; `faults` has every one."""

    def __init__(self, faults: Sequence[FieldFault]) -> None:
        self.faults = list(faults)
        first = "; ".join(f"{fault.field}: {fault.message}" if fault.field else fault.message for fault in faults[:3])
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        super().__init__(first + more)


class NotFound(RequestError):
    """There is no such thing; the message names it."""


class StillUsed(RequestError):
    """What is to be deleted is still used; `users` says by whom."""

    def __init__(self, users: Sequence[str]) -> None:
        self.users = list(users)
        more = f"; and {len(users) - 3} more" if len(users) > 3 else ""
        super().__init__("still used: " + "; ".join(users[:3]) + more)


class WrongPhase(RequestError):
    """What is asked of a rollout can't be done in the phase that it is in."""


class Moved(RequestError):
    """A record has moved past the revision that the caller has seen."""


class Busy(RequestError):
    """Too many ask for the same at once."""


class Forgotten(RequestError):
    """The history does not go back as far as is asked; the message says how far it does."""


STATUS: dict[type[BaseException], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    StillUsed: grpc.StatusCode.FAILED_PRECONDITION,
    WrongPhase: grpc.StatusCode.FAILED_PRECONDITION,
    Moved: grpc.StatusCode.ABORTED,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Forgotten: grpc.StatusCode.OUT_OF_RANGE,
    AuditUnavailable: grpc.StatusCode.UNAVAILABLE,
    AuthorityError: grpc.StatusCode.UNAVAILABLE,
    RootRefused: grpc.StatusCode.FAILED_PRECONDITION,
    UnknownRoot: grpc.StatusCode.NOT_FOUND,
    InvalidCsr: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidToken: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidDeny: grpc.StatusCode.INVALID_ARGUMENT,
    NotDenied: grpc.StatusCode.NOT_FOUND,
    DeniedByMesh: grpc.StatusCode.PERMISSION_DENIED,
    DeniedElsewhere: grpc.StatusCode.FAILED_PRECONDITION,
    InvalidNode: grpc.StatusCode.INVALID_ARGUMENT,
    NoSuchNode: grpc.StatusCode.NOT_FOUND,
    StillConnected: grpc.StatusCode.FAILED_PRECONDITION,
    Limited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TooManyOperators: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnknownOperator: grpc.StatusCode.NOT_FOUND,
    IssueRefused: grpc.StatusCode.FAILED_PRECONDITION,
    port.Conflict: grpc.StatusCode.ABORTED,
    port.Fenced: grpc.StatusCode.ABORTED,
    port.LeaseLost: grpc.StatusCode.ABORTED,
    port.LeaseHeld: grpc.StatusCode.ABORTED,
    port.Compacted: grpc.StatusCode.OUT_OF_RANGE,
    port.Future: grpc.StatusCode.OUT_OF_RANGE,
    port.TooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    port.InvalidKey: grpc.StatusCode.INVALID_ARGUMENT,
    port.Unavailable: grpc.StatusCode.UNAVAILABLE,
    port.WatchLost: grpc.StatusCode.UNAVAILABLE,
    port.Ambiguous: grpc.StatusCode.UNKNOWN,
    # A write to a caller that has gone meanwhile: no defect of ours. grpc has no public name for it.
    cygrpc.ExecuteBatchError: grpc.StatusCode.UNAVAILABLE,
}
"""{exception: status}; a subclass is as its nearest parent here."""

REFUSALS = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
)
"""What is an event of the audit log."""


def status_of(
    error: BaseException, detail_bytes: int = DETAIL_BYTES
) -> tuple[grpc.StatusCode, str, Message | None] | None:
    """Returns code, message and details for an exception, or for one inside a group; None for one we do not know."""
    for leaf in _leaves(error):
        if isinstance(leaf, Refused):
            return leaf.status, _clipped(leaf.message), None
        for parent in type(leaf).__mro__:
            if parent in STATUS:
                return STATUS[parent], _clipped(str(leaf)), _details(leaf, detail_bytes)
    return None


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: BaseException, method: str) -> NoReturn:
    """Ends the call with the status of an exception.

    One that we do not know is a defect: it is logged under an id, and the caller is told the id alone.
    """
    found = status_of(error, getattr(context, "detail_bytes", DETAIL_BYTES))
    if found is None:
        number = secrets.token_hex(6)
        log.error("rpc.failed", method=method, id=number, exc_info=error)
        text = f"internal error {number}: the control plane's log has it under this id"
        await context.abort(grpc.StatusCode.INTERNAL, text)
    code, message, details = found
    status = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=message)
    if details is not None:
        status.details.add().Pack(details)
    trailing = (*rpc_status.to_status(status).trailing_metadata, *_trailing(error))
    await context.abort(code, message, trailing_metadata=trailing)


def refusal_in(error: BaseException) -> str | None:
    """Returns why a call is refused for who calls or for what it brings; None if an exception says something else."""
    found = status_of(error)
    return found[1] if found is not None and found[0] in REFUSALS else None


def fitting(faults: Sequence[FieldFault], most_bytes: int) -> list[FieldFault]:
    """Returns the first faults, as many as fit; where some do not, the last one has no field and says how many."""
    fits: list[FieldFault] = []
    size_bytes = 0
    for fault in faults:
        clipped = FieldFault(_clipped(fault.field), _clipped(fault.message))
        size_bytes += len((clipped.field + clipped.message).encode()) + FRAME_BYTES
        if size_bytes > most_bytes:
            return [*fits, FieldFault("", f"and {len(faults) - len(fits)} more: mend these first")]
        fits.append(clipped)
    return fits


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _trailing(error: BaseException) -> tuple[tuple[str, str], ...]:
    return next((leaf.trailing for leaf in _leaves(error) if isinstance(leaf, Refused)), ())


def _clipped(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARS else text[: MESSAGE_CHARS - 1] + "…"


def _details(error: BaseException, detail_bytes: int) -> Any:
    if isinstance(error, InvalidRequest):
        request = error_details_pb2.BadRequest()
        for fault in fitting(error.faults, detail_bytes):
            request.field_violations.add(field=fault.field, description=fault.message)
        return request
    if isinstance(error, Limited | AuthorityUnavailable | port.Unavailable):
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(math.ceil(error.wait_s * 1e9))
        return info
    if isinstance(error, StillUsed):
        failure = error_details_pb2.PreconditionFailure()
        for number, user in enumerate(error.users):
            if failure.ByteSize() + len(user.encode()) > detail_bytes:
                left_out = len(error.users) - number
                failure.violations.add(type="IN_USE", description=f"and {left_out} more")
                break
            failure.violations.add(type="IN_USE", description=_clipped(user))
        return failure
    return None
