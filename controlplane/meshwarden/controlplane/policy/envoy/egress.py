"""What an Envoy needs for its program to call what lies outside of the mesh.

    program ─▶ outbound ─route by host─▶ egress/<service>: who, may it, how much, what becomes of it ─TLS─▶ outside

Each external service has a listener of its own on a Unix socket beside that of all calls: what is said of one touches
no other, and no call that is open. A program hands connections (TCP, TLS) to that socket itself. Nobody is at the other
end to hold policy, so the caller's own Envoy does, which knows who calls: it is the Envoy of one workload.

Source: Envoy, "DNS cluster", "TLS: validation context".
"""

import hashlib
from pathlib import PurePosixPath
from typing import Any, Final

from meshwarden.controlplane.policy import external, rate, route, routing
from meshwarden.controlplane.policy.choice import choice
from meshwarden.controlplane.policy.endpoint import cluster_name
from meshwarden.controlplane.policy.envoy import balance, inbound, outbound, relay, telemetry
from meshwarden.controlplane.policy.envoy.access import RBAC, rbac
from meshwarden.controlplane.policy.envoy.limit import LOCAL_RATE_LIMIT, NAMESPACE, rate_limit
from meshwarden.controlplane.policy.envoy.part import (
    ADS,
    CONNECTION_LIFE,
    EDGE_ROUTER,
    HTTP_OPTIONS,
    SYSTEM,
    discovered,
    extension,
    manager,
)
from meshwarden.controlplane.policy.envoy.quota import (
    HEADER_MUTATION,
    RATE_LIMIT_QUOTA,
    TENANT_HEADER,
    rate_limit_quota,
    tenant_filter,
)
from meshwarden.controlplane.policy.external import External
from meshwarden.controlplane.policy.grant import Access
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.xds import api
from meshwarden.xds.external_name import listener_name
from meshwarden.xds.snapshot import Resource, resource

_MAX_PATH: Final = 107
"""Bytes of a Unix socket's path. Source: unix(7), sun_path."""
_DNS: Final = {
    "name": "envoy.clusters.dns",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster",
        "dns_lookup_family": "V4_PREFERRED",
        "dns_refresh_rate": "30s",
        "dns_failure_refresh_rate": {"base_interval": "1s", "max_interval": "10s"},
    },
}
_TLS: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_TCP_PROXY: Final = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_NETWORK_RBAC: Final = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"
_SET_METADATA: Final = "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config"
# What is said between us, and of the way inside, is nobody's beyond the mesh.
_OWN_HEADERS: Final = (
    *("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-client-cert", "x-client-trace-id"),
    *("x-request-id", "x-envoy-internal", "x-envoy-external-address", "baggage", TENANT_HEADER),
)


def socket_path(outbound_path: str, said: External) -> str:
    """The Unix socket of an external service, beside that of all calls.

    A program has to know that of connections: `<service>.<tenant>.sock`. All others are eight hexadecimal digits, as is
    one that would be too long: each fits where the one beside it does.
    """
    beside = PurePosixPath(outbound_path)
    readable = str(beside.with_name(f"{cluster_name(said.service)}.sock"))
    if not said.is_http and len(readable.encode()) <= _MAX_PATH:
        return readable
    return str(beside.with_name(f"{hashlib.sha256(cluster_name(said.service).encode()).hexdigest()[:8]}.sock"))


def instance(mesh: Mesh, service: Name, outbound_path: str, caller: Name, said: Access) -> tuple[Resource, ...]:
    """What one instance has for an external service: its listener, and where HTTP is relayed to it.

    Args:
        mesh: what there is.
        service: the external service.
        outbound_path: the Unix socket of all calls.
        caller: whose instance it is.
        said: who may call.
    """
    found = external.find(mesh, service)
    if found is None:
        return ()
    path = socket_path(outbound_path, found)
    if not found.is_http:
        return (_connections(found, path, caller, allowed=said.at(None).find(caller, "/") is not None),)
    return (_calls(found, path, caller, mesh.trust_domain), relay.cluster(service, path))


def shared(mesh: Mesh, service: Name, tenant: str, said: Access) -> tuple[Resource, ...]:
    """What all callers of a tenant share of an external service: who may call, how much, what becomes of it, where."""
    found = external.find(mesh, service)
    if found is None:
        return ()
    budget, chosen = route.route(mesh, service).budget, choice(mesh, service)
    cluster = _cluster(found, balance.cluster_fields(chosen, outbound.budget_fields(budget)))
    if not found.is_http:
        return (cluster,)
    own = external.access_of(said, tenant)
    limits = next((one for one in rate.limits(mesh, service) if one.adaptive is None), None)
    limits = external.limits_of(limits, tenant) if limits is not None else None
    return (
        cluster,
        _routes(mesh, found, tenant),
        extension(f"access/{service}", rbac(own, mesh.trust_domain, balance.CALLER)),
        extension(f"limit/{service}", rate_limit(limits)),
        extension(f"quota/{service}", rate_limit_quota(limits)),
    )


