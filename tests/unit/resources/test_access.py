"""What an access policy may say of calls."""

import pytest

from meshwarden.controlplane.resources.manifest import ManifestFaults, parse
from meshwarden.controlplane.resources.reference import reference_faults, users
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resource_service_pb2 import ResourceRef

MESH = """\
kind: Tenant
metadata: {name: platform}
---
kind: Tenant
metadata: {name: acme}
---
kind: Service
metadata: {tenant: platform, name: orders}
spec: {protocol: GRPC}
---
kind: Service
metadata: {tenant: platform, name: web}
spec: {protocol: GRPC}
"""


def policy(spec: str) -> str:
    return f"kind: AccessPolicy\nmetadata: {{tenant: platform, name: p}}\nspec: {{service: orders, {spec}}}\n"


def view(more: str = "") -> View:
    made = View()
    for item in parse(MESH + more, "test"):
        made.put(item.resource)
    return made


def faults(spec: str) -> list[tuple[str, str]]:
    try:
        found = reference_faults([item.resource for item in parse(policy(spec), "test")], view())
    except ManifestFaults as error:
        return [(fault.field, fault.message) for fault in error.faults]
    return [(fault.field.removeprefix("resources[0]."), fault.message) for fault in found]


@pytest.mark.parametrize(
    "spec",
    [
        "deny: [{from: [{service: web}]}]",
        "allow: [{from: [{service: web}], headers: [{name: x-a, exact: ''}]}]",
        # Who can't see the service may be denied it before it is exported.
        "deny: [{from: [{tenant: acme, service: '*'}]}]",
        "allow: [{from: [{service: web}], headers: [{name: content-type, prefix: application/grpc}]}]",
    ],
)
def test_what_may_be_said(spec: str) -> None:
    assert faults(spec) == []


@pytest.mark.parametrize(
    ("spec", "field", "text"),
    [
        ("allow: []", "spec.allow", "is required; or give deny"),
        ("deny: [{from: []}]", "spec.deny[0].from", "give at least one"),
        ("deny: [{from: [{}]}]", "spec.deny[0].from[0].service", "is required"),
        ("deny: [{from: [{service: wbe}]}]", "spec.deny[0].from[0].service", "did you mean web?"),
        ("deny: [{from: [{trustDomain: other.example}]}]", "spec.deny[0].from[0].trustDomain", "no TrustDomain"),
        ("deny: [{from: [{service: web}], methods: ['x']}]", "spec.deny[0].methods[0]", "must be"),
        ("allow: [{from: [{tenant: acme, service: '*'}]}]", "spec.allow[0].from[0].tenant", "is not exported to acme"),
        *(
            (f"deny: [{{from: [{{service: web}}], headers: [{{name: {name}, {value}}}]}}]", f"spec.deny[0].{at}", text)
            for name, value, at, text in [
                ("X-A", "present: true", "headers[0].name", ""),
                ("':path'", "present: true", "headers[0].name", ""),
                ("x-a", "prefix: ''", "headers[0].prefix", ""),
                ("grpc-timeout", "present: true", "headers[0].name", "belongs to the connection or to gRPC"),
                ("te", "present: true", "headers[0].name", "belongs to the connection"),
                ("x-a-bin", "exact: a", "headers[0].name", "binary metadata"),
                ("x-forwarded-client-cert", "prefix: URI", "headers[0].name", "by what is proved"),
            ]
        ),
        ("deny: [{from: [{service: web}], headers: [{name: x-a}]}]", "spec.deny[0].headers[0]", ""),
    ],
)
def test_what_may_not(spec: str, field: str, text: str) -> None:
    (found,) = faults(spec)
    assert found[0].startswith(field)
    assert text in found[1]


def test_what_a_denial_names_is_not_deleted_below_it() -> None:
    made = view("---\n" + policy("deny: [{from: [{service: web}]}]"))
    (found,) = users([ResourceRef(kind="Service", tenant="platform", name="web")], made)
    assert "AccessPolicy platform/p needs it: spec.deny[0].from[0].service" in found
