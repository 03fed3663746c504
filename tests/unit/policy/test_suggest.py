"""What is proposed allows what was seen and nothing that isn't allowed already."""

from typing import Any

from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.policy.access import access
from meshwarden.controlplane.policy.foresight.suggest import Use, suggest
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.resources.validate import resource_faults
from meshwarden.v1 import resources_pb2
from meshwarden.v1.preview_service_pb2 import SuggestedAccess
from meshwarden.v1.report_pb2 import CallStat

ORDERS = Name("platform", "orders")


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def allow(*rules: dict[str, Any], name: str = "who") -> Change:
    return made("AccessPolicy", "platform", name, {"service": "orders", "allow": list(rules)})


def rule(*methods: str, **caller: str) -> dict[str, Any]:
    return {"from": [caller or {"tenant": "acme", "service": "*"}], "methods": list(methods)}


def use(
    source: str, method: str, by_source: int = 5, by_destination: int = 5, denied: int = 0, last_s: int = 60
) -> Use:
    return Use(source, method, by_source, by_destination, denied, last_s)


def mesh_of(*changes: Change, protocol: str = "GRPC") -> Mesh:
    mesh = Mesh("mesh.test")
    mesh.apply([made("Service", *ORDERS, {"protocol": protocol, "exportTo": ["*"]}), *changes])
    return mesh


def proposed(mesh: Mesh, *uses: Use, prefix_from: int = 16) -> SuggestedAccess:
    answer = suggest(mesh, ORDERS, list(uses), prefix_from)
    if answer.HasField("policy"):
        assert not resource_faults(resources_pb2.Resource(access_policy=answer.policy))
    return answer


def rules(answer: SuggestedAccess) -> list[dict[str, Any]]:
    return json_format.MessageToDict(answer.policy).get("spec", {}).get("allow", [])


WEB = {"tenant": "acme", "service": "web"}


def test_a_whole_tenant_becomes_the_service_that_calls_and_its_methods() -> None:
    answer = proposed(mesh_of(allow(rule())), use("acme/web", "/s.O/Get"), use("acme/web", "/s.O/List", last_s=120))
    assert rules(answer) == [{"from": [WEB], "methods": ["/s.O/Get", "/s.O/List"]}]
    (told,) = answer.rules
    assert (told.calls, told.last.seconds, told.only) == (10, 120, CallStat.REPORTER_UNSPECIFIED)
    assert answer.policy.metadata.name == "who", "applied it takes the place of what is there"
    assert not answer.warnings


def test_what_is_denied_now_is_never_proposed() -> None:
    told = [use("globex/web", "/s.O/Get", 10**9, 10**9), use("acme/web", "/s.O/Get")]
    answer = proposed(mesh_of(allow(rule())), *told)
    assert rules(answer) == [{"from": [WEB], "methods": ["/s.O/Get"]}]
    assert "allowed when they were made and are not now" in answer.warnings[0]
    assert not proposed(mesh_of(), use("acme/web", "/s.O/Get")).HasField("policy")


def test_denied_calls_are_told_apart_and_so_are_those_that_one_side_alone_has_told_of() -> None:
    answer = proposed(
        mesh_of(allow(rule())),
        use("acme/web", "/s.O/Get", by_destination=0),
        use("acme/job", "/s.O/Get", by_source=0),
        use("evil/web", "/s.O/Drop", 0, 0, denied=9),
    )
    assert {tuple(getattr(one, "from")): one.only for one in answer.rules} == {
        ("acme/job", "acme/web"): CallStat.SOURCE
    }
    assert [(list(getattr(one, "from")), one.calls) for one in answer.denied] == [(["evil/web"], 9)]
    assert any("by their callers alone" in text for text in answer.warnings)
    assert any("by the service alone" in text for text in answer.warnings)


def test_many_methods_of_one_grpc_service_become_a_prefix_if_all_of_it_is_allowed() -> None:
    many = [use("acme/web", f"/s.O/M{number}") for number in range(5)]
    assert rules(proposed(mesh_of(allow(rule())), *many, prefix_from=4)) == [{"from": [WEB], "methods": ["/s.O/*"]}]
    assert proposed(mesh_of(allow(rule())), *many, prefix_from=4).rules[0].seen_methods == 5
    narrow = mesh_of(allow(rule(*(f"/s.O/M{number}" for number in range(6)))))
    assert rules(proposed(narrow, *many, prefix_from=4))[0]["methods"] == [f"/s.O/M{number}" for number in range(5)]


def test_verbs_stay_as_narrow_as_they_are() -> None:
    mesh = mesh_of(allow(rule("GET /*", "POST /s.O/Get")), protocol="HTTP")
    answer = proposed(mesh, use("acme/web", "GET /a"), use("acme/web", "/s.O/Get"), use("acme/web", "PUT /a"))
    assert rules(answer) == [{"from": [WEB], "methods": ["GET /a", "POST /s.O/Get"]}]


def test_a_path_that_no_rule_can_name_becomes_what_it_starts_with() -> None:
    answer = proposed(mesh_of(allow(rule()), protocol="HTTP"), use("acme/web", "GET /a b*"), use("acme/web", "_OTHER"))
    assert rules(answer) == [{"from": [WEB], "methods": ["GET /a*"]}]
    assert any("the method is not recorded" in text for text in answer.warnings)


