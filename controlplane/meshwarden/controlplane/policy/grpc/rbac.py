"""Access in gRPC's dialect: two filters, each with one RBAC policy for each grant and each denial.

    denials: a match denies ─no match─▶ grants: no match denies

gRPC goes through policies one by one: a call costs more the more there are, unlike with Envoy.

Source: gRFC A41.
"""

from typing import Any, Final

from meshwarden.controlplane.policy.grant import Access, Grant
from meshwarden.controlplane.policy.neutral import ANY_METHOD, Foreign, Method, Name, spiffe_of
from meshwarden.controlplane.policy.routing import header_matcher

RBAC: Final = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
RBAC_PER_ROUTE: Final = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
DENY: Final = "deny"
ALLOW: Final = "rbac"
"""The names of the filters."""


def allowing(access: Access, trust_domain: str) -> dict[str, Any]:
    """An `envoy.config.rbac.v3.RBAC` in JSON form; without grants it denies every call.

    `policies` is always given: an RBAC filter without `rules` would allow every call.
    """
    policies = {
        f"{grant.place}.{index}": _policy(grant, access.revoked, trust_domain)
        for index, grant in enumerate(access.grants)
        if not any(grant.caller.fits(one) and not grant.caller.is_whole for one in access.revoked)
    }
    return {"action": "ALLOW", "policies": policies}


def denying(access: Access, trust_domain: str) -> dict[str, Any]:
    """An `envoy.config.rbac.v3.RBAC` in JSON form; without denials it denies no call."""
    policies = {
        f"{denial.place}.{index}": _policy(denial, (), trust_domain) for index, denial in enumerate(access.denials)
    }
    return {"action": "DENY", "policies": policies}


def filters() -> list[dict[str, Any]]:
    """The listener's own filters, in JSON form: the last denies by itself, so that a missing override fails closed."""
    return [
        {"name": DENY, "typed_config": {"@type": RBAC, "rules": {"action": "DENY", "policies": {}}}},
        {"name": ALLOW, "typed_config": {"@type": RBAC, "rules": {"action": "ALLOW", "policies": {}}}},
    ]


def overrides(access: Access, trust_domain: str) -> dict[str, Any]:
    """What the filters say on a route, in JSON form: `{filter: override}`."""
    said = {DENY: denying(access, trust_domain), ALLOW: allowing(access, trust_domain)}
    return {name: {"@type": RBAC_PER_ROUTE, "rbac": {"rules": rules}} for name, rules in said.items()}


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
    headers = [{"header": header_matcher(header)} for header in grant.headers]
    return {"permissions": [_permission(method, headers) for method in grant.methods], "principals": [principal]}


def _principal(match: str, name: str) -> dict[str, Any]:
    return {"authenticated": {"principal_name": {match: name}}}


def _permission(method: Method, headers: list[dict[str, Any]]) -> dict[str, Any]:
    rules = list(headers)
    if method.verb:
        rules.insert(0, {"header": {"name": ":method", "string_match": {"exact": method.verb}}})
    if method.path != ANY_METHOD.path or not method.prefix:
        rules.insert(0, {"url_path": {"path": {"prefix" if method.prefix else "exact": method.path}}})
    if len(rules) > 1:
        return {"and_rules": {"rules": rules}}
    return rules[0] if rules else {"any": True}
