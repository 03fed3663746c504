"""What an Envoy needs to take the mesh's calls for its program.

The order of the filters is the order of the questions: who is it (from the certificate), may it, how much. Who may and
how much come by ECDS, each in a resource of its own: a change reaches open connections at their next request, and a
spent bucket is refilled by a change of its own limit alone.

Source: Envoy, "RBAC", "Local rate limit", "Extension configuration discovery".
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from meshwarden.controlplane.policy.envoy import plain, telemetry
from meshwarden.controlplane.policy.envoy.access import RBAC, certificate_filter, rbac
from meshwarden.controlplane.policy.envoy.limit import LOCAL_RATE_LIMIT, NAMESPACE, rate_limit
from meshwarden.controlplane.policy.envoy.part import (
    CALLERS,
    CONNECTION_LIFE,
    ROOTS,
    ROUTER,
    discovered,
    extension,
    manager,
    protocol,
    socket_address,
    tls,
    uri,
)
from meshwarden.controlplane.policy.envoy.quota import (
    HEADER_MUTATION,
    RATE_LIMIT_QUOTA,
    rate_limit_quota,
    tenant_filter,
)
from meshwarden.controlplane.policy.grant import Access
from meshwarden.controlplane.policy.neutral import Limits, Name
from meshwarden.controlplane.resources.reach import Width
from meshwarden.v1 import resources_pb2
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, resource

LISTENER: Final = "inbound"
APP: Final = "app"
_HEADER_TO_METADATA: Final = "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config"
_XFCC: Final = "x-forwarded-client-cert"
_CALLER: Final = f"%DYNAMIC_METADATA({NAMESPACE}:caller)%"


def listener(
    address: str,
    service: Name,
    trust_domain: str,
    epoch: str = "",
    foreign: Sequence[str] = (),
    *,
    permissive: bool = False,
) -> Resource:
    """The listener of one instance.

    Args:
        address: where it listens.
        service: what it is an instance of.
        trust_domain: ours.
        epoch: another one makes Envoy end what is open after its drain time; see `denied.Epochs`.
        foreign: the other trust domains of which there may be callers.
        permissive: whether it takes calls in the clear as well.

    Raises:
        ValueError: the address is none.
    """
    limits = [discovered(_place("limit", service, width), LOCAL_RATE_LIMIT) for width in Width]
    common: dict[str, Any] = {
        "common_http_protocol_options": {"max_connection_duration": CONNECTION_LIFE},
        "drain_timeout": "5s",
        "http2_protocol_options": {"max_concurrent_streams": 1000},
    }
    more = {
        **common,
        "http_filters": [
            _who(trust_domain, foreign=bool(foreign)),
            certificate_filter(),
            discovered(f"access/{service}", RBAC),
            *limits,
            tenant_filter(),
            *(discovered(_place("quota", service, width), RATE_LIMIT_QUOTA, HEADER_MUTATION) for width in Width),
            ROUTER,
        ],
        # What the caller says of itself is thrown away; the program gets the certificate's word.
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"uri": True},
        "local_reply_config": {"mappers": replies(service)},
        **telemetry.inbound(service),
    }
    anyone = uri("prefix", *(f"spiffe://{one}/" for one in (trust_domain, *foreign)))
    # Without other trust domains an agent needs to know of nothing but our own roots.
    roots, asked = CALLERS if foreign else ROOTS, {"require_client_certificate": True}
    chain = {
        "filters": [manager(LISTENER, f"{LISTENER}/{service}", more)],
        "transport_socket": tls("DownstreamTlsContext", anyone, asked, roots),
    }
    if epoch:
        chain["name"] = f"{LISTENER}/{epoch}"
    fields = {
        "name": LISTENER,
        "address": socket_address(address),
        "traffic_direction": "INBOUND",
        "filter_chains": [chain],
    }
    if permissive:
        chain["filter_chain_match"] = plain.TLS_MATCH
        fields["filter_chains"] = [chain, plain.chain(service, f"{LISTENER}/{service}", limits, common)]
        fields["listener_filters"] = [plain.INSPECTOR]
    return resource(api.build("envoy.config.listener.v3.Listener", fields), LISTENER)


def app(address: str, spoken: int) -> Resource:
    """The cluster of the program itself.

    Args:
        address: where the program listens.
        spoken: the `ServiceSpec.Protocol` that it speaks.

    Raises:
        ValueError: the address is none.
    """
    place = {"endpoint": {"address": socket_address(address)}}
    grpc = spoken == resources_pb2.ServiceSpec.GRPC
    fields = {
        "name": APP,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": APP, "endpoints": [{"lb_endpoints": [place]}]},
        "typed_extension_protocol_options": protocol("http2_protocol_options" if grpc else "http_protocol_options"),
    }
    return resource(api.build("envoy.config.cluster.v3.Cluster", fields), APP)


def routes(service: Name) -> Resource:
    """All calls lead to the program."""
    name = f"{LISTENER}/{service}"
    way = {"match": {"prefix": "/"}, "route": {"cluster": APP, "timeout": "0s"}}
    fields = {"name": name, "virtual_hosts": [{"name": APP, "domains": ["*"], "routes": [way]}]}
    return resource(api.build("envoy.config.route.v3.RouteConfiguration", fields), name)


def access(said: Access, trust_domain: str) -> Resource:
    """Who may call, as an extension configuration."""
    return extension(f"access/{said.service}", rbac(said, trust_domain))


def limit(service: Name, width: Width, said: Limits | None) -> Resource:
    """How much each tenant may call by the policy of a width, if there is one, as an extension configuration."""
    return extension(_place("limit", service, width), rate_limit(said))


def quota(service: Name, width: Width, said: Limits | None) -> Resource:
    """Which calls count against that policy's limits across the mesh, as an extension configuration."""
    return extension(_place("quota", service, width), rate_limit_quota(said))


