"""How long calls took, under OpenTelemetry's names: which histogram a call belongs to, and its labels.

Source: OpenTelemetry semantic conventions 1.44, `rpc.{client,server}.call.duration` and
`http.{client,server}.request.duration`; Prometheus' names of them by the OpenTelemetry–Prometheus compatibility page.
"""

import re
from typing import Final

from meshwarden.controlplane.gather import outcome
from meshwarden.controlplane.gather.call import Call
from meshwarden.v1.report_pb2 import CallStat

MESH_LABELS: Final = (
    "mesh_source_tenant",
    "mesh_source_service",
    "mesh_source_region",
    "mesh_destination_tenant",
    "mesh_destination_service",
    "mesh_destination_region",
    "mesh_tenant",
)
RPC_LABELS: Final = ("rpc_system_name", "rpc_method", "rpc_response_status_code", "error_type", *MESH_LABELS)
HTTP_LABELS: Final = ("http_request_method", "http_route", "http_response_status_code", "error_type", *MESH_LABELS)
FAMILIES: Final = {
    "rpc_server_call_duration_seconds": ("How long gRPC calls took, as their servers saw it.", RPC_LABELS),
    "rpc_client_call_duration_seconds": ("How long gRPC calls took, as their callers saw it.", RPC_LABELS),
    "http_server_request_duration_seconds": ("How long HTTP requests took, as their servers saw it.", HTTP_LABELS),
    "http_client_request_duration_seconds": ("How long HTTP requests took, as their callers saw it.", HTTP_LABELS),
}
"""{name: (help, names of labels)}"""
OTHER: Final = "_OTHER"
# A segment of a path that names one thing among many: a number, a UUID, or a digest.
_ID: Final = re.compile(r"\d+|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|(?=[^/]*\d)[0-9a-fA-F]{16,}")


def templated(method: str) -> str:
    """A call's method with `{id}` for each segment of an HTTP path that is a number, a UUID or a digest.

    Others stay, since nobody tells us the program's routes.
    """
    verb, space, path = method.partition(" ")
    if not space:
        return method
    return f"{verb} " + "/".join("{id}" if _ID.fullmatch(part) else part for part in path.split("/"))


def family(call: Call) -> str:
    """The histogram that counts a call; one whose method is not known tells its protocol by its status."""
    is_http = " " in call.method if call.method != OTHER else call.status.isdecimal()
    side = "server" if call.reporter == CallStat.DESTINATION else "client"
    return f"http_{side}_request_duration_seconds" if is_http else f"rpc_{side}_call_duration_seconds"


def labels(call: Call, name: str, result: str) -> tuple[str, ...]:
    """The values of a histogram's labels, in the order of FAMILIES.

    Args:
        call: what it counts.
        name: of the histogram.
        result: what the call came to, one of OUTCOMES.
    """
    mesh = (
        call.source_tenant,
        call.source_service,
        call.source_region,
        call.destination_tenant,
        call.destination_service,
        call.destination_region,
        call.tenant,
    )
    error = _error_type(call, result)
    if name.startswith("rpc_"):
        return ("grpc", call.method.removeprefix("/"), call.status, error, *mesh)
    verb, space, path = call.method.partition(" ")
    return (verb if space else OTHER, path if space else OTHER, call.status, error, *mesh)


def _error_type(call: Call, result: str) -> str:
    """Empty where it was no error for the side that reports; else what refused it, or the status."""
    if result in (outcome.DENIED, outcome.LIMITED):
        return result
    if result == outcome.OK or (result == outcome.CLIENT_ERROR and call.reporter == CallStat.DESTINATION):
        return ""
    return call.status
