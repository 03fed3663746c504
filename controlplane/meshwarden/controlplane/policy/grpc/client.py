"""What a gRPC client needs to call a service: listeners, routes, clusters and endpoints.

A call for `xds:///orders` asks for the Listener of that name, which leads to the routes of `orders.platform`. Nothing
but the short names depends on who calls, so the rest is shared by all tenants that see the service.

Source: gRFC A27 (LDS to EDS), A28 (routes), A29 (TLS), A36 (ApiListener's HttpConnectionManager).
"""

from dataclasses import replace
from typing import Any, Final

from meshwarden.controlplane.policy import endpoint, route, routing
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name, Route, Rule
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, resource

PROVIDER: Final = "meshwarden"
"""The certificate provider instance of every bootstrap."""
ADS: Final = {"ads": {}, "resource_api_version": "V3"}
ROUTER: Final = {
    "name": "router",
    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
}
HCM: Final = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
TLS: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."


def listener(name: str, service: Name) -> Resource:
    """The listener under which clients ask for a service: its canonical name, or its short one."""
    manager = {
        "@type": HCM,
        "rds": {"config_source": ADS, "route_config_name": endpoint.cluster_name(service)},
        "http_filters": [ROUTER],
    }
    fields = {"name": name, "api_listener": {"api_listener": manager}}
    return resource(api.build("envoy.config.listener.v3.Listener", fields), name)


def service_resources(mesh: Mesh, service: Name) -> tuple[Resource, ...]:
    """Routes, and for each version and for all alike a cluster with its endpoints."""
    found = [_routes(route.route(mesh, service))]
    for version in ("", *mesh.versions(service)):
        found += [_cluster(mesh, service, version), endpoint.assignment(mesh, service, version)]
    return tuple(found)


def _routes(said: Route) -> Resource:
    name = endpoint.cluster_name(said.service)
    own = Route(said.service, tuple(rule for rule in map(_as_grpc, said.rules) if rule is not None))
    hosts = [{"name": name, "domains": ["*"], "routes": routing.routes(own)}]
    return resource(api.build("envoy.config.route.v3.RouteConfiguration", {"name": name, "virtual_hosts": hosts}), name)


def _as_grpc(rule: Rule) -> Rule | None:
    """The rule as far as it can fit a gRPC call, which is always a POST; None if it can't."""
    if not rule.methods:
        return rule
    fitting = tuple(replace(method, verb="") for method in rule.methods if method.verb in ("", "POST"))
    return replace(rule, methods=fitting) if fitting else None


def _cluster(mesh: Mesh, service: Name, version: str) -> Resource:
    name = endpoint.cluster_name(service, version)
    # Without a name to match, any certificate of the trust domain would do.
    callee = {"exact": str(mesh.identity(service))}
    tls = {
        "@type": TLS + "UpstreamTlsContext",
        "common_tls_context": {
            "tls_certificate_provider_instance": {"instance_name": PROVIDER},
            "validation_context": {
                "ca_certificate_provider_instance": {"instance_name": PROVIDER},
                "match_subject_alt_names": [callee],
            },
        },
    }
    fields: dict[str, Any] = {
        "name": name,
        "type": "EDS",
        "lb_policy": "ROUND_ROBIN",
        "eds_cluster_config": {"eds_config": ADS, "service_name": name},
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }
    return resource(api.build("envoy.config.cluster.v3.Cluster", fields), name)
