"""What policy compiles, taken by real data planes: gRPC's own xDS client and server, and Envoy.

Nothing of the agent or of the publisher is here: an ADS server serves compiled scopes, so that a failure is policy's.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.policy_rig import DEADLINE_S, WEB, Rig, Sidecar, ask, made, open_rig, until

from meshwarden.agents.telemetry.access_log import call_of
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid
from meshwarden.controlplane.local.port import free_port
from meshwarden.controlplane.policy.mesh import Change
from meshwarden.xds import telemetry_names as names


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


def allow(*methods: str, service: str = "web") -> Change:
    rule = {"from": [{"tenant": "acme", "service": service}], "methods": list(methods)}
    return made("AccessPolicy", "platform", "orders", {"service": "orders", "allow": [rule]})


def denial(*rules: dict[str, Any], service: str = "orders") -> Change:
    return made("AccessPolicy", "platform", f"not-{service}", {"service": service, "deny": list(rules)})


async def test_grpc_denies_by_default_allows_by_method_and_revokes_on_the_open_connection(rig: Rig) -> None:
    port = free_port(random.SystemRandom())
    rig.apply(
        made("Service", "platform", "orders", {"protocol": "GRPC", "exportTo": ["acme"]}),
        made("Service", "acme", "web", {"protocol": "GRPC"}),
        made(
            "Endpoint",
            "platform",
            "n1-orders",
            {"service": "orders", "address": "127.0.0.1", "port": port, "version": "v1"},
        ),
    )
    await rig.grpc("platform", "orders", "server", f"127.0.0.1:{port}", listen=f"127.0.0.1:{port}")
    web = await rig.grpc("acme", "web", "client")

    async def code(target: str, method: str, wanted: str, **metadata: str) -> None:
        async def same() -> bool:
            return (await ask(web, target, method, **metadata))["code"] == wanted

        await until(same, f"{target} {method} gets {wanted}")

    await code("xds:///orders.platform", "/shop.Orders/Get", "PERMISSION_DENIED")
    rig.apply(allow("/shop.Orders/Get"))
    await code("xds:///orders.platform", "/shop.Orders/Get", "OK")
    await code("xds:///orders", "/shop.Orders/Get", "OK")
    assert (await ask(web, "xds:///orders", "/shop.Orders/Put"))["code"] == "PERMISSION_DENIED"
    rig.apply(allow(service="other"))
    await code("xds:///orders", "/shop.Orders/Get", "PERMISSION_DENIED")
    rig.apply(allow("/shop.*", service="*"))
    await code("xds:///orders", "/shop.Orders/Get", "OK")
    rig.deny((WEB, ""))
    await code("xds:///orders", "/shop.Orders/Get", "PERMISSION_DENIED")
    rig.deny((WEB + "x", ""))
    await code("xds:///orders", "/shop.Orders/Get", "OK")
    rig.apply(allow("/shop.*", service="web"))
    rig.deny((WEB, ""))
    await code("xds:///orders", "/shop.Orders/Get", "PERMISSION_DENIED")
    rig.deny()
    await code("xds:///orders", "/shop.Orders/Get", "OK")
    # What is denied is, whatever allows it.
    rig.apply(denial({"from": [{"tenant": "acme", "service": "*"}], "headers": [{"name": "x-a", "present": True}]}))
    await code("xds:///orders", "/shop.Orders/Get", "PERMISSION_DENIED", x_a="")
    await code("xds:///orders", "/shop.Orders/Get", "OK", x_b="1")
    only = {"from": [{"tenant": "acme", "service": "web"}], "headers": [{"name": "x-a", "exact": "1"}]}
    rig.apply(
        made("AccessPolicy", "platform", "orders", {"service": "orders", "allow": [only]}),
        denial({"from": [{"tenant": "acme", "service": "web"}], "methods": ["/shop.Orders/Drop*"]}),
    )
    await code("xds:///orders", "/shop.Orders/Get", "PERMISSION_DENIED")
    await code("xds:///orders", "/shop.Orders/Get", "OK", x_a="1")
    assert (await ask(web, "xds:///orders", "/shop.Orders/Get", x_a=["1", "2"]))["code"] == "PERMISSION_DENIED"
    assert (await ask(web, "xds:///orders", "/shop.Orders/DropAll", x_a="1"))["code"] == "PERMISSION_DENIED"
    rig.apply(allow(), denial({"from": [{"tenant": "acme", "service": "job"}]}))
    await code("xds:///orders", "/shop.Orders/DropAll", "OK")
    # Who is revoked is called no more either.
    rig.deny(("spiffe://mesh.test/tenant/platform/service/orders", ""))
    await code("xds:///orders", "/shop.Orders/Get", "UNAVAILABLE")


@pytest.fixture
async def app() -> AsyncIterator[str]:
    """A plain HTTP/1.1 program that answers with what it got, as JSON; its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head[1:]}
                if " /stream" in head[0]:
                    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nopen\r\n")
                    await reader.read()  # until the caller is gone
                    return
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


