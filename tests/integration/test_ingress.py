"""An ingress on a real Envoy: callers without an identity of the mesh, and those who would like another's."""

import asyncio
import hashlib
import hmac
import json
import random
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tests.integration.policy_rig import DEADLINE_S, Rig, made, open_rig, until
from tests.integration.test_policy_envoy import app
from tests.web_certificate import web_pair

from meshwarden.agents.telemetry.access_log import service_of_cluster, speaks_for
from meshwarden.certs.clock import utc_now
from meshwarden.certs.jose import encode, jwk, sign
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.local.port import free_port
from meshwarden.controlplane.policy.mesh import Change, Key

__all__ = ["app"]
HOST = "shop.test"
ISSUER = "https://id.test"
KEY, OTHER = new_key(), new_key()
LENT = made(
    "WorkloadEntry",
    "acme",
    "edge",
    {
        "service": "edge",
        "nodes": ["n1"],
        "selectors": {"uid": 7},
        "dataPlane": "INGRESS",
        "ingress": "platform/edge",
    },
)
ACME = {"from": [{"tenant": "acme", "service": "edge"}]}
ITSELF = {"from": [{"tenant": "platform", "service": "edge"}], "methods": ["/open*"]}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


def token(key: Any = KEY, *, head: dict[str, Any] | None = None, without: str = "", **claims: Any) -> str:
    said = {"iss": ISSUER, "aud": "edge", "org": "acme-corp", "exp": int(utc_now().timestamp()) + 600, **claims}
    said.pop(without, None)
    content = ".".join(encode(json.dumps(one).encode()) for one in ({"alg": "ES256", "kid": "k", **(head or {})}, said))
    return f"{content}.{encode(sign(key, content.encode()))}"


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


JWT = {
    "issuer": ISSUER,
    "audiences": ["edge"],
    "jwks": json.dumps({"keys": [{**jwk(KEY.public_key()), "kid": "k"}]}),
    "claim": "org",
    "callers": [{"value": "acme-corp", "tenant": "acme"}, {"value": "staff", "tenant": "platform"}],
}
ROUTES = [
    {"hosts": [HOST], "pathPrefix": "/open", "service": "billing", "public": True},
    {"hosts": [HOST], "pathPrefix": "/", "service": "billing"},
]


