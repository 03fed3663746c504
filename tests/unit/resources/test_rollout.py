"""What a rollout must hold, and what may not be changed beside one."""

from datetime import UTC, datetime
from typing import Any

import pytest

from meshwarden.controlplane.resources.manifest import ManifestFaults, parse
from meshwarden.controlplane.resources.model import normalise, ref_of, unwrap
from meshwarden.controlplane.resources.reference import reference_faults, users
from meshwarden.controlplane.resources.rollout import MOST_RUNNING, proposed
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resources_pb2 import Resource, Rollout, RolloutStatus

NOW = datetime(2026, 1, 2, tzinfo=UTC)
MESH = """\
kind: Tenant
metadata: {name: shop}
---
kind: Tenant
metadata: {name: acme}
---
kind: Service
metadata: {tenant: shop, name: orders}
spec: {protocol: GRPC}
---
kind: WorkloadEntry
metadata: {tenant: shop, name: orders-v1}
spec: {service: orders, nodes: [n1], selectors: {uid: 1001}, version: v1, port: 7001}
---
kind: AccessPolicy
metadata: {tenant: shop, name: orders}
spec: {service: orders, allow: [{from: [{service: orders}]}]}
"""
ROUTE = """\
    - kind: RoutePolicy
      metadata: {tenant: shop, name: orders}
      spec: {service: orders, rules: [{split: [{version: v1, weight: 1}]}]}
"""
ROLLOUT = f"""\
kind: Rollout
metadata: {{tenant: shop, name: r}}
spec:
  routePolicies:
{ROUTE}  stages: [{{percent: 10, hold: 10s}}, {{all: true}}]
"""


def one(text: str) -> Resource:
    return parse(text, "m")[0].resource


def faults(text: str) -> list[str]:
    with pytest.raises(ManifestFaults) as caught:
        parse(text, "m")
    return [f"{fault.field}: {fault.message}" for fault in caught.value.faults]


def begun(text: str = ROLLOUT, phase: "RolloutStatus.Phase.ValueType" = RolloutStatus.RUNNING) -> Resource:
    resource = one(text)
    resource.rollout.status.phase = phase
    return resource


def view(*more: Resource) -> View:
    made = View()
    for located in parse(MESH, "m"):
        made.put(located.resource)
    for resource in more:
        made.put(resource)
    return made


def told(batch: list[Resource], before: View) -> list[str]:
    return [f"{fault.field}: {fault.message}" for fault in reference_faults(batch, before)]


def with_spec(**spec: Any) -> str:
    lines = "".join(f"  {name}: {value}\n" for name, value in spec.items())
    return f"kind: Rollout\nmetadata: {{tenant: shop, name: r}}\nspec:\n{lines}"