BILLING = made("Service", "platform", "billing", {"protocol": "HTTP", "exportTo": ["*"]})


def access(*rules: dict[str, Any]) -> Change:
    return made("AccessPolicy", "platform", "billing", {"service": "billing", "allow": list(rules)})


def endpoint(address: str) -> Change:
    host, port = address.split(":")
    spec = {"service": "billing", "address": host, "port": int(port), "version": "v1"}
    return made("Endpoint", "platform", "n1-billing", spec)


async def two_sidecars(rig: Rig, app: str, *changes: Change) -> tuple[Sidecar, Sidecar]:
    """Billing behind an Envoy, and acme/web behind another."""
    rig.apply(BILLING, made("Service", "acme", "web", {"protocol": "HTTP"}), *changes)
    billing = await rig.envoy("platform", "billing", app)
    rig.apply(endpoint(billing.address))
    return billing, await rig.envoy("acme", "web")


async def status(client: httpx.AsyncClient, url: str, wanted: int, method: str = "GET") -> httpx.Response:
    """The first answer with that status."""

    async def same() -> httpx.Response | None:
        answer = await client.request(method, url)
        return answer if answer.status_code == wanted else None

    return await until(same, f"{method} {url} gets {wanted}")


async def test_envoy_denies_by_default_says_who_and_how_to_ask_and_changes_on_the_open_connection(
    rig: Rig, app: str
) -> None:
    _, web = await two_sidecars(rig, app)
    async with web.client() as client:
        denied = await status(client, "http://billing.platform/invoices?x=1", 403)
        assert "acme/web may not call platform/billing GET /invoices" in denied.text
        assert "meshwarden explain --from acme/web --to platform/billing --method 'GET /invoices'" in denied.text
        rig.apply(access({"from": [{"tenant": "acme", "service": "web"}], "methods": ["GET /invoices", "/open/*"]}))
        allowed = await status(client, "http://billing/invoices?x=1", 200)
        assert "URI=spiffe://mesh.test/tenant/acme/service/web" in allowed.json()["headers"]["x-forwarded-client-cert"]
        assert (await client.post("http://billing/invoices")).status_code == 403
        assert (await client.get("http://billing/invoices/1")).status_code == 403
        assert (await client.post("http://billing/open/a")).status_code == 200
        assert (await client.get("http://billing/open/..%2finvoices/1")).status_code == 400, "what is behind %2f"
        assert (await client.get("http://billing/open/../x")).status_code == 403
        assert (await client.get("http://nothing/")).status_code == 404
        spoofed = {"x-forwarded-client-cert": "URI=spiffe://mesh.test/tenant/platform/service/billing"}
        assert (await client.get("http://billing/x", headers=spoofed)).status_code == 403
        rig.apply(access({"from": [{"tenant": "acme", "service": "*"}]}))
        await status(client, "http://billing/anything", 200, "PUT")
        rig.apply(access({"from": [{"tenant": "acme", "service": "other"}]}))
        await status(client, "http://billing/invoices", 403)


async def test_envoy_denies_whatever_allows_it_and_compares_headers(rig: Rig, app: str) -> None:
    acme = {"from": [{"tenant": "acme", "service": "*"}]}
    _, web = await two_sidecars(rig, app, access(acme))
    async with web.client() as client:

        async def code(path: str, *headers: tuple[str, str | bytes], verb: str = "GET") -> int:
            return (await client.request(verb, f"http://billing{path}", headers=list(headers))).status_code

        await status(client, "http://billing/a", 200)
        one = {"from": [{"tenant": "acme", "service": "web"}], "methods": ["/admin*", "DELETE /x"]}
        rig.apply(
            denial(one, {**acme, "headers": [{"name": "x-old", "present": True}]}, service="billing"),
        )
        await status(client, "http://billing/admin/a", 403)
        for path in ("/admin", "//admin", "/a/../admin", "/%61dmin", "/./admin?x"):
            assert await code(path) == 403, path
        assert await code("/Admin") == 200, "another path"
        assert (await code("/x"), await code("/x?a=1", verb="DELETE")) == (200, 403)
        # Of the tenant as a whole, where the caller's own denials say nothing; with bytes that are no text, too.
        for value in ("", "1", b"\xff\xfe"):
            assert await code("/a", ("x-old", value)) == 403
        only = {**acme, "headers": [{"name": "x-a", "exact": "1"}, {"name": "x-b", "present": False}]}
        rig.apply(access(only), denial({"from": [{"tenant": "acme", "service": "job"}]}, service="billing"))
        await status(client, "http://billing/admin", 403)
        assert await code("/admin", ("x-a", "1")) == 200
        assert await code("/a", ("x-a", "1"), ("x-a", "1")) == 403, "twice is 1,1"
        assert await code("/a", ("x-a", "1"), ("x-b", "")) == 403
        assert await code("/a", ("x-a", "1"), ("x-b", b"\xff")) == 403
        assert await code("/a", ("x-a", "12")) == 403
        rig.apply(access(acme), denial({"from": [{"tenant": "acme", "service": "web"}]}, service="billing"))
        await status(client, "http://billing/a", 403)