class Partners:
    """A certificate authority outside the mesh."""

    def __init__(self, directory: Path, name: str = "partners") -> None:
        self._key, self._directory, self._name = new_key(), directory, name
        self.authority = self._made(self._key, [(x509.NameOID.COMMON_NAME, name)], is_ca=True)
        self.pem = self.authority.public_bytes(Encoding.PEM).decode()

    def _made(
        self,
        key: Any,
        subject: list[tuple[x509.ObjectIdentifier, str]],
        *,
        is_ca: bool = False,
        names: tuple[x509.GeneralName, ...] = (),
        ends: timedelta = timedelta(hours=1),
    ) -> x509.Certificate:
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self._name)])
        name = x509.Name([x509.NameAttribute(*one) for one in subject])
        builder = x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(utc_now() - timedelta(days=2)).not_valid_after(utc_now() + ends)
        if is_ca:
            builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def client(self, *subject: tuple[x509.ObjectIdentifier, str], **options: Any) -> tuple[str, str]:
        """The files of a client's certificate and its key."""
        key = new_key()
        made_one = self._made(key, list(subject), **options)
        path = self._directory / f"{self._name}-{made_one.serial_number:x}"
        path.with_suffix(".pem").write_bytes(made_one.public_bytes(Encoding.PEM))
        path.with_suffix(".key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return str(path.with_suffix(".pem")), str(path.with_suffix(".key"))


def access(*rules: dict[str, Any], service: str = "billing") -> Change:
    return made("AccessPolicy", "platform", service, {"service": service, "allow": list(rules)})


class Edge:
    """An ingress before `platform/billing`, a program behind an Envoy that answers with what it got."""

    def __init__(self, rig: Rig, **spec: Any) -> None:
        self.rig, self.port = rig, free_port(random.SystemRandom())
        self.address = f"127.0.0.1:{self.port}"
        self.spec = {"service": "edge", "listen": self.address, "routes": ROUTES, **spec}
        self.url = f"http{'s' if 'tls' in spec else ''}://{self.address}"

    async def open(self, app: str, *changes: Change) -> None:
        self.rig.apply(
            made("Service", "platform", "billing", {"protocol": "HTTP", "exportTo": ["acme"]}),
            made("Service", "platform", "edge", {"protocol": "HTTP"}),
            made("Service", "acme", "edge", {"protocol": "HTTP"}),
            made(
                "WorkloadEntry",
                "platform",
                "edge",
                {"service": "edge", "nodes": ["n1"], "selectors": {"uid": 7}, "dataPlane": "INGRESS"},
            ),
            LENT,
            access(ACME, ITSELF),
            made("Ingress", "platform", "edge", self.spec),
            *changes,
        )
        billing = await self.rig.envoy("platform", "billing", app)
        host, port = billing.address.split(":")
        spec = {"service": "billing", "address": host, "port": int(port)}
        self.rig.apply(made("Endpoint", "platform", "n1-billing", spec))
        await self.rig.ingress("platform", "edge", "acme/edge")
        await until(lambda: connects(self.port), "the ingress listens")

    def client(self, *, verify: Any = False, cert: tuple[str, str] | None = None) -> httpx.AsyncClient:
        context: Any = verify
        if verify:
            context = ssl.create_default_context(cafile=str(verify))
            if cert is not None:
                context.load_cert_chain(*cert)
        return httpx.AsyncClient(base_url=self.url, verify=context, headers={"host": HOST}, timeout=DEADLINE_S)

    async def raw(self, *lines: str, body: bytes = b"") -> tuple[int, bytes]:
        """Sends a request as it is; the status of the answer, and the rest."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write("\r\n".join((*lines, "connection: close", "", "")).encode() + body)
        await writer.drain()
        # Not to its end: some connections Envoy leaves to whoever has called.
        head = await reader.readuntil(b"\r\n\r\n")
        lines_of = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        answer = head + await reader.readexactly(int(lines_of.get(b"content-length", b"0")))
        writer.close()
        return int(answer.split(b" ", 2)[1]), answer


def connects(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def get(client: httpx.AsyncClient, wanted: int, path: str = "/x", **options: Any) -> httpx.Response:
    """The first answer that has the status."""

    async def same() -> httpx.Response | None:
        answer = await client.get(path, **options)
        return answer if answer.status_code == wanted else None

    found: httpx.Response = await until(same, f"GET {path} gets {wanted}")
    return found


def caller_of(answer: httpx.Response) -> str:
    """Who has called, by the certificate that the program's Envoy was shown."""
    said = answer.json()["headers"]["x-forwarded-client-cert"]
    return str(said.rpartition("URI=spiffe://mesh.test/tenant/")[2]).replace("/service/", "/")


async def test_a_token_makes_a_caller_of_its_tenant_and_nothing_else_does(rig: Rig, app: str) -> None:
    edge = Edge(rig, jwt=[JWT])
    await edge.open(app)
    async with edge.client() as client:
        answer = await get(client, 200, headers=bearer(token()))
        assert caller_of(answer) == "acme/edge"
        assert "authorization" not in answer.json()["headers"], "the token goes no further"
        assert caller_of(await get(client, 200, "/open")) == "platform/edge"
        assert caller_of(await get(client, 200, "/open", headers=bearer(token()))) == "acme/edge"
        nobody = await client.get("/x")
        assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, "Bearer")
        assert nobody.text == "meshwarden: prove who you are, by a bearer token\n"
        unknown = await client.get("/x", headers=bearer(token(org="globex")))
        assert (unknown.status_code, unknown.text) == (
            403,
            "meshwarden: what you have proved makes you a caller of no tenant\n",
        )
        # The access policy of the service says who may: platform/edge may not call this.
        denied = await client.get("/x", headers=bearer(token(org="staff")))
        assert (denied.status_code, "platform/edge may not call platform/billing" in denied.text) == (403, True)
        public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        content = token(head={"alg": "HS256"}).rpartition(".")[0]
        confused = f"{content}.{encode(hmac.digest(public, content.encode(), hashlib.sha256))}"
        unsigned = token(head={"alg": "none"}).rpartition(".")[0]
        now = int(utc_now().timestamp())
        for text in (
            token(exp=now - 60),
            token(nbf=now + 600),
            token(without="exp"),
            token(iss="https://other.test"),
            token(without="iss"),
            token(OTHER),
            token(head={"kid": "other"}),
            token(head={"jwk": jwk(OTHER.public_key())}, key=OTHER),
            f"{unsigned}.",
            unsigned,
            confused,
            token().replace(".", ".A", 2),
            "x",
        ):
            for path in ("/x", "/open"):
                assert (await client.get(path, headers=bearer(text))).status_code == 401, text
        for text in (token(aud="other"), token(aud=["other", "edge "]), token(without="aud"), token(aud=1)):
            assert (await client.get("/open", headers=bearer(text))).status_code in (401, 403), text
        for claim in (["acme-corp"], {"acme-corp": 1}, 1, None, True, "", "ACME-CORP", "acme-corp ", "acme-corp\n"):
            assert (await client.get("/x", headers=bearer(token(org=claim)))).status_code == 403, claim
        assert (await client.get(f"/x?access_token={token()}")).status_code == 401
        assert (await client.get("/x", headers={"cookie": f"access_token={token()}"})).status_code == 401
        two = [("authorization", f"Bearer {token()}"), ("authorization", f"Bearer {token(OTHER)}")]
        assert (await client.get("/x", headers=two)).status_code == 401

        # Telemetry knows whose calls they were.
        def spoken() -> set[tuple[str, str]]:
            return {(speaks_for(one), service_of_cluster(one.get("mesh.upstream_cluster", ""))) for one in rig.logs}

        await until(lambda: {("acme", "platform/billing"), ("", "platform/billing")} <= spoken(), "calls are told")


