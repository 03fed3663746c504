"""The routes of an ingress: of each of its targets one for whoever may call it, as that tenant's workload.

host ─▶ path ─▶ whose token, or whose certificate ─▶ that tenant's cluster of the service
             └▶ nobody's ─▶ public: the ingress's own cluster; else 403 or 401
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from meshwarden.controlplane.policy import endpoint, route
from meshwarden.controlplane.policy.choice import choice
from meshwarden.controlplane.policy.envoy import balance, outbound
from meshwarden.controlplane.policy.ingress import Ingress, Target, Where
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Method, Name
from meshwarden.controlplane.policy.routing import Way
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, resource

LISTENER: Final = "ingress"
ISSUER: Final = "issuer"
"""What the metadata begins with that has the payload of an issuer's token."""
CERTIFICATE_HEADERS: Final[Mapping[str, tuple[str, str]]] = {
    "uri": ("x-meshwarden-peer-uri", "%DOWNSTREAM_PEER_URI_SAN%"),
    "dns": ("x-meshwarden-peer-dns", "%DOWNSTREAM_PEER_DNS_SAN%"),
    "subject": ("x-meshwarden-peer-subject", "%DOWNSTREAM_PEER_SUBJECT%"),
}
"""What a caller's certificate says, as Envoy writes it into headers: `{what: (header, format)}`."""
_OWN: Final = ("x-envoy-upstream-service-time", "x-envoy-decorator-operation")
"""What the service's Envoy says to ours."""
_JWT: Final = "envoy.filters.http.jwt_authn"
_ATTRIBUTES: Final = {"organization": "O", "organizational_unit": "OU"}
# Of a subject as RFC 2253 writes it: a value, in which what parts such is escaped.
_VALUE: Final = r"(?:[^,+\\]|\\.)*"
_SPECIAL: Final = re.compile(r'[,+"\\<>;]')


class _Caller(NamedTuple):
    """Callers of a tenant: `conditions` are fields of a RouteMatch."""

    tenant: str
    conditions: dict[str, Any]


def routes(mesh: Mesh, said: Ingress) -> Resource:
    """The routes of an ingress."""
    callers = [*_callers(said)]
    hosts = [_host(mesh, said, domain, callers) for domain in said.domains()]
    if "*" not in said.domains():
        hosts.append({"name": "*", "domains": ["*"], "routes": [_nothing()]})
    name = f"{LISTENER}/{said.service}"
    fields = {
        "name": name,
        "virtual_hosts": hosts,
        "request_headers_to_remove": [header for header, _ in CERTIFICATE_HEADERS.values()],
        "response_headers_to_remove": [*_OWN],
    }
    return resource(api.build("envoy.config.route.v3.RouteConfiguration", fields), name)


def clusters(mesh: Mesh, said: Ingress) -> Iterator[Resource]:
    """The clusters by which it calls for tenants; those for itself are its own tenant's, as any client's."""
    found: dict[tuple[Name, str], None] = {}
    for target in said.targets:
        if not said.leads_to(mesh, target.service):
            continue
        for rule in route.route(mesh, target.service).rules:
            found |= dict.fromkeys((target.service, version) for version, _ in rule.split)
            if rule.mirror is not None and said.leads_to(mesh, rule.mirror.service):
                found[rule.mirror.service, rule.mirror.version] = None
    for tenant in sorted({caller.tenant for caller in _callers(said)} & said.speakers.keys() - {said.service.tenant}):
        for service, version in sorted(found):
            budget = route.route(mesh, service).budget
            yield outbound.cluster(mesh, service, version, budget, choice(mesh, service), tenant)


def _host(mesh: Mesh, said: Ingress, domain: str, callers: list[_Caller]) -> dict[str, Any]:
    found = [
        made for target in said.targets if target.is_for(domain) for made in _of_target(mesh, said, target, callers)
    ]
    return {"name": domain, "domains": [domain], "routes": [*found, _nothing()]}


def _of_target(mesh: Mesh, said: Ingress, target: Target, callers: list[_Caller]) -> Iterator[dict[str, Any]]:
    if not said.leads_to(mesh, target.service):
        return
    place = _path(target.where)
    for tenant, conditions in callers:
        speaker = said.speakers.get(tenant)
        if speaker is None:
            text = f"tenant {tenant} lends ingress {said.service} no identity on this node"
            yield {"match": {**place, **conditions}, **_refusal(403, text)}
            continue
        yield from _ways(mesh, said, target, speaker, conditions)
    if target.is_public:
        yield from _ways(mesh, said, target, said.service, {})
        return
    for conditions in _proved(said):
        text = "what you have proved makes you a caller of no tenant"
        yield {"match": {**place, **conditions}, **_refusal(403, text)}
    ways = [*(["a client certificate"] if said.spec.HasField("client_certificate") else [])]
    ways += ["a bearer token"] if said.spec.jwt else []
    yield {"match": place, **_refusal(401, f"prove who you are, by {' or '.join(ways)}", bearer=bool(said.spec.jwt))}


