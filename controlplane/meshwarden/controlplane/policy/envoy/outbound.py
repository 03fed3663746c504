"""What an Envoy needs to make its program's calls: a listener on a Unix socket, routes by host, clusters.

The program speaks plain HTTP on the socket and names the service as host; Envoy speaks mTLS to exactly that service.
"""

from typing import Any, Final

from meshwarden.controlplane.policy import endpoint, route, routing
from meshwarden.controlplane.policy.envoy import telemetry
from meshwarden.controlplane.policy.envoy.part import ADS, CONNECTION_LIFE, ROOTS, manager, protocol, tls, uri
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, resource

LISTENER: Final = "outbound"
_OTHER_HOST: Final = "com.googleapis.envoy.previous_hosts"
# Only what surely did not reach the program is tried again: a call need not be idempotent.
_RETRY: Final = {
    "retry_on": "connect-failure,refused-stream,reset-before-request",
    "num_retries": 2,
    "host_selection_retry_max_attempts": 5,
    "retry_host_predicate": [
        {
            "name": _OTHER_HOST,
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            },
        }
    ],
    "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.050s"},
}
# No deadline of Envoy's own, which would cut streams: the caller's is enough.
_ROUTE: Final = {"timeout": "0s", "retry_policy": _RETRY}
_PARALLEL: Final = {
    "max_connections": 4096,
    "max_pending_requests": 16_384,
    "max_requests": 16_384,
    # Of the calls under way; Envoy's own bound is three retries, whatever there is to do.
    "retry_budget": {"budget_percent": {"value": 10.0}, "min_retry_concurrency": 3},
}


def listener(path: str, service: Name) -> Resource:
    """The listener for the calls of one program.

    Args:
        path: the Unix socket. Whoever can open it calls as the workload: its directory is the workload's alone.
        service: who calls.
    """
    fields = {
        "name": LISTENER,
        "address": {"pipe": {"path": path, "mode": 0o666}},
        "traffic_direction": "OUTBOUND",
        "filter_chains": [
            {"filters": [manager(LISTENER, f"{LISTENER}/{service.tenant}", telemetry.outbound(service))]}
        ],
    }
    return resource(api.build("envoy.config.listener.v3.Listener", fields), LISTENER)


def routes(mesh: Mesh, tenant: str) -> Resource:
    """The routes of all that a tenant's programs may name."""
    short_names = {service: short for short, service in mesh.short_names(tenant).items()}
    hosts = [_host(mesh, service, short_names.get(service)) for service in mesh.visible(tenant)]
    name = f"{LISTENER}/{tenant}"
    fields = {"name": name, "virtual_hosts": [*hosts, _nothing(tenant)]}
    return resource(api.build("envoy.config.route.v3.RouteConfiguration", fields), name)


def cluster(mesh: Mesh, service: Name, version: str) -> Resource:
    """The cluster of a service, or of one version of it; its servers are proved by their own trust domain alone."""
    name, identity = endpoint.cluster_name(service, version), mesh.identity(service)
    callee = uri("exact", str(identity))
    roots = ROOTS if identity.trust_domain == mesh.trust_domain else f"{ROOTS}/{identity.trust_domain}"
    fields = {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": ADS, "service_name": name},
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        # Envoy would gather changes of health for a second, and call the dead when too many are.
        "common_lb_config": {"update_merge_window": "0s", "healthy_panic_threshold": {"value": 0}},
        "circuit_breakers": {"thresholds": [_PARALLEL]},
        "typed_extension_protocol_options": protocol(
            "http2_protocol_options", common_http_protocol_options={"max_connection_duration": CONNECTION_LIFE}
        ),
        "transport_socket": tls("UpstreamTlsContext", callee, {}, roots),
    }
    return resource(api.build("envoy.config.cluster.v3.Cluster", fields), name)


def service_resources(mesh: Mesh, service: Name) -> tuple[Resource, ...]:
    """For each version and for all alike a cluster with its endpoints."""
    found: list[Resource] = []
    for version in ("", *mesh.versions(service)):
        found += [cluster(mesh, service, version), endpoint.assignment(mesh, service, version)]
    return tuple(found)


def _host(mesh: Mesh, service: Name, short: str | None) -> dict[str, Any]:
    name = endpoint.cluster_name(service)
    return {
        "name": name,
        "domains": [name] + ([short] if short else []),
        "routes": routing.routes(route.route(mesh, service), _ROUTE),
    }


def _nothing(tenant: str) -> dict[str, Any]:
    text = f"meshwarden: tenant {tenant} sees no single service of this name; in full it is <service>.<tenant>\n"
    reply = {"status": 404, "body": {"inline_string": text}}
    return {"name": "*", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": reply}]}