async def test_what_callers_say_of_themselves_is_dropped(rig: Rig, app: str) -> None:
    edge = Edge(rig, jwt=[JWT])
    await edge.open(app)
    trace = "00-11111111111111111111111111111111-2222222222222222-01"
    forged = {
        "x-forwarded-client-cert": "By=x;Hash=y;URI=spiffe://mesh.test/tenant/acme/service/web",
        "x-meshwarden-tenant": "acme",
        "x-meshwarden-criticality": "CRITICAL_PLUS",
        "x-meshwarden-cost": "0",
        "x-meshwarden-peer-uri": "spiffe://acme.test/robot",
        "x-meshwarden-peer-subject": "O=Acme",
        "x-tenant": "acme",
        "x-tenant-id": "acme",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-retry-on": "5xx",
        "x-envoy-max-retries": "100",
        "x-envoy-original-path": "/open",
        "x-envoy-force-trace": "1",
        "x-envoy-internal": "true",
        "x-forwarded-for": "10.9.8.7",
        "x-forwarded-host": "other",
        "x-real-ip": "10.9.8.7",
        "forwarded": "for=10.9.8.7",
        "mesh-decision": "limited",
        "traceparent": trace,
        "tracestate": "a=b",
        "baggage": "tenant=acme",
        "x-b3-traceid": "1",
        "x-client-trace-id": "1",
        "x-request-id": "mine",
    }
    async with edge.client() as client:
        await get(client, 200, "/open")
        assert (await client.get("/x", headers=forged)).status_code == 401
        answer = await client.get("/open", headers={**forged, "x-own": "1"})
        assert caller_of(answer) == "platform/edge"
        got = answer.json()["headers"]
        assert got["x-own"] == "1"
        assert not {name for name in got if name.startswith(("x-tenant", "x-b3", "x-real"))}
        assert set(got) & set(forged) <= {
            *("x-forwarded-client-cert", "x-meshwarden-tenant", "x-request-id", "traceparent", "tracestate"),
            *("x-forwarded-for", "x-envoy-internal", "x-client-trace-id"),
        }, "what is left is Envoy's own"
        assert got["x-meshwarden-tenant"] == "platform"
        assert "10.9.8.7" not in json.dumps(got)
        assert trace.split("-")[1] not in json.dumps(got)
        assert (got["x-request-id"] != "mine", got["x-client-trace-id"] != "1") == (True, True)
        assert not {name for name in answer.headers if name.startswith("x-envoy")}
    for name in ("x_tenant_id", "x_forwarded_client_cert"):
        assert (await edge.raw("GET /open HTTP/1.1", f"host: {HOST}", f"{name}: acme"))[0] == 400
    # Two messages in one.
    smuggled = b"0\r\n\r\nGET /x HTTP/1.1\r\nhost: shop.test\r\n\r\n"
    both = ("POST /open HTTP/1.1", f"host: {HOST}", "content-length: 4", "transfer-encoding: chunked")
    assert (await edge.raw(*both, body=smuggled))[0] == 400


