"""What a call came to: whose fault it was, if it was anybody's.

A gRPC call that found nothing is not a service that is down: only what the server is to blame for counts against it.

Source: OpenTelemetry semantic conventions for RPC and HTTP, 1.44: which statuses of a server are errors.
"""

from typing import Final

from meshwarden.v1.report_pb2 import CallStat

OK: Final = "ok"
CLIENT_ERROR: Final = "client_error"
SERVER_ERROR: Final = "server_error"
DENIED: Final = "denied"
LIMITED: Final = "limited"
OUTCOMES: Final = (OK, CLIENT_ERROR, SERVER_ERROR, DENIED, LIMITED)

_SERVER: Final = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


def outcome(status: str, decision: int) -> str:
    """Returns what a call came to: one of OUTCOMES.

    Args:
        status: the name of a gRPC status, or an HTTP status code; 0 is a connection that ended before an answer.
        decision: of `CallStat.Decision`.
    """
    if decision == CallStat.DENIED:
        return DENIED
    if decision in (CallStat.LIMITED, CallStat.THROTTLED):
        return LIMITED
    if status.isdecimal():
        code = int(status)
        return SERVER_ERROR if code == 0 or code >= 500 else CLIENT_ERROR if code >= 400 else OK
    if status == "OK":
        return OK
    return SERVER_ERROR if status in _SERVER else CLIENT_ERROR
