"""Envoy's access log records, read as calls."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from meshwarden.sdk.access import is_rule
from meshwarden.sdk.red.exemplar import TraceIds
from meshwarden.sdk.tracing.trace import sampled_ids
from meshwarden.v1 import report_pb2 as pb
from meshwarden.xds import telemetry_names as names
from meshwarden.xds.external_name import CONNECT, RELAY

_MAX_ATTRIBUTES: Final = 16
_MAX_DURATION_S: Final = 86_400.0


@dataclass(frozen=True)
class Call:
    """One call as an Envoy saw it.

    Attributes:
        upstream: the address of the endpoint that took it, `host:port`; empty where it is not known.
        trace: where it is recorded; None if it is not.
        dry_run: the rule in dry run by which the access policies would have said the opposite; empty if there is none.
        clear_from: the address whence it came, if that was in the clear.
    """

    source: str
    destination: str
    method: str
    status: str
    decision: int
    reporter: int
    duration_s: float
    upstream: str
    trace: TraceIds | None
    dry_run: str = ""
    clear_from: str = ""


def attributes_of(pairs: Iterable[object]) -> dict[str, str]:
    """OTLP attributes as text, the first 16 of them, which are more than ours: `{key: value}`."""
    found: dict[str, str] = {}
    for pair in islice(pairs, _MAX_ATTRIBUTES):
        value = pair.value  # type: ignore[attr-defined]
        kind = value.WhichOneof("value")
        if kind in ("string_value", "int_value", "double_value"):
            found[pair.key] = str(getattr(value, kind))[:2048]  # type: ignore[attr-defined]
    return found


def call_of(attributes: dict[str, str], spiffe_id: str, service: str) -> Call | None:
    """The call that a record tells of; None if it is no record of ours.

    Args:
        attributes: the record's.
        spiffe_id: of the Envoy's workload: the source of what its source side logs, whatever the record says.
        service: `<tenant>/<service>` of the workload: the destination of what its destination side logs.
    """
    side = attributes.get(names.REPORTER)
    if side == names.DESTINATION_SIDE:
        source, destination, reporter = attributes.get(names.PEER, ""), service, pb.CallStat.DESTINATION
    elif side == names.SOURCE_SIDE:
        destination = service_of_cluster(attributes.get(names.UPSTREAM_CLUSTER, ""))
        source, reporter = spiffe_id, pb.CallStat.SOURCE
    else:
        return None
    return Call(
        source if source.startswith("spiffe://") else "",
        destination[:127],
        _method(attributes),
        _status(attributes),
        decision_of(attributes),
        reporter,
        _duration_s(attributes.get(names.DURATION_MS, "")),
        attributes.get(names.UPSTREAM_HOST, "") if reporter == pb.CallStat.SOURCE else "",
        sampled_ids(attributes.get(names.TRACEPARENT, "")),
        _dry_run(attributes) if reporter == pb.CallStat.DESTINATION else "",
        attributes.get(names.PEER_ADDRESS, "") if reporter == pb.CallStat.DESTINATION else "",
    )


def is_relayed(attributes: dict[str, str]) -> bool:
    """Whether a record is of the first half of a way out of the mesh: that of the second tells of the call."""
    return attributes.get(names.UPSTREAM_CLUSTER, "").startswith(RELAY)


def service_of_cluster(cluster: str) -> str:
    """`orders.platform|v1` as `platform/orders`; empty for no cluster of a service."""
    service, dot, tenant = cluster.partition("|")[0].partition(".")
    return f"{tenant}/{service}" if dot and service and tenant else ""


def speaks_for(attributes: dict[str, str]) -> str:
    """The tenant for whose caller an ingress has called, by its cluster, `orders.platform|v1|acme`; empty for none."""
    if attributes.get(names.REPORTER) != names.SOURCE_SIDE:
        return ""
    return attributes.get(names.UPSTREAM_CLUSTER, "").partition("|")[2].partition("|")[2]


def decision_of(attributes: dict[str, str]) -> int:
    """What the policies said, by Envoy's response flags and details.

    Source: Envoy, "Access logging", %RESPONSE_FLAGS% (RL) and %RESPONSE_CODE_DETAILS% (rbac_access_denied…).
    """
    details = attributes.get(names.RESPONSE_CODE_DETAILS, "")
    flags = attributes.get(names.RESPONSE_FLAGS, "").split(",")
    if "rbac_access_denied" in details:
        return pb.CallStat.DENIED
    if {"RL", "RLSE"} & set(flags) or "rate_limited" in details:
        return pb.CallStat.LIMITED
    return pb.CallStat.ALLOWED


def _dry_run(attributes: dict[str, str]) -> str:
    result, rule = attributes.get(names.DRY_RUN, ""), attributes.get(names.DRY_RUN_RULE, "")
    is_denied = decision_of(attributes) == pb.CallStat.DENIED
    return rule if is_rule(rule) and result == ("allowed" if is_denied else "denied") else ""


def _method(attributes: dict[str, str]) -> str:
    path = attributes.get(names.PATH, "").partition("?")[0]
    if _grpc_status(attributes):
        return path
    return f"{attributes.get(names.METHOD, '')} {path}".strip()


def _status(attributes: dict[str, str]) -> str:
    if attributes.get(names.METHOD) == CONNECT and names.HTTP_STATUS not in attributes:
        return _status_of_connection(attributes)
    return _grpc_status(attributes) or attributes.get(names.HTTP_STATUS, "0")


def _status_of_connection(attributes: dict[str, str]) -> str:
    """What HTTP would say of a connection, by Envoy's response flags: none if nothing was wrong on our side."""
    if decision_of(attributes) == pb.CallStat.DENIED:
        return "403"
    return "200" if attributes.get(names.RESPONSE_FLAGS, "-") in ("", "-", "DC", "UR") else "503"


def _grpc_status(attributes: dict[str, str]) -> str:
    status = attributes.get(names.GRPC_STATUS, "")
    return "" if status in ("", "-") else status


def _duration_s(text: str) -> float:
    try:
        seconds = float(text) / 1000
    except ValueError:
        return 0.0
    return seconds if 0.0 <= seconds <= _MAX_DURATION_S else 0.0
