"""What the Envoy of an ingress needs: a listener that asks callers who they are, routes, and clusters for each tenant.

What callers say of themselves in headers is dropped before anything looks at it. The route is chosen anew once a token
was proved; a certificate is looked at in headers that Envoy itself writes from the connection, and that go no further.

Source: Envoy, "JWT Authentication", "Best practices: Configuring Envoy as an edge proxy".
"""

from typing import Any, Final
from urllib.parse import urlsplit

from meshwarden.controlplane.policy.envoy import balance, telemetry
from meshwarden.controlplane.policy.envoy.ingress_route import (
    CERTIFICATE_HEADERS,
    ISSUER,
    LISTENER,
    clusters,
    routes,
)
from meshwarden.controlplane.policy.envoy.part import (
    ADS,
    CONNECTION_LIFE,
    GIVEN_CERTIFICATE,
    OWN,
    SYSTEM,
    manager,
    socket_address,
)
from meshwarden.controlplane.policy.ingress import Ingress, find
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.routing import FAULT_FILTER
from meshwarden.controlplane.resources.ingress import is_address
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, resource

FILES: Final = "ingress/files"
"""The SDS secret whose certificate lies in files of the node."""
_TYPE: Final = "type.googleapis.com/envoy.extensions."
_TLS: Final = f"{_TYPE}transport_sockets.tls.v3."
_SKEW_S: Final = 5
_JWKS_LIFE: Final = "300s"
_ROUTER: Final = {
    "name": "router",
    # What took how long, and how often it was tried, is nobody's outside.
    "typed_config": {"@type": f"{_TYPE}filters.http.router.v3.Router", "suppress_envoy_headers": True},
}
_FORGED: Final = ("x-envoy-", "x-meshwarden-", "x-forwarded-", "x-tenant", "x-spiffe", "x-client-", "x-b3-", "x-ot-")
_FORGED_ONES: Final = (
    *("forwarded", "x-real-ip", "via", "mesh-decision", "x-request-id"),
    *("traceparent", "tracestate", "baggage", "b3", "grpc-trace-bin", "grpc-tags-bin"),
)
"""What is dropped of what callers send, by prefix and by name: whatever in the mesh says who calls, how much a call
matters, or what it belongs to."""


def resources(mesh: Mesh, node: str, entry: Any) -> tuple[Resource, ...]:
    """All that the Envoy of a workload entry needs beside what its tenant's clients do; empty without an ingress.

    Raises:
        ValueError: its address is none.
    """
    said = find(mesh, node, entry)
    if said is None:
        return ()
    found = [_listener(said, mesh.trust_domain), routes(mesh, said), *clusters(mesh, said)]
    found += (_jwks_cluster(index, one) for index, one in enumerate(said.spec.jwt) if one.HasField("jwks_uri"))
    if said.spec.tls.HasField("files"):
        found.append(_files(said.spec.tls.files))
    return tuple(found)


def _listener(said: Ingress, trust_domain: str) -> Resource:
    spec = said.spec
    more = {
        **telemetry.outbound(said.service),
        "early_header_mutation_extensions": [_strip(shows=spec.HasField("client_certificate"))],
        "http_filters": [
            *([_jwt(spec)] if spec.jwt else []),
            FAULT_FILTER,
            *balance.filters(said.service, trust_domain),
            _ROUTER,
        ],
        "forward_client_cert_details": "SANITIZE",
        "common_http_protocol_options": {
            "idle_timeout": "300s",
            "max_connection_duration": CONNECTION_LIFE,
            # To many programs "x_tenant" is "x-tenant".
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
        "drain_timeout": "5s",
        "stream_idle_timeout": "300s",
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 65536,
            "initial_connection_window_size": 1_048_576,
        },
    }
    chain: dict[str, Any] = {"filters": [manager(LISTENER, f"{LISTENER}/{said.service}", more)]}
    if spec.HasField("tls"):
        chain["transport_socket"] = _tls(spec)
        chain["transport_socket_connect_timeout"] = "10s"
    fields = {
        "name": LISTENER,
        "address": socket_address(spec.listen),
        "traffic_direction": "INBOUND",
        "per_connection_buffer_limit_bytes": 32_768,
        "filter_chains": [chain],
    }
    return resource(api.build("envoy.config.listener.v3.Listener", fields), LISTENER)


