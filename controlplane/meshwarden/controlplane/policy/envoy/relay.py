"""How calls of an external service get from the listener of all calls to its own, within one Envoy."""

from typing import Any, Final

from meshwarden.controlplane.policy.endpoint import cluster_name
from meshwarden.controlplane.policy.envoy.part import protocol
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.xds import api
from meshwarden.xds.external_name import RELAY
from meshwarden.xds.snapshot import Resource, resource

# The bounds that count are those of the way out.
_PARALLEL: Final = {"max_connections": 1024, "max_pending_requests": 16_384, "max_requests": 16_384}


def host(service: Name, short: str | None) -> dict[str, Any]:
    """The virtual host of an external service among all that are called."""
    name = cluster_name(service)
    way = {
        "match": {"prefix": "/"},
        "route": {"cluster": f"{RELAY}{name}", "timeout": "0s"},
        # Told by its own listener, once.
        "tracing": {"client_sampling": {}, "random_sampling": {}, "overall_sampling": {}},
    }
    return {"name": name, "domains": [name] + ([short] if short else []), "routes": [way]}


def cluster(service: Name, path: str) -> Resource:
    """The cluster that leads to the listener on a Unix socket."""
    name = f"{RELAY}{cluster_name(service)}"
    place = {"endpoint": {"address": {"pipe": {"path": path}}}}
    fields = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [place]}]},
        "circuit_breakers": {"thresholds": [_PARALLEL]},
        "typed_extension_protocol_options": protocol("http2_protocol_options"),
    }
    return resource(api.build("envoy.config.cluster.v3.Cluster", fields), name)
