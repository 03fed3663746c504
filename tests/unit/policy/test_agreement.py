"""One truth: `explain`, the neutral forms and the replay of the ledger say the same of each call."""

from typing import Any

from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwarden.controlplane.policy import access, route
from meshwarden.controlplane.policy.explain import explain
from meshwarden.controlplane.policy.foresight.replay import Replay, Seen
from meshwarden.controlplane.policy.foresight.verdict import Call, Judge
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.v1 import admin_service_pb2, resources_pb2
from meshwarden.v1.preview_service_pb2 import ReplayedCalls
from meshwarden.v1.report_pb2 import CallStat

ORDERS = Name("platform", "orders")


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


CALLERS = ["acme/web", "acme/job", "globex/web"]
PATTERNS = ["/a", "/a*", "/a/b", "/*", "GET /a", "POST /a*", "POST /a/b", "PUT /*"]
METHODS = ["GET /a", "GET /ab", "POST /a", "POST /a/b", "PUT /", "GET /a/b/c"]
HEADERS = [{}, {"x-beta": "1"}, {"x-beta": "12"}, {"x-beta": "2"}, {"x-user": "u"}, {"x-beta": "1", "x-user": "u"}]
patterns = st.lists(st.sampled_from(PATTERNS), max_size=2, unique=True)
froms = st.lists(
    st.sampled_from(
        [
            {"tenant": "acme", "service": "web"},
            {"tenant": "acme", "service": "*"},
            {"tenant": "globex", "service": "web"},
        ]
    ),
    min_size=1,
    max_size=2,
)
headers = st.lists(
    st.sampled_from(
        [
            {"name": "x-beta", "exact": "1"},
            {"name": "x-beta", "prefix": "1"},
            {"name": "x-user", "present": True},
            {"name": "x-user", "present": False},
        ]
    ),
    max_size=2,
)
allows = st.lists(
    st.builds(lambda who, methods: {"from": who, "methods": methods}, froms, patterns), min_size=1, max_size=3
)
splits = st.lists(
    st.builds(
        lambda version, weight: {"version": version, "weight": weight}, st.sampled_from(["v1", "v2"]), st.integers(1, 9)
    ),
    min_size=1,
    max_size=2,
)
ways = st.lists(
    st.builds(
        lambda methods, asked, split: {"match": {"methods": methods, "headers": asked}, "split": split},
        patterns,
        headers,
        splits,
    ),
    max_size=3,
)
rates = st.lists(
    st.builds(
        lambda tenant, requests: {"tenant": tenant, "requests": requests},
        st.sampled_from(["acme", "*"]),
        st.integers(1, 9),
    ),
    max_size=2,
    unique_by=lambda limit: limit["tenant"],
)
exports = st.sampled_from([[], ["acme"], ["*"], ["acme", "globex"]])


@st.composite
def policies(draw: st.DrawFn) -> list[Change]:
    found = [made("Service", *ORDERS, {"protocol": "HTTP", "exportTo": draw(exports)})]
    for name in draw(st.sampled_from([[], ["a"], ["a", "b"]])):
        found.append(made("AccessPolicy", "platform", name, {"service": "orders", "allow": draw(allows)}))
    if rules := draw(ways):
        found.append(made("RoutePolicy", "platform", "way", {"service": "orders", "rules": rules}))
    if limits := draw(rates):
        found.append(made("RatePolicy", "platform", "much", {"service": "orders", "limits": limits}))
    return found


def mesh_of(changes: list[Change]) -> Mesh:
    mesh = Mesh("mesh.test")
    mesh.apply([*changes, *(made("Service", *caller.split("/"), {"protocol": "HTTP"}) for caller in CALLERS)])
    return mesh


def explained(mesh: Mesh, caller: str, method: str, given_headers: dict[str, str]) -> Any:
    request = admin_service_pb2.ExplainRequest(to=str(ORDERS), method=method, headers=given_headers)
    setattr(request, "from", caller)
    return explain(mesh, request)


def what(answer: Any) -> tuple[bool, tuple[tuple[str, float], ...]]:
    """Whether a call passes, and where it goes."""
    shares: dict[str, float] = {}
    for one in answer.routes:
        shares[one.version] = shares.get(one.version, 0.0) + one.percent
    passes = answer.visible and answer.decision == CallStat.ALLOWED
    return passes, tuple(sorted((version, round(percent, 6)) for version, percent in shares.items()))


@settings(max_examples=150)
@given(policies(), st.sampled_from(CALLERS), st.sampled_from(METHODS), st.sampled_from(HEADERS))
def test_explain_says_what_the_neutral_forms_say_and_names_who_decides(
    changes: list[Change], caller: str, method: str, given_headers: dict[str, str]
) -> None:
    mesh = mesh_of(changes)
    answer = explained(mesh, caller, method, given_headers)
    verb, _, path = method.partition(" ")
    who = Name(*caller.split("/"))
    verdict = Judge(mesh).verdict(who, ORDERS, Call(path, verb, tuple(sorted(given_headers.items()))))
    assert (answer.visible, answer.decision == CallStat.ALLOWED) == (verdict.seen, verdict.allowed)
    assert (access.access(mesh, ORDERS).find(who, path, verb) is not None) == verdict.allowed
    assert what(answer)[1] == tuple((version, round(float(share * 100), 6)) for version, share in verdict.way.split)
    steps = {step.stage: step for step in answer.steps}
    assert set(steps) == {"visibility", "access", "route", "limit", "endpoints"}
    if verdict.grant is not None:
        policy, field = verdict.grant
        assert (steps["access"].resource, steps["access"].field) == (f"AccessPolicy {policy}", field)
    elif access.access(mesh, ORDERS).grants:
        assert (steps["access"].resource.partition(" ")[0], steps["access"].field) == ("AccessPolicy", "spec.allow")
    if verdict.rule >= 0:
        assert steps["route"].field == f"spec.rules[{verdict.rule}]"
        assert steps["route"].resource == f"RoutePolicy {route.route(mesh, ORDERS).policy}"
    assert bool(answer.limit) == bool(verdict.limits) == steps["limit"].field.startswith("spec.limits[")


@settings(max_examples=150)
@given(policies(), policies(), st.sampled_from(CALLERS), st.sampled_from(METHODS))
def test_what_a_replay_decides_is_what_explain_says_whatever_the_headers_were(
    before: list[Change], after: list[Change], caller: str, method: str
) -> None:
    old, new = mesh_of(before), mesh_of(after)
    replay = Replay(Judge(old), Judge(new), frozenset({ORDERS}))
    decided = replay.decide(Seen(caller, str(ORDERS), method, 1, 1))
    found = set()
    for given_headers in HEADERS:
        (was, way), (becomes, other) = (what(explained(mesh, caller, method, given_headers)) for mesh in (old, new))
        if was != becomes:
            kind = ReplayedCalls.ALLOWED if becomes else ReplayedCalls.DENIED
        else:
            kind = ReplayedCalls.REROUTED if becomes and way != other else ReplayedCalls.OUTCOME_UNSPECIFIED
        found.add(
            (kind, way if kind == ReplayedCalls.REROUTED else (), other if kind == ReplayedCalls.REROUTED else ())
        )
    if decided.kind == ReplayedCalls.UNDECIDABLE:
        assert decided.needs.startswith("the header")
    else:
        assert {kind for kind, _, _ in found} == {decided.kind}
        assert len(found) == 1, "that which is decided is the same for all headers"
