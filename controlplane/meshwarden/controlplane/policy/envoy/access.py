"""Access in Envoy's dialect: a tree of matchers over the caller's SPIFFE ID, where no match denies.

A tree finds the caller in O(1) of the number of grants; RBAC policies are gone through one by one (twenty times
the CPU at 500). What a caller may call is a list of its own methods.

    exact map of services ─no match─▶ prefix map of whole tenants and other trust domains ─no match─▶ deny

Who is named by itself has its tenant's or trust domain's grants merged into its own entry, so the first map that knows
it decides. A caller that is revoked has an entry that denies; certificates that are have maps of their own before all
others.
"""

import re
from typing import Any, Final

from meshwarden.controlplane.policy.neutral import ANY_METHOD, Access, Caller, Grant, Method, spiffe_of

RBAC: Final = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
_SET_FILTER_STATE: Final = "type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config"
_STATE: Final = "meshwarden.certificate"
_CERTIFICATE: Final = {
    "name": "certificate",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.FilterStateInput",
        "key": _STATE,
    },
}
_ACTION: Final = "type.googleapis.com/envoy.config.rbac.v3.Action"
_URI: Final = {
    "name": "uri",
    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput"},
}


def rbac(access: Access, trust_domain: str) -> dict[str, Any]:
    """The filter, in JSON form; without grants it denies every call."""
    single, whole = _by_caller(access, trust_domain)
    denied = {spiffe_of(one, trust_domain): _act("revoked", "DENY") for one in access.revoked}
    branches = [
        (_CERTIFICATE, "exact_match_map", _serials(access, trust_domain)),
        (_CERTIFICATE, "prefix_match_map", {f"{form} ": _act("revoked", "DENY") for form in _anybodys(access)}),
        (
            _URI,
            "exact_match_map",
            {who: _of_one(found) for who, found in single.items()} | denied,
        ),
        (
            _URI,
            "prefix_match_map",
            {start: _of_all(start, found) for start, found in whole.items()},
        ),
    ]
    matcher: dict[str, Any] | None = None
    for given, kind, branch in reversed(branches):
        if branch:
            otherwise = _act("deny", "DENY") if matcher is None else {"matcher": matcher}
            matcher = {"matcher_tree": {"input": given, kind: {"map": branch}}, "on_no_match": otherwise}
    if matcher is None:
        return {"@type": RBAC, "rules": {"action": "ALLOW", "policies": {}}}
    return {"@type": RBAC, "matcher": matcher}


def certificate_filter() -> dict[str, Any]:
    """Notes which certificate the caller shows: its number and its URI."""
    note = {
        "object_key": _STATE,
        "factory_key": "envoy.string",
        "format_string": {
            "text_format_source": {"inline_string": "%DOWNSTREAM_PEER_SERIAL% %DOWNSTREAM_PEER_URI_SAN%"},
            "omit_empty_values": True,
        },
        "read_only": True,
    }
    return {"name": "certificate", "typed_config": {"@type": _SET_FILTER_STATE, "on_request_headers": [note]}}


def _serials(access: Access, trust_domain: str) -> dict[str, Any]:
    return {
        f"{form} {spiffe_of(whose, trust_domain)}": _act("revoked", "DENY")
        for serial, whose in access.serials
        if whose is not None
        for form in _forms(serial)
    }


def _anybodys(access: Access) -> list[str]:
    return [form for serial, whose in access.serials if whose is None for form in _forms(serial)]


def _forms(serial: str) -> tuple[str, ...]:
    # Envoy writes whole octets.
    return (serial, f"0{serial}") if len(serial) % 2 else (serial,)


def _by_caller(access: Access, trust_domain: str) -> tuple[dict[str, list[Grant]], dict[str, list[Grant]]]:
    """The grants of each identity, and of each whole tenant or trust domain by what its identities start with."""
    whole: dict[str, list[Grant]] = {}
    for grant in access.grants:
        if grant.caller.is_whole:
            whole.setdefault(grant.caller.spiffe(trust_domain), []).append(grant)
    single: dict[str, list[Grant]] = {}
    for grant in access.grants:
        if not grant.caller.is_whole:
            own = grant.caller.spiffe(trust_domain)
            wider = [more for start, found in whole.items() if own.startswith(start) for more in found]
            single.setdefault(own, wider).append(grant)
    return dict(sorted(single.items())), dict(sorted(whole.items()))


def _of_one(grants: list[Grant]) -> dict[str, Any]:
    for grant in grants:
        if ANY_METHOD in grant.methods:
            return _allow(grant)
    matchers = _matchers(grants, [])
    return {"matcher": {"matcher_list": {"matchers": matchers}}} if matchers else _act("deny", "DENY")


def _of_all(start: str, grants: list[Grant]) -> dict[str, Any]:
    # Several URIs in a certificate come joined by commas: the whole text must be one ID of the tenant, or of the other
    # trust domain, whose authority may write into a URI what it likes.
    rest = "[a-z0-9-]+" if isinstance(grants[0].caller, Caller) else "[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*"
    own = _predicate(_URI, _regex(re.escape(start) + rest))
    matchers = _matchers(grants, [own])
    return {"matcher": {"matcher_list": {"matchers": matchers}}} if matchers else _act("deny", "DENY")


def _matchers(grants: list[Grant], conditions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"predicate": _all([*conditions, *_conditions(method)]), "on_match": _allow(grant)}
        for grant in grants
        for method in grant.methods
        if "?" not in method.path and "#" not in method.path  # no path holds these
    ]


def _conditions(method: Method) -> list[dict[str, Any]]:
    # ":path" comes with its query.
    path = {"prefix": method.path} if method.prefix else _regex(re.escape(method.path) + r"(\?.*)?")
    found = [_predicate(_header(":path"), path)]
    if method.verb:
        found.append(_predicate(_header(":method"), {"exact": method.verb}))
    return found


def _header(name: str) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
    return {"name": name.strip(":"), "typed_config": {"@type": kind, "header_name": name}}


def _regex(text: str) -> dict[str, Any]:
    return {"safe_regex": {"google_re2": {}, "regex": text}}


def _predicate(given: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    return {"single_predicate": {"input": given, "value_match": value}}


def _all(conditions: list[dict[str, Any]]) -> dict[str, Any]:
    return conditions[0] if len(conditions) == 1 else {"and_matcher": {"predicate": conditions}}


def _allow(grant: Grant) -> dict[str, Any]:
    return _act(f"{grant.policy}#{grant.rule}", "ALLOW")


def _act(name: str, what: str) -> dict[str, Any]:
    action = {"@type": _ACTION, "name": name, "action": what}
    return {"action": {"name": "access", "typed_config": action}}
