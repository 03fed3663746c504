"""What a gRPC server needs to be called: its listener, and the routes that carry who may call it.

The listener demands a client certificate and denies by itself. What denies and allows is on the route, so that a change
of policy is a change of routes: it reaches open connections at their next call and never touches the listener, whose
changes drain connections. Servers that have not got their routes yet answer UNAVAILABLE.

Source: gRFC A36 (servers), A41 (RBAC and its override), A39 (which filter an override belongs to).
"""

from typing import Final

from meshwarden.controlplane.policy.grant import Access
from meshwarden.controlplane.policy.grpc import rbac
from meshwarden.controlplane.policy.grpc.client import ADS, HCM, PROVIDER, ROUTER, TLS
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, resource

TEMPLATE: Final = "grpc/server?xds.resource.listening_address={}"
"""The listener's name, with what the program was told to listen on."""


def route_name(service: Name) -> str:
    """The name of a service's server-side routes."""
    return f"server/{service}"


def listener(address: str, service: Name, epoch: str = "") -> Resource:
    """The listener of one instance.

    Args:
        address: where the program listens, "127.0.0.1:7021", exactly as it says so itself.
        service: what it is an instance of.
        epoch: another one makes C-core ask every connection to be left, and end it after the server's drain time.

    Raises:
        ValueError: the address is none.
    """
    # C-core sees no change in the name of a chain.
    router = {**ROUTER, "name": f"{ROUTER['name']}/{epoch}"} if epoch else ROUTER
    host, _, port = address.rpartition(":")
    manager = {
        "@type": HCM,
        "rds": {"config_source": ADS, "route_config_name": route_name(service)},
        "http_filters": [*rbac.filters(), router],
    }
    tls = {
        "@type": TLS + "DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_certificate_provider_instance": {"instance_name": PROVIDER},
            "validation_context": {"ca_certificate_provider_instance": {"instance_name": PROVIDER}},
        },
    }
    chain = {
        "name": "mesh",
        "filters": [{"name": "http", "typed_config": manager}],
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }
    fields = {
        "name": TEMPLATE.format(address),
        "address": {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}},
        "filter_chains": [chain],
    }
    return resource(api.build("envoy.config.listener.v3.Listener", fields), TEMPLATE.format(address))


def routes(access: Access, trust_domain: str) -> Resource:
    """The routes of a service's instances, with who may call it."""
    way = {
        "match": {"prefix": ""},
        "non_forwarding_action": {},
        "typed_per_filter_config": rbac.overrides(access, trust_domain),
    }
    name = route_name(access.service)
    fields = {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": [way]}]}
    return resource(api.build("envoy.config.route.v3.RouteConfiguration", fields), name)
