"""Calls in the clear at a service's Envoy, beside those by mTLS, for as long as the service says.

Whoever calls so is nobody: no AccessPolicy lets it in, only what the service itself names, and what it says of itself
is thrown away. All of them together have the limit of a tenant that no policy names. When the time is over what lets
them in goes, by the same clock as other rules for a time, and the listener takes no such connection any more.
"""

from typing import Any, Final

from meshwarden.controlplane.policy.envoy import telemetry
from meshwarden.controlplane.policy.envoy.access import RBAC, anyone
from meshwarden.controlplane.policy.envoy.limit import NAMESPACE
from meshwarden.controlplane.policy.envoy.part import ROUTER, discovered, extension, manager
from meshwarden.controlplane.policy.envoy.quota import HEADER_MUTATION, TENANT_HEADER
from meshwarden.controlplane.policy.neutral import Method, Name
from meshwarden.xds.snapshot import Resource

NOBODY: Final = "unauthenticated"
"""What callers in the clear are called."""
_NO_TENANT: Final = "-"  # which no tenant is called
INSPECTOR: Final = {
    "name": "tls",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    },
}
"""The listener filter that tells TLS from what is none."""
TLS_MATCH: Final = {"transport_protocol": "tls"}
_SET_METADATA: Final = "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config"


def chain(service: Name, routes: str, limits: list[dict[str, Any]], more: dict[str, Any]) -> dict[str, Any]:
    """The filter chain of connections that are no TLS.

    Args:
        service: that is called.
        routes: the RouteConfiguration that leads to the program.
        limits: the filters that say how much.
        more: fields of the HttpConnectionManager that connections by TLS have as well.
    """
    who = {
        "metadata_namespace": NAMESPACE,
        "allow_overwrite": True,
        "value": {"tenant": _NO_TENANT, "caller": NOBODY},
    }
    unsaid = {"mutations": {"request_mutations": [{"remove": TENANT_HEADER}]}}
    fields = {
        **more,
        "http_filters": [
            {"name": "who", "typed_config": {"@type": _SET_METADATA, "metadata": [who]}},
            {"name": "tenant", "typed_config": {"@type": HEADER_MUTATION, **unsaid}},
            discovered(_name(service), RBAC),
            *limits,
            ROUTER,
        ],
        "forward_client_cert_details": "SANITIZE",
        "local_reply_config": {"mappers": [_denied(service)]},
        **telemetry.in_the_clear(service),
    }
    return {
        "name": "inbound/clear",
        "filter_chain_match": {"transport_protocol": "raw_buffer"},
        "filters": [manager("clear", routes, fields)],
    }


def access(service: Name, methods: tuple[Method, ...]) -> Resource:
    """What anybody may call in the clear, as an extension configuration; without methods nothing."""
    return extension(_name(service), anyone(methods, f"{service}#permissive"))


def _denied(service: Name) -> dict[str, Any]:
    text = f"meshwarden: {service} takes some calls in the clear for a time, and not this one: call it by mTLS\n"
    value = {"default_value": 403, "runtime_key": "meshwarden.unused"}
    return {
        "filter": {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}},
        "body_format_override": {"text_format_source": {"inline_string": text}},
    }


def _name(service: Name) -> str:
    return f"clear/{service}"
