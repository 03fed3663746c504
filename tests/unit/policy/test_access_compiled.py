"""Both dialects allow exactly what the neutral form allows, by interpreters of what was compiled."""

import re
from dataclasses import replace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshwarden.controlplane.policy.envoy import access as envoy
from meshwarden.controlplane.policy.grant import Access, Grant
from meshwarden.controlplane.policy.grpc import rbac as grpc
from meshwarden.controlplane.policy.neutral import ANY_METHOD, Caller, Foreign, ForeignCaller, Header, Method, Name
from meshwarden.xds import api

ORDERS = Name("platform", "orders")
DOMAIN = "mesh.test"
TENANTS, SERVICES = ["acme", "acme2", "globex"], ["web", "web2", "job"]
PATHS = ["/", "/a", "/ab", "/a/b", "/A", "/a.b", "/axb", "/shop.Orders/Get"]

methods = st.builds(Method, st.sampled_from(PATHS), st.booleans(), st.sampled_from(["", "GET", "POST"]))
OTHERS = ["other.test", "other.testx", "acme"]
# Some look like ours in all but the trust domain.
FOREIGN_PATHS = ["/tenant/acme/service/web", "/tenant/acme/service/web2", "/x", "/x/Y.z_"]
HEADERS = ["x-a", "x-b"]
VALUES = ["", "1", "12", "a,b"]
headers = st.builds(
    Header, st.sampled_from(HEADERS), st.sampled_from(["exact", "prefix", "present", "absent"]), st.sampled_from(VALUES)
).filter(lambda header: header.value or header.kind != "prefix")
sent = st.dictionaries(st.sampled_from(HEADERS), st.sampled_from([*VALUES, "\xff"]))
callers = st.builds(Caller, st.sampled_from(TENANTS), st.sampled_from(["", *SERVICES])) | st.builds(
    ForeignCaller, st.sampled_from(OTHERS), st.sampled_from(["", *FOREIGN_PATHS])
)
grants = st.builds(
    Grant,
    callers,
    st.lists(methods, max_size=3).map(lambda found: tuple(found) or (ANY_METHOD,)),
    st.just(ORDERS),
    st.integers(0, 3),
    st.lists(headers, max_size=2).map(tuple),
)
denials = grants.map(lambda grant: replace(grant, field="deny"))
names = st.builds(Name, st.sampled_from(TENANTS), st.sampled_from(SERVICES)) | st.builds(
    Foreign, st.sampled_from(OTHERS), st.sampled_from(FOREIGN_PATHS)
)
SERIALS = ["", "1f", "abc", "2"]
serials = st.lists(st.tuples(st.sampled_from(SERIALS[1:]), st.none() | names), max_size=2).map(tuple)
accesses = st.builds(
    Access,
    st.just(ORDERS),
    st.lists(grants, max_size=6).map(tuple),
    st.lists(names, max_size=2).map(tuple),
    serials,
    st.lists(denials, max_size=3).map(tuple),
)


class Call:
    """A call as a data plane sees it; `path` with its query."""

    def __init__(self, uri: str, path: str, verb: str, serial: str = "", **headers: str) -> None:
        self.uri, self.headers = uri, {":path": path, ":method": verb, **headers}
        # As Envoy writes it: in whole octets.
        self.certificate = f"{'0' * (len(serial) % 2)}{serial} {uri}"


def text_fits(match: dict[str, Any], text: str) -> bool:
    """envoy.type.matcher.v3.StringMatcher and its twin in xds.type."""
    ((kind, value),) = match.items() or [("exact", "")]
    if kind == "safe_regex":
        return re.fullmatch(value["regex"].replace(r"\C", r"[\s\S]"), text) is not None
    return text == value if kind == "exact" else text.startswith(value)


