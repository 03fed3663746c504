"""What a span says of the end of its call.

Source: OpenTelemetry semantic conventions for RPC, 1.44.
"""

from typing import Final

import grpc
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

STATUS: Final = "rpc.response.status_code"
ERROR: Final = "error.type"
# A server's failures; the other codes say something of the request.
_SERVER_ERRORS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
_OK: Final = grpc.StatusCode.OK


def failure_of(code: grpc.StatusCode, details: str, kind: SpanKind) -> Status | None:
    """Returns the status of a span whose call has failed in the eyes of its side; None if it has not."""
    if code is _OK or (kind is SpanKind.SERVER and code not in _SERVER_ERRORS):
        return None
    return Status(StatusCode.ERROR, details)


def write_end(span: Span, code: grpc.StatusCode, details: str, kind: SpanKind) -> None:
    """Ends a span."""
    if span.is_recording():
        span.set_attribute(STATUS, code.name)
        failure = failure_of(code, details, kind)
        if failure is not None:
            span.set_attribute(ERROR, code.name)
            span.set_status(failure)
    span.end()