async def test_envoy_tells_what_a_dry_run_would_change_and_changes_nothing(rig: Rig, app: str) -> None:
    acme = {"from": [{"tenant": "acme", "service": "*"}], "methods": ["/a", "/b"]}
    drop, let_in = {**acme, "methods": ["/b"]}, {**acme, "methods": ["/c"]}
    trial = {"service": "billing", "dryRun": True, "allow": [let_in], "deny": [drop]}
    _, web = await two_sidecars(rig, app, access(acme), made("AccessPolicy", "platform", "try", trial))
    async with web.client() as client:
        await status(client, "http://billing/a", 200)
        assert [(await client.get(f"http://billing/{path}")).status_code for path in "bcd"] == [200, 403, 403]

    def told() -> dict[str, str] | None:
        calls = [
            (log[names.PATH], found)
            for log in rig.logs
            if log[names.REPORTER] == names.DESTINATION_SIDE
            and (found := call_of(log, "spiffe://mesh.test/tenant/platform/service/billing", "platform/billing"))
        ]
        found = {path: call.dry_run for path, call in calls if call.status in ("200", "403")}
        return found if {"/a", "/b", "/c", "/d"} <= set(found) else None

    found = await until(told, "all calls are logged")
    assert found == {"/a": "", "/b": "platform/try#deny[0]", "/c": "platform/try#allow[0]", "/d": ""}


async def test_envoy_refuses_who_is_revoked_and_ends_what_is_open(rig: Rig, app: str) -> None:
    everyone = {"from": [{"tenant": "acme", "service": "*"}]}
    billing, web = await two_sidecars(rig, app, access(everyone), made("Service", "acme", "shop", {"protocol": "HTTP"}))
    shop = await rig.envoy("acme", "shop")
    serial = rig.serials["acme/web"]
    async with web.client() as revoked, shop.client() as other:
        await status(other, "http://billing/a", 200)
        for deny in ((WEB, ""), ("", serial)):
            await status(revoked, "http://billing/a", 200)
            rig.deny(deny)
            await status(revoked, "http://billing/a", 403)
            assert (await other.get("http://billing/a")).status_code == 200
            rig.deny((WEB, "1"), (WEB + "x", serial))
        await status(revoked, "http://billing/a", 200)
        async with revoked.stream("GET", "http://billing/stream") as answer:
            parts = answer.aiter_raw()
            assert await anext(parts) == b"open"
            rig.deny((WEB, serial))
            await status(revoked, "http://billing/a", 403)
            with pytest.raises((httpx.TransportError, StopAsyncIteration)):
                async with asyncio.timeout(DEADLINE_S):
                    await anext(parts)
        assert (await other.get("http://billing/a")).status_code == 200
        # Connections that broke off with requests on them are counted: here the revoked caller's, and nobody else's.
        broken = "http.inbound.downstream_cx_destroy_active_rq"
        assert await until(lambda: billing.counted(broken), "it is counted") == 1
        rig.deny()
        await status(revoked, "http://billing/a", 200)
        rig.deny(("spiffe://mesh.test/tenant/platform/service/billing", ""))
        await status(other, "http://billing/a", 503)