def matcher_says(matcher: dict[str, Any], call: Call) -> str | None:
    """xds.type.matcher.v3.Matcher over RBAC actions: what the first match says; None for no match at all."""
    found = None
    if "matcher_tree" in matcher:
        tree = matcher["matcher_tree"]
        text = given_to(tree["input"], call)
        if "exact_match_map" in tree:
            found = tree["exact_match_map"]["map"].get(text)
        else:
            entries = tree["prefix_match_map"]["map"]
            longest = max((key for key in entries if text.startswith(key)), key=len, default=None)
            found = entries[longest] if longest is not None else None
    else:
        for item in matcher["matcher_list"]["matchers"]:
            if predicate_fits(item["predicate"], call):
                found = item["on_match"]
                break
    said = outcome(found, call) if found is not None else None
    return said if said is not None or "on_no_match" not in matcher else outcome(matcher["on_no_match"], call)


def outcome(on_match: dict[str, Any], call: Call) -> str | None:
    if "matcher" in on_match:
        return matcher_says(on_match["matcher"], call)
    return on_match["action"]["typed_config"].get("action", "ALLOW")


def predicate_fits(predicate: dict[str, Any], call: Call) -> bool:
    if "and_matcher" in predicate:
        return all(predicate_fits(item, call) for item in predicate["and_matcher"]["predicate"])
    if "not_matcher" in predicate:
        return not predicate_fits(predicate["not_matcher"], call)
    single = predicate["single_predicate"]
    value = {key: item for key, item in single["value_match"].items() if key != "ignore_case"}
    text = given_to(single["input"], call)
    return text is not None and text_fits(value, text)


def given_to(given_input: dict[str, Any], call: Call) -> str | None:
    config = given_input["typed_config"]
    if "key" in config:
        assert config["key"] == "meshwarden.certificate"
        return call.certificate
    return call.headers.get(config["header_name"]) if "header_name" in config else call.uri


def envoy_allows(access: Access, call: Call) -> bool:
    fields = {key: value for key, value in envoy.rbac(access, DOMAIN).items() if key != "@type"}
    built = api.to_dict(api.build("envoy.extensions.filters.http.rbac.v3.RBAC", fields))
    if "matcher" not in built:
        assert built == {"rules": {}}, "ALLOW (0) with no policies: nobody"
        return False
    return matcher_says(built["matcher"], call) == "ALLOW"


def grpc_allows(access: Access, call: Call) -> bool:
    """What the two filters say one after the other."""
    for override in grpc.overrides(access, DOMAIN).values():
        built = api.to_dict(api.build("envoy.config.rbac.v3.RBAC", override["rbac"]["rules"]))
        found = any(policy_fits(policy, call) for policy in built.get("policies", {}).values())
        if found == (built.get("action", "ALLOW") == "DENY"):
            return False
    return True


def policy_fits(policy: dict[str, Any], call: Call) -> bool:
    (principal,) = policy["principals"]
    return principal_fits(principal, call.uri) and any(
        permission_fits(permission, call.headers[":path"], call) for permission in policy["permissions"]
    )


def principal_fits(principal: dict[str, Any], uri: str) -> bool:
    if "and_ids" in principal:
        return all(principal_fits(item, uri) for item in principal["and_ids"]["ids"])
    if "or_ids" in principal:
        return any(principal_fits(item, uri) for item in principal["or_ids"]["ids"])
    if "not_id" in principal:
        return not principal_fits(principal["not_id"], uri)
    return text_fits(principal["authenticated"]["principal_name"], uri)


def permission_fits(permission: dict[str, Any], path: str, call: Call) -> bool:
    if permission.get("any"):
        return True
    if "and_rules" in permission:
        return all(permission_fits(item, path, call) for item in permission["and_rules"]["rules"])
    if "header" in permission:
        return header_fits(permission["header"], call.headers.get(permission["header"]["name"]))
    return text_fits(permission["url_path"]["path"], path)


def header_fits(match: dict[str, Any], text: str | None) -> bool:
    """envoy.config.route.v3.HeaderMatcher."""
    fits = text is not None and (match.get("present_match", False) or text_fits(match["string_match"], text))
    return fits != match.get("invert_match", False)


def uri_of(name: Name | Foreign) -> str:
    return str(name) if isinstance(name, Foreign) else f"spiffe://{DOMAIN}/tenant/{name.tenant}/service/{name.name}"