def _strip(*, shows: bool) -> dict[str, Any]:
    """Drops what nobody outside may say; where certificates are asked for, writes down what the caller's says."""
    mutations: list[dict[str, Any]] = [{"remove_on_match": {"key_matcher": {"prefix": one}}} for one in _FORGED]
    mutations += ({"remove": one} for one in _FORGED_ONES)
    for name, value in CERTIFICATE_HEADERS.values() if shows else ():
        said = {"key": name, "value": value}
        mutations.append({"append": {"header": said, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}})
    typed = {"@type": f"{_TYPE}http.early_header_mutation.header_mutation.v3.HeaderMutation", "mutations": mutations}
    return {"name": "strip", "typed_config": typed}


def _tls(spec: Any) -> dict[str, Any]:
    kind = spec.tls.WhichOneof("certificate")
    name = {"secret": f"{GIVEN_CERTIFICATE}{spec.tls.secret}", "files": FILES, "svid": OWN}[kind]
    common: dict[str, Any] = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificate_sds_secret_configs": [{"name": name, "sds_config": ADS}],
    }
    typed: dict[str, Any] = {"@type": f"{_TLS}DownstreamTlsContext", "common_tls_context": common}
    if spec.HasField("client_certificate"):
        # Who shows none may have a token. Who shows one that leads elsewhere gets no connection.
        common["validation_context"] = {"trusted_ca": {"inline_string": spec.client_certificate.ca}}
        # A session that is resumed is as old as it likes; its certificate is looked at once.
        typed |= {"disable_stateless_session_resumption": True, "disable_stateful_session_resumption": True}
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed}


def _files(said: Any) -> Resource:
    certificate = {
        "certificate_chain": {"filename": said.certificate},
        "private_key": {"filename": said.key},
        "watched_directory": {"path": said.certificate.rpartition("/")[0] or "/"},
    }
    fields = {"name": FILES, "tls_certificate": certificate}
    return resource(api.build("envoy.extensions.transport_sockets.tls.v3.Secret", fields), FILES)


def _jwt(spec: Any) -> dict[str, Any]:
    """Who has no token may have a certificate, or call what is public; a token that is not good is refused at once."""
    providers = {f"{ISSUER}{index}": _provider(index, one) for index, one in enumerate(spec.jwt)}
    any_of = [*({"provider_name": name} for name in providers), {"allow_missing": {}}]
    typed = {
        "@type": f"{_TYPE}filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": providers,
        "rules": [{"match": {"prefix": "/"}, "requires": {"requires_any": {"requirements": any_of}}}],
    }
    return {"name": "jwt", "typed_config": typed}


def _provider(index: int, said: Any) -> dict[str, Any]:
    keys: dict[str, Any] = {"local_jwks": {"inline_string": said.jwks}}
    if said.HasField("jwks_uri"):
        where = {"uri": said.jwks_uri.uri, "cluster": _jwks_name(index), "timeout": "5s"}
        keys = {
            "remote_jwks": {"http_uri": where, "cache_duration": _JWKS_LIFE, "async_fetch": {"fast_listener": True}}
        }
    return {
        "issuer": said.issuer,
        "audiences": list(said.audiences),
        **keys,
        # Left out, one in the query would do as well, which lies in logs.
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "payload_in_metadata": f"{ISSUER}{index}",
        "clear_route_cache": True,
        "require_expiration": True,
        "clock_skew_seconds": _SKEW_S,
    }


def _jwks_name(index: int) -> str:
    return f"jwks/{index}"


def _jwks_cluster(index: int, said: Any) -> Resource:
    place = urlsplit(said.jwks_uri.uri)
    host = place.hostname or ""
    named = {"san_type": "IP_ADDRESS" if is_address(host) else "DNS", "matcher": {"exact": host}}
    context = {
        "@type": f"{_TLS}UpstreamTlsContext",
        **({} if is_address(host) else {"sni": host}),
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            **_trusting(said.jwks_uri.ca, {"match_typed_subject_alt_names": [named]}),
        },
    }
    end = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": place.port or 443}}}}
    name = _jwks_name(index)
    fields = {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [end]}]},
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
    }
    return resource(api.build("envoy.config.cluster.v3.Cluster", fields), name)


def _trusting(ca: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Fields of a CommonTlsContext: whom to trust, the authorities given or else the system's, and what it must say."""
    if ca:
        return {"validation_context": {"trusted_ca": {"inline_string": ca}, **wanted}}
    secret = {"name": SYSTEM, "sds_config": ADS}
    combined = {"default_validation_context": wanted, "validation_context_sds_secret_config": secret}
    return {"combined_validation_context": combined}
