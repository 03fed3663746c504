# ruff: noqa: E501 - manifests and faults are quoted whole
"""What resources say of each other."""

from collections.abc import Iterator

import pytest

from meshwarden.controlplane.resources import reference
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.controlplane.resources.model import AnyResource, ref_of
from meshwarden.controlplane.resources.reference import reference_faults, users
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resource_service_pb2 import ResourceRef
from meshwarden.v1.resources_pb2 import Resource

MESH = """\
kind: Tenant
metadata: {name: platform}
---
kind: Tenant
metadata: {name: acme}
---
kind: Tenant
metadata: {name: globex}
---
kind: Service
metadata: {tenant: platform, name: orders}
spec: {protocol: GRPC, exportTo: [acme]}
---
kind: Service
metadata: {tenant: acme, name: web}
spec: {protocol: HTTP}
---
kind: WorkloadEntry
metadata: {tenant: platform, name: orders-v1}
spec: {service: orders, nodes: [n1, n2], selectors: {uid: 1001}, version: v1, port: 1}
---
kind: WorkloadEntry
metadata: {tenant: acme, name: web}
spec: {service: web, nodes: [n1], selectors: {uid: 1002}}
---
kind: AccessPolicy
metadata: {tenant: platform, name: orders}
spec: {service: orders, allow: [{from: [{tenant: acme, service: web}, {service: orders}]}]}
---
kind: RoutePolicy
metadata: {tenant: platform, name: orders}
spec: {service: orders, rules: [{split: [{version: v1, weight: 1}]}]}
---
kind: RatePolicy
metadata: {tenant: platform, name: orders}
spec: {service: orders, limits: [{tenant: acme, requests: 5}, {tenant: "*", requests: 1}]}
"""
ENTRY = "kind: WorkloadEntry\nmetadata: {tenant: TENANT, name: NAME}\nspec: {service: web, nodes: [NODE], selectors: {uid: 1002}}\n"


def batch(text: str) -> list[Resource]:
    return [located.resource for located in parse(text, "m")]


@pytest.fixture
def mesh() -> View:
    view = View()
    for resource in batch(MESH):
        view.put(resource)
    return view


def told(text: str, view: View) -> list[str]:
    return [f"{fault.field}: {fault.message}" for fault in reference_faults(batch(text), view)]