def test_other_trust_domains_keep_who_is_named_for_nobody_knows_which_it_was() -> None:
    trust = made("TrustDomain", "platform", "b", {"trustDomain": "b.test"})
    named = [rule("/s.O/*", spiffeId="spiffe://b.test/x"), rule("/s.P/*", trustDomain="b.test")]
    answer = proposed(mesh_of(trust, allow(*named)), use("spiffe://b.test/*", "/s.O/Get", 0, 3))
    assert rules(answer) == [{"from": [{"spiffeId": "spiffe://b.test/x"}], "methods": ["/s.O/Get"]}]
    assert "which identities of spiffe://b.test called is not recorded" in answer.warnings[-1]


def test_what_nobody_used_is_told_with_its_last_use() -> None:
    policy = allow(rule("/s.O/Get", "/s.O/Put", **WEB), rule(tenant="acme", service="job"))
    answer = proposed(mesh_of(policy), use("acme/web", "/s.O/Get"), use("acme/web", "/s.O/Put", 0, 0, last_s=60))
    unused = [(one.field, getattr(one, "from"), one.method, one.last.seconds) for one in answer.unused]
    assert unused == [("spec.allow[0]", "acme/web", "/s.O/Put", 60), ("spec.allow[1]", "acme/job", "", 0)]


def test_policies_beside_the_proposed_one_are_named() -> None:
    answer = proposed(mesh_of(allow(rule()), allow(rule(), name="zzz")), use("acme/web", "/s.O/Get"))
    assert list(answer.beside) == ["platform/zzz"]
    assert "what platform/zzz allow stays allowed" in answer.warnings[-1]


METHODS = ["/s.O/Get", "/s.O/List", "GET /a", "GET /a/b", "POST /a", "_OTHER", "GET /a b", "overflow", ""]
PATTERNS = ["/s.O/*", "/s.O/Get", "POST /s.O/List", "GET /a*", "/a/*", "/*"]
SOURCES = ["acme/web", "acme/job", "globex/web", "unknown/unknown", "spiffe://b.test/*"]
callers = st.sampled_from(
    [
        {"tenant": "acme", "service": "web"},
        {"tenant": "acme", "service": "*"},
        {"tenant": "globex", "service": "*"},
        {"spiffeId": "spiffe://b.test/x"},
        {"trustDomain": "b.test"},
    ]
)
some_rules = st.lists(
    st.tuples(callers, st.lists(st.sampled_from(PATTERNS), max_size=3, unique=True)).map(
        lambda one: rule(*one[1], **one[0])
    ),
    min_size=1,
    max_size=4,
)
uses = st.lists(
    st.builds(
        Use,
        st.sampled_from(SOURCES),
        st.sampled_from(METHODS),
        st.integers(0, 2),
        st.integers(0, 2),
        st.integers(0, 2),
        st.sampled_from([0, 60]),
    ),
    max_size=8,
    unique_by=lambda one: one[:2],
)


@given(some_rules, uses, st.integers(1, 3))
def test_a_proposal_allows_what_was_used_and_nothing_that_is_denied_now(
    said: list[dict[str, Any]], seen: list[Use], prefix_from: int
) -> None:
    trust = made("TrustDomain", "platform", "b", {"trustDomain": "b.test"})
    mesh = mesh_of(trust, allow(*said), protocol="HTTP")
    answer = proposed(mesh, *seen, prefix_from=prefix_from)
    narrowed = mesh.fork()
    narrowed.apply(
        [Change(Key("AccessPolicy", "platform", "who"), answer.policy if answer.HasField("policy") else None)]
    )
    before, after = access(mesh, ORDERS), access(narrowed, ORDERS)
    for source in ("acme/web", "acme/job", "globex/web"):
        who = Name(*source.split("/"))
        for method in METHODS + [f"{one.split()[-1].removesuffix('*')}zz" for one in PATTERNS]:
            verb, _, path = method.rpartition(" ")
            if not path.startswith("/"):
                continue
            was, becomes = (one.find(who, path, verb or "POST") is not None for one in (before, after))
            assert was or not becomes, f"{source} {method} is widened"
            if was and any(one.calls and (one.source, one.method) == (source, method) for one in seen):
                assert becomes, f"{source} {method} was used"


def test_what_a_rule_asks_beside_caller_and_method_is_asked_by_the_proposal() -> None:
    web = {"from": [{"tenant": "acme", "service": "web"}]}
    rule = {
        **web,
        "headers": [{"name": "x-a", "exact": "1"}],
        "during": {"weekly": [{"days": ["MONDAY"]}], "timeZone": "Europe/Berlin"},
    }
    mesh = mesh_of(allow(rule, {**web, "methods": ["/s.O/*"]}))
    answer = proposed(mesh, use("acme/web", "/s.O/Get"))
    asked = {(bool(one.headers), one.HasField("during")): list(one.methods) for one in answer.policy.spec.allow}
    # Whether it had the header is not known: by which of the two it was allowed.
    assert asked == {(True, True): ["/s.O/Get"], (False, False): ["/s.O/Get"]}
    trial = made("AccessPolicy", "platform", "a-trial", {"service": "orders", "dryRun": True, "allow": [web]})
    assert not proposed(mesh_of(trial), use("acme/web", "/s.O/Get")).HasField("policy")
