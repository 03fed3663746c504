"""Objectives as resources: their rules, and what they name."""

from typing import Any

import pytest

from meshwarden.controlplane.resources.manifest import ManifestFaults, parse
from meshwarden.controlplane.resources.reference import reference_faults, users
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resource_service_pb2 import ResourceRef

BASE = """\
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
"""


def slo(spec: str) -> str:
    return f"kind: SLO\nmetadata: {{tenant: platform, name: a}}\nspec: {{{spec}}}\n"


def view() -> View:
    found = View()
    for item in parse(BASE, "base"):
        found.put(item.resource)
    return found


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("service: orders, objective: 99.9", "exactly one"),
        ("service: orders, availability: {}, latency: {threshold: 0.1s}, objective: 99.9", "oneof"),
        ("service: orders, availability: {}", "spec.objective"),
        ("service: orders, availability: {}, objective: 100", "spec.objective"),
        ("service: orders, availability: {}, objective: 89.9", "spec.objective"),
        ("service: orders, availability: {}, objective: .nan", "spec.objective"),
        ("service: orders, latency: {threshold: 0.3s}, objective: 99", "spec.latency.threshold: must be in list"),
        ("service: orders, latency: {}, objective: 99", "spec.latency.threshold"),
        ("service: orders, availability: {}, objective: 99, window: 60s", "spec.window"),
        ("service: orders, availability: {}, objective: 99, callingTenant: '*'", "spec.callingTenant"),
        ("availability: {}, objective: 99", "spec.service"),
    ],
)
def test_what_is_no_objective(spec: str, fault: str) -> None:
    with pytest.raises(ManifestFaults) as caught:
        parse(slo(spec), "x")
    assert "spec" in str(caught.value), caught.value
    assert fault in str(caught.value) or fault in ("exactly one", "oneof")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ("service: order, availability: {}, objective: 99", "spec.service"),
        ("service: orders, availability: {}, objective: 99, callingTenant: nobody", "spec.callingTenant"),
        ("service: orders, availability: {}, objective: 99, callingTenant: globex", "spec.callingTenant"),
    ],
)
def test_what_it_names_must_be_there_and_be_seen(spec: str, field: str) -> None:
    (item,) = parse(slo(spec), "x")
    (fault,) = reference_faults([item.resource], view())
    assert fault.field == f"resources[0].{field}"


def stored(spec: str) -> tuple[View, Any]:
    (item,) = parse(slo(spec), "x")
    found = view()
    assert reference_faults([item.resource], found) == []
    found.put(item.resource)
    return found, item


def test_its_service_can_not_go() -> None:
    found, _ = stored("service: orders, latency: {threshold: 0.25s}, objective: 95, window: 604800s, side: SERVICE")
    (user,) = users([ResourceRef(kind="Service", tenant="platform", name="orders")], found)
    assert user.startswith("SLO platform/a needs it: spec.service")


def test_its_tenant_must_go_on_seeing_the_service() -> None:
    found, _ = stored("service: orders, availability: {}, objective: 99, callingTenant: acme")
    changed = BASE.rpartition("---\n")[2].replace("[acme]", "[globex]")
    (fault,) = reference_faults([parse(changed, "x")[0].resource], found)
    assert fault.field == "resources[0].spec.exportTo"
    assert "SLO platform/a needs what was here" in fault.message