@settings(max_examples=200)
@given(
    accesses,
    names,
    st.sampled_from(PATHS),
    st.sampled_from(["GET", "POST"]),
    st.sampled_from(["", "?x=/a", "?"]),
    st.sampled_from(SERIALS),
    sent,
)
@example(Access(ORDERS), Name("acme", "web"), "/a", "GET", "", "", {})
def test_envoy_allows_what_the_neutral_form_allows(
    access: Access, caller: Name | Foreign, path: str, verb: str, query: str, serial: str, headers: dict[str, str]
) -> None:
    wanted = access.find(caller, path, verb, serial, headers) is not None
    assert envoy_allows(access, Call(uri_of(caller), path + query, verb, serial, **headers)) == wanted


@settings(max_examples=200)
@given(accesses, names, st.sampled_from(PATHS), sent)
def test_grpc_allows_what_the_neutral_form_allows(
    access: Access, caller: Name | Foreign, path: str, headers: dict[str, str]
) -> None:
    wanted = access.find(caller, path, "POST", headers=headers) is not None
    assert grpc_allows(access, Call(uri_of(caller), path, "POST", **headers)) == wanted


@settings(max_examples=60)
@given(
    accesses,
    st.sampled_from(
        [
            "",
            f"spiffe://{DOMAIN}/tenant/acme/service/",
            f"spiffe://{DOMAIN}/tenant/acme",
            f"spiffe://{DOMAIN}/tenant/acme/operator/web",
            f"spiffe://{DOMAIN}/region/eu/node/n1",
            f"spiffe://{DOMAIN}x/tenant/acme/service/web",
            "spiffe://third.test/tenant/acme/service/web",
            f"spiffe://other.test/x,spiffe://{DOMAIN}/tenant/acme/service/web",
            f"spiffe://other.test/x;URI=spiffe://{DOMAIN}/tenant/acme/service/web",
            "spiffe://other.test",
            "spiffe://other.test/",
            "spiffe://other.test/x/",
            "spiffe://other.test//x",
            "spiffe://other.test/x y",
            "spiffe://other.test/x\nspiffe://other.test/x",
            f"spiffe://{DOMAIN}/tenant/acme/service/web,spiffe://{DOMAIN}/tenant/globex/service/web",
            f"spiffe://{DOMAIN}/tenant/acme/service/web/more",
        ]
    ),
    st.sampled_from(PATHS),
)
def test_whoever_is_nobody_gets_nothing_from_envoy(access: Access, uri: str, path: str) -> None:
    assert not envoy_allows(access, Call(uri, path, "GET"))


def test_no_wildcard_of_ours_is_about_anybody_else() -> None:
    # The secure default: a tenant of the same name elsewhere is somebody else, and so is the whole trust domain.
    ours = Access(
        ORDERS,
        (Grant(Caller("acme"), (ANY_METHOD,), ORDERS, 0), Grant(Caller("acme", "web"), (ANY_METHOD,), ORDERS, 0)),
    )
    theirs = Access(ORDERS, (Grant(ForeignCaller("other.test"), (ANY_METHOD,), ORDERS, 0),))
    local, foreign = Name("acme", "web"), Foreign("other.test", "/tenant/acme/service/web")
    for access, admitted, refused in ((ours, local, foreign), (theirs, foreign, local)):
        for allows in (envoy_allows, grpc_allows):
            assert allows(access, Call(uri_of(admitted), "/a", "POST"))
            assert not allows(access, Call(uri_of(refused), "/a", "POST"))


def test_what_is_denied_costs_nothing_by_the_number_of_those_that_are() -> None:
    # Maps all the way: who is denied, or let in, by name is found at once, however many there are.
    many = tuple(Grant(Caller("acme", f"s{n}"), (Method("/a"),), ORDERS, n, field="deny") for n in range(300))
    many += (Grant(Caller("acme"), (Method("/b"),), ORDERS, 300, field="deny"),)
    fields = envoy.rbac(Access(ORDERS, (Grant(Caller("acme"), (ANY_METHOD,), ORDERS, 0),), denials=many), DOMAIN)
    exact = fields["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    assert len(exact) == 300
    assert {len(said["matcher"]["matcher_list"]["matchers"]) for said in exact.values()} == {1}
    assert len(fields["matcher"]["on_no_match"]["matcher"]["matcher_tree"]["prefix_match_map"]["map"]) == 1
