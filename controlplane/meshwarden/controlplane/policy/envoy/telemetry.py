"""What an Envoy tells of its calls: spans and log records, by OTLP to the agent."""

from typing import Any, Final

from meshwarden.controlplane.policy.neutral import Name
from meshwarden.xds import telemetry_names as names
from meshwarden.xds.external_name import CONNECT

_AGENT: Final = {"envoy_grpc": {"cluster_name": "agent"}}
_OPEN_TELEMETRY: Final = "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig"
_ACCESS_LOG: Final = (
    "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig"
)
# Of those who bring a trace Envoy would record a share again. It leaves alone whoever bears this header: there and only
# there traceparent decides. How many of the others are recorded is in no listener, but in the runtime that agents give.
_DECIDED: Final = {
    "name": "decided",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": [
            {"remove": "x-client-trace-id"},
            {"append": {"header": {"key": "x-client-trace-id", "value": "%REQ(TRACEPARENT)%"}}},
        ],
    },
}
_EITHER_SIDE: Final = {
    names.METHOD: "%REQ(:METHOD)%",
    names.PATH: "%PATH(NQ:PATH)%",
    names.HTTP_STATUS: "%RESPONSE_CODE%",
    names.GRPC_STATUS: "%GRPC_STATUS(SNAKE_STRING)%",
    names.DURATION_MS: "%DURATION%",
    names.RESPONSE_FLAGS: "%RESPONSE_FLAGS%",
    names.RESPONSE_CODE_DETAILS: "%RESPONSE_CODE_DETAILS%",
    names.TRACEPARENT: "%REQ(TRACEPARENT)%",
}


def outbound(service: Name | None) -> dict[str, Any]:
    """Fields of the HttpConnectionManager that takes the program's own calls."""
    said = {
        names.REPORTER: names.SOURCE_SIDE,
        names.UPSTREAM_CLUSTER: "%UPSTREAM_CLUSTER%",
        names.UPSTREAM_HOST: "%UPSTREAM_HOST%",
        **_EITHER_SIDE,
    }
    return _both(service, "outbound", said)


def connections(service: Name) -> list[dict[str, Any]]:
    """The access logs of a listener that takes the program's own connections to an external service: when each ends."""
    said = {
        names.REPORTER: names.SOURCE_SIDE,
        names.UPSTREAM_CLUSTER: f"{service.name}.{service.tenant}",
        names.UPSTREAM_HOST: "%UPSTREAM_HOST%",
        names.METHOD: CONNECT,
        names.DURATION_MS: "%DURATION%",
        names.RESPONSE_FLAGS: "%RESPONSE_FLAGS%",
        names.RESPONSE_CODE_DETAILS: "%CONNECTION_TERMINATION_DETAILS%",
    }
    return [_log("connections", said)]


def inbound(service: Name) -> dict[str, Any]:
    """Fields of the HttpConnectionManager that takes the mesh's calls."""
    said = {
        names.REPORTER: names.DESTINATION_SIDE,
        names.PEER: "%DOWNSTREAM_PEER_URI_SAN%",
        names.SERVICE: str(service),
        names.DRY_RUN: "%DYNAMIC_METADATA(envoy.filters.http.rbac:shadow_engine_result)%",
        names.DRY_RUN_RULE: "%DYNAMIC_METADATA(envoy.filters.http.rbac:shadow_effective_policy_id)%",
        **_EITHER_SIDE,
    }
    return _both(service, "inbound", said)


def in_the_clear(service: Name) -> dict[str, Any]:
    """Fields of the HttpConnectionManager that takes calls of nobody who is known, by whence they come."""
    said = {
        names.REPORTER: names.DESTINATION_SIDE,
        names.PEER_ADDRESS: "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
        names.SERVICE: str(service),
        **_EITHER_SIDE,
    }
    return _both(service, "inbound", said)


def _both(service: Name | None, log_name: str, said: dict[str, str]) -> dict[str, Any]:
    service_name = f"{service.name}.{service.tenant}" if service else ""
    tracer = {"@type": _OPEN_TELEMETRY, "grpc_service": {**_AGENT, "timeout": "0.250s"}, "service_name": service_name}
    return {
        "tracing": {"provider": {"name": "envoy.tracers.opentelemetry", "typed_config": tracer}},
        "early_header_mutation_extensions": [_DECIDED],
        "access_log": [_log(log_name, said)],
    }


def _log(log_name: str, said: dict[str, str]) -> dict[str, Any]:
    log = {
        "@type": _ACCESS_LOG,
        "common_config": {
            "log_name": log_name,
            "transport_api_version": "V3",
            "grpc_service": _AGENT,
            "buffer_flush_interval": "0.5s",
        },
        "attributes": {"values": [{"key": key, "value": {"string_value": value}} for key, value in said.items()]},
    }
    return {"name": "envoy.access_loggers.open_telemetry", "typed_config": log}
