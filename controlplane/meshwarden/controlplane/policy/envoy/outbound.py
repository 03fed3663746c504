"""What an Envoy needs to make its program's calls: a listener on a Unix socket, routes by host, clusters.

The program speaks plain HTTP on the socket and names the service as host; Envoy speaks mTLS to exactly that service.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

from meshwarden.controlplane.policy import endpoint, route, routing
from meshwarden.controlplane.policy.choice import Choice, choice
from meshwarden.controlplane.policy.envoy import balance, relay, telemetry
from meshwarden.controlplane.policy.envoy.part import (
    ADS,
    CONNECTION_LIFE,
    OWN,
    ROOTS,
    ROUTER,
    SPEAKER,
    manager,
    protocol,
    tls,
    uri,
)
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.traffic import Budget, Change, Mirror, Retry
from meshwarden.v1 import resources_pb2
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, resource

LISTENER: Final = "outbound"
_OTHER_HOST: Final = "com.googleapis.envoy.previous_hosts"
# Only what surely did not reach the program is tried again: a call need not be idempotent.
_RETRY: Final[dict[str, Any]] = {
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
_UNREACHED: Final = frozenset({502, 503, 504})
_LATER: Final = timedelta(milliseconds=100)


def listener(path: str, service: Name, trust_domain: str) -> Resource:
    """The listener for the calls of one program.

    Args:
        path: the Unix socket. Whoever can open it calls as the workload: its directory is the workload's alone.
        service: who calls.
        trust_domain: ours.
    """
    filters = [routing.FAULT_FILTER, *balance.filters(service, trust_domain), ROUTER]
    more = {**telemetry.outbound(service), "http_filters": filters}
    fields = {
        "name": LISTENER,
        "address": {"pipe": {"path": path, "mode": 0o666}},
        "traffic_direction": "OUTBOUND",
        "filter_chains": [{"filters": [manager(LISTENER, f"{LISTENER}/{service.tenant}", more)]}],
    }
    return resource(api.build("envoy.config.listener.v3.Listener", fields), LISTENER)


def routes(mesh: Mesh, caller: Name) -> Resource:
    """The routes of all that a caller may name; without a service it is any of its tenant's that no policy names."""
    short_names = {service: short for short, service in mesh.short_names(caller.tenant).items()}
    hosts = []
    for service in mesh.visible(caller.tenant):
        short = short_names.get(service)
        if not mesh.is_external(service):
            hosts.append(_host(mesh, service, short, caller))
        elif not mesh.is_stream(service):
            hosts.append(relay.host(service, short))
    name = f"{LISTENER}/{caller.tenant}"
    fields = {"name": name, "virtual_hosts": [*hosts, _nothing(caller.tenant)]}
    return resource(api.build("envoy.config.route.v3.RouteConfiguration", fields), name)


def cluster(mesh: Mesh, service: Name, version: str, budget: Budget, said: Choice, speaks_for: str = "") -> Resource:
    """The cluster of a service, or of one version of it; its servers are proved by their own trust domain alone.

    With a tenant that an ingress `speaks_for` it is called by the certificate for that.
    """
    endpoints, identity = endpoint.cluster_name(service, version), mesh.identity(service)
    name = endpoint.speaker_cluster(service, version, speaks_for) if speaks_for else endpoints
    callee = uri("exact", str(identity))
    roots = ROOTS if identity.trust_domain == mesh.trust_domain else f"{ROOTS}/{identity.trust_domain}"
    fields = {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": ADS, "service_name": endpoints},
        "connect_timeout": "1s",
        **balance.cluster_fields(said, budget_fields(budget)),
        "typed_extension_protocol_options": protocol(
            "http2_protocol_options", common_http_protocol_options={"max_connection_duration": CONNECTION_LIFE}
        ),
        "transport_socket": tls(
            "UpstreamTlsContext", callee, {}, roots, f"{SPEAKER}{speaks_for}" if speaks_for else OWN
        ),
    }
    return resource(api.build("envoy.config.cluster.v3.Cluster", fields), name)


def service_resources(mesh: Mesh, service: Name) -> tuple[Resource, ...]:
    """For each version and for all alike a cluster."""
    budget, said = route.route(mesh, service).budget, choice(mesh, service)
    return tuple(cluster(mesh, service, version, budget, said) for version in ("", *mesh.versions(service)))


def _host(mesh: Mesh, service: Name, short: str | None, caller: Name) -> dict[str, Any]:
    name, chosen = endpoint.cluster_name(service), choice(mesh, service)
    found = [made for _, made in ways(mesh, service, caller, caller.tenant)]
    domains = [name] + ([short] if short else [])
    return {"name": name, "domains": domains, "routes": found, **balance.host_fields(chosen)}


