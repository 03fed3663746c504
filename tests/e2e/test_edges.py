"""The edges of a whole mesh, as an operator sets them up: calls that leave it, in the clear, and from outside.

What policies, identities and bytes come to on an Envoy stands in tests/integration/test_{egress,permissive,ingress}.py.
"""

import contextlib
import http.client
import json
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from programs import Programs, ask, free_port
from tests.pages import ROOT
from tests.shell import Shell
from tests.web_certificate import signed

from meshwarden.certs.clock import utc_now
from meshwarden.certs.jose import encode, jwk, sign
from meshwarden.certs.svid import new_key

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

EDGES, INGRESS = "docs/edges.md", "docs/ingress.md"
PROVIDER = "api.model.example"
KEY = new_key()


class Answering(BaseHTTPRequestHandler):
    """Answers with the headers that it got."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        content = json.dumps({key.lower(): value for key, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """The mesh counts the calls."""


class Server(ThreadingHTTPServer):
    """A server to which who doesn't trust it comes in vain."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A handshake that the other side has broken off is nothing to report."""


@contextlib.contextmanager
def provider(certificate: Path) -> Iterator[int]:
    """A server beyond the mesh, of HTTP over TLS; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Server(("127.0.0.1", 0), Answering) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


class World(Programs):
    """The samples' mesh, and a caller of acme's with an Envoy."""

    def start_caller(self) -> None:
        self.probe = self.start("node-a", "acme/web", "-m", "meshwarden.examples.probe")

    def run(self, *arguments: str, code: int = 0) -> str:
        """What a command prints."""
        said = self.up.run(*arguments)
        assert said.returncode == code, said.stdout + said.stderr
        return str(said.stdout)

    def apply(self, *manifests: str) -> None:
        path = self.directory / "edges.yaml"
        path.write_text("\n---\n".join(manifests))
        self.run("apply", "-f", str(path))

    def calls(self, host: str, path: str) -> dict[str, Any]:
        """What came of a call by the caller's Envoy: {"code": …, "body": …}."""
        answer = ask(self.probe, op="http", host=host, path=path, timeout_s=20)
        (code,) = answer["codes"]
        return {"code": code, "said": json.dumps(answer)}

    def until_calls(self, host: str, path: str, code: str) -> str:
        """Calls until it comes to a status; what was said."""
        self.up.until(lambda: self.calls(host, path)["code"] == code)
        return str(self.calls(host, path)["said"])

    def edge(self, source: str, destination: str) -> dict[str, Any]:
        """An edge of the graph, empty as long as there is none."""
        edges = json.loads(self.run("graph", "-o", "json", "--service", destination))["edges"]
        return next((one for one in edges if (one["source"], one["destination"]) == (source, destination)), {})


@pytest.fixture(scope="module")
def world(start_shared: Callable[..., Any], shared_directory: Path) -> Iterator[World]:
    up = start_shared("e")
    up.wait_until_up()
    made = World(up, shared_directory)
    try:
        made.start_caller()
        yield made
    finally:
        made.end()


def external(port: int, ca: str) -> str:
    spec = {
        "protocol": "HTTPS",
        "hosts": [{"address": "127.0.0.1", "port": port}],
        "internal": True,
        "tls": {"sni": PROVIDER, "ca": ca},
        "exportTo": ["acme"],
    }
    return json.dumps({"kind": "ExternalService", "metadata": {"tenant": "platform", "name": "model"}, "spec": spec})


MAY_CALL = """\
kind: AccessPolicy
metadata: {tenant: platform, name: model}
spec: {service: model, allow: [{from: [{tenant: acme, service: web}], methods: ["GET /v1/*"]}]}
"""
LIMIT = """\
kind: RatePolicy
metadata: {tenant: platform, name: model}
spec: {service: model, limits: [{tenant: acme, requests: 1, per: 3600s, burst: 1}]}
"""