async def test_no_spelling_of_a_path_or_a_host_goes_round_a_route(rig: Rig, app: str) -> None:
    edge = Edge(rig, jwt=[JWT])
    await edge.open(app)

    async def status(path: str, host: str = HOST) -> int:
        code, answer = await edge.raw(f"GET {path} HTTP/1.1", f"host: {host}")
        # What the program gets is what the route was chosen by.
        assert code != 200 or b'"GET /open' in answer, answer
        return code

    async with edge.client() as client:
        await get(client, 200, "/open")
    for path in (
        "/open",
        "/open/",
        "/open/a",
        "/open?x=/../y",
        "/open//a",
        "//open",
        "/./open",
        "/x/../open",
        "/open/%2e/a",
        "/open//../x",
    ):
        assert await status(path) == 200, path
    for path in (
        "/",
        "/x",
        "/openx",
        "/OPEN",
        "/open/../x",
        "/open/..",
        "/open/%2e%2e/x",
        "/open/%2E./x",
        "/open/a/../../x",
        "/open/..//x",
        "/open\\..\\x",
        "/open;/x",
        "/o%70enx",
        "/%6fpenx",
    ):
        assert await status(path) == 401, path
    for path in (
        "/open%2f..%2fx",
        "/open/..%2fx",
        "/open/%2e%2e%2fx",
        "/open%5c..%5cx",
        "/open%00",
        "/open/../../..",
        "/open#/x",
    ):
        assert await status(path) in (400, 401), path
    for host in (
        "other.test",
        "shop.test.",
        "a.shop.test",
        "shop.test.evil.test",
        "127.0.0.1",
        "*",
        "shop.test@other",
        "shop.test,other.test",
    ):
        assert await status("/open", host) in (400, 404), host
    for host in ("SHOP.test", "shop.test:1", f"{HOST}:443"):
        assert await status("/open", host) == 200, host
    assert (await edge.raw("GET http://other.test/open HTTP/1.1", f"host: {HOST}"))[0] == 404
    assert (await edge.raw(f"CONNECT {HOST}:80 HTTP/1.1", f"host: {HOST}"))[0] in (403, 404, 405)
    assert (await edge.raw("OPTIONS * HTTP/1.1", f"host: {HOST}"))[0] in (400, 404)
    assert (await edge.raw("GET /open HTTP/1.1", f"host: {HOST}", "host: other.test"))[0] in (400, 404)


