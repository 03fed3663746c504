"""What policies and services may say of other trust domains' identities."""

import pytest

from meshwarden.controlplane.resources.manifest import ManifestFaults, parse
from meshwarden.controlplane.resources.model import ref_of
from meshwarden.controlplane.resources.reference import reference_faults, users
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resources_pb2 import Resource

MESH = """\
kind: Tenant
metadata: {name: platform}
---
kind: TrustDomain
metadata: {tenant: platform, name: partner}
spec: {trustDomain: partner.example, bundleEndpoint: {url: "https://partner.example/b", profile: HTTPS_WEB}}
---
kind: Service
metadata: {tenant: platform, name: orders}
spec: {protocol: GRPC}
---
kind: Service
metadata: {tenant: platform, name: stock}
spec: {protocol: GRPC, spiffeId: "spiffe://partner.example/stock"}
"""


def resources(text: str) -> list[Resource]:
    return [item.resource for item in parse(text, "test")]


@pytest.fixture
def view() -> View:
    made = View()
    for resource in resources(MESH):
        made.put(resource)
    return made


def policy(caller: str, service: str = "orders") -> str:
    return f"""\
kind: AccessPolicy
metadata: {{tenant: platform, name: p}}
spec: {{service: {service}, allow: [{{from: [{caller}]}}]}}
"""


@pytest.mark.parametrize("caller", ['{spiffeId: "spiffe://partner.example/a/B_c.d"}', "{trustDomain: partner.example}"])
def test_who_is_of_a_known_trust_domain_may_be_named(view: View, caller: str) -> None:
    assert not reference_faults(resources(policy(caller)), view)


@pytest.mark.parametrize(
    ("caller", "field", "text"),
    [
        ("{}", "spec.allow[0].from[0].service", "is required; or give spiffeId or trustDomain"),
        ("{tenant: platform}", "spec.allow[0].from[0].service", "is required"),
        ('{service: "*", trustDomain: partner.example}', "spec.allow[0].from[0]", "one of the three"),
        ("{tenant: platform, trustDomain: partner.example}", "spec.allow[0].from[0]", "one of the three"),
        ('{trustDomain: partner.example, spiffeId: "spiffe://partner.example/x"}', "spec.allow[0].from[0]", "one of"),
        ('{trustDomain: "*"}', "spec.allow[0].from[0].trustDomain", "must be lower-case"),
        ("{trustDomain: Partner.example}", "spec.allow[0].from[0].trustDomain", "must be lower-case"),
        ('{trustDomain: "spiffe://partner.example"}', "spec.allow[0].from[0].trustDomain", "must be lower-case"),
        ('{trustDomain: "partner.example\\n"}', "spec.allow[0].from[0].trustDomain", "must be lower-case"),
        ('{spiffeId: "spiffe://partner.example"}', "spec.allow[0].from[0].spiffeId", "must be a SPIFFE ID"),
        ('{spiffeId: "spiffe://partner.example/*"}', "spec.allow[0].from[0].spiffeId", "must be a SPIFFE ID"),
        ('{spiffeId: "spiffe://partner.example/x/"}', "spec.allow[0].from[0].spiffeId", "must be a SPIFFE ID"),
        ('{spiffeId: "spiffe://partner.example/x/../y"}', "spec.allow[0].from[0].spiffeId", "segment '..'"),
        ('{spiffeId: "spiffe://partner.example/x,y"}', "spec.allow[0].from[0].spiffeId", "must be a SPIFFE ID"),
        ('{spiffeId: "https://partner.example/x"}', "spec.allow[0].from[0].spiffeId", "must be a SPIFFE ID"),
    ],
)
def test_what_is_no_caller_is_refused_by_its_field(caller: str, field: str, text: str) -> None:
    with pytest.raises(ManifestFaults) as caught:
        parse(policy(caller), "test")
    faults = caught.value.faults
    assert any(fault.field == field and text in fault.message for fault in faults), faults


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        (policy("{trustDomain: other.example}"), "spec.allow[0].from[0].trustDomain", "no TrustDomain is about other"),
        (policy('{spiffeId: "spiffe://other.example/x"}'), "spec.allow[0].from[0].spiffeId", "no TrustDomain is about"),
        (policy('{spiffeId: "spiffe://mesh.test/x"}'), "spec.allow[0].from[0].spiffeId", "named by tenant and service"),
        # A name within one that is known is another.
        (policy("{trustDomain: a.partner.example}"), "spec.allow[0].from[0].trustDomain", "no TrustDomain is about a."),
        (policy("{service: orders}", "stock"), "spec.service", "serves it: who may call"),
        (
            'kind: Service\nmetadata: {tenant: platform, name: x}\nspec: {protocol: GRPC, spiffeId: "spiffe://o.test/x"}',
            "spec.spiffeId",
            "no TrustDomain is about o.test",
        ),
        (
            "kind: WorkloadEntry\nmetadata: {tenant: platform, name: x}\n"
            "spec: {service: stock, nodes: [n], selectors: {uid: 1}}",
            "spec.service",
            "serves it",
        ),
    ],
)
def test_what_names_the_unknown_is_refused(view: View, text: str, field: str, reason: str) -> None:
    found = reference_faults(resources(text), view)
    assert [(fault.field, reason in fault.message) for fault in found] == [(f"resources[0].{field}", True)], found


def test_a_service_goes_abroad_only_without_what_holds_here(view: View) -> None:
    view.put(resources(policy("{service: orders}"))[0])
    abroad = resources(MESH.split("---\n")[2].replace("GRPC}", 'GRPC, spiffeId: "spiffe://partner.example/o"}'))
    assert "resources[0].spec.spiffeId" in [fault.field for fault in reference_faults(abroad, view)]


def test_trust_can_be_taken_back_whatever_counts_on_it(view: View) -> None:
    view.put(resources(policy("{trustDomain: partner.example}"))[0])
    assert users([ref_of(resources(MESH)[1])], view) == []
