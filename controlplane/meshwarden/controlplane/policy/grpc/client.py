"""What a gRPC client needs to call a service: listeners, routes, clusters and endpoints.

A call for `xds:///orders` asks for the Listener of that name, which leads to the routes of `orders.platform`. Nothing
but the short names depends on who calls, so the rest is shared by all tenants that see the service.

Source: gRFC A27 (LDS to EDS), A28 (routes), A29 (TLS), A36 (ApiListener's HttpConnectionManager).
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from meshwarden.controlplane.policy import endpoint, route, routing
from meshwarden.controlplane.policy.choice import Choice, choice
from meshwarden.controlplane.policy.grpc import balance
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Method, Name
from meshwarden.controlplane.policy.traffic import Retry, Rule
from meshwarden.controlplane.policy.variant import Asker, Feature, Variant
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


def listener(mesh: Mesh, name: str, service: Name, variant: Variant) -> Resource:
    """The listener under which clients ask for a service: its canonical name, or its short one."""
    manager = {
        "@type": HCM,
        "rds": {"config_source": ADS, "route_config_name": endpoint.cluster_name(service)},
        "http_filters": [routing.FAULT_FILTER, *balance.filters(choice(mesh, service), variant), ROUTER],
    }
    fields = {"name": name, "api_listener": {"api_listener": manager}}
    return resource(api.build("envoy.config.listener.v3.Listener", fields), name)


def service_resources(mesh: Mesh, service: Name, asker: Asker) -> tuple[Resource, ...]:
    """Routes, and for each version and for all alike a cluster."""
    said, versions = choice(mesh, service), ("", *mesh.versions(service))
    clusters = (_cluster(mesh, service, version, said, asker.variant) for version in versions)
    return (_routes(mesh, service, said, asker), *clusters)


def backstop(variant: Variant) -> timedelta:
    """What a client's timeout is lengthened by: C-core's fires up to two seconds early, each process as it happens.

    It ends no call before its time then; the caller's own deadline, which is exact, is not touched.
    """
    return timedelta(0) if variant.can(Feature.EXACT_TIMEOUT) else timedelta(seconds=2)


def _routes(mesh: Mesh, service: Name, chosen: Choice, asker: Asker) -> Resource:
    said = route.route(mesh, service)
    rules = (rule for rule in map(_as_grpc, said.rules_of(asker.caller)) if rule is not None)
    later = backstop(asker.variant)
    more = balance.route_fields(chosen, asker.variant)
    found = [_route(service, way, later, more) for way in routing.ways(rules, _of_post(said.idempotent))]
    name = endpoint.cluster_name(service)
    hosts = [{"name": name, "domains": ["*"], "routes": found}]
    return resource(api.build("envoy.config.route.v3.RouteConfiguration", {"name": name, "virtual_hosts": hosts}), name)


def _route(service: Name, way: routing.Way, later: timedelta, more: dict[str, Any]) -> dict[str, Any]:
    action, rule = {**routing.action(service, way.rule), **more}, way.rule
    if rule.timeout is not None:
        # gRPC takes RouteAction.timeout and does nothing by it.
        action["max_stream_duration"] = {"max_stream_duration": routing.duration(rule.timeout + later)}
    if way.is_repeatable and rule.retry is not None and rule.retry.statuses:
        action["retry_policy"] = _retry(rule.retry)
    return {"match": routing.match(way.method, way.headers), "route": action, **routing.fault(way)}


def _retry(said: Retry) -> dict[str, Any]:
    return {
        "retry_on": ",".join(status.lower().replace("_", "-") for status in said.statuses),
        "num_retries": said.attempts,
        "retry_back_off": {
            "base_interval": routing.duration(said.base),
            "max_interval": routing.duration(said.longest),
        },
    }


def _as_grpc(rule: Rule) -> Rule | None:
    """The rule as far as it can fit a gRPC call, which is always a POST; None if it can't."""
    if not rule.methods:
        return rule
    fitting = _of_post(rule.methods)
    return replace(rule, methods=fitting) if fitting else None


def _of_post(methods: Iterable[Method]) -> tuple[Method, ...]:
    return tuple(replace(method, verb="") for method in methods if method.verb in ("", "POST"))


def _cluster(mesh: Mesh, service: Name, version: str, said: Choice, variant: Variant) -> Resource:
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
        **balance.cluster_fields(said, variant, endpoint.count(mesh, service, version)),
        "eds_cluster_config": {"eds_config": ADS, "service_name": name},
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }
    return resource(api.build("envoy.config.cluster.v3.Cluster", fields), name)
