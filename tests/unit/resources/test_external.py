"""What external services may say, and what policies may say of them: a tenant's manifests lead nobody astray."""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.resources.manifest import ManifestFaults, parse
from meshwarden.controlplane.resources.model import ref_of
from meshwarden.controlplane.resources.outside import MOST
from meshwarden.controlplane.resources.reference import reference_faults, users
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resources_pb2 import Resource

MESH = """\
kind: Tenant
metadata: {name: platform}
---
kind: Tenant
metadata: {name: acme}
---
kind: Service
metadata: {tenant: platform, name: orders}
spec: {protocol: HTTP}
---
kind: Service
metadata: {tenant: acme, name: web}
spec: {protocol: HTTP}
---
kind: ExternalService
metadata: {tenant: platform, name: model}
spec: {protocol: HTTPS, hosts: [{address: api.model.example, port: 443}], exportTo: [acme]}
---
kind: ExternalService
metadata: {tenant: platform, name: db}
spec: {protocol: TLS, hosts: [{address: db.example, port: 5432}]}
"""


def resources(text: str) -> list[Resource]:
    return [item.resource for item in parse(text, "test")]


@pytest.fixture
def view() -> View:
    made = View()
    for resource in resources(MESH):
        made.put(resource)
    return made


def external(spec: str, name: str = "x") -> str:
    return f"kind: ExternalService\nmetadata: {{tenant: platform, name: {name}}}\nspec: {{{spec}}}\n"


def hosts(*addresses: str) -> str:
    return "hosts: [" + ", ".join(f'{{address: "{one}", port: 443}}' for one in addresses) + "]"


def faults(text: str) -> list[tuple[str, str]]:
    with pytest.raises(ManifestFaults) as caught:
        resources(text)
    return [(fault.field, fault.message) for fault in caught.value.faults]


@pytest.mark.parametrize(
    "spec",
    [
        f"protocol: HTTPS, {hosts('api.model.example')}",
        f"protocol: HTTPS, {hosts('a.example', 'b.example')}, tls: {{sni: a.example}}",
        f"protocol: TLS, {hosts('10.0.0.7')}, tls: {{sni: db.example}}",
        f"protocol: HTTP, {hosts('10.0.0.7')}, insecure: true",
        f"protocol: TCP, {hosts('2001:db8::7')}, insecure: true",
        f"protocol: HTTP, {hosts('127.0.0.1')}, internal: true",
        f"protocol: HTTP, {hosts('ledger.example')}, insecure: true, internal: true",
        f"protocol: HTTPS, {hosts('localhost')}, internal: true",
        f"protocol: HTTPS, {hosts('1.xn--p1ai')}",
    ],
)
def test_what_can_be_meant_is_taken(view: View, spec: str) -> None:
    assert not reference_faults(resources(external(spec)), view)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",  # noqa: S104 - refused
            "0.1.2.3",
            "169.254.169.254",
            "255.255.255.255",
            "224.0.0.1",
            "240.0.0.1",
        ),
        *("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"),
        *(
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:a9fe:a9fe",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
        ),
        *("64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:1:2:3:4:5:6"),
        *("localhost", "x.localhost", "localhost.localdomain"),
    ],
)
@pytest.mark.parametrize("protocol", ["HTTPS", "TCP"])
def test_nothing_of_the_node_or_its_link_is_called_unless_an_operator_of_the_mesh_says_so(
    protocol: str, address: str
) -> None:
    more = "tls: {sni: a.example}" if protocol == "HTTPS" else "insecure: true"
    found = faults(external(f"protocol: {protocol}, {hosts(address)}, {more}"))
    assert [field for field, _ in found] == ["spec.hosts[0].address"]
    assert "internal: true" in found[0][1]


@pytest.mark.parametrize(
    "address",
    [
        *("127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.0.0.1", "a.0x7f", "1.2.3.4.5", "127.0.0.1."),
        *(
            "a..b",
            "-a.b",
            "a-.b",
            ".a",
            "a:b",
            "[::1]",
            "::1%1",
            "a_b",
            "A.example",
            "a.example/",
            "a@b",
            "a b",
            "*.b",
            "é.b",
        ),
        *("", "a" * 64 + ".b", ".".join(["a" * 60] * 5), "a.example\n", "a.example\x00"),
    ],
)
def test_an_address_has_one_meaning_or_none(address: str) -> None:
    text = external(f"protocol: HTTPS, {hosts('PLACE')}, tls: {{sni: a.example}}").replace('"PLACE"', repr_of(address))
    assert {field for field, _ in faults(text)} == {"spec.hosts[0].address"}


def repr_of(text: str) -> str:
    return '"' + text.replace("\n", "\\n").replace("\x00", "\\0") + '"'