def test_calls_leave_the_mesh_as_policies_say(world: World, tmp_path: Path) -> None:
    ca, certificate = signed(tmp_path, PROVIDER)
    with provider(certificate) as port:
        world.apply(external(port, ca))
        denied = world.until_calls("model.platform", "/v1/chat", "403")
        assert "acme/web may not call platform/model GET /v1/chat" in denied
        assert "ExternalService" in world.calls(PROVIDER, "/v1/chat")["said"], "what nobody has declared leads nowhere"
        world.apply(MAY_CALL)
        world.until_calls("model.platform", "/v1/chat", "200")
        assert world.calls("model", "/v2")["code"] == "403"
        asked = ("explain", "--from", "acme/web", "--to", "platform/model", "--method")
        assert world.run(*asked, "GET /v1/chat").startswith("ALLOWED")
        assert world.run(*asked, "GET /v2").startswith("DENIED")
        # Who is at the other end is proved.
        world.apply(external(port, signed(tmp_path, "other.example")[0]))
        world.until_calls("model.platform", "/v1/chat", "503")
        world.apply(external(port, ca))
        world.until_calls("model.platform", "/v1/chat", "200")
        world.apply(LIMIT)
        world.until_calls("model.platform", "/v1/chat", "429")
        world.run("delete", "RatePolicy", "platform/model")
        world.until_calls("model.platform", "/v1/chat", "200")
        world.up.until(lambda: world.edge("acme/web", "platform/model"))
        warned = world.up.run("status")
        assert "internal" in warned.stdout + warned.stderr

        # What its deletion would do is told before, and then comes to pass.
        def is_foreseen() -> bool:
            gone = ("--delete", "AccessPolicy/platform/model")
            seen = json.loads(world.run("diff", *gone, "--replay", "1h", "-o", "json", code=5))
            (change,) = [one for one in seen["preview"]["changes"] if one["kind"] == "DENIED"]
            assert (change["from"], change["to"], change["methods"]) == (["acme/web"], "platform/model", ["GET /v1/*"])
            assert seen["resources"][0]["action"] == "deleted"
            return int(seen["replay"].get("denied", 0)) > 0

        world.up.until(is_foreseen)
        assert world.calls("model.platform", "/v1/chat")["code"] == "200"
        world.run("delete", "AccessPolicy", "platform/model")
        world.until_calls("model.platform", "/v1/chat", "403")
        world.run("delete", "ExternalService", "platform/model")
        world.until_calls("model.platform", "/v1/chat", "404")
    # As the page has it.
    shell = Shell(world.up.environment, tmp_path)
    outbound = next(one["outbound"] for one in world.up.up_json["envoys"] if one["name"] == "acme/acme-web")
    typed = "curl -s --unix-socket outbound.sock http://api.model.example/"
    shell.reads(EDGES, typed, {"outbound.sock": outbound})
    world.apply((ROOT / EDGES).read_text().partition("```yaml\n")[2].partition("```")[0])
    shell.types(EDGES, 'meshwarden explain --from acme/web --to platform/model --method "POST /v1/chat/completions"')