async def test_a_certificate_makes_a_caller_of_its_tenant(rig: Rig, app: str, tmp_path: Path) -> None:
    partners, others = Partners(tmp_path), Partners(tmp_path, "others")
    certificate, key = web_pair(tmp_path)
    callers = [
        {"organization": "Acme, Inc.", "tenant": "acme"},
        {"organizationalUnit": "Robots", "tenant": "acme"},
        {"uri": "spiffe://acme.test/robot", "tenant": "acme"},
        {"dns": "robot.acme.test", "tenant": "acme"},
    ]
    edge = Edge(
        rig,
        tls={"files": {"certificate": str(certificate), "key": str(key)}},
        clientCertificate={"ca": partners.pem, "callers": callers},
        jwt=[JWT],
    )
    await edge.open(app)
    o, ou, cn = x509.NameOID.ORGANIZATION_NAME, x509.NameOID.ORGANIZATIONAL_UNIT_NAME, x509.NameOID.COMMON_NAME

    async def status(*subject: tuple[x509.ObjectIdentifier, str], of: Partners = partners, **options: Any) -> int:
        async with edge.client(verify=certificate, cert=of.client(*subject, **options)) as client:
            return (await client.get("/x")).status_code

    uri, dns = x509.UniformResourceIdentifier, x509.DNSName
    async with edge.client(verify=certificate, cert=partners.client((o, "Acme, Inc."), (cn, "a"))) as client:
        assert caller_of(await get(client, 200)) == "acme/edge"
        # A good token counts before the certificate, and a bad one lets nobody in.
        assert (await client.get("/x", headers=bearer(token(org="staff")))).status_code == 403
        assert (await client.get("/x", headers=bearer(token(OTHER)))).status_code == 401
        assert caller_of(await client.get("/x", headers=bearer(token(org="nobody's")))) == "acme/edge"
    assert await status((ou, "Robots")) == 200
    assert await status((cn, "a"), names=(uri("spiffe://acme.test/robot"),)) == 200
    assert await status((cn, "a"), names=(dns("robot.acme.test"),)) == 200
    # Good certificates of nobody.
    assert await status((cn, "a")) == 403
    assert await status((o, "acme, inc.")) == 403
    assert await status((cn, "x,O=Acme\\, Inc.")) == 403
    assert await status((cn, "x,O=Acme, Inc."), (o, "Evil")) == 403
    assert await status((o, "Acme, Inc."), (o, "Evil")) == 403
    assert await status((cn, "a"), names=(uri("spiffe://acme.test/robot"), uri("spiffe://acme.test/other"))) == 403
    assert await status((cn, "a"), names=(uri("spiffe://acme.test/robot,spiffe://acme.test/other"),)) == 403
    assert await status((cn, "a"), names=(dns("spiffe://acme.test/robot"), dns("robot.acme.test"))) == 403
    # Certificates of others get no connection, and nobody's calls are a caller's of before.
    for options in ({"of": others}, {"ends": timedelta(days=-1)}):
        with pytest.raises((httpx.TransportError, ssl.SSLError)):
            await status((o, "Acme, Inc."), **options)  # type: ignore[arg-type]
    async with edge.client(verify=certificate) as client:
        answer = await client.get("/x")
        assert (answer.status_code, "by a client certificate or a bearer token" in answer.text) == (401, True)
        assert (
            await client.get("/x", headers={"x-meshwarden-peer-uri": "spiffe://acme.test/robot"})
        ).status_code == 401
        assert caller_of(await client.get("/x", headers=bearer(token()))) == "acme/edge"
    with pytest.raises(httpx.TransportError):
        async with httpx.AsyncClient() as client:
            await client.get(f"http://{edge.address}/open")