@pytest.mark.parametrize(
    ("spec", "field", "text"),
    [
        (f"{hosts('a.example')}", "spec.protocol", "is required"),
        (f"protocol: GRPC, {hosts('a.example')}", "spec.protocol", ""),
        ("protocol: HTTPS", "spec.hosts", ""),
        ("protocol: HTTPS, hosts: []", "spec.hosts", ""),
        ("protocol: HTTPS, hosts: [{address: a.example}]", "spec.hosts[0].port", ""),
        ("protocol: HTTPS, hosts: [{address: a.example, port: 65536}]", "spec.hosts[0].port", ""),
        (f"protocol: HTTPS, {hosts(*['a.example'] * 17)}", "spec.hosts", ""),
        (f"protocol: HTTPS, {hosts('a.example', 'a.example')}", "spec.hosts[1].address", "already"),
        (f"protocol: HTTP, {hosts('10.0.0.1')}", "spec.insecure", "in the clear"),
        (f"protocol: TCP, {hosts('10.0.0.1')}", "spec.insecure", "in the clear"),
        (f"protocol: HTTP, {hosts('127.0.0.1', '10.0.0.1')}, internal: true", "spec.insecure", "in the clear"),
        (f"protocol: HTTP, {hosts('a.example')}, insecure: true", "spec.hosts[0].address", "nothing proves"),
        (f"protocol: HTTP, {hosts('10.0.0.1')}, insecure: true, tls: {{}}", "spec.tls", "only HTTPS"),
        (f"protocol: HTTPS, {hosts('a.example')}, insecure: true", "spec.insecure", "is for HTTP and TCP"),
        (f"protocol: HTTPS, {hosts('10.0.0.1')}", "spec.tls.sni", "is required"),
        (f"protocol: HTTPS, {hosts('a.example', 'b.example')}", "spec.tls.sni", "is required"),
        (f"protocol: HTTPS, {hosts('a.example')}, tls: {{sni: 10.0.0.1}}", "spec.tls.sni", "is no name"),
        (f"protocol: HTTPS, {hosts('a.example')}, tls: {{sni: '*.example'}}", "spec.tls.sni", ""),
        (f"protocol: HTTPS, {hosts('a.example')}, tls: {{ca: nonsense}}", "spec.tls.ca", "is no certificates"),
        (f"protocol: HTTPS, {hosts('a.example')}, connectTimeout: 0s", "spec.connectTimeout", ""),
        (f"protocol: HTTPS, {hosts('a.example')}, connectTimeout: 3600s", "spec.connectTimeout", ""),
        (f"protocol: HTTPS, {hosts('a.example')}, exportTo: [A]", "spec.exportTo[0]", ""),
    ],
)
def test_what_could_not_be_meant_is_refused_with_its_field(spec: str, field: str, text: str) -> None:
    found = faults(external(spec))
    assert [where for where, _ in found] == [field]
    assert text in found[0][1]


def certificate() -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]), utc_now()
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1)).sign(
        key, hashes.SHA256()
    )
    form = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    return made.public_bytes(serialization.Encoding.PEM).decode(), secret.decode()


def test_authorities_are_certificates_and_no_keys(view: View) -> None:
    public, secret = certificate()

    def given(ca: str) -> str:
        indented = "".join(f"      {line}\n" for line in ca.splitlines())
        return (
            "kind: ExternalService\nmetadata: {tenant: platform, name: x}\nspec:\n  protocol: HTTPS\n"
            f"  {hosts('a.example')}\n  tls:\n    ca: |\n{indented}"
        )

    assert not reference_faults(resources(given(public)), view)
    assert "private key" in faults(given(public + secret))[0][1]
    assert "of which 16 are taken" in faults(given(public * 17))[0][1]


def test_a_name_means_one_thing(view: View) -> None:
    spec = f"protocol: HTTPS, {hosts('a.example')}"
    (fault,) = reference_faults(resources(external(spec, "orders")), view)
    assert fault.field == "resources[0].metadata.name"
    assert "Service platform/orders has this name already" in fault.message
    text = "kind: Service\nmetadata: {tenant: platform, name: model}\nspec: {protocol: GRPC}\n"
    (fault,) = reference_faults(resources(text), view)
    assert "ExternalService platform/model has this name already" in fault.message
    many = "---\n".join(external(spec, f"x{number}") for number in range(MOST - 1))
    assert {fault.field.partition(".")[2] for fault in reference_faults(resources(many), view)} == {"metadata.name"}
    assert not reference_faults(resources("---\n".join(many.split("---\n")[1:])), view)


