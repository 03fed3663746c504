"""Pieces that both of an Envoy's listeners, and its clusters, are made of."""

from typing import Any, Final

from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, resource

ADS: Final = {"ads": {}, "resource_api_version": "V3"}
ROUTER: Final = {
    "name": "router",
    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
}
EDGE_ROUTER: Final = {"name": "router", "typed_config": {**ROUTER["typed_config"], "suppress_envoy_headers": True}}  # type: ignore[dict-item]
"""The same where calls leave the mesh: nothing of how we are made goes with them."""
HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
OWN: Final = "default"
ROOTS: Final = "ROOTCA"
CALLERS: Final = "callers"
SYSTEM: Final = "system"
"""The SDS secrets that the agent serves: the workload's certificate, our own roots (`ROOTCA/<trust domain>` has another
trust domain's), those of all whose identities may call, each for its own, and the authorities that the node's system
trusts."""
SPEAKER: Final = "speaker/"
"""What the name of a secret begins with that has the certificate by which an ingress calls for a tenant."""
GIVEN_CERTIFICATE: Final = "certificate/"
"""What the name of one begins with that is a certificate among the secrets of the workload's entry."""
CONNECTION_LIFE: Final = "600s"
"""Connections keep the identity of their handshake; this bounds for how long, below the default SVID's half-life."""
_HCM: Final = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def manager(stat_prefix: str, routes: str, more: dict[str, Any]) -> dict[str, Any]:
    """The network filter that speaks HTTP.

    Args:
        stat_prefix: names its statistics.
        routes: the RouteConfiguration that it asks for.
        more: fields of the HttpConnectionManager; take precedence.
    """
    typed = {
        "@type": _HCM,
        "stat_prefix": stat_prefix,
        "codec_type": "AUTO",
        "rds": {"config_source": ADS, "route_config_name": routes},
        "http_filters": [ROUTER],
        "strip_any_host_port": True,
        # Nobody's x-envoy-* headers steer us: no address is internal. Left out, all private ones would be.
        "use_remote_address": True,
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        "normalize_path": True,
        "merge_slashes": True,
        # "/public/..%2Fsecret" would pass as "/public/*" and be something else to the program.
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "request_headers_timeout": "10s",
        "stream_idle_timeout": "3600s",
        **more,
    }
    return {"name": "http", "typed_config": typed}


def tls(
    kind: str, validation: dict[str, Any], more: dict[str, Any], roots: str = ROOTS, own: str = OWN
) -> dict[str, Any]:
    """A transport socket for mTLS by the secrets of the agent.

    Args:
        kind: "UpstreamTlsContext" or "DownstreamTlsContext".
        validation: what the peer's certificate must say beside leading to the roots.
        more: fields of the context.
        roots: the secret with the roots.
        own: the secret with the certificate that is shown.
    """
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        "tls_certificate_sds_secret_configs": [{"name": own, "sds_config": ADS}],
        "combined_validation_context": {
            "default_validation_context": validation,
            "validation_context_sds_secret_config": {"name": roots, "sds_config": ADS},
        },
    }
    typed = {
        "@type": f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}",
        "common_tls_context": common,
        **more,
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed}


def uri(match: str, *values: str) -> dict[str, Any]:
    """A validation context that wants one of some URI names in the certificate; `match` is "exact" or "prefix"."""
    return {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {match: value}} for value in values]}


def extension(name: str, config: dict[str, Any]) -> Resource:
    """A filter's configuration that a listener finds by its name."""
    fields = {"name": name, "typed_config": config}
    return resource(api.build("envoy.config.core.v3.TypedExtensionConfig", fields), name)


def discovered(name: str, *kinds: str) -> dict[str, Any]:
    """A filter that finds its configuration by its name; `kinds` are the types that it may have."""
    # No default: a listener without its permissions doesn't open, and one that lost them answers 500.
    return {"name": name, "config_discovery": {"config_source": ADS, "type_urls": list(kinds)}}


def protocol(explicit: str, **more: Any) -> dict[str, Any]:
    """A cluster's protocol options; `explicit` is "http2_protocol_options" or "http_protocol_options"."""
    typed = {"@type": f"type.googleapis.com/{HTTP_OPTIONS}", "explicit_http_config": {explicit: {}}, **more}
    return {HTTP_OPTIONS: typed}


def socket_address(text: str) -> dict[str, Any]:
    """An `envoy.config.core.v3.Address`.

    Raises:
        ValueError: the text is no "host:port".
    """
    host, _, port = text.rpartition(":")
    if not host:
        raise ValueError(f"{text!r} is no address: write host:port")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