def _ways(
    mesh: Mesh, said: Ingress, target: Target, speaker: Name, conditions: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The routes to a service as somebody, of the calls that both the target and each route of the service mean."""
    # A host of several services has each one's sessions for itself.
    session = balance.host_fields(choice(mesh, target.service)).get("typed_per_filter_config", {})
    for way, made in outbound.ways(mesh, target.service, speaker, said.service.tenant):
        where = target.where.both(way.method)
        if where is None:
            continue
        if speaker != said.service:
            _speak(made["route"], speaker.tenant)
        if session:
            made["typed_per_filter_config"] = {**session, **made.get("typed_per_filter_config", {})}
        yield {**made, "match": _match(where, way, made["match"], conditions)}


def _match(where: Where | Method, way: Way, made: dict[str, Any], conditions: dict[str, Any]) -> dict[str, Any]:
    headers = [*made.get("headers", ()), *conditions.get("headers", ())]
    return {**_path(where), **conditions, **({"headers": headers} if headers else {})}


def _path(where: Where | Method) -> dict[str, Any]:
    if isinstance(where, Method):
        return {"prefix" if where.prefix else "path": where.path}
    if not where.below:
        return {"path": where.path}
    return {"prefix": "/"} if where.path == "/" else {"path_separated_prefix": where.path}


def _speak(action: dict[str, Any], tenant: str) -> None:
    """Has a RouteAction lead to the clusters for a tenant."""
    if "cluster" in action:
        action["cluster"] = _spoken(action["cluster"], tenant)
    for share in action.get("weighted_clusters", {}).get("clusters", ()):
        share["name"] = _spoken(share["name"], tenant)
    for mirror in action.get("request_mirror_policies", ()):
        mirror["cluster"] = _spoken(mirror["cluster"], tenant)


def _spoken(cluster: str, tenant: str) -> str:
    service, _, version = cluster.partition("|")
    name, _, owner = service.partition(".")
    return endpoint.speaker_cluster(Name(owner, name), version, tenant)


def _callers(said: Ingress) -> Iterator[_Caller]:
    """Tokens before certificates, each in the order in which they are written."""
    for index, issuer in enumerate(said.spec.jwt):
        for one in issuer.callers:
            yield _Caller(one.tenant, {"dynamic_metadata": [_claim(index, issuer.claim, {"exact": one.value})]})
    for one in said.spec.client_certificate.callers:
        kind = one.WhichOneof("says")
        if kind in ("uri", "dns"):
            yield _Caller(one.tenant, {"headers": [_header(kind, {"exact": getattr(one, kind)})]})
        else:
            regex = subject(_ATTRIBUTES[kind], getattr(one, kind))
            yield _Caller(one.tenant, {"headers": [_header("subject", {"safe_regex": {"regex": regex}})]})


def _proved(said: Ingress) -> Iterator[dict[str, Any]]:
    """Those who have proved something."""
    for index in range(len(said.spec.jwt)):
        yield {"dynamic_metadata": [_claim(index, "iss", {"prefix": ""}, is_any=True)]}
    if said.spec.HasField("client_certificate"):
        yield {"tls_context": {"presented": True}}


def _claim(index: int, name: str, text: dict[str, Any], *, is_any: bool = False) -> dict[str, Any]:
    value = {"present_match": True} if is_any else {"string_match": text}
    return {"filter": _JWT, "path": [{"key": f"{ISSUER}{index}"}, {"key": name}], "value": value}


def _header(kind: str, text: dict[str, Any]) -> dict[str, Any]:
    return {"name": CERTIFICATE_HEADERS[kind][0], "string_match": text}


def subject(attribute: str, value: str) -> str:
    """The pattern of the subjects that have an attribute of one value, and no other one of that name.

    A value may hold, escaped, whatever its holder has asked for: it never ends an attribute or begins one.

    Source: RFC 2253 §2.4, §3.
    """
    escaped = _SPECIAL.sub(lambda found: f"\\{found[0]}", value)
    first, rest = attribute[0], attribute[1:]
    # Names that are another: it begins otherwise, or ends before, or goes on.
    others = [rf"[^{first},=+\\][^,=+\\]*"]
    so_far = first
    for letter in rest:
        others += [re.escape(so_far), rf"{so_far}[^{letter},=+\\][^,=+\\]*"]
        so_far += letter
    others.append(rf"{so_far}[^,=+\\]+")
    other = rf"(?:{'|'.join(others)})={_VALUE}"
    return rf"(?:{other},)*{attribute}={re.escape(escaped)}(?:,{other})*"


def _refusal(status: int, text: str, *, bearer: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {"direct_response": {"status": status, "body": {"inline_string": f"meshwarden: {text}\n"}}}
    if bearer:
        found["response_headers_to_add"] = [{"header": {"key": "www-authenticate", "value": "Bearer"}}]
    return found


def _nothing() -> dict[str, Any]:
    return {"match": {"prefix": "/"}, **_refusal(404, "nothing is here")}