def policy(kind: str, spec: str) -> str:
    return f"kind: {kind}\nmetadata: {{tenant: platform, name: p}}\nspec: {{{spec}}}\n"


WEB = "from: [{tenant: acme, service: web}]"


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (
            "AccessPolicy",
            f"service: model, allow: [{{{WEB}, methods: [POST /v1/*], during: {{until: 2030-01-01T00:00:00Z}}}}]",
        ),
        ("AccessPolicy", "service: db, allow: [{from: [{service: orders}]}]"),
        ("RatePolicy", "service: model, limits: [{tenant: acme, requests: 5}]"),
        ("RoutePolicy", "service: model, rules: [{timeout: 2s}], outlierDetection: {consecutive5xx: 5}"),
    ],
)
def test_policies_are_about_external_services_as_about_others(view: View, kind: str, spec: str) -> None:
    assert not reference_faults(resources(policy(kind, spec)), view)


@pytest.mark.parametrize(
    ("kind", "spec", "field"),
    [
        ("AccessPolicy", f"service: model, allow: [{{{WEB}}}], dryRun: true", "spec.dryRun"),
        ("AccessPolicy", f"service: db, allow: [{{{WEB}}}]", "spec.allow[0].from[0].tenant"),
        ("AccessPolicy", "service: db, allow: [{from: [{service: orders}], methods: [/x]}]", "spec.allow[0].methods"),
        (
            "AccessPolicy",
            "service: db, deny: [{from: [{service: orders}], headers: [{name: x-a, present: true}]}]",
            "spec.deny[0].headers",
        ),
        (
            "AccessPolicy",
            "service: db, allow: [{from: [{service: orders}], during: {until: 2030-01-01T00:00:00Z}}]",
            "spec.allow[0].during",
        ),
        ("AccessPolicy", "service: model, allow: [{from: [{service: nobody}]}]", "spec.allow[0].from[0].service"),
        ("RatePolicy", "service: db, limits: [{tenant: acme, requests: 5}]", "spec.service"),
        ("RatePolicy", "service: model, limits: [{tenant: nobody, requests: 5}]", "spec.limits[0].tenant"),
        ("RatePolicy", "service: model, limits: [{tenant: acme, cost: 5}]", "spec.limits[0].cost"),
        ("RatePolicy", "service: model, limits: [{tenant: acme, requests: 5}], period: DAY", "spec.period"),
        ("RatePolicy", "services: [model], limits: [{tenant: acme, requests: 5}]", "spec.services[0]"),
        ("RoutePolicy", "service: db, rules: [{timeout: 2s}]", "spec.service"),
        ("RoutePolicy", f"service: model, rules: [{{match: {{{WEB}}}, timeout: 2s}}]", "spec.rules[0].match.from"),
        ("RoutePolicy", "service: model, rules: [{mirror: {service: orders}}]", "spec.rules[0].mirror"),
        (
            "RoutePolicy",
            "service: model, rules: [{split: [{version: v1, weight: 1}]}]",
            "spec.rules[0].split[0].version",
        ),
        ("RoutePolicy", "service: model, affinity: {cookie: {name: s}}", "spec.affinity"),
        ("RoutePolicy", "service: model, locality: {}", "spec.locality"),
        ("RoutePolicy", "service: model, loadBalancing: {ringHash: {header: x-a}}", "spec.loadBalancing.ringHash"),
        ("SLO", "service: model, availability: {}, objective: 99.9", "spec.service"),
        ("WorkloadEntry", "service: model, nodes: [n1], selectors: {uid: 1}", "spec.service"),
        ("Endpoint", "service: model, address: 10.0.0.1, port: 1", "spec.service"),
    ],
)
def test_what_nobody_would_hold_is_refused(view: View, kind: str, spec: str, field: str) -> None:
    found = reference_faults(resources(policy(kind, spec)), view)
    assert [fault.field for fault in found] == [f"resources[0].{field}"]


def test_what_policies_need_stays(view: View) -> None:
    for resource in resources(policy("RatePolicy", "service: model, limits: [{tenant: acme, requests: 5}]")):
        view.put(resource)
    for resource in resources(policy("AccessPolicy", f"service: model, allow: [{{{WEB}}}]")):
        view.put(resource)
    model = resources(external(f"protocol: HTTPS, {hosts('a.example')}", "model"))
    assert len(users(map(ref_of, model), view)) == 2
    (fault,) = reference_faults(model, view)
    assert "AccessPolicy platform/p needs what was here" in fault.message
    stream = external(f"protocol: TLS, {hosts('a.example')}, exportTo: [acme]", "model")
    (fault,) = reference_faults(resources(stream), view)
    assert "RatePolicy platform/p needs what was here" in fault.message
