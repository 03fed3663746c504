"""A server that asks by itself decides as the neutral form does, of whatever policies."""

from typing import Any

from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwarden.controlplane.policy import access
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Foreign, Name, spiffe_of
from meshwarden.sdk.access import Access
from meshwarden.v1 import resources_pb2

HOME, OTHERS = "mesh.test", ["other.test", "other.testx", "gone.test"]
ORDERS = Name("platform", "orders")
TENANTS, SERVICES = ["platform", "acme", "acme2"], ["web", "web2"]
PATHS = ["/s.O/Get", "/s.O/GetAll", "/s.O/", "/s.P/Get"]
FOREIGN = ["/x", "/tenant/acme/service/web"]

callers = st.one_of(
    st.builds(lambda t, s: {"tenant": t, "service": s}, st.sampled_from(TENANTS), st.sampled_from(["*", *SERVICES])),
    st.builds(lambda s: {"service": s}, st.sampled_from(["*", *SERVICES])),
    st.builds(lambda d: {"trustDomain": d}, st.sampled_from(OTHERS)),
    st.builds(lambda d, p: {"spiffeId": f"spiffe://{d}{p}"}, st.sampled_from(OTHERS), st.sampled_from(FOREIGN)),
)
methods = st.builds(
    lambda verb, path, star: verb + path + star,
    st.sampled_from(["", "POST ", "GET "]),
    st.sampled_from(["/", *PATHS]),
    st.sampled_from(["", "*"]),
)
conditions = st.one_of(
    st.builds(lambda v: {"exact": v}, st.sampled_from(["", "1", "1,2"])),
    st.builds(lambda v: {"prefix": v}, st.sampled_from(["1", "1,"])),
    st.builds(lambda v: {"present": v}, st.booleans()),
)
headers = st.builds(lambda n, c: {"name": n, **c}, st.sampled_from(["x-a", "x-b"]), conditions)
rules = st.builds(
    lambda who, said, sent: {"from": who, "methods": said, "headers": sent},
    st.lists(callers, min_size=1, max_size=3),
    st.lists(methods, max_size=2, unique=True),
    st.lists(headers, max_size=2),
)
policies = st.builds(
    lambda allow, deny, dry: {"service": "orders", "allow": allow, "deny": deny, "dryRun": dry},
    st.lists(rules, max_size=3),
    st.lists(rules, max_size=2),
    st.sampled_from([False, False, True]),
)
names = st.builds(Name, st.sampled_from(TENANTS), st.sampled_from(SERVICES)) | st.builds(
    Foreign, st.sampled_from([*OTHERS, "third.test"]), st.sampled_from(FOREIGN)
)
sent = st.lists(st.tuples(st.sampled_from(["x-a", "x-b"]), st.sampled_from(["", "1", "2"])), max_size=3)


def mesh_of(said: list[dict[str, Any]]) -> Mesh:
    mesh = Mesh(HOME)
    changes = []
    for number, domain in enumerate(OTHERS[:2]):  # the third is trusted no more
        changes.append(made("TrustDomain", f"t{number}", {"trustDomain": domain}))
    mesh.apply([*changes, *(made("AccessPolicy", f"p{number}", spec) for number, spec in enumerate(said))])
    return mesh


def made(kind: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": "platform", "name": name}, "spec": spec}
    return Change(Key(kind, "platform", name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def joined(metadata: list[tuple[str, str]]) -> dict[str, str]:
    return {name: ",".join(value for key, value in metadata if key == name) for name, _ in metadata}


@settings(max_examples=300)
@given(st.lists(policies, max_size=3), st.lists(st.tuples(names, st.sampled_from(PATHS), sent), min_size=1, max_size=4))
def test_it_decides_as_the_neutral_form_does(said: list[dict[str, Any]], calls: list[Any]) -> None:
    mesh = mesh_of(said)
    neutral, told = access.access(mesh, ORDERS), Access(access.told(mesh, ORDERS), HOME)
    for caller, path, metadata in (*calls, *calls):  # what is remembered is the same
        verdict = told.decide(spiffe_of(caller, HOME), path, metadata)
        grant = neutral.find(caller, path, "POST", headers=joined(metadata))
        denial = neutral.find_denial(caller, path, "POST", joined(metadata))
        assert verdict.allowed == (grant is not None)
        rule = grant or denial
        assert verdict.rule == (rule.place if rule is not None else "")
        dry_run = neutral.find_dry_run(caller, path, "POST", joined(metadata))
        assert verdict.dry_run == (dry_run.place if dry_run is not None else "")


def test_nobody_is_let_in_by_a_name_that_only_looks_like_anothers() -> None:
    said = [{"service": "orders", "allow": [{"from": [{"tenant": "acme", "service": "*"}]}]}]
    told = Access(access.told(mesh_of(said), ORDERS), HOME)
    good = f"spiffe://{HOME}/tenant/acme/service/"
    assert told.decide(good + "web", "/a", ()).allowed
    for bad in (
        good,
        good + "web/more",
        f"spiffe://{HOME}/tenant/acme/operator/web",
        f"spiffe://{HOME}/tenant/acme",
        f"spiffe://{HOME}x/tenant/acme/service/web",
        f"spiffe://{HOME}",
        "",
        "spiffe://",
    ):
        assert not told.decide(bad, "/a", ()).allowed, bad
    assert told.decide(good + "web", "/a", ()).rule == "platform/p0#allow[0]"


def test_what_is_remembered_is_bounded() -> None:
    said = [{"service": "orders", "allow": [{"from": [{"tenant": "acme", "service": "*"}], "methods": ["/a*"]}]}]
    told = Access(access.told(mesh_of(said), ORDERS), HOME)
    for number in range(5000):
        assert told.decide(f"spiffe://{HOME}/tenant/acme/service/s{number}", "/a", ()).allowed
        assert told.decide(f"spiffe://{HOME}/tenant/acme/service/web", f"/a{number}", ()).allowed
    assert len(told._callers) <= 4096
    assert all(len(caller.verdicts) <= 1024 for caller in told._callers.values())