def test_a_whole_mesh_may_come_in_one_batch_in_any_order(mesh: View) -> None:
    assert reference_faults(list(reversed(batch(MESH))), View()) == []
    assert reference_faults(batch(MESH), mesh) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "kind: Service\nmetadata: {tenant: platfrm, name: a}\nspec: {protocol: GRPC}",
            "resources[0].metadata.tenant: there is no Tenant platfrm; did you mean platform?",
        ),
        (
            "kind: Service\nmetadata: {tenant: acme, name: a}\nspec: {protocol: GRPC, exportTo: ['*', initech]}",
            "resources[0].spec.exportTo[1]: there is no Tenant initech",
        ),
        (
            "kind: WorkloadEntry\nmetadata: {tenant: acme, name: x}\nspec: {service: wbe, nodes: [n], selectors: {gid: 1}}",
            "resources[0].spec.service: there is no Service acme/wbe; did you mean web?",
        ),
        (
            "kind: Endpoint\nmetadata: {tenant: acme, name: x}\nspec: {service: web, address: 10.0.0.1, port: 1, entry: shop}",
            "resources[0].spec.entry: there is no WorkloadEntry acme/shop",
        ),
        (
            "kind: AccessPolicy\nmetadata: {tenant: acme, name: x}\nspec: {service: orders, allow: [{from: [{service: '*'}]}]}",
            "resources[0].spec.service: there is no Service acme/orders",
        ),
        (
            "kind: AccessPolicy\nmetadata: {tenant: platform, name: x}\n"
            "spec: {service: orders, allow: [{from: [{tenant: acme, service: web}, {tenant: acme, service: shop}]}]}",
            "resources[0].spec.allow[0].from[1].service: there is no Service acme/shop",
        ),
        (
            "kind: AccessPolicy\nmetadata: {tenant: platform, name: x}\n"
            "spec: {service: orders, allow: [{from: [{tenant: initech, service: '*'}]}]}",
            "resources[0].spec.allow[0].from[0].tenant: there is no Tenant initech",
        ),
        (
            "kind: AccessPolicy\nmetadata: {tenant: platform, name: x}\n"
            "spec: {service: orders, allow: [{from: [{tenant: globex, service: '*'}]}]}",
            "resources[0].spec.allow[0].from[0].tenant: Service platform/orders is not exported to globex: add it to its"
            " exportTo",
        ),
        (
            "kind: RoutePolicy\nmetadata: {tenant: platform, name: orders}\n"
            "spec: {service: orders, rules: [{split: [{version: v1, weight: 1}, {version: v2, weight: 1}]}]}",
            "resources[0].spec.rules[0].split[1].version: no workload entry of platform/orders has version v2; it has v1",
        ),
        (
            "kind: RoutePolicy\nmetadata: {tenant: platform, name: second}\n"
            "spec: {service: orders, rules: [{split: [{version: v1, weight: 1}]}]}",
            "resources[0].spec.service: RoutePolicy platform/orders is for this service already: a service has at most one"
            " RoutePolicy",
        ),
        (
            "\n---\n".join(
                f"kind: RatePolicy\nmetadata: {{tenant: platform, name: p{number}}}\n"
                "spec: {service: orders, limits: [{tenant: '*', requests: 1}]}"
                for number in range(8)
            ),
            "resources[7].spec.service: a service has at most 8 RatePolicies of its own",
        ),
        (
            "kind: RatePolicy\nmetadata: {tenant: platform, name: orders}\n"
            "spec: {service: orders, limits: [{tenant: initech, requests: 1}]}",
            "resources[0].spec.limits[0].tenant: there is no Tenant initech",
        ),
        (
            "kind: Service\nmetadata: {tenant: platform, name: orders}\nspec: {protocol: GRPC}",
            "resources[0].spec.exportTo: AccessPolicy platform/orders needs what was here: spec.allow[0].from[0].tenant:"
            " Service platform/orders is not exported to acme: add it to its exportTo",
        ),
        (
            "kind: WorkloadEntry\nmetadata: {tenant: platform, name: orders-v1}\n"
            "spec: {service: orders, nodes: [n1], selectors: {uid: 1001}, version: v2}",
            "resources[0].spec.version: RoutePolicy platform/orders needs what was here: spec.rules[0].split[0].version:"
            " no workload entry of platform/orders has version v1; it has v2",
        ),
    ],
)
def test_what_is_named_must_be_there(mesh: View, text: str, fault: str) -> None:
    assert told(text, mesh) == [fault]


def test_every_fault_of_a_batch_is_told_with_its_place(mesh: View) -> None:
    text = """\
kind: RoutePolicy
metadata: {tenant: acme, name: a}
spec: {service: web, rules: [{split: [{version: v7, weight: 1}]}]}
---
kind: RoutePolicy
metadata: {tenant: acme, name: b}
spec: {service: web, rules: [{split: [{version: v8, weight: 1}]}]}
"""
    assert [fault.partition(": ")[0] for fault in told(text, mesh)] == [
        "resources[0].spec.rules[0].split[0].version",
        "resources[0].spec.service",
        "resources[1].spec.rules[0].split[0].version",
        "resources[1].spec.service",
    ]


def test_a_name_stands_once(mesh: View) -> None:
    one = batch("kind: Service\nmetadata: {tenant: acme, name: a}\nspec: {protocol: GRPC}")
    (fault,) = reference_faults(one * 2, mesh)
    assert fault.field == "resources[1].metadata.name"
    assert fault.message == "Service acme/a stands in resources[0] already"


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"NODE": "n1"}, True),
        ({"NODE": "n2"}, False),
        ({"NODE": "n1", "1002": "1009"}, False),
        ({"NODE": "n1", "uid: 1002": "path: /bin/x"}, False),
        ({"NODE": "n1", "1002}": "1002}, insecureSameUser: true"}, True),
    ],
)
def test_entries_of_one_node_that_share_a_uid_must_both_say_so(
    mesh: View, changes: dict[str, str], refused: bool
) -> None:
    text = ENTRY.replace("TENANT", "acme").replace("NAME", "other")
    for old, new in changes.items():
        text = text.replace(old, new)
    faults = told(text, mesh)
    assert bool(faults) is refused
    assert all("WorkloadEntry acme/web too, on node n1" in fault for fault in faults)


def test_two_that_share_a_uid_may_when_both_say_so(mesh: View) -> None:
    text = "---\n".join(
        ENTRY.replace("TENANT", "acme")
        .replace("NAME", name)
        .replace("NODE", "n1")
        .replace("1002}", "1002}, insecureSameUser: true")
        for name in ("web", "other")
    )
    assert told(text, mesh) == []


