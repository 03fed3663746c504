"""An Envoy that ends TLS before a gRPC server on a Unix socket, for `stack`."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.process import Child, child
from meshwarden.agents.envoy.supervisor import find_envoy

_EXTENSIONS = "type.googleapis.com/envoy.extensions"


@asynccontextmanager
async def before(directory: Path, port: int) -> AsyncIterator[Child]:
    """Runs it on a port; in the directory are what `bare_stream` has there, and its socket."""
    path = directory / "envoy.json"
    path.write_text(json.dumps(_config(directory, port)))
    command = [str(find_envoy()), "-c", str(path), "-l", "critical", "--concurrency", "1", "--use-dynamic-base-id"]
    async with child("envoy", command, directory) as process:
        yield process


def _config(directory: Path, port: int) -> dict[str, Any]:
    files = {name: {"filename": str(directory / name)} for name in ("tls.crt", "tls.key", "ca.crt")}
    tls = {
        "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificates": [{"certificate_chain": files["tls.crt"], "private_key": files["tls.key"]}],
            "validation_context": {"trusted_ca": files["ca.crt"]},
        },
    }
    route = {"match": {"prefix": "/"}, "route": {"cluster": "bare", "timeout": "0s"}}
    manager = {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        "codec_type": "HTTP2",
        # The server behind it learns by this who is calling.
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"uri": True, "chain": True},
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": [{"name": "bare", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router"}}],
    }
    listener = {
        "name": "tls",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {
                "transport_socket": {"name": "tls", "typed_config": tls},
                "filters": [{"name": "manager", "typed_config": manager}],
            }
        ],
    }
    socket = {"pipe": {"path": str(directory / "inner" / "bare.sock")}}
    cluster = {
        "name": "bare",
        "type": "STATIC",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "circuit_breakers": {"thresholds": [{"max_requests": 100_000, "max_connections": 100_000}]},
        "load_assignment": {
            "cluster_name": "bare",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket}}]}],
        },
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
