"""How a call that failed is told by HTTP: its gRPC status as an HTTP status, and application/problem+json.

Source: RFC 9457 (problem details); google/rpc/code.proto, but that FAILED_PRECONDITION and ABORTED are conflicts here,
and OUT_OF_RANGE is what is gone.
"""

import math
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2, status_pb2

from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.sdk.mtls.refusal import REFUSAL_KEY
from meshwarden.v1.problem_pb2 import Problem

Code = grpc.StatusCode
STATUS: Final = {
    Code.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    Code.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    Code.FAILED_PRECONDITION: HTTPStatus.CONFLICT,
    Code.ABORTED: HTTPStatus.CONFLICT,
    Code.OUT_OF_RANGE: HTTPStatus.GONE,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    Code.CANCELLED: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""{gRPC status: HTTP status}; any other is a defect of ours."""
DETAILS_KEY: Final = "grpc-status-details-bin"


class Aborted(grpc.aio.AbortError):
    """A call has ended with a status; what else it says is in its trailing metadata."""

    def __init__(self, code: grpc.StatusCode, message: str, trailing: Iterable[tuple[str, str | bytes]] = ()) -> None:
        super().__init__(message)
        self.code, self.message, self.trailing = code, message, dict(trailing)


class HttpRefused(Exception):
    """A request is refused before it is any call: there is no such path, for one."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        faults: Sequence[FieldFault] = (),
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.faults, self.headers = status, list(faults), list(headers)


def of_call(error: Aborted, place: Any, *, is_conditional: bool) -> tuple[HTTPStatus, Problem, list[tuple[str, str]]]:
    """How the end of a call is told.

    Args:
        error: the end.
        place: says where in the HTTP request a field of the RPC's request is; see `bind.place`.
        is_conditional: whether the request came with If-Match or If-None-Match.

    Returns:
        The HTTP status, the problem and headers.
    """
    status = STATUS.get(error.code, HTTPStatus.INTERNAL_SERVER_ERROR)
    if error.code is Code.ABORTED and is_conditional:
        status = HTTPStatus.PRECONDITION_FAILED
    problem = Problem(status=status.value, code=error.code.name, title=_title(error.code), detail=error.message)
    problem.refusal = str(error.trailing.get(REFUSAL_KEY, ""))
    retry_s = float(error.trailing.get("retry-after", 0) or 0)
    for detail in _details(error):
        if isinstance(detail, error_details_pb2.BadRequest):
            for violation in detail.field_violations:
                problem.faults.add(field=place(violation.field), message=violation.description)
            problem.detail = _summary(problem)
        elif isinstance(detail, error_details_pb2.PreconditionFailure):
            for user in detail.violations:
                problem.faults.add(message=user.description)
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_s = detail.retry_delay.ToNanoseconds() / 1e9
    headers = [("retry-after", str(math.ceil(retry_s)))] if retry_s > 0 else []
    return status, problem, headers


def of_request(refused: HttpRefused) -> Problem:
    """How a refusal without a call is told."""
    code = next((code for code, status in STATUS.items() if status is refused.status), Code.INVALID_ARGUMENT)
    problem = Problem(status=refused.status.value, code=code.name, title=refused.status.phrase, detail=str(refused))
    for fault in refused.faults:
        problem.faults.add(field=fault.field, message=fault.message)
    return problem


def to_json(problem: Problem) -> dict[str, Any]:
    """The problem as JSON; `status` is there always."""
    return MessageToDict(problem)


def _summary(problem: Problem) -> str:
    shown = "; ".join(
        f"{fault.field}: {fault.message}" if fault.field else fault.message for fault in problem.faults[:3]
    )
    more = len(problem.faults) - 3
    return f"{shown}; and {more} more" if more > 0 else shown


def _title(code: grpc.StatusCode) -> str:
    return code.name.replace("_", " ").capitalize()


def _details(error: Aborted) -> Iterable[Any]:
    packed = error.trailing.get(DETAILS_KEY)
    if not isinstance(packed, bytes):
        return
    for detail in status_pb2.Status.FromString(packed).details:
        for kind in (
            error_details_pb2.BadRequest,
            error_details_pb2.PreconditionFailure,
            error_details_pb2.RetryInfo,
        ):
            if detail.Is(kind.DESCRIPTOR):
                unpacked = kind()
                detail.Unpack(unpacked)
                yield unpacked