def test_an_operator_of_a_tenant_is_told_no_names_of_others(mesh: View) -> None:
    view = mesh.seen_by(lambda tenant: tenant == "globex")
    view.put(batch("kind: Service\nmetadata: {tenant: globex, name: web}\nspec: {protocol: HTTP}")[0])
    text = ENTRY.replace("TENANT", "globex").replace("NAME", "spy").replace("NODE", "n1")
    (fault,) = told(text, view)
    assert "another tenant's entry" in fault
    assert "acme" not in fault
    (fault,) = told("kind: Service\nmetadata: {tenant: acm, name: a}\nspec: {protocol: GRPC}", view)
    assert "did you mean" not in fault
    (used,) = users([ResourceRef(kind="Tenant", tenant="acme", name="acme")], view.with_changes(removes=[]))[-1:]
    assert used == "a resource of another tenant needs Tenant acme"


def ref(kind: str, tenant: str, name: str) -> ResourceRef:
    return ResourceRef(kind=kind, tenant=tenant, name=name)


def test_what_is_used_says_by_whom(mesh: View) -> None:
    assert users([ref("Service", "acme", "web")], mesh) == [
        "AccessPolicy platform/orders needs it: spec.allow[0].from[0].service: there is no Service acme/web",
        "WorkloadEntry acme/web needs it: spec.service: there is no Service acme/web",
    ]
    assert users([ref("WorkloadEntry", "platform", "orders-v1")], mesh) == [
        "RoutePolicy platform/orders needs it: spec.rules[0].split[0].version: no workload entry of platform/orders has version v1"
    ]
    tenant = "\n".join(users([ref("Tenant", "acme", "acme")], mesh))
    for user in (
        "Service acme/web",
        "Service platform/orders",
        "AccessPolicy platform/orders",
        "RatePolicy platform/o",
    ):
        assert user in tenant


def test_what_nobody_needs_can_go_and_so_can_all_together(mesh: View) -> None:
    for kind in ("AccessPolicy", "RoutePolicy", "RatePolicy"):
        assert users([ref(kind, "platform", "orders")], mesh) == []
    assert users([ref_of(resource) for resource in batch(MESH)], mesh) == []
    assert users([ref("Tenant", "globex", "globex")], mesh) == []


def test_an_agents_endpoint_holds_nothing_back(mesh: View) -> None:
    text = (
        "kind: Endpoint\nmetadata: {tenant: acme, name: e}\nspec: {service: web, address: '::1', port: 1, entry: web}"
    )
    (endpoint,) = batch(text)
    kept = mesh.with_changes(puts=[endpoint])
    assert any("Endpoint acme/e" in user for user in users([ref("WorkloadEntry", "acme", "web")], kept))
    endpoint.endpoint.spec.node = "n1"
    assert users([ref("WorkloadEntry", "acme", "web")], mesh.with_changes(puts=[endpoint])) == []


