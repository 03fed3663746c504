"""Access in Envoy's dialect: a tree of matchers over the caller's SPIFFE ID, where no match denies.

A tree finds the caller in O(1) of the number of rules; RBAC policies are gone through one by one (twenty times
the CPU at 500). What a caller may and may not call are lists of its own methods and headers.

    denials of identities ─no match─▶ of whole tenants and other trust domains ─no match─▶
    grants of identities  ─no match─▶ of whole tenants and other trust domains ─no match─▶ deny

Each step is a map, exact or by prefix. Who is named by itself has the grants of its tenant or trust domain merged into
its own entry, so the first map of grants that knows it decides. A caller that is revoked has an entry that denies;
certificates that are have maps of their own before all others.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from meshwarden.controlplane.policy.grant import Access, Grant
from meshwarden.controlplane.policy.neutral import AnyCaller, Caller, Header, Method, spiffe_of

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
_EXACT: Final = "exact_match_map"
_PREFIX: Final = "prefix_match_map"
# Any bytes: "." is none that is not UTF-8.
_REST: Final = r"\C*"
_ACTION: Final = "type.googleapis.com/envoy.config.rbac.v3.Action"
_URI: Final = {
    "name": "uri",
    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput"},
}

_Branch = tuple[dict[str, Any], str, dict[str, Any]]
"""What is looked at, which kind of map it is looked up in, and that."""
_Numbered = dict[AnyCaller, list[tuple[int, Grant]]]


def rbac(access: Access, trust_domain: str, caller: dict[str, Any] = _URI) -> dict[str, Any]:
    """The filter, in JSON form; without grants it denies every call. What would be is noted for the access log.

    Args:
        access: who may call.
        trust_domain: ours.
        caller: what says who calls, as an input of matchers; the certificate, if not something else.
    """
    fields = {"@type": RBAC, **_said(access, trust_domain, caller)}
    if access.shadow is not None:
        fields |= {f"shadow_{name}": said for name, said in _said(access.shadow, trust_domain, caller).items()}
    return fields


def anyone(methods: tuple[Method, ...], place: str) -> dict[str, Any]:
    """The filter that lets anybody call some methods, and nobody any other; `place` is where that stands."""
    matchers = [
        {"predicate": _all(_method(method)), "on_match": _act(place, "ALLOW")}
        for method in methods
        if "?" not in method.path and "#" not in method.path  # no path holds these
    ]
    if not matchers:
        return {"@type": RBAC, "rules": {"action": "ALLOW", "policies": {}}}
    return {"@type": RBAC, "matcher": {"matcher_list": {"matchers": matchers}, "on_no_match": _act("deny", "DENY")}}


def _said(access: Access, trust_domain: str, caller: dict[str, Any]) -> dict[str, Any]:
    branches = [branch for branch in _branches(access, trust_domain, caller) if branch[2]]
    if not branches:
        return {"rules": {"action": "ALLOW", "policies": {}}}
    otherwise = _act("deny", "DENY")
    for given, kind, branch in reversed(branches):
        matcher = {"matcher_tree": {"input": given, kind: {"map": branch}}, "on_no_match": otherwise}
        otherwise = {"matcher": matcher}
    return otherwise


def _branches(access: Access, trust_domain: str, caller: dict[str, Any]) -> Iterator[_Branch]:
    yield _CERTIFICATE, _EXACT, _serials(access, trust_domain)
    yield _CERTIFICATE, _PREFIX, {f"{form} ": _act("revoked", "DENY") for form in _anybodys(access)}
    # Whoever's text only begins like a whole tenant's is let in by no grant either.
    ones, all_of = (_denials(found, trust_domain) for found in _by_caller(access.denials))
    yield caller, _EXACT, ones | {spiffe_of(one, trust_domain): _act("revoked", "DENY") for one in access.revoked}
    yield caller, _PREFIX, all_of
    single, whole = _by_caller(access.grants)
    merged = {who: sorted([*found, *whole.get(who.all, ())]) for who, found in single.items()}
    yield caller, _EXACT, {who.spiffe(trust_domain): _of_one(found) for who, found in merged.items()}
    yield (
        caller,
        _PREFIX,
        {who.spiffe(trust_domain): _of_all(who, trust_domain, found, caller) for who, found in whole.items()},
    )


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


def _by_caller(grants: Iterable[Grant]) -> tuple[_Numbered, _Numbered]:
    """Those of each identity, and those of each whole tenant or trust domain, numbered in their order."""
    single: _Numbered = {}
    whole: _Numbered = {}
    for number, grant in enumerate(grants):
        (whole if grant.caller.is_whole else single).setdefault(grant.caller, []).append((number, grant))
    return single, whole


def _denials(by_caller: _Numbered, trust_domain: str) -> dict[str, Any]:
    found = {who.spiffe(trust_domain): _first(denials, "DENY") for who, denials in by_caller.items()}
    return {who: said for who, said in found.items() if said is not None}


def _of_one(grants: list[tuple[int, Grant]]) -> dict[str, Any]:
    return _first(grants, "ALLOW") or _act("deny", "DENY")


def _of_all(
    who: AnyCaller, trust_domain: str, grants: list[tuple[int, Grant]], caller: dict[str, Any]
) -> dict[str, Any]:
    # Several URIs in a certificate come joined by commas: the whole text must be one ID of the tenant, or of the other
    # trust domain, whose authority may write into a URI what it likes.
    rest = "[a-z0-9-]+" if isinstance(who, Caller) else "[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*"
    own = _predicate(caller, _regex(re.escape(who.spiffe(trust_domain)) + rest))
    return _first(grants, "ALLOW", own) or _act("deny", "DENY")


def _first(grants: list[tuple[int, Grant]], what: str, *conditions: dict[str, Any]) -> dict[str, Any] | None:
    """What the first says that fits a call, None if none fits any; where none fits this call, nothing is said."""
    matchers: list[dict[str, Any]] = []
    for _, grant in grants:
        if grant.is_any and not conditions:
            found = _act(grant.place, what)
            return {"matcher": {"matcher_list": {"matchers": matchers}, "on_no_match": found}} if matchers else found
        headers = [*map(_of_header, grant.headers)]
        matchers += (
            {"predicate": _all([*conditions, *_method(method), *headers]), "on_match": _act(grant.place, what)}
            for method in grant.methods
            if "?" not in method.path and "#" not in method.path  # no path holds these
        )
    return {"matcher": {"matcher_list": {"matchers": matchers}}} if matchers else None


def _method(method: Method) -> list[dict[str, Any]]:
    # ":path" comes with its query.
    path = {"prefix": method.path} if method.prefix else _regex(re.escape(method.path) + rf"(\?{_REST})?")
    found = [_predicate(_header(":path"), path)]
    if method.verb:
        found.append(_predicate(_header(":method"), {"exact": method.verb}))
    return found


def _of_header(header: Header) -> dict[str, Any]:
    if header.kind in ("exact", "prefix"):
        return _predicate(_header(header.name), {header.kind: header.value})
    there = _predicate(_header(header.name), _regex(_REST))
    return {"not_matcher": there} if header.kind == "absent" else there


def _header(name: str) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
    return {"name": name.strip(":"), "typed_config": {"@type": kind, "header_name": name}}


def _regex(text: str) -> dict[str, Any]:
    return {"safe_regex": {"google_re2": {}, "regex": text}}


def _predicate(given: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    return {"single_predicate": {"input": given, "value_match": value}}


def _all(conditions: list[dict[str, Any]]) -> dict[str, Any]:
    return conditions[0] if len(conditions) == 1 else {"and_matcher": {"predicate": conditions}}


def _act(name: str, what: str) -> dict[str, Any]:
    action = {"@type": _ACTION, "name": name, "action": what}
    return {"action": {"name": "access", "typed_config": action}}