@pytest.mark.parametrize("odd", [False, True])
async def test_envoy_tells_certificates_apart_by_number(rig: Rig, app: str, odd: bool) -> None:
    own = rig.svid

    async def chosen(spiffe_id: SpiffeId) -> X509Svid:
        """One whose number has an odd or an even count of digits: Envoy writes whole octets."""
        while len((found := await own(spiffe_id)).serial) % 2 != odd:
            pass
        return found

    rig.svid = chosen
    _, web = await two_sidecars(rig, app, access({"from": [{"tenant": "acme", "service": "web"}]}))
    async with web.client() as client:
        await status(client, "http://billing/a", 200)
        rig.deny(("", rig.serials["acme/web"]))
        await status(client, "http://billing/a", 403)


async def test_envoy_limits_a_tenant_and_refills_by_nothing_but_the_limit(rig: Rig, app: str) -> None:
    everyone = {"from": [{"tenant": "acme", "service": "*"}, {"tenant": "globex", "service": "*"}]}
    limits = [{"tenant": "acme", "requests": 3, "per": "3600s", "burst": 3}, {"tenant": "*", "requests": 1000000}]
    policy = made("RatePolicy", "platform", "billing", {"service": "billing", "limits": limits})
    _, web = await two_sidecars(
        rig, app, access(everyone), policy, made("Service", "globex", "shop", {"protocol": "HTTP"})
    )
    shop = await rig.envoy("globex", "shop")
    async with web.client() as acme, shop.client() as globex:
        await status(acme, "http://billing/first", 200)
        codes = [(await acme.get("http://billing/a")).status_code for _ in range(4)]
        assert codes == [200, 200, 429, 429]
        rig.apply(access(everyone, {"from": [{"tenant": "initech", "service": "*"}]}))
        limited = await acme.get("http://billing/a", headers={"x-forwarded-client-cert": "URI=spiffe://x/tenant/z/"})
        assert limited.status_code == 429, "no header makes another tenant of a caller"
        assert limited.headers["x-meshwarden-policy"] == "RatePolicy platform/billing"
        assert limited.headers["ratelimit"] == '"platform/billing tenant";r=0;t=1'
        assert "ratelimit-policy" not in limited.headers, "one answer for whoever is refused"
        assert "acme/web is over its tenant's rate limit on platform/billing" in limited.text
        await status(globex, "http://billing/a", 200)
        assert {(await globex.get("http://billing/a")).status_code for _ in range(20)} == {200}


async def test_envoys_tell_each_side_of_a_call_under_one_trace(rig: Rig, app: str) -> None:
    _, web = await two_sidecars(rig, app, access({"from": [{"tenant": "acme", "service": "web"}]}))
    async with web.client() as client:
        await status(client, "http://billing/told?secret=1", 200)

    def both() -> tuple[dict[str, str], dict[str, str]] | None:
        told = [log for log in rig.logs if log.get(names.PATH) == "/told" and log[names.HTTP_STATUS] == "200"]
        sides = {log[names.REPORTER]: log for log in told}
        return (sides["source"], sides["destination"]) if len(sides) == 2 else None

    source, destination = await until(both, "both sides log the call")
    assert destination[names.PEER] == "spiffe://mesh.test/tenant/acme/service/web"
    assert destination[names.SERVICE] == "platform/billing"
    assert source[names.UPSTREAM_CLUSTER] == "billing.platform"
    assert source["trace_id"] == destination["trace_id"]
    kinds = await until(
        lambda: {span.kind for span in rig.spans if span.trace_id.hex() == source["trace_id"]} == {2, 3} or None,
        "a span of each side",
    )
    assert kinds


async def test_grpc_through_an_envoy_gets_grpc_statuses(rig: Rig, app: str) -> None:
    """A gRPC caller of a service behind an Envoy: PERMISSION_DENIED that names both, and the limit's status."""
    rig.apply(BILLING, made("Service", "acme", "web", {"protocol": "GRPC"}))
    billing = await rig.envoy("platform", "billing", app)
    rig.apply(endpoint(billing.address))
    web = await rig.grpc("acme", "web", "client")

    async def answer(code: str) -> dict[str, str] | None:
        found = await ask(web, "xds:///billing", "/shop.Billing/Get")
        return found if found["code"] == code else None

    denied = await until(lambda: answer("PERMISSION_DENIED"), "denied")
    assert "--from acme/web --to platform/billing --method '/shop.Billing/Get'" in denied["details"]
    limits = [{"tenant": "acme", "requests": 1, "per": "3600s"}]
    rig.apply(
        access({"from": [{"tenant": "acme", "service": "web"}]}),
        made("RatePolicy", "platform", "billing", {"service": "billing", "limits": limits}),
    )
    limited = await until(lambda: answer("RESOURCE_EXHAUSTED"), "limited")
    assert "acme/web is over its tenant's rate limit on platform/billing" in limited["details"]