def _calls(said: External, path: str, caller: Name, trust_domain: str) -> Resource:
    service = said.service
    who = {
        "metadata_namespace": NAMESPACE,
        "allow_overwrite": True,
        "value": {"tenant": caller.tenant, "caller": str(caller)},
    }
    more = {
        **telemetry.outbound(caller),
        "http_filters": [
            routing.FAULT_FILTER,
            balance.caller_filter(caller, trust_domain),
            {"name": "who", "typed_config": {"@type": _SET_METADATA, "metadata": [who]}},
            discovered(f"access/{service}", RBAC),
            discovered(f"limit/{service}", LOCAL_RATE_LIMIT),
            tenant_filter(),
            discovered(f"quota/{service}", RATE_LIMIT_QUOTA, HEADER_MUTATION),
            EDGE_ROUTER,
        ],
        "local_reply_config": {"mappers": inbound.replies(service)},
    }
    return _listener(service, path, [manager("egress", _route_name(service), more)])


def _connections(said: External, path: str, caller: Name, *, allowed: bool) -> Resource:
    cluster = cluster_name(said.service)
    # A change of what it says ends what is open after Envoy's drain time: connections have no next request.
    who = {"principals": [{"any": True}], "permissions": [{"any": True}]}
    policies = {str(caller): who} if allowed else {}
    check = {
        "name": "access",
        "typed_config": {
            "@type": _NETWORK_RBAC,
            "stat_prefix": "egress",
            "rules": {"action": "ALLOW", "policies": policies},
        },
    }
    proxy = {
        "name": "tcp",
        "typed_config": {"@type": _TCP_PROXY, "stat_prefix": "egress", "cluster": cluster, "idle_timeout": "3600s"},
    }
    return _listener(said.service, path, [check, proxy], access_log=telemetry.connections(said.service))


def _listener(service: Name, path: str, filters: list[dict[str, Any]], **more: Any) -> Resource:
    fields = {
        "name": listener_name(service),
        "address": {"pipe": {"path": path, "mode": 0o666}},
        "traffic_direction": "OUTBOUND",
        "filter_chains": [{"filters": filters}],
        **more,
    }
    return resource(api.build("envoy.config.listener.v3.Listener", fields), fields["name"])


def _cluster(said: External, choosing: dict[str, Any]) -> Resource:
    name = cluster_name(said.service)
    places = [
        {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}}
        for address, port in said.hosts
    ]
    fields = {
        "name": name,
        "connect_timeout": routing.duration(said.connect),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": places}]},
        **({"cluster_type": _DNS} if said.is_named else {"type": "STATIC"}),
        **choosing,
    }
    if said.is_http:
        spoken: dict[str, Any] = (
            {"auto_config": {}} if said.server else {"explicit_http_config": {"http_protocol_options": {}}}
        )
        life = {"max_connection_duration": CONNECTION_LIFE}
        typed = {"@type": f"type.googleapis.com/{HTTP_OPTIONS}", "common_http_protocol_options": life, **spoken}
        fields["typed_extension_protocol_options"] = {HTTP_OPTIONS: typed}
    if said.server:
        fields["transport_socket"] = _tls(said)
    return resource(api.build("envoy.config.cluster.v3.Cluster", fields), name)


def _tls(said: External) -> dict[str, Any]:
    # Without a name to match, any certificate that some authority has signed would do.
    named: dict[str, Any] = {
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": said.server}}],
    }
    common: dict[str, Any] = {"tls_params": {"tls_minimum_protocol_version": "TLSv1_2"}}
    if said.ca:
        common["validation_context"] = {**named, "trusted_ca": {"inline_string": said.ca}}
    else:
        common["combined_validation_context"] = {
            "default_validation_context": named,
            "validation_context_sds_secret_config": {"name": SYSTEM, "sds_config": ADS},
        }
    typed = {"@type": _TLS, "sni": said.server, "common_tls_context": common}
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed}


def _route_name(service: Name) -> str:
    return f"egress/{service}"


def _routes(mesh: Mesh, said: External, tenant: str) -> Resource:
    service, name = said.service, _route_name(said.service)
    decided, chosen = route.route(mesh, service), choice(mesh, service)
    found = [
        outbound.route_of(service, one, chosen, grpc=False, mirrored=False)
        for one in routing.ways(decided.rules_of(Name(tenant, "")), decided.idempotent)
    ]
    for one in found:
        one["route"]["host_rewrite_literal"] = said.authority
    fields = {
        "name": name,
        "virtual_hosts": [{"name": cluster_name(service), "domains": ["*"], "routes": found}],
        "request_headers_to_remove": list(_OWN_HEADERS),
    }
    return resource(api.build("envoy.config.route.v3.RouteConfiguration", fields), name)
