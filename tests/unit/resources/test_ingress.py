# ruff: noqa: E501 - manifests and faults are quoted whole
"""Ingresses that nobody could run, or that would let in whom they should not, are refused by the field that is wrong."""

import json
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from meshwarden.certs.clock import utc_now
from meshwarden.certs.jose import encode, jwk
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.resources.fault import FieldFault
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
kind: Tenant
metadata: {name: globex}
---
kind: Service
metadata: {tenant: platform, name: edge}
spec: {protocol: HTTP}
---
kind: Service
metadata: {tenant: platform, name: orders}
spec: {protocol: GRPC, exportTo: [acme]}
---
kind: Service
metadata: {tenant: acme, name: edge}
spec: {protocol: HTTP}
---
kind: Service
metadata: {tenant: acme, name: own}
spec: {protocol: HTTP}
---
kind: WorkloadEntry
metadata: {tenant: platform, name: edge}
spec:
  service: edge
  nodes: [n1, n2]
  selectors: {uid: 1001}
  dataPlane: INGRESS
  secrets: [{name: tls, from: "vault:kv/meshwarden/platform/edge#pem"}]
---
kind: WorkloadEntry
metadata: {tenant: acme, name: edge}
spec: {service: edge, nodes: [n1, n2], selectors: {uid: 1001}, dataPlane: INGRESS, ingress: platform/edge}
---
kind: WorkloadEntry
metadata: {tenant: platform, name: orders}
spec: {service: orders, nodes: [n1], selectors: {uid: 1002}, port: 1}
"""
KEY = new_key()
JWKS = json.dumps({"keys": [jwk(KEY.public_key())]})


def pem(is_ca: bool = True) -> str:
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "partners")]), utc_now()
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), 1, now, now + timedelta(hours=1))
    if is_ca:
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def token(more: str = "", keys: str = f"jwks: '{JWKS}'", callers: str = "[{value: a, tenant: acme}]") -> str:
    return f"[{{issuer: https://id.test, audiences: [edge], {keys}, claim: org, callers: {callers}}}{more}]"


def ingress(
    listen: str = "0.0.0.0:8443",
    tls: str = "{svid: {}}",
    jwt: str = token(),
    routes: str = "{hosts: [a.test], pathPrefix: /, service: orders}",
    service: str = "edge",
    certificate: tuple[str, str] | None = None,
) -> str:
    lines = ["kind: Ingress", "metadata: {tenant: platform, name: edge}", "spec:"]
    lines += [f"  service: {service}", f'  listen: "{listen}"', f"  routes: [{routes}]"]
    if tls:
        lines.append(f"  tls: {tls}")
    if jwt:
        lines.append(f"  jwt: {jwt}")
    if certificate:
        lines.append(f"  clientCertificate: {{ca: {json.dumps(certificate[0])}, callers: {certificate[1]}}}")
    return "\n".join(lines) + "\n"


def world(more: str = "") -> View:
    view = View()
    for one in parse(MESH + more, "mesh.yaml"):
        view.put(one.resource)
    return view


def faults(text: str, view: View | None = None) -> list[FieldFault]:
    try:
        batch = [one.resource for one in parse(text, "ingress.yaml")]
    except ManifestFaults as error:
        return [FieldFault(fault.field, fault.message) for fault in error.faults]
    known = world() if view is None else view
    return [FieldFault(one.field.removeprefix("resources[0]."), one.message) for one in reference_faults(batch, known)]


def test_what_holds_is_taken() -> None:
    for one in (
        ingress(),
        ingress(tls="{secret: tls}"),
        ingress(tls="{files: {certificate: /etc/e/tls.crt, key: /etc/e/tls.key}}"),
        ingress(listen="127.0.0.1:80", tls=""),
        ingress(listen="[::1]:80", tls=""),
        ingress(listen="[::]:443"),
        ingress(jwt="", routes='{hosts: ["*"], path: /healthz, service: platform/orders, public: true}'),
        ingress(jwt=token(keys='jwksUri: {uri: "https://id.test:8443/keys"}')),
        ingress(jwt=token(callers="[{value: p, tenant: platform}]")),
        ingress(
            certificate=(
                pem(),
                '[{organization: "Acme, Inc.", tenant: acme}, {uri: "spiffe://a.b/c-d", tenant: acme}, {dns: "*.a-b.test", tenant: acme}]',
            )
        ),
    ):
        assert faults(one) == []


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        (ingress(tls=""), "spec.tls", "is required: without TLS an ingress listens on a loopback address alone, and 0.0.0.0 is none"),
        (ingress(listen="[::]:80", tls=""), "spec.tls", "is required: without TLS an ingress listens on a loopback address alone, and :: is none"),
        (ingress(listen="10.0.0.1:80", tls=""), "spec.tls", "is required: without TLS an ingress listens on a loopback address alone, and 10.0.0.1 is none"),
        (ingress(listen="999.0.0.1:80"), "spec.listen", "999.0.0.1 is no IP address"),
        (ingress(listen="[fe80::1%eth0]:80"), "spec.listen", 'must be an IP address and a port, "0.0.0.0:8443" or "[::]:8443"'),
        (ingress(listen="edge.test:80"), "spec.listen", 'must be an IP address and a port, "0.0.0.0:8443" or "[::]:8443"'),
        (ingress(listen="127.0.0.1:0"), "spec.listen", "0 is no port: 1 to 65535"),
        (ingress(listen="127.0.0.1:70000"), "spec.listen", "70000 is no port: 1 to 65535"),
        (ingress(tls="{files: {certificate: /etc/a/tls.crt, key: /etc/b/tls.key}}"), "spec.tls.files.key", "is in another directory than the certificate"),
        (ingress(tls="{files: {certificate: tls.crt, key: /etc/b/tls.key}}"), "spec.tls.files.certificate", "must be an absolute path of letters, digits and _@.:+-"),
        (ingress(tls="{secret: other}"), "spec.tls.secret", "WorkloadEntry platform/edge has no secret of this name"),
        (ingress(tls="{}"), "spec.tls", "is required: give one of secret, files, svid"),
        (ingress(jwt=""), "spec.routes[0].public", "nobody can call: say who may in spec.clientCertificate or spec.jwt, or make it public"),
        (ingress(service="orders"), "spec.service", "no workload entry of platform/orders runs it: give one dataPlane INGRESS"),
        (ingress(routes="{hosts: [a.test], pathPrefix: /, service: nobody}"), "spec.routes[0].service", "tenant platform sees no Service platform/nobody"),
        (ingress(routes="{hosts: [a.test], pathPrefix: /, service: acme/own}"), "spec.routes[0].service", "tenant platform sees no Service acme/own"),
        (ingress(routes='{hosts: ["a.test:80"], pathPrefix: /, service: orders}'), "spec.routes[0].hosts[0]", 'must be a host in lower case, "shop.example.com", "*.example.com" or "*", without a port'),
        (ingress(routes='{hosts: [A.test], pathPrefix: /, service: orders}'), "spec.routes[0].hosts[0]", 'must be a host in lower case, "shop.example.com", "*.example.com" or "*", without a port'),
        (ingress(routes='{hosts: ["a.*"], pathPrefix: /, service: orders}'), "spec.routes[0].hosts[0]", 'must be a host in lower case, "shop.example.com", "*.example.com" or "*", without a port'),
        (ingress(routes='{hosts: [a.test], pathPrefix: /a/, service: orders}'), "spec.routes[0].pathPrefix", 'must be "/", or whole segments of a path, "/orders", without escapes, query and "/" at the end'),
        (ingress(routes='{hosts: [a.test], pathPrefix: "/a%2fb", service: orders}'), "spec.routes[0].pathPrefix", 'must be "/", or whole segments of a path, "/orders", without escapes, query and "/" at the end'),
        (ingress(routes='{hosts: [a.test], path: "/a?b", service: orders}'), "spec.routes[0].path", 'must be a path that starts with "/", without escapes and query'),
        (ingress(routes='{hosts: [a.test], service: orders}'), "spec.routes[0]", "is required: give one of path, pathPrefix"),
        (ingress(jwt=token(callers="[{value: g, tenant: globex}]")), "spec.jwt[0].callers[0].tenant", "tenant globex lends no identity: it needs a WorkloadEntry of its own with dataPlane INGRESS and ingress platform/edge"),
        (ingress(jwt=token(callers="[{value: a, tenant: acme}, {value: a, tenant: platform}]")), "spec.jwt[0].callers[1].value", "a is said already"),
        (ingress(jwt=token(more=", " + token()[1:-1])), "spec.jwt[1].issuer", "https://id.test stands here already"),
        (ingress(jwt=token(keys="jwks: '[]'")), "spec.jwt[0].jwks", 'is no JSON Web Key Set, {"keys": […]}, of 1 to 64 keys'),
        (ingress(jwt=token(keys="""jwks: '{"keys": []}'""")), "spec.jwt[0].jwks", 'is no JSON Web Key Set, {"keys": […]}, of 1 to 64 keys'),
        (ingress(jwt=token(keys="jwks: '" + "[" * 60000 + "'")), "spec.jwt[0].jwks", 'is no JSON Web Key Set, {"keys": […]}, of 1 to 64 keys'),
        (ingress(jwt=token(keys="""jwks: '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}'""")), "spec.jwt[0].jwks", "keys[0] holds a secret: give the public key alone"),
        (ingress(jwt=token(keys="""jwks: '{"keys": [{"kty": "oct"}]}'""")), "spec.jwt[0].jwks", "keys[0] is no key of RSA, or of EC on P-256, P-384 or P-521"),
        (ingress(jwt=token(keys="jwks: '" + json.dumps({"keys": [{**jwk(KEY.public_key()), "d": encode(b"1")}]}) + "'")), "spec.jwt[0].jwks", "keys[0] holds a secret: give the public key alone"),
        (ingress(jwt=token(keys="jwks: '" + json.dumps({"keys": [{**jwk(KEY.public_key()), "kid": 7}]}) + "'")), "spec.jwt[0].jwks", "keys[0] is no key of RSA, or of EC on P-256, P-384 or P-521"),
        (ingress(jwt=token(keys="jwks: '" + json.dumps({"keys": [{**jwk(KEY.public_key()), "x": "AA"}]}) + "'")), "spec.jwt[0].jwks", "keys[0]: EC key: coordinates of the wrong length"),
        (ingress(jwt=token(keys="jwksUri: {uri: http://id.test/keys}")), "spec.jwt[0].jwksUri.uri", 'must be "https://host:port/path", without user and fragment'),
        (ingress(jwt=token(keys='jwksUri: {uri: "https://id.test:99999/keys"}')), "spec.jwt[0].jwksUri.uri", "has no host and port that there could be"),
        (ingress(jwt=token(keys='jwksUri: {uri: "https://[::1::]/keys"}')), "spec.jwt[0].jwksUri.uri", "has no host and port that there could be"),
        (ingress(jwt=token(keys='jwksUri: {uri: "https://192.0.2.1/keys"}')), "spec.jwt[0].jwksUri.ca", "is required: a system's authorities answer for names, not addresses"),
        (ingress(certificate=("no pem", "[{dns: a.test, tenant: acme}]")), "spec.clientCertificate.ca", "is no PEM of certificates"),
        (ingress(certificate=(pem(is_ca=False), "[{dns: a.test, tenant: acme}]")), "spec.clientCertificate.ca", "its certificate 1 is no certificate authority's"),
        (ingress(certificate=(pem() + KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(), "[{dns: a.test, tenant: acme}]")), "spec.clientCertificate.ca", "holds a private key: certificates alone belong here"),
        (ingress(certificate=(pem(), "[{dns: a.test, tenant: acme}, {dns: a.test, tenant: platform}]")), "spec.clientCertificate.callers[1]", "a.test is said already"),
        (ingress(certificate=(pem(), '[{uri: "spiffe://a.test/x,spiffe://b.test/y", tenant: acme}]')), "spec.clientCertificate.callers[0].uri", "must be a URI without commas"),
        (ingress(certificate=(pem(), "[{tenant: acme}]")), "spec.clientCertificate.callers[0]", "is required: give one of uri, dns, organization, organizationalUnit"),
        (ingress(certificate=(pem(), "[{dns: g.test, tenant: globex}]")), "spec.clientCertificate.callers[0].tenant", "tenant globex lends no identity: it needs a WorkloadEntry of its own with dataPlane INGRESS and ingress platform/edge"),
        (ingress(listen="127.0.0.1:80", tls="", certificate=(pem(), "[{dns: a.test, tenant: acme}]")), "spec.clientCertificate", "callers show certificates by TLS alone: give spec.tls"),
    ],
)  # fmt: skip
def test_what_does_not_hold_is_refused_by_its_field(text: str, field: str, message: str) -> None:
    assert faults(text) == [FieldFault(field, message)]


def test_many_hosts_and_callers_make_too_many_routes() -> None:
    hosts = ", ".join(f"a{number}.test" for number in range(8))
    routes = ", ".join(f"{{hosts: [{hosts}], path: /{number}, service: orders}}" for number in range(128))
    callers = ", ".join(f"{{value: a{number}, tenant: acme}}" for number in range(4))
    text = "with 4 callers they become more than the 4096 routes that an ingress may have"
    assert faults(ingress(routes=routes, jwt=token(callers=f"[{callers}]"))) == [FieldFault("spec.routes", text)]


def entry(spec: str, tenant: str = "platform", name: str = "other") -> str:
    return f"kind: WorkloadEntry\nmetadata: {{tenant: {tenant}, name: {name}}}\nspec: {{nodes: [n3], {spec}}}\n"


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        (entry("service: edge, selectors: {gid: 7}, dataPlane: INGRESS"), "spec.selectors.uid", "is required: as whom the ingress's Envoy runs"),
        (entry("service: edge, selectors: {uid: 7, path: /bin/a}, dataPlane: INGRESS"), "spec.selectors.path", "there is no program: an ingress's Envoy is its agent's own, by uid and gid alone"),
        (entry("service: edge, selectors: {uid: 7}, dataPlane: INGRESS, port: 80"), "spec.port", "an ingress is no program that the mesh calls: leave it out"),
        (entry("service: edge, selectors: {uid: 7}, dataPlane: INGRESS, ingress: platform/edge"), "spec.ingress", "is of the same tenant, as whom its ingress calls by itself: leave it out"),
        (entry("service: edge, selectors: {uid: 7}, ingress: acme/edge"), "spec.ingress", "only an entry with dataPlane INGRESS lends its identity"),
        (entry("service: edge, selectors: {uid: 7}, dataPlane: INGRESS, ingress: edge"), "spec.ingress", 'must be "tenant/service"'),
    ],
)  # fmt: skip
def test_an_entry_of_an_ingress_has_no_program(text: str, field: str, message: str) -> None:
    assert faults(text) == [FieldFault(field, message)]


def test_one_user_runs_one_ingress_and_nothing_beside_it() -> None:
    found = faults(entry("service: orders, selectors: {uid: 1001}, port: 2").replace("n3", "n1"))
    assert [fault.field for fault in found] == ["spec.selectors.uid"]
    own = "kind: Service\nmetadata: {tenant: acme, name: gate}\nspec: {protocol: HTTP}\n---\n"
    other = entry("service: gate, selectors: {uid: 1001}, dataPlane: INGRESS", "acme").replace("n3", "n1")
    assert [fault.field for fault in faults(own + other)] == ["resources[1].spec.selectors.uid"]


def test_a_service_has_one_ingress_and_is_lent_to_on_all_of_its_nodes() -> None:
    view = world("---\n" + ingress().replace("name: edge}", "name: first}", 1))
    assert faults(ingress(), view) == [FieldFault("spec.service", "Ingress platform/first is this service already")]
    fewer = MESH.replace("spec: {service: edge, nodes: [n1, n2]", "spec: {service: edge, nodes: [n1]")
    view = View()
    for one in parse(fewer, "mesh.yaml"):
        view.put(one.resource)
    (fault,) = faults(ingress(), view)
    assert fault.field == "spec.jwt[0].callers[0].tenant"
    assert "lends no identity on node n2" in fault.message


def test_a_service_that_an_ingress_leads_to_stays_and_who_lends_may_take_it_back() -> None:
    view = world("---\n" + ingress())
    (used,) = users([ResourceRef(kind="Service", tenant="platform", name="orders")], view)[:1]
    assert used.startswith(("Ingress platform/edge needs it: spec.routes[0].service", "WorkloadEntry"))
    assert users([ResourceRef(kind="WorkloadEntry", tenant="acme", name="edge")], view) == []
    (runner,) = users([ResourceRef(kind="WorkloadEntry", tenant="platform", name="edge")], view)
    assert runner.startswith("Ingress platform/edge needs it: spec.service")