async def test_what_holds_for_the_tenant_holds_for_its_callers_until_it_takes_its_identity_back(
    rig: Rig, app: str
) -> None:
    edge = Edge(rig, tls={"svid": {}}, jwt=[JWT])
    limit = {
        "service": "billing",
        "scope": "POINT",
        "limits": [{"tenant": "acme", "requests": 1, "per": "3600s", "burst": 3}],
    }
    await edge.open(app, access(ACME, ITSELF, {"from": [{"tenant": "platform", "service": "edge"}]}))
    shown = x509.load_pem_x509_certificate(
        (await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", edge.port))).encode()
    )
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://mesh.test/tenant/platform/service/edge"
    ]
    async with edge.client(verify=False) as client:
        acme, staff = bearer(token()), bearer(token(org="staff"))
        await get(client, 200, headers=acme)
        rig.apply(
            made(
                "RoutePolicy",
                "platform",
                "billing",
                {
                    "service": "billing",
                    "rules": [
                        {
                            "match": {"from": [{"tenant": "acme", "service": "edge"}], "methods": ["/x/old*"]},
                            "fault": {"abort": {"httpStatus": 418, "percent": 100}},
                        }
                    ],
                },
            )
        )
        await get(client, 418, "/x/old", headers=acme)
        assert (await client.get("/x/old", headers=staff)).status_code == 200
        assert (await client.get("/x/new", headers=acme)).status_code == 200
        rig.apply(made("RatePolicy", "platform", "billing", limit))
        await get(client, 429, headers=acme)
        assert (await client.get("/x", headers=staff)).status_code == 200
        rig.apply(Change(Key("WorkloadEntry", "acme", "edge"), None))
        refused = await get(client, 403, headers=acme)
        assert refused.text == "meshwarden: tenant acme lends ingress platform/edge no identity on this node\n"
        assert (await client.get("/x", headers=staff)).status_code == 200
        rig.apply(LENT, Change(Key("Ingress", "platform", "edge"), None))
        await until(lambda: not connects(edge.port), "without the resource nobody listens")


async def test_keys_are_fetched_and_a_grpc_server_sees_the_tenant(rig: Rig, app: str, tmp_path: Path) -> None:
    certificate, key = web_pair(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    asked: list[bytes] = []

    async def keys(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        body = JWT["jwks"].encode()  # type: ignore[attr-defined]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(keys, "127.0.0.1", 0, ssl=context)
    uri = {"uri": f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys", "ca": certificate.read_text()}
    issuer = {name: said for name, said in JWT.items() if name != "jwks"} | {"jwksUri": uri}
    # The system's authorities don't know who serves these keys.
    elsewhere = {
        **issuer,
        "issuer": "https://else.test",
        "jwksUri": {"uri": uri["uri"].replace("127.0.0.1", "localhost")},
    }
    port = free_port(random.SystemRandom())
    spec = {"service": "orders", "address": "127.0.0.1", "port": port, "version": "v1"}
    edge = Edge(
        rig,
        tls={"files": {"certificate": str(certificate), "key": str(key)}},
        jwt=[issuer, elsewhere],
        routes=[{"hosts": ["*"], "pathPrefix": "/shop.Orders", "service": "orders"}],
    )
    await edge.open(
        app,
        made("Service", "platform", "orders", {"protocol": "GRPC", "exportTo": ["acme"]}),
        made("Endpoint", "platform", "n1-orders", spec),
        access({**ACME, "methods": ["/shop.Orders/Get"]}, service="orders"),
    )
    await rig.grpc("platform", "orders", "server", f"127.0.0.1:{port}", listen=f"127.0.0.1:{port}")
    roots = grpc.ssl_channel_credentials(certificate.read_bytes())
    async with grpc.aio.secure_channel(edge.address, roots) as channel:

        async def ended(method: str, text: str = "") -> str:
            metadata = [("authorization", f"Bearer {text}")] if text else []
            call = channel.unary_unary(method)(b"", metadata=metadata, timeout=DEADLINE_S, wait_for_ready=True)
            return str((await call.code()).name)

        async def is_ok() -> bool:
            return await ended("/shop.Orders/Get", token()) == "OK"

        await until(is_ok, "a call goes through")
        assert asked[0] == b"GET /keys HTTP/1.1"
        assert await ended("/shop.Orders/Put", token()) == "PERMISSION_DENIED"
        assert await ended("/shop.OrdersToo/Get", token()) == "UNIMPLEMENTED", "as gRPC calls 404"
        assert await ended("/shop.Orders/Get") == "UNAUTHENTICATED"
        assert await ended("/shop.Orders/Get", token(OTHER)) == "UNAUTHENTICATED"
        assert await ended("/shop.Orders/Get", token(org="x")) == "PERMISSION_DENIED"
        assert await ended("/shop.Orders/Get", token(iss="https://else.test")) == "UNAUTHENTICATED"
    server.close()