def test_a_batch_costs_what_its_own_services_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what the tenant has: a hundred changed entries of five hundred took a minute, for all who were served."""
    view = View()
    documents = ["kind: Tenant\nmetadata: {name: t}"]
    for number in range(120):
        documents += [
            f"kind: Service\nmetadata: {{tenant: t, name: s{number}}}\nspec: {{protocol: GRPC}}",
            f"kind: WorkloadEntry\nmetadata: {{tenant: t, name: s{number}}}\n"
            f"spec: {{service: s{number}, nodes: [n], selectors: {{uid: {number}}}, version: v1}}",
            f"kind: RoutePolicy\nmetadata: {{tenant: t, name: s{number}}}\n"
            f"spec: {{service: s{number}, rules: [{{split: [{{version: v1, weight: 1}}]}}]}}",
        ]
    for resource in batch("\n---\n".join(documents)):
        view.put(resource)
    asked = 0
    names = reference.mention_faults

    def counted(resource: AnyResource, at: View) -> Iterator[FieldFault]:
        nonlocal asked
        asked += 1
        return names(resource, at)

    monkeypatch.setattr(reference, "mention_faults", counted)
    changed = [text.replace("version: v1", "version: v2") for text in documents if "kind: WorkloadEntry" in text]
    found = reference_faults(batch("\n---\n".join(changed[:50])), view)
    assert len(found) == 50
    assert asked <= 50 * 3


ENVOY = "kind: WorkloadEntry\nmetadata: {tenant: platform, name: orders-v2}\nspec: {service: orders, nodes: [n3], selectors: {uid: 1003}, dataPlane: ENVOY}\n"
SECOND = "kind: RatePolicy\nmetadata: {tenant: platform, name: second}\nspec: {service: orders, limits: [{tenant: '*', requests: 1}]}\n"


def test_a_service_may_have_several_rate_policies_but_where_envoys_serve_it(mesh: View) -> None:
    assert not told(SECOND, mesh)
    reason = "RatePolicy platform/orders is for platform/orders already, and an Envoy (WorkloadEntry platform/orders-v2) holds one RatePolicy of a service, one of several of its tenant and one of several tenants'"
    of_entry = f"spec.dataPlane: RatePolicy platform/second can't be held: spec.service: {reason}"
    assert told(f"{SECOND}---\n{ENVOY}", mesh) == [f"resources[0].spec.service: {reason}", f"resources[1].{of_entry}"]
    mesh.put(batch(SECOND)[0])
    assert told(ENVOY, mesh) == [f"resources[0].{of_entry}"]


ADAPTIVE = (
    "kind: RatePolicy\nmetadata: {tenant: platform, name: NAME}\nspec: {service: orders, scope: POINT, adaptive: {}}\n"
)


def test_a_limit_that_is_found_is_one_and_not_an_envoys(mesh: View) -> None:
    room = ADAPTIVE.replace("NAME", "room")
    assert not told(room, mesh)
    assert told(f"{room}---\n{ADAPTIVE.replace('NAME', 'second')}", mesh) == [
        "resources[1].spec.adaptive: RatePolicy platform/room finds that limit already"
    ]
    mesh.put(batch(room)[0])
    reason = "an Envoy (WorkloadEntry platform/orders-v2) can't hold it: its own knows of no tenants"
    assert any(
        f"RatePolicy platform/room can't be held: spec.adaptive: {reason}" in fault for fault in told(ENVOY, mesh)
    )
    mesh.put(batch(ENVOY)[0])
    assert any(f"spec.adaptive: {reason}" in fault for fault in told(room, mesh))


def wide(
    services: str, limits: str = "[{tenant: '*', requests: 9}]", tenant: str = "platform", name: str = "wide"
) -> str:
    return f"kind: RatePolicy\nmetadata: {{tenant: {tenant}, name: {name}}}\nspec: {{services: {services}, limits: {limits}}}\n"


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        (wide("['*']"), []),
        (wide("['*/*']"), []),
        (wide("[orders, acme/web, globex/*]"), []),
        (wide("[nothing]"), ["spec.services[0]: there is no Service platform/nothing"]),
        (wide("[initech/*]"), ["spec.services[0]: there is no Tenant initech"]),
        (
            wide("[orders]", "[{tenant: acme, requests: 9, services: [{service: acme/web, requests: 1}]}]"),
            ["spec.limits[0].services[0].service: acme/web is none of this policy's services: add it to spec.services"],
        ),
        (wide("['*/*']", "[{tenant: acme, requests: 9, services: [{service: acme/web, requests: 1}]}]"), []),
    ],
)
def test_the_services_of_a_wide_policy_are_there(mesh: View, text: str, faults: list[str]) -> None:
    assert told(text, mesh) == [f"resources[0].{fault}" for fault in faults]


def test_an_envoy_holds_one_policy_of_each_width(mesh: View) -> None:
    mesh.put(batch(ENVOY)[0])
    several = "---\n".join([wide("['*']"), wide("['*/*']", name="mesh"), wide("[acme/*]", name="acme")])
    assert not told(several, mesh), "the last is not for a service of an Envoy"
    (fault,) = told(f"{several}---\n{wide('[orders]', name='zz')}", mesh)
    assert fault.startswith(
        "resources[3].spec.services: RatePolicy platform/wide is for platform/orders already, and an Envoy"
    )


def test_an_envoy_counts_requests_only(mesh: View) -> None:
    counted = SECOND.replace("requests: 1", "cost: 1").replace("name: second", "name: orders")
    reason = "an Envoy (WorkloadEntry platform/orders-v2) counts requests only"
    assert not told(counted, mesh)
    assert told(f"{counted}---\n{ENVOY}", mesh) == [
        f"resources[0].spec.limits[0].cost: {reason}",
        f"resources[1].spec.dataPlane: RatePolicy platform/orders can't be held: spec.limits[0].cost: {reason}",
    ]


def test_to_an_envoy_calls_matter_alike(mesh: View) -> None:
    methods = "methods: [{method: /o.O/Get, requests: 1}, {method: /o.O/All, requests: 1, criticality: SHEDDABLE}]"
    sheds = SECOND.replace("requests: 1", f"requests: 1, {methods}").replace("name: second", "name: orders")
    assert not told(sheds, mesh)
    (policy, entry) = told(f"{sheds}---\n{ENVOY}", mesh)
    reason = "an Envoy (WorkloadEntry platform/orders-v2) lets calls in as they come, whatever they matter"
    assert policy == f"resources[0].spec.limits[0].methods[1].criticality: {reason}"
    assert reason in entry


def test_an_envoy_holds_no_amounts_for_a_period(mesh: View) -> None:
    day = SECOND.replace("service: orders", "service: orders, period: DAY").replace("name: second", "name: orders")
    reason = "an Envoy (WorkloadEntry platform/orders-v2) holds rates alone, no amounts for a period"
    assert not told(day, mesh)
    assert told(f"{day}---\n{ENVOY}", mesh) == [
        f"resources[0].spec.period: {reason}",
        f"resources[1].spec.dataPlane: RatePolicy platform/orders can't be held: spec.period: {reason}",
    ]


@pytest.mark.parametrize("name", ["aaa", "zzz"])
def test_a_policy_takes_no_other_ones_place(mesh: View, name: str) -> None:
    new = SECOND.replace("second", name)
    mesh.put(batch(ENVOY)[0])
    (fault,) = told(new, mesh)
    assert fault.startswith("resources[0].spec.service: ")
    assert "an Envoy (WorkloadEntry platform/orders-v2) holds one RatePolicy of a service" in fault
    mesh.remove(ref_of(batch(ENVOY)[0]))
    mesh.put(batch(ADAPTIVE.replace("NAME", "room"))[0])
    (fault,) = told(ADAPTIVE.replace("NAME", name), mesh)
    assert fault.endswith("finds that limit already")
    for number in range(6):
        mesh.put(batch(SECOND.replace("second", f"n{number}"))[0])
    (fault,) = told(new, mesh)
    assert fault.endswith("a service has at most 8 RatePolicies of its own")


@pytest.mark.parametrize(
    ("services", "most", "which"),
    [("['*']", 4, "of several services of its tenant"), ("['*/*']", 4, "of several tenants'")],
)
def test_what_a_service_has_of_its_own_is_not_in_the_way_of_what_reaches_further(
    mesh: View, services: str, most: int, which: str
) -> None:
    for number in range(7):
        mesh.put(batch(SECOND.replace("second", f"n{number}"))[0])
    (fault,) = told(SECOND, mesh)
    assert fault.endswith("a service has at most 8 RatePolicies of its own")
    for number in range(most):
        new = wide(services, name=f"w{number}")
        assert not told(new, mesh)
        mesh.put(batch(new)[0])
    (fault,) = told(wide(services, name="zz"), mesh)
    assert fault.endswith(f"a service has at most {most} RatePolicies {which}")


def test_what_another_tenants_policy_is_called_is_not_told(mesh: View) -> None:
    mesh.put(batch(ENVOY)[0])
    mesh.put(batch(wide("['*/*']", tenant="acme", name="secret"))[0])
    new = wide("['*/*']", tenant="acme", name="aaa")
    assert any("with it RatePolicy acme/secret can't be held" in fault for fault in told(new, mesh))
    assert not any("secret" in fault for fault in told(new, mesh.seen_by(lambda tenant: tenant != "acme")))


def test_an_entry_is_told_of_no_other_tenants_policy_what_it_is_called_and_says(mesh: View) -> None:
    mesh.put(batch(wide("['*/*']", "[{tenant: '*', bytes: 9}]", tenant="acme", name="secret"))[0])
    mesh.put(batch(wide("['*/*']", tenant="acme", name="secret2"))[0])
    faults = "\n".join(told(ENVOY, mesh))
    assert "RatePolicy acme/secret can't be held: spec.limits[0].bytes: " in faults
    assert "RatePolicy acme/secret is for platform/orders already" in faults
    hidden = told(ENVOY, mesh.seen_by(lambda tenant: tenant != "acme"))
    assert len(hidden) == len(faults.split("\n"))
    assert not any("secret" in fault or "limits[0]" in fault for fault in hidden)
    assert "resources[0].spec.dataPlane: another tenant's RatePolicy can't be held: an Envoy (W" in "\n".join(hidden)