def ways(mesh: Mesh, service: Name, caller: Name, seer: str) -> Iterator[tuple[routing.Way, dict[str, Any]]]:
    """The routes to a service: what each is for, and an `envoy.config.route.v3.Route` in JSON form.

    Args:
        mesh: the resources.
        service: that is called.
        caller: who calls.
        seer: the tenant whose services the Envoy has clusters of.
    """
    said, chosen = route.route(mesh, service), choice(mesh, service)
    message = mesh.find("Service", *service)
    grpc = message is not None and message.spec.protocol == resources_pb2.ServiceSpec.GRPC
    for way in routing.ways(said.rules_of(caller), said.idempotent):
        # Of a service that isn't seen there is no cluster; and no copy leaves the mesh.
        yield way, route_of(service, way, chosen, grpc=grpc, mirrored=_is_seen(mesh, seer, way.rule.mirror))


def _is_seen(mesh: Mesh, tenant: str, mirror: Mirror | None) -> bool:
    if mirror is None or mesh.identity(mirror.service).trust_domain != mesh.trust_domain:
        return False
    return mesh.sees(tenant, mirror.service)


def route_of(service: Name, way: routing.Way, chosen: Choice, *, grpc: bool, mirrored: bool) -> dict[str, Any]:
    """An `envoy.config.route.v3.Route` of a service that speaks gRPC or HTTP; `mirrored`: whether copies are made."""
    rule = way.rule
    # Without a timeout no deadline of Envoy's own, which would cut streams: the caller's is enough.
    again = _retry(rule.retry) if way.is_repeatable and rule.retry is not None else _RETRY
    own: dict[str, Any] = {
        "timeout": "0s",
        "retry_policy": {**again, **balance.retry_fields(chosen)},
        **balance.route_fields(chosen),
    }
    if rule.timeout is not None and grpc:
        # Ends with DEADLINE_EXCEEDED; what ends by `timeout` gets 504, which gRPC takes for UNAVAILABLE.
        own["max_stream_duration"] = {"max_stream_duration": routing.duration(rule.timeout)}
    elif rule.timeout is not None:
        # Of HTTP it begins when the request has ended; where that never does the other ends it.
        own["timeout"] = routing.duration(rule.timeout)
        own["max_stream_duration"] = {"max_stream_duration": routing.duration(rule.timeout + _LATER)}
    if rule.mirror is not None and mirrored:
        own["request_mirror_policies"] = [_mirror(rule.mirror)]
    return {
        "match": routing.match(way.method, way.headers),
        "route": {**routing.action(service, rule), **own},
        **routing.fault(way),
        **_changes("request", rule.request),
        **_changes("response", rule.response),
    }


def _mirror(said: Mirror) -> dict[str, Any]:
    share = {"default_value": routing.percentage(said.percent)}
    return {"cluster": endpoint.cluster_name(said.service, said.version), "runtime_fraction": share}


def _changes(side: str, said: Change) -> dict[str, Any]:
    ways = ((said.put, "OVERWRITE_IF_EXISTS_OR_ADD"), (said.add, "APPEND_IF_EXISTS_OR_ADD"))
    found: dict[str, Any] = {}
    if said.put or said.add:
        found[f"{side}_headers_to_add"] = [
            # A "%" would begin one of Envoy's own variables.
            {
                "header": {"key": name, "value": value.replace("%", "%%")},
                "append_action": action,
                "keep_empty_value": True,
            }
            for values, action in ways
            for name, value in values
        ]
    if said.remove:
        found[f"{side}_headers_to_remove"] = list(said.remove)
    return found


def _retry(said: Retry) -> dict[str, Any]:
    on = [_RETRY["retry_on"], *(status.lower().replace("_", "-") for status in said.statuses)]
    # A connection that breaks, and an attempt that takes too long, have no status that Envoy would look at.
    if said.per_try is not None or "UNAVAILABLE" in said.statuses or not _UNREACHED.isdisjoint(said.codes):
        on.append("reset")
    found = {**_RETRY, "num_retries": said.attempts}
    if said.codes:
        on.append("retriable-status-codes")
        found["retriable_status_codes"] = list(said.codes)
    if said.per_try is not None:
        found["per_try_timeout"] = routing.duration(said.per_try)
    backoff = {"base_interval": routing.duration(said.base), "max_interval": routing.duration(said.longest)}
    return {**found, "retry_on": ",".join(on), "retry_back_off": backoff}


def budget_fields(said: Budget) -> dict[str, Any]:
    """Of the calls under way; Envoy's own bound is three retries, whatever there is to do."""
    return {"budget_percent": {"value": said.percent}, "min_retry_concurrency": said.least}


def _nothing(tenant: str) -> dict[str, Any]:
    text = (
        f"meshwarden: tenant {tenant} sees no single service of this name; in full it is <service>.<tenant>,"
        " and what lies outside of the mesh needs an ExternalService\n"
    )
    reply = {"status": 404, "body": {"inline_string": text}}
    return {"name": "*", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": reply}]}
