"""Access in gRPC's dialect: one RBAC policy for each grant, where no match denies.

Source: gRFC A41.
"""

from typing import Any

from meshwarden.controlplane.policy.neutral import ANY_METHOD, Access, Foreign, Grant, Method, Name, spiffe_of

RBAC = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
RBAC_PER_ROUTE = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"


def rules(access: Access, trust_domain: str) -> dict[str, Any]:
    """An `envoy.config.rbac.v3.RBAC` in JSON form; without grants it denies every call.

    `policies` is always given: an RBAC filter without `rules` would allow every call.
    """
    policies = {
        f"{grant.policy}#{grant.rule}.{index}": _policy(grant, access.revoked, trust_domain)
        for index, grant in enumerate(access.grants)
        if not any(grant.caller.fits(one) and not grant.caller.is_whole for one in access.revoked)
    }
    return {"action": "ALLOW", "policies": policies}


def deny_all() -> dict[str, Any]:
    """The listener's own filter, in JSON form: it denies by itself, so that a missing override fails closed."""
    return {"@type": RBAC, "rules": {"action": "ALLOW", "policies": {}}}


def per_route(access: Access, trust_domain: str) -> dict[str, Any]:
    """The override for a route, in JSON form."""
    return {"@type": RBAC_PER_ROUTE, "rbac": {"rules": rules(access, trust_domain)}}


def _policy(grant: Grant, revoked: tuple[Name | Foreign, ...], trust_domain: str) -> dict[str, Any]:
    match = "prefix" if grant.caller.is_whole else "exact"
    principal = _principal(match, grant.caller.spiffe(trust_domain))
    # gRPC knows no certificate by its number: those of `Access.serials` are the SDK's to refuse.
    others = [
        _principal("exact", spiffe_of(one, trust_domain))
        for one in revoked
        if grant.caller.is_whole and grant.caller.fits(one)
    ]
    if others:
        principal = {"and_ids": {"ids": [principal, {"not_id": {"or_ids": {"ids": others}}}]}}
    return {"permissions": [_permission(method) for method in grant.methods], "principals": [principal]}


def _principal(match: str, name: str) -> dict[str, Any]:
    return {"authenticated": {"principal_name": {match: name}}}


def _permission(method: Method) -> dict[str, Any]:
    if method == ANY_METHOD:
        return {"any": True}
    match = "prefix" if method.prefix else "exact"
    path = {"url_path": {"path": {match: method.path}}}
    if not method.verb:
        return path
    verb = {"header": {"name": ":method", "string_match": {"exact": method.verb}}}
    return {"and_rules": {"rules": [path, verb]}}