def got(url: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """What somebody without an identity gets: a status and a text, 0 for no answer."""
    request = urllib.request.Request(url, headers=headers or {})  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - loopback
            return int(answer.status), str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""


def test_calls_in_the_clear_are_shown_and_end(world: World) -> None:
    endpoints = json.loads(world.run("get", "endpoints", "--tenant", "platform", "-o", "json"))
    (address,) = [one["spec"] for one in endpoints if one["spec"]["service"] == "billing"]
    url = f"http://{address['address']}:{address['port']}/invoices/7"
    assert got(url)[0] == 0, "it takes mTLS and nothing else"
    billing = json.loads(world.run("get", "Service", "platform/billing", "-o", "json"))
    billing["metadata"].pop("record")
    until = (utc_now() + timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    plain = {**billing, "spec": {**billing["spec"], "permissive": {"until": until, "methods": ["GET /invoices*"]}}}
    world.apply(json.dumps(plain))
    world.up.until(lambda: got(url)[0] == 200)
    assert json.loads(got(url, {"x-meshwarden-tenant": "acme"})[1])["tenant"] == "", "nobody is who he says"
    assert got(url.replace("/invoices/7", "/healthz"))[0] == 403
    assert world.calls("billing.platform", "/invoices/7")["code"] == "200"

    def is_shown() -> bool:
        said = world.up.run("status")
        row = [line.split() for line in said.stdout.splitlines() if line.startswith("platform/billing")]
        return any("127.0.0.1" in cells for cells in row) and "in the clear until" in said.stdout + said.stderr

    world.up.until(is_shown)
    Shell(world.up.environment, world.directory).reads(EDGES, "meshwarden status", rows=True)
    world.apply(json.dumps(billing))
    world.up.until(lambda: got(url)[0] == 0)
    assert world.calls("billing.platform", "/invoices/7")["code"] == "200"


def token(tenant: str, **claims: Any) -> str:
    """A token of a caller from outside."""
    said = {"iss": "https://id.test", "aud": "shop", "org": tenant, "exp": int(utc_now().timestamp()) + 600, **claims}
    content = ".".join(encode(json.dumps(one).encode()) for one in ({"alg": "ES256", "kid": "k"}, said))
    return f"{content}.{encode(sign(KEY, content.encode()))}"


def ingress(port: int, certificate: Path, ca: str) -> list[str]:
    """An ingress of platform's, to which acme lends its identity; its certificate, and whose it takes."""
    envoy = {"dataPlane": "INGRESS", "nodes": ["node-a"], "selectors": {"uid": os.geteuid(), "gid": os.getegid()}}
    own = {"service": "edge", "insecureSameUser": True, **envoy}
    jwt = {
        "issuer": "https://id.test",
        "audiences": ["shop"],
        "jwks": json.dumps({"keys": [{**jwk(KEY.public_key()), "kid": "k"}]}),
        "claim": "org",
        "callers": [{"value": "acme", "tenant": "acme"}],
    }
    routes = [
        {"hosts": ["shop.example.com"], "pathPrefix": "/healthz", "service": "billing", "public": True},
        {"hosts": ["shop.example.com"], "pathPrefix": "/invoices", "service": "billing"},
    ]
    listening = {
        "service": "edge",
        "listen": f"127.0.0.1:{port}",
        "tls": {"files": {"certificate": str(certificate), "key": str(certificate.with_suffix(".key"))}},
        "clientCertificate": {"ca": ca, "callers": [{"organization": "Acme Inc", "tenant": "acme"}]},
        "jwt": [jwt],
        "routes": routes,
    }
    allow = [
        {"from": [{"tenant": "acme", "service": "edge"}], "methods": ["GET /invoices*"]},
        {"from": [{"service": "edge"}], "methods": ["GET /healthz"]},
    ]
    made = [
        ("Service", "platform", "edge", {"protocol": "HTTP"}),
        ("Service", "acme", "edge", {"protocol": "HTTP"}),
        ("WorkloadEntry", "platform", "edge", own),
        ("WorkloadEntry", "acme", "edge", {**own, "ingress": "platform/edge"}),
        ("AccessPolicy", "platform", "billing-edge", {"service": "billing", "allow": allow}),
        ("Ingress", "platform", "edge", listening),
    ]
    return [
        json.dumps({"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec})
        for kind, tenant, name, spec in made
    ]


def test_callers_from_outside_come_in_as_their_tenants_workload(world: World, tmp_path: Path) -> None:
    """All that docs/ingress.md shows, by curl."""
    web_ca, certificate = signed(tmp_path, "shop.example.com")
    (tmp_path / "web-ca.pem").write_text(web_ca)
    robots, robot = signed(tmp_path, "robot", organization="Acme Inc")
    key = load_pem_private_key(robot.with_suffix(".key").read_bytes(), None)
    signed(tmp_path, "of-another-authority", organization="Acme Inc", key=key)  # type: ignore[arg-type]
    for name, content in (
        ("token", token("acme")),
        ("expired", token("acme", exp=1)),
        ("of-initech", token("initech")),
    ):
        (tmp_path / name).write_text(content)
    port = str(free_port())
    world.apply(*ingress(int(port), certificate, robots))
    curl = "curl -sS --cacert web-ca.pem --resolve shop.example.com:8443:127.0.0.1".replace("8443", port)
    shell = Shell({**world.up.environment, "C": curl, "U": f"https://shop.example.com:{port}"}, tmp_path)
    shell.reads(INGRESS, "$C --cert robot.pem --key robot.key $U/invoices/7")
    bearer = '$C -H "authorization: Bearer $(cat token)" $U/invoices/7'
    shell.reads(INGRESS, bearer)
    shell.types(INGRESS, "$C $U/healthz")
    shell.types(INGRESS, "$C $U/invoices/7")
    said = '-H "x-forwarded-client-cert: URI=spiffe://mesh.test/tenant/acme/service/edge"'
    shell.types(INGRESS, f'$C -H "x-meshwarden-tenant: acme" {said} $U/invoices/7')
    shell.types(INGRESS, "$C --path-as-is $U/healthz/../invoices/7")
    shell.types(INGRESS, '$C -H "authorization: Bearer $(cat expired)" $U/invoices/7')
    shell.types(INGRESS, '$C -H "authorization: Bearer $(cat of-initech)" $U/invoices/7')
    refused = shell.types(INGRESS, "$C --cert of-another-authority.pem --key robot.key $U/invoices/7", code=None)
    assert "invoice" not in refused
    shell.types(INGRESS, "$C -X POST --cert robot.pem --key robot.key $U/invoices/7")
    shell.types(INGRESS, '$C -H "host: other.example.com" $U/healthz')
    shell.types(INGRESS, "meshwarden explain --from acme/edge --to platform/billing --method 'GET /invoices/7'")
    shell.reads(INGRESS, "meshwarden graph", rows=True)
    shell.types(INGRESS, "meshwarden delete WorkloadEntry acme/edge")
    shell.reads(INGRESS, bearer, which=1)
