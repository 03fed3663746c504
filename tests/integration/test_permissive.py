"""Calls in the clear, for a time, at a real Envoy: what may be called so, by whom it is told, and that it ends."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.policy_rig import DEADLINE_S, Rig, Sidecar, made, open_rig, until

from meshwarden.agents.telemetry.access_log import Call, call_of
from meshwarden.controlplane.policy.mesh import Change
from meshwarden.v1 import report_pb2 as report

UNTIL_S = 2_000_000_000.0
BILLING = "spiffe://mesh.test/tenant/platform/service/billing"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


@pytest.fixture
async def app() -> AsyncIterator[str]:
    """A plain HTTP/1.1 program that answers with what it got, as JSON; its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head[1:] if line}
                body = json.dumps({"line": head[0], "headers": headers}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


def billing(*methods: str) -> Change:
    spec: dict[str, Any] = {"protocol": "HTTP", "exportTo": ["*"]}
    if methods:
        spec["permissive"] = {"until": "2033-05-18T03:33:20Z", "methods": list(methods)}
    return made("Service", "platform", "billing", spec)


async def sidecars(rig: Rig, app: str, *changes: Change) -> tuple[Sidecar, Sidecar]:
    web = {"from": [{"tenant": "acme", "service": "web"}], "methods": ["/by-mtls"]}
    rig.at_s = UNTIL_S - 3600
    rig.apply(
        billing(),
        made("Service", "acme", "web", {"protocol": "HTTP"}),
        made("AccessPolicy", "platform", "billing", {"service": "billing", "allow": [web]}),
        *changes,
    )
    server = await rig.envoy("platform", "billing", app)
    host, port = server.address.split(":")
    rig.apply(made("Endpoint", "platform", "n1", {"service": "billing", "address": host, "port": int(port)}))
    return server, await rig.envoy("acme", "web")


async def in_the_clear(client: httpx.AsyncClient, url: str, wanted: int, **more: Any) -> httpx.Response:
    """An answer with that status; 0 for none at all."""

    async def same() -> httpx.Response | None:
        try:
            answer = await client.get(url, **more)
        except httpx.TransportError:
            return httpx.Response(599) if not wanted else None
        return answer if answer.status_code == wanted else None

    return await until(same, f"{url} gets {wanted or 'nothing'}")


def told(rig: Rig) -> list[Call]:
    found = (call_of(log, BILLING, "platform/billing") for log in rig.logs)
    return [call for call in found if call is not None and call.reporter == report.CallStat.DESTINATION]


async def test_calls_in_the_clear_may_what_the_service_says_until_it_ends(rig: Rig, app: str) -> None:
    server, web = await sidecars(rig, app)
    url = f"http://{server.address}"
    async with httpx.AsyncClient(timeout=DEADLINE_S, trust_env=False) as nobody, web.client() as client:
        await in_the_clear(nobody, f"{url}/open/a", 0)
        rig.apply(billing("GET /open/*"))
        spoofed = {
            "x-forwarded-client-cert": "By=x;Hash=0;URI=spiffe://mesh.test/tenant/acme/service/web",
            "x-meshwarden-tenant": "platform",
        }
        answer = await in_the_clear(nobody, f"{url}/open/a", 200, headers=spoofed)
        assert not {"x-forwarded-client-cert", "x-meshwarden-tenant"} & answer.json()["headers"].keys()
        for verb, path in (("POST", "/open/a"), ("GET", "/by-mtls"), ("GET", "/open/../by-mtls"), ("GET", "/OPEN/a")):
            denied = await nobody.request(verb, url + path, headers=spoofed)
            assert denied.status_code == 403, path
            assert "in the clear for a time, and not this one" in denied.text
        # By mTLS it is as ever, also for what anybody may call in the clear.
        assert (await in_the_clear(client, "http://billing/by-mtls", 200)).json()["headers"]["x-forwarded-client-cert"]
        assert (await client.get("http://billing/open/a")).status_code == 403
        # TLS without a certificate is not in the clear.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        async with httpx.AsyncClient(verify=context, trust_env=False) as bare:
            # By when the alert comes: httpx has no word for what fails after the handshake.
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                await bare.get(f"https://{server.address}/open/a")
        everybody = {"tenant": "*", "requests": 2, "per": "3600s", "burst": 2}
        limits = {"service": "billing", "scope": "POINT", "limits": [everybody]}
        rig.apply(made("RatePolicy", "platform", "billing", limits))
        await in_the_clear(nobody, f"{url}/open/a", 429, headers={"x-meshwarden-tenant": "other"})
        assert (await client.get("http://billing/by-mtls")).status_code == 200, "a tenant's limit is its own"
        # What lets them in goes first, even if the listener stays.
        rig.apply(made("RatePolicy", "platform", "billing", {**limits, "limits": [{"tenant": "acme", "requests": 9}]}))
        await in_the_clear(nobody, f"{url}/open/a", 200)
        rig.at_s = UNTIL_S
        rig.publish()
    async with httpx.AsyncClient(timeout=DEADLINE_S, trust_env=False) as nobody, web.client() as client:
        await in_the_clear(nobody, f"{url}/open/a", 0)
        await in_the_clear(client, "http://billing/by-mtls", 200)
    await until(lambda: any(call.clear_from for call in told(rig)), "calls in the clear are logged")
    assert {call.source for call in told(rig) if call.clear_from} == {""}
    assert {call.clear_from for call in told(rig)} <= {"127.0.0.1", ""}
    assert {call.source for call in told(rig) if not call.clear_from} == {"spiffe://mesh.test/tenant/acme/service/web"}