STAGES = "[{percent: 10}]"
DELETE = "[{kind: RoutePolicy, name: orders}]"


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"stages": STAGES}, "must change something"),
        ({"deletions": DELETE}, "spec.stages"),
        ({"deletions": DELETE, "stages": "[{percent: 0}]"}, "spec.stages[0].percent"),
        ({"deletions": DELETE, "stages": "[{percent: 101}]"}, "spec.stages[0].percent"),
        ({"deletions": DELETE, "stages": "[{percent: .nan}]"}, "spec.stages[0].percent"),
        ({"deletions": DELETE, "stages": "[{hold: 5s}]"}, "spec.stages[0]"),
        ({"deletions": DELETE, "stages": "[{all: false}]"}, "spec.stages[0].all"),
        ({"deletions": DELETE, "stages": "[{zone: ''}]"}, "spec.stages[0].zone"),
        ({"deletions": DELETE, "stages": "[{percent: 10, hold: 0s}]"}, "spec.stages[0].hold"),
        ({"deletions": DELETE, "stages": "[{percent: 10, hold: 700000s}]"}, "spec.stages[0].hold"),
        ({"deletions": DELETE, "stages": "[{percent: 10, wait: -1s}]"}, "spec.stages[0].wait"),
        ({"deletions": DELETE, "stages": "[{percent: 10}, {percent: 10}]"}, "must be more than the 10"),
        ({"deletions": DELETE, "stages": "[{all: true}, {zone: a}]"}, "all nodes have the change by the stage before"),
        ({"deletions": DELETE, "stages": "[" + ", ".join(["{zone: a}"] * 17) + "]"}, "spec.stages"),
        ({"deletions": "[{kind: RatePolicy, name: x}]", "stages": STAGES}, "spec.deletions[0].kind"),
        ({"deletions": "[{kind: Service, name: x}]", "stages": STAGES}, "spec.deletions[0].kind"),
        ({"deletions": "[{kind: RoutePolicy, name: X}]", "stages": STAGES}, "spec.deletions[0].name"),
        ({"deletions": DELETE[:-1] + ", " + DELETE[1:], "stages": STAGES}, "stands in spec.deletions[0] already"),
        ({"deletions": DELETE, "stages": STAGES, "judge": "{maxBurn: -1}"}, "spec.judge.maxBurn"),
        ({"deletions": DELETE, "stages": STAGES, "judge": "{onNoTraffic: GUESS}"}, "spec.judge.onNoTraffic"),
        ({"ratePolicies": "[]", "deletions": DELETE, "stages": STAGES}, "spec.ratePolicies"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_field(spec: dict[str, str], wanted: str) -> None:
    assert any(wanted in fault for fault in faults(with_spec(**spec))), faults(with_spec(**spec))


def test_policies_within_are_held_against_their_own_rules() -> None:
    assert faults(ROLLOUT.replace("tenant: shop, name: orders}", "tenant: acme, name: orders}")) == [
        "spec.routePolicies[0].metadata.tenant: must be shop: a rollout changes policies of its own tenant"
    ]
    bad = ROLLOUT.replace("{split: [{version: v1, weight: 1}]}", "{fault: {}}")
    assert faults(bad) == ["spec.routePolicies[0].spec.rules[0].fault: give delay, abort or both"]
    assert faults(ROLLOUT.replace("kind: RoutePolicy", "kind: Route"))[0].startswith("spec.routePolicies[0].kind:")
    many = [
        f"    - kind: RoutePolicy\n      metadata: {{tenant: shop, name: r{number}}}\n"
        "      spec: {service: orders, rules: [{timeout: 1s}]}\n"
        for number in range(51)
    ]
    assert any("spec.routePolicies" in fault for fault in faults(ROLLOUT.replace(ROUTE, "".join(many))))
    half = (
        "".join(many[:30])
        + "  deletions: ["
        + ", ".join(f"{{kind: RoutePolicy, name: d{n}}}" for n in range(30))
        + "]\n"
    )
    assert any("changes 60 policies; the limit is 50" in fault for fault in faults(ROLLOUT.replace(ROUTE, half)))


def test_what_policies_within_name_must_be_there_once_they_are_made() -> None:
    assert told([one(ROLLOUT)], view()) == []
    assert told([one(ROLLOUT.replace("v1", "v9"))], view()) == [
        "resources[0].spec.routePolicies[0].spec.rules[0].split[0].version: no workload entry of shop/orders has"
        " version v9; it has v1"
    ]
    missing = with_spec(deletions=DELETE, stages=STAGES)
    assert told([one(missing)], view()) == ["resources[0].spec.deletions[0]: there is no RoutePolicy shop/orders"]


def test_what_a_rollout_changes_nobody_else_does() -> None:
    route = one(ROUTE.replace("    - ", "", 1).replace("\n      ", "\n"))
    before = view(begun())
    wanted = "Rollout shop/r changes RoutePolicy shop/orders at present: wait until it is over, or abort it"
    assert f"resources[0].metadata.name: {wanted}" in told([route], before)
    assert f"resources[1].metadata.name: {wanted}" in told([one(ROLLOUT), route], view()), "nor beside it"
    assert told([route], view(begun(phase=RolloutStatus.ROLLED_BACK))) == []
    both = view(begun(), route)
    assert told([normalise(route)], both) == [], "as it is it may be applied"
    assert any("Rollout shop/r changes RoutePolicy shop/orders" in user for user in users([ref_of(route)], both))
    other = one(MESH.split("---\n")[-1])
    assert told([other], before) == [], "what it doesn't change is anybody's"


def test_what_a_rollout_needs_is_not_taken_away_under_it() -> None:
    entry = one(MESH.split("---\n")[3].replace("version: v1", "version: v2"))
    (fault,) = [text for text in told([entry], view(begun())) if "under way" in text]
    assert "with it Rollout shop/r, which is under way, could not be committed" in fault
    (hidden,) = [
        text for text in told([entry], view(begun()).seen_by(lambda tenant: tenant == "acme")) if "under way" in text
    ]
    assert "shop/r" not in hidden
    assert any("Rollout shop/r needs it" in user for user in users([ref_of(entry)], view(begun())))
    assert told([entry], view(begun(phase=RolloutStatus.COMMITTED))) == []


def test_a_tenant_has_one_at_a_time_and_a_mesh_a_few() -> None:
    other = one(ROLLOUT.replace("name: r}", "name: s}"))
    one_at_a_time = "Rollout shop/r is under way: a tenant has one at a time"
    assert any(one_at_a_time in text for text in told([other], view(begun())))
    changed = one(ROLLOUT.replace("percent: 10", "percent: 20"))
    changed.rollout.status.phase = RolloutStatus.RUNNING
    assert told([changed], view(begun())) == ["resources[0].spec: it is under way: abort it before it is changed"]
    busy = view()
    for number in range(MOST_RUNNING):
        resource = begun()
        resource.rollout.metadata.tenant = f"t{number}"
        busy.put(resource)
    assert any(f"{MOST_RUNNING} rollouts are under way in the mesh" in text for text in told([one(ROLLOUT)], busy))


def rollout(text: str = ROLLOUT, **status: Any) -> Rollout:
    made = one(text).rollout
    made.status.MergeFrom(RolloutStatus(**status))
    return made


def test_its_status_is_the_meshs_own_word() -> None:
    lied = rollout(phase=RolloutStatus.COMMITTED, stage=9, reason="all is well")
    made = proposed(lied, None, NOW, "00-a-b-01")
    assert (made.status.phase, made.status.stage, made.status.trace_parent) == (RolloutStatus.PENDING, 0, "00-a-b-01")
    assert made.status.start_time.ToDatetime(UTC) == NOW
    running = rollout(phase=RolloutStatus.RUNNING, stage=1)
    assert proposed(lied, running, NOW, "").status == running.status
    done = rollout(phase=RolloutStatus.COMMITTED, stage=1)
    assert proposed(rollout(), done, NOW, "").status == done.status, "the same again is no new one"
    again = proposed(rollout(ROLLOUT.replace("percent: 10", "percent: 20")), done, NOW, "")
    assert (again.status.phase, again.status.stage) == (RolloutStatus.PENDING, 0)


def test_unwrapped_it_is_a_resource_like_any_other() -> None:
    resource = one(ROLLOUT)
    assert isinstance(unwrap(resource), Rollout)
    assert (ref_of(resource).kind, ref_of(resource).tenant, ref_of(resource).name) == ("Rollout", "shop", "r")
