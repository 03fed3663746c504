"""Calls that leave the mesh, through a real Envoy: who may, how much, proved by whom, told of how."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.policy_rig import DEADLINE_S, WEB, Rig, Sidecar, made, open_rig, until
from tests.web_certificate import signed

from meshwarden.agents.telemetry.access_log import Call, call_of, is_relayed
from meshwarden.controlplane.policy.envoy.egress import socket_path
from meshwarden.controlplane.policy.external import find
from meshwarden.controlplane.policy.mesh import Change
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.v1 import report_pb2 as report

NAME = "api.model.example"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


@pytest.fixture
def authority(tmp_path: Path) -> tuple[str, Path]:
    """An authority's certificate, and a server's with its key."""
    return signed(tmp_path, NAME)


class Outside:
    """A server beyond the mesh, of HTTP/1.1 over TLS or in the clear; answers with what it got."""

    def __init__(self) -> None:
        self.port = 0
        self.failing = 0
        self.calls: list[dict[str, Any]] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head[1:] if line}
                self.calls.append({"line": head[0], "headers": headers})
                self.failing -= 1
                status = b"503 Busy" if self.failing >= 0 else b"200 OK"
                body = json.dumps(self.calls[-1]).encode()
                writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def outside(certificate: Path | None = None) -> AsyncIterator[Outside]:
    served, context = Outside(), None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    server = await asyncio.start_server(served.answer, "127.0.0.1", 0, ssl=context)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()


def external(port: int, name: str = "model", tenant: str = "platform", **spec: Any) -> Change:
    fields = {"protocol": "HTTPS", "hosts": [{"address": "127.0.0.1", "port": port}], "exportTo": ["acme"], **spec}
    return made("ExternalService", tenant, name, fields)


def access(*rules: dict[str, Any], name: str = "model", tenant: str = "platform") -> Change:
    return made("AccessPolicy", tenant, name, {"service": name, "allow": list(rules)})


WEB_MAY = {"from": [{"tenant": "acme", "service": "web"}]}


async def caller(rig: Rig, *changes: Change) -> Sidecar:
    rig.apply(made("Service", "acme", "web", {"protocol": "HTTP"}), *changes)
    return await rig.envoy("acme", "web")


async def answered(client: httpx.AsyncClient, url: str, wanted: int, **more: Any) -> httpx.Response:
    async def same() -> httpx.Response | None:
        answer = await client.get(url, **more)
        return answer if answer.status_code == wanted else None

    return await until(same, f"{url} gets {wanted}")


def told(rig: Rig) -> list[Call]:
    found = (call_of(log, WEB, "acme/web") for log in rig.logs if not is_relayed(log))
    return [call for call in found if call is not None]


async def test_calls_leave_the_mesh_by_name_as_policy_says_and_to_whom_is_proved(
    rig: Rig, authority: tuple[str, Path]
) -> None:
    ca, certificate = authority
    async with outside(certificate) as served:
        tls = {"sni": NAME, "ca": ca}
        web = await caller(rig, external(served.port, tls=tls))
        async with web.client() as client:
            denied = await answered(client, "http://model.platform/v1/chat?q=1", 403)
            assert "acme/web may not call platform/model GET /v1/chat" in denied.text
            rig.apply(access({**WEB_MAY, "methods": ["GET /v1/*"]}))
            spoofed = {
                "x-forwarded-for": "10.0.0.9",
                "x-meshwarden-tenant": "platform",
                "baggage": "secret=1",
                "x-forwarded-client-cert": "URI=spiffe://mesh.test/tenant/platform/service/boss",
                "x-envoy-retry-on": "5xx",
                "x-envoy-max-retries": "9",
                "authorization": "Bearer own",
            }
            answer = await answered(client, "http://model/v1/chat?q=1", 200, headers=spoofed)
            got = answer.json()
            assert got["line"] == "GET /v1/chat?q=1 HTTP/1.1"
            assert got["headers"]["host"] == f"{NAME}:{served.port}"
            assert got["headers"]["authorization"] == "Bearer own"
            own = ("x-forwarded", "x-envoy", "x-meshwarden", "x-request-id", "baggage", "x-client-trace-id")
            assert not [key for key in got["headers"] if key.startswith(own)]
            refused = [("POST", "/v1/chat"), ("GET", "/v2"), ("GET", "/v1/../v2"), ("GET", "//v2")]
            for verb, path in refused:
                assert (await client.request(verb, f"http://model{path}")).status_code == 403, path
            nothing = await client.get("http://elsewhere.example/")
            assert nothing.status_code == 404
            assert "needs an ExternalService" in nothing.text
            # Whose certificate it is matters, and so does who has signed it.
            rig.apply(external(served.port, tls={"sni": "other.example", "ca": ca}))
            await answered(client, "http://model/v1/chat", 503)
            rig.apply(external(served.port, tls={"sni": NAME, "ca": signed(rig.root, "other.example")[0]}))
            await answered(client, "http://model/v1/chat", 503)
            rig.apply(external(served.port, tls={"sni": NAME}))  # no authority of this system's
            await answered(client, "http://model/v1/chat", 503)
            count = len(served.calls)
            rig.apply(external(served.port, tls=tls))
            await answered(client, "http://model/v1/chat", 200)
            assert len(served.calls) == count + 1
            rig.deny((WEB, ""))
            await answered(client, "http://model/v1/chat", 403)
            rig.deny()
            await answered(client, "http://model/v1/chat", 200)
            rig.apply(external(served.port, tls=tls, exportTo=[]))
            assert "sees no single service" in (await answered(client, "http://model.platform/v1/chat", 404)).text

        def each_once() -> bool:
            return len([call for call in told(rig) if call.status == "200"]) == len(served.calls)

        await until(each_once, "each call is logged once")
    calls = [call for call in told(rig) if call.destination]
    assert {call.destination for call in calls} == {"platform/model"}
    assert {call.source for call in calls} == {WEB}
    assert {(call.status, call.decision) for call in calls if call.status in ("200", "403")} == {
        ("200", report.CallStat.ALLOWED),
        ("403", report.CallStat.DENIED),
    }


async def test_calls_that_leave_the_mesh_are_limited_and_made_again(rig: Rig) -> None:
    async with outside() as served:
        route = {
            "service": "model",
            "idempotent": ["GET /*"],
            "rules": [{"retry": {"codes": ["503"], "attempts": 3, "budget": {"percent": 100, "minRetries": 9}}}],
        }
        limit = {
            "service": "model",
            "scope": "POINT",
            "limits": [{"tenant": "acme", "requests": 3, "per": "3600s", "burst": 3}],
        }
        web = await caller(
            rig,
            external(served.port, protocol="HTTP", insecure=True),
            access(WEB_MAY),
            made("RoutePolicy", "platform", "model", route),
        )
        async with web.client() as client:
            await answered(client, "http://model/", 200)
            served.failing, count = 2, len(served.calls)
            assert (await client.get("http://model/again")).status_code == 200
            assert len(served.calls) == count + 3
            rig.apply(made("RatePolicy", "platform", "model", limit))

            async def limited() -> httpx.Response | None:
                answer = await client.get("http://model/")
                return answer if answer.status_code == 429 else None

            answer = await until(limited, "the limit holds")
            assert answer.headers["x-meshwarden-policy"] == "RatePolicy platform/model"
            # Nothing but its own limit fills it again: another external service, of another tenant, doesn't.
            async with outside() as other:
                rig.apply(
                    external(
                        other.port,
                        "ledger",
                        "acme",
                        protocol="HTTP",
                        hosts=[{"address": "localhost", "port": other.port}],
                    ),
                    access(WEB_MAY, name="ledger", tenant="acme"),
                )
                await answered(client, "http://ledger/", 200)
                assert (await client.get("http://model/")).status_code == 429
    await until(lambda: any(call.decision == report.CallStat.LIMITED for call in told(rig)), "limits are logged")


async def test_another_external_service_ends_no_call_that_is_open(rig: Rig) -> None:
    async with outside() as served:
        web = await caller(rig, external(served.port, protocol="HTTP", insecure=True), access(WEB_MAY))
        reader, writer = await asyncio.open_unix_connection(str(web.outbound))
        async with web.client() as client:
            await answered(client, "http://model/", 200)

            async def once() -> bytes:
                writer.write(b"GET / HTTP/1.1\r\nhost: model\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                )
                await reader.readexactly(length)
                return head

            assert b"200 OK" in await once()
            rig.apply(
                external(served.port, "ledger", "acme", protocol="HTTP", insecure=True),
                access(WEB_MAY, name="ledger", tenant="acme"),
            )
            await answered(client, "http://ledger/", 200)
            assert b"connection: close" not in (await once()).lower()
        writer.close()


async def test_connections_leave_the_mesh_by_their_own_socket(rig: Rig, authority: tuple[str, Path]) -> None:
    ca, certificate = authority
    async with outside(certificate) as served:
        spec = external(served.port, "db", protocol="TLS", tls={"sni": NAME, "ca": ca})
        web = await caller(rig, spec)
        said = find(rig.mesh, Name("platform", "db"))
        assert said is not None
        path = socket_path(str(web.outbound), said)
        assert path == str(web.outbound.with_name("db.platform.sock"))

        async def spoken() -> bytes:
            try:
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(b"GET /over-tls HTTP/1.1\r\n\r\n")
                head = await reader.read(12)
            except OSError:
                return b"no"
            writer.close()
            return head

        await until(lambda: Path(path).exists(), "the socket is there")
        assert await spoken() in (b"", b"no")
        assert not served.calls
        rig.apply(access(WEB_MAY, name="db"))

        async def says() -> bool:
            return await spoken() == b"HTTP/1.1 200"

        await until(says, "it is let through")
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /open HTTP/1.1\r\n\r\n")
        assert await reader.read(12) == b"HTTP/1.1 200"
        rig.deny((WEB, ""))
        async with asyncio.timeout(DEADLINE_S):
            while await reader.read(4096):  # what is open ends
                pass
        writer.close()

        async def refused() -> bool:
            return await spoken() in (b"", b"no")

        await until(refused, "nobody gets through")

    def seen() -> bool:
        found = {(call.method, call.status, call.decision) for call in told(rig) if call.destination == "platform/db"}
        return {
            ("CONNECT", "200", report.CallStat.ALLOWED),
            ("CONNECT", "403", report.CallStat.DENIED),
        } <= found

    await until(seen, "connections are logged")
