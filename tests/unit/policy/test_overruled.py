"""Rules that others overrule are told, with whose calls it is about; whatever still decides is not."""

from typing import Any

from tests.unit.policy.test_effect import BASE, allow, made, route, split, web

from meshwarden.controlplane.policy.foresight.overruled import overruled
from meshwarden.controlplane.policy.foresight.verdict import Judge
from meshwarden.controlplane.policy.mesh import Change, Mesh

EVERYONE = {"from": [{"tenant": "acme", "service": "*"}]}


def policy(name: str, **rules: Any) -> Change:
    return made("AccessPolicy", "platform", name, {"service": "orders", **rules})


def told(*changes: Change, of: Change, spend: Any = lambda steps: True) -> list[tuple[str, str, bool, list[str]]]:
    mesh = Mesh("mesh.test")
    mesh.apply((*BASE[:-1], *changes, of))
    return [
        (
            one.field,
            f"{one.by_resource.rpartition('/')[2]} {one.by_field}",
            one.wholly,
            list(getattr(one, "from")),
        )
        for one in overruled(Judge(mesh), [of.key], spend)
    ]


def test_what_another_policy_denies_is_told_in_part_and_whole() -> None:
    denies = policy("no", deny=[web("/s.O/Get")])
    assert told(denies, of=allow(web("/s.O/Get"))) == [("spec.allow[0]", "no spec.deny[0]", True, ["acme/web"])]
    assert told(denies, of=allow(web("/s.O/*"))) == [("spec.allow[0]", "no spec.deny[0]", False, ["acme/web"])]
    assert told(denies, of=allow(EVERYONE)) == [("spec.allow[0]", "no spec.deny[0]", False, ["acme/web"])]
    assert not told(denies, of=allow(web("/s.O/List"), web(service="job"))), "it is about none of these"
    # Of the denial's own policy nothing is told: what it keeps out it says.
    assert not told(of=denies)


def test_a_policys_own_denial_is_told_where_nothing_is_left() -> None:
    assert not told(of=policy("one", allow=[web("/s.O/*")], deny=[web("/s.O/Get")]))
    both = policy("one", allow=[web("/s.O/Get"), web("/s.O/List")], deny=[EVERYONE | {"methods": ["/s.O/Get"]}])
    assert told(of=both) == [("spec.allow[0]", "one spec.deny[0]", True, ["acme/web"])]


def test_a_denial_for_a_time_or_of_a_header_leaves_something() -> None:
    at_night = policy(
        "no", deny=[web() | {"during": {"weekly": [{"days": ["MONDAY"], "from": "00:00", "until": "06:00"}]}}]
    )
    assert told(at_night, of=allow(web())) == [("spec.allow[0]", "no spec.deny[0]", False, ["acme/web"])]
    marked = policy("no", deny=[web() | {"headers": [{"name": "x-bad", "present": True}]}])
    assert told(marked, of=allow(web())) == [("spec.allow[0]", "no spec.deny[0]", False, ["acme/web"])]
    unmarked = policy("no", deny=[web() | {"headers": [{"name": "x-bad", "present": False}]}])
    whole = policy("no2", deny=[web() | {"headers": [{"name": "x-bad", "present": True}]}])
    assert {one[2] for one in told(unmarked, whole, of=allow(web()))} == {True}, "between them they deny all"


def test_a_dry_run_overrules_nothing_and_is_not_overruled() -> None:
    tried = policy("no", deny=[web()], dryRun=True)
    assert not told(tried, of=allow(web()))
    assert not told(policy("no", deny=[web()]), of=policy("try", allow=[web()], dryRun=True))


def test_a_rule_of_a_route_that_no_call_gets_to_is_told() -> None:
    get, beta = {"methods": ["/s.O/Get"]}, {"headers": [{"name": "x-beta", "exact": "1"}]}
    late = route({"match": {"methods": ["/s.O/*"]}, **split(v1=1)}, {"match": get, **split(v2=1)}, split(v1=1))
    assert [one[:3] for one in told(of=late)] == [("spec.rules[1]", "orders spec.rules[0]", True)]
    assert not told(
        of=route({"match": get, **split(v1=1)}, {"match": {"methods": ["/s.O/*"]}, **split(v2=1)}, split(v1=1))
    )
    assert not told(of=route({"match": get | beta, **split(v1=1)}, {"match": get, **split(v2=1)}, split(v1=1)))
    two = [{"match": {"headers": [{"name": "x-beta", "present": said}]}, **split(v1=1)} for said in (True, False)]
    assert [one[:2] for one in told(of=route(*two, split(v2=1)))] == [
        ("spec.rules[2]", "orders spec.rules[0]"),
        ("spec.rules[2]", "orders spec.rules[1]"),
    ]


def test_where_there_is_no_time_nothing_is_claimed() -> None:
    assert not told(policy("no", deny=[web()]), of=allow(web()), spend=lambda steps: False)
