"""When rules hold: by zones' clocks, over midnight and over their jumps, and what is compiled ahead of it."""

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from meshwarden.controlplane.policy import access
from meshwarden.controlplane.policy.compile import compile_scope
from meshwarden.controlplane.policy.explain import explain
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.window import Window
from meshwarden.sdk.access import Access
from meshwarden.v1 import admin_service_pb2, resources_pb2

BERLIN = ZoneInfo("Europe/Berlin")
ORDERS, WEB = Name("platform", "orders"), Name("acme", "web")
WEEKDAYS = ["MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY"]
OFFICE = {"weekly": [{"days": WEEKDAYS, "from": "09:00", "until": "18:00"}], "timeZone": "Europe/Berlin"}


def window(**said: Any) -> Window:
    return Window.of(json_format.ParseDict(said, resources_pb2.TimeWindow()))


def at(text: str, zone: Any = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def test_it_begins_with_its_first_moment_and_ends_before_its_last() -> None:
    found = window(**{"from": "2026-11-26T08:00:00Z", "until": "2026-11-26T17:00:00Z"})
    start_s, end_s = at("2026-11-26T08:00", UTC), at("2026-11-26T17:00", UTC)
    assert [found.holds(moment) for moment in (start_s - 1, start_s, end_s - 1, end_s)] == [False, True, True, False]
    assert [found.turn(moment) for moment in (start_s - 1, start_s, end_s)] == [start_s, end_s, None]
    assert window(**{"from": "2026-11-26T08:00:00Z"}).turn(start_s) is None
    assert str(found) == "from 2026-11-26T08:00:00Z, until 2026-11-26T17:00:00Z"


def test_weekly_hours_are_those_of_the_zone() -> None:
    found = window(**OFFICE)
    assert str(found) == "Monday to Friday 09:00 to 18:00 Europe/Berlin"
    # A Thursday, and the Monday after the weekend.
    assert found.holds(at("2026-11-26T09:00"))
    assert not found.holds(at("2026-11-26T18:00"))
    assert not found.holds(at("2026-11-28T12:00"))
    assert found.turn(at("2026-11-27T18:00")) == at("2026-11-30T09:00")
    assert found.ends(at("2026-11-26T12:00")) == at("2026-11-26T18:00")


def test_hours_may_end_on_the_next_day() -> None:
    found = window(weekly=[{"days": ["SUNDAY"], "from": "22:00", "until": "06:00"}], timeZone="Europe/Berlin")
    assert [found.holds(at(text)) for text in ("2026-11-29T21:59", "2026-11-29T22:00", "2026-11-30T05:59")] == [
        *(False, True, True)
    ]
    assert not found.holds(at("2026-11-30T06:00"))
    assert not found.holds(at("2026-11-29T05:00")), "those of Saturday"
    whole = window(weekly=[{"days": ["SUNDAY", "MONDAY"]}])
    assert whole.ends(at("2026-11-29T12:00", UTC)) == at("2026-12-01T00:00", UTC)


def test_clocks_that_jump_leave_no_hole() -> None:
    night = window(weekly=[{"days": ["SUNDAY"], "from": "01:00", "until": "04:00"}], timeZone="Europe/Berlin")
    # 2026-03-29 has no 02:30 there, and 2026-10-25 has it twice.
    for day, hours in (("2026-03-29", 2), ("2026-10-25", 4)):
        start_s = at(f"{day}T01:00")
        assert night.turn(start_s - 1) == start_s
        assert night.ends(start_s) == start_s + hours * 3600


moments = st.integers(int(at("2026-03-20T00:00")), int(at("2026-11-20T00:00")))
hours = st.builds(
    lambda days, start, end: {"days": days, "from": f"{start:02}:30", "until": f"{end:02}:00"},
    st.lists(st.sampled_from([*WEEKDAYS, "SATURDAY", "SUNDAY"]), min_size=1, max_size=3, unique=True),
    st.integers(0, 23),
    st.integers(0, 24),
)
windows = st.builds(
    lambda weekly, zone, start, length: window(
        weekly=weekly,
        timeZone=zone,
        **{"from": stamp(start), "until": stamp(start + length)} if length else {},
    ),
    st.lists(hours, min_size=1, max_size=3),
    st.sampled_from(["Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns", "UTC"]),
    moments,
    st.sampled_from([0, 3600, 86_400 * 30]),
)


def stamp(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@settings(max_examples=150, deadline=None)
@given(windows, moments, st.floats(0, 1, exclude_max=True))
def test_nothing_changes_before_its_turn(found: Window, moment: int, part: float) -> None:
    turn = found.turn(moment)
    until = turn if turn is not None else moment + 86_400 * 30
    assert until > moment
    between = min(moment + (until - moment) * part, until - 0.001)  # which may be rounded up to it
    assert found.holds(between) == found.holds(moment)


def made(kind: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": "platform", "name": name}, "spec": spec}
    return Change(Key(kind, "platform", name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def mesh_of(*, allow: Any = None, deny: Any = None, dry_run: bool = False) -> Mesh:
    web = {"from": [{"tenant": "acme", "service": "web"}]}
    spec = {
        "service": "orders",
        "allow": [web | ({"during": allow} if allow else {})],
        "deny": [{**web, "methods": ["/drop"], "during": deny}] if deny else [],
    }
    mesh = Mesh("mesh.test")
    mesh.apply([made("Service", "orders", {"protocol": "GRPC", "exportTo": ["acme"]})])
    mesh.apply([made("AccessPolicy", "p", spec | {"dryRun": dry_run})])
    return mesh


NOON, EVENING = at("2026-11-26T12:00"), at("2026-11-26T18:00")


def test_of_a_moment_that_nobody_knows_it_lets_in_too_little() -> None:
    said = access.access(mesh_of(allow=OFFICE, deny=OFFICE), ORDERS)
    assert said.at(NOON).find(WEB, "/get") is not None
    assert said.at(NOON).find(WEB, "/drop") is None
    assert said.at(EVENING).find(WEB, "/get") is None
    assert said.at(None).find(WEB, "/get") is None
    only_deny = access.access(mesh_of(deny=OFFICE), ORDERS)
    assert only_deny.at(EVENING).find(WEB, "/drop") is not None
    assert only_deny.at(None).find(WEB, "/drop") is None
    assert only_deny.at(None).find(WEB, "/get") is not None


@pytest.mark.parametrize("dialect", ["grpc", "envoy"])
def test_what_comes_is_compiled_ahead_and_closes_at_last(dialect: str) -> None:
    mesh, scope = mesh_of(allow=OFFICE), f"server/platform/orders/{dialect}"
    now = compile_scope(mesh, scope, at_s=NOON)
    hours = [at(f"2026-11-{day}T{hour}:00") for day, hour in ((26, 18), (27, "09"), (27, 18), (30, "09"), (30, 18))]
    assert [form.from_s for form in now.later] == hours
    closed = compile_scope(mesh, scope)
    assert closed.later == ()
    for form in now.later[:-1]:
        then = {**{one.name: one for one in now.resources}, **{one.name: one for one in form.resources}}
        exact = compile_scope(mesh, scope, at_s=form.from_s)
        assert set(then.values()) == set(exact.resources)
        assert form.access == exact.access
    assert set(now.later[-1].resources) <= set(closed.resources)
    assert now.later[-1].access == closed.access
    # A policy without times is compiled once and for all.
    assert compile_scope(mesh_of(), scope, at_s=NOON).later == ()
    assert compile_scope(mesh_of(), scope, at_s=NOON) == compile_scope(mesh_of(), scope)


def test_servers_that_ask_by_themselves_are_told_of_the_moment_and_rules_keep_their_numbers() -> None:
    mesh = mesh_of(allow=OFFICE, deny=OFFICE)
    caller = "spiffe://mesh.test/tenant/acme/service/web"
    for moment, allowed, rule in ((NOON, True, "platform/p#allow[0]"), (EVENING, False, ""), (None, False, "")):
        said = access.told(mesh, ORDERS, moment)
        verdict = Access(said, "mesh.test").decide(caller, "/get", ())
        assert (verdict.allowed, verdict.rule) == (allowed, rule)
        assert not any(rule.HasField("during") for rule in said.policies[0].spec.allow)


def asked(mesh: Mesh, at_s: float | None, method: str = "/get") -> Any:
    request = admin_service_pb2.ExplainRequest(to="platform/orders", method=method)
    setattr(request, "from", "acme/web")
    (step,) = [one for one in explain(mesh, request, at_s=at_s).steps if one.stage == "access"]
    return step


def test_explain_tells_until_when_and_when_else() -> None:
    mesh = mesh_of(allow=OFFICE, deny={"until": "2026-11-27T00:00:00Z"})
    now = asked(mesh, NOON)
    assert now.text == "allowed: web of tenant acme may call this, until 2026-11-26 18:00 Europe/Berlin"
    later = asked(mesh, EVENING)
    assert (later.text, later.field) == (
        "denied: allowed only Monday to Friday 09:00 to 18:00 Europe/Berlin",
        "spec.allow[0].during",
    )
    assert asked(mesh, NOON, "/drop").text.endswith("whatever allows it, until 2026-11-27 00:00 UTC")


def test_a_dry_run_changes_nothing_and_is_told() -> None:
    mesh = mesh_of()
    drop = {"from": [{"tenant": "acme", "service": "*"}], "methods": ["/drop"]}
    let_in = {"from": [{"tenant": "acme", "service": "job"}]}
    spec = {"service": "orders", "dryRun": True, "allow": [let_in], "deny": [drop]}
    mesh.apply([made("AccessPolicy", "try", spec)])
    said = access.access(mesh, ORDERS)
    assert said.find(WEB, "/drop") is not None
    assert said.find(Name("acme", "job"), "/get") is None
    places = [
        found.place if (found := said.find_dry_run(who, path)) is not None else ""
        for who, path in ((WEB, "/drop"), (WEB, "/get"), (Name("acme", "job"), "/get"), (Name("acme", "job"), "/drop"))
    ]
    assert places == ["platform/try#deny[0]", "", "platform/try#allow[0]", ""]
    told = Access(access.told(mesh, ORDERS), "mesh.test")
    prefix = "spiffe://mesh.test/tenant/acme/service/"
    verdicts = [told.decide(prefix + who, path, ()) for who, path in (("web", "/drop"), ("job", "/get"))]
    assert [(one.allowed, one.dry_run) for one in verdicts] == [(True, places[0]), (False, places[2])]
    request = admin_service_pb2.ExplainRequest(to="platform/orders", method="/drop")
    setattr(request, "from", "acme/web")
    answer = explain(mesh, request)
    (step,) = [one for one in answer.steps if one.stage == "dry run"]
    assert (step.resource, step.field, step.ok) == ("AccessPolicy platform/try", "spec.deny[0]", True)
    assert "would be denied" in step.text
