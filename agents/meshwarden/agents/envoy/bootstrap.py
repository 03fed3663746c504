"""The static part of an Envoy's configuration; all else comes over its ADS stream."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from meshwarden.agents.envoy import runtime

AGENT: Final = "agent"
"""The static cluster that leads to the agent's socket."""
_HTTP: Final = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_HEAP: Final = "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig"
_CONNECTIONS: Final = (
    "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
)


@dataclass(frozen=True)
class EnvoyLimits:
    """What one Envoy may use.

    Attributes:
        heap_bytes: from 95 % of it on it takes no more requests.
        connections: from callers, at one time.
    """

    heap_bytes: int = 512 * 1024 * 1024
    connections: int = 20_000


def envoy_bootstrap(
    data_plane: str,
    service: str,
    region: str,
    zone: str,
    agent_socket: Path,
    admin_socket: Path,
    limits: EnvoyLimits | None = None,
) -> dict[str, Any]:
    """The bootstrap, in the JSON form of `envoy.config.bootstrap.v3.Bootstrap`.

    Args:
        data_plane: the id of this data plane; its node id.
        service: `<service>.<tenant>`.
        region: where it runs.
        zone: where it runs.
        agent_socket: for ADS and OTLP.
        admin_socket: where the admin interface listens.
        limits: the defaults if None.
    """
    ads = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    return {
        "node": {"id": data_plane, "cluster": service, "locality": {"region": region, "zone": zone}},
        "admin": {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": AGENT}}],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "layered_runtime": {
            "layers": [
                # A trust domain's name may be 255 long, and is in a pattern; 100 is what Envoy has a pattern be of.
                {"name": "patterns", "static_layer": {"re2.max_program_size.error_level": 2000}},
                {"name": runtime.LAYER, "rtds_layer": {"name": runtime.LAYER, "rtds_config": ads}},
            ]
        },
        "static_resources": {"clusters": [_agent_cluster(agent_socket)]},
        "overload_manager": _overload(limits or EnvoyLimits()),
        # Per-host and per-resource statistics of a whole mesh would be most of an Envoy's memory.
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": _stats()}}},
    }


def _agent_cluster(agent_socket: Path) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(agent_socket)}}}}
    return {
        "name": AGENT,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": AGENT, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _HTTP,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }


def _overload(limits: EnvoyLimits) -> dict[str, Any]:
    heap = "envoy.resource_monitors.fixed_heap"
    connections = "envoy.resource_monitors.global_downstream_max_connections"
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {"name": heap, "typed_config": {"@type": _HEAP, "max_heap_size_bytes": limits.heap_bytes}},
            {
                "name": connections,
                "typed_config": {"@type": _CONNECTIONS, "max_active_downstream_connections": limits.connections},
            },
        ],
        "actions": [
            _action("envoy.overload_actions.shrink_heap", heap, 0.90),
            _action("envoy.overload_actions.stop_accepting_requests", heap, 0.95),
        ],
    }


def _action(name: str, monitor: str, threshold: float) -> dict[str, Any]:
    return {"name": name, "triggers": [{"name": monitor, "threshold": {"value": threshold}}]}


def _stats() -> list[dict[str, str]]:
    prefixes = ("server.", "control_plane.", "cluster_manager.", "listener_manager.", "http.", "overload.", "listener.")
    return [{"prefix": prefix} for prefix in prefixes] + [
        {"prefix": f"cluster.{AGENT}."},
        {"suffix": ".upstream_rq_total"},
        {"suffix": ".upstream_cx_active"},
        {"suffix": ".ssl.handshake"},
        {"suffix": ".rbac.denied"},
    ]