def _place(kind: str, service: Name, width: Width) -> str:
    """Where a policy's configuration stands: each by itself, so that none fills the buckets of another."""
    return f"{kind}/{service}" if width is Width.SERVICE else f"{kind}/{service}/{width.name.lower()}"


def _who(trust_domain: str, *, foreign: bool) -> dict[str, Any]:
    """Puts the caller and whose calls these are into dynamic metadata: as `SpiffeId.account` has it.

    The pattern is held against all of the header, which Envoy itself has written: By and Hash come before, and what
    comes after must be one URI without what parts such. Another trust domain's authority may write into a certificate
    what it likes, a second URI of ours included. Whoever fits nowhere is nobody: Envoy would keep what fits no pattern
    as it is.
    """
    who = rf"spiffe://{re.escape(trust_domain)}/tenant/([^/;,]+)(/)service/([^/;,]+)"
    tenant, caller = r"\1", r"\1\2\3"
    if foreign:
        who, tenant, caller = rf"(?:{who}|(spiffe://[^/;,]+)(/[^;,]*))", tenant + r"\4", caller + r"\4\5"
    header = f"^(?:By=[^;]*;)?Hash=[^;]*;URI={who}$|^.*$"
    rules = [
        {
            "header": _XFCC,
            "on_header_present": {
                "metadata_namespace": NAMESPACE,
                "key": key,
                "type": "STRING",
                "regex_value_rewrite": {"pattern": {"regex": header}, "substitution": substitution},
            },
        }
        for key, substitution in (("tenant", tenant), ("caller", caller))
    ]
    return {"name": "who", "typed_config": {"@type": _HEADER_TO_METADATA, "request_rules": rules}}


def replies(service: Name) -> list[dict[str, Any]]:
    """What callers are told when policy stops them: who, what, and how to find out why."""
    grpc = {"header_filter": {"header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}}}
    # Of Envoy's own replies RBAC alone is 403, and the limit alone 429; the program's answers pass unchanged.
    denied, limited = _status(403), _status(429)
    path, verb = "%PATH(NQ:PATH)%", "%REQ(:METHOD)% "
    found = []
    for stop, said in ((denied, "may not call"), (limited, "is over its tenant's rate limit on")):
        for condition, method in (({"and_filter": {"filters": [stop, grpc]}}, path), (stop, verb + path)):
            text = (
                f"meshwarden: {_CALLER} {said} {service} {method}; why: "
                f"meshwarden explain --from {_CALLER} --to {service} --method '{method}'"
            )
            found.append({"filter": condition, "body_format_override": {"text_format_source": {"inline_string": text}}})
    return found


def _status(code: int) -> dict[str, Any]:
    value = {"default_value": code, "runtime_key": "meshwarden.unused"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}
