"""What route policies say, done by real data planes: Envoy, and gRPC's own client in Python and in Node."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from tests.golden.test_policy import mesh_of
from tests.integration.policy_rig import Rig, Sidecar, ask, made, open_rig, tell, until

from meshwarden.controlplane.local.port import free_port
from meshwarden.controlplane.policy.mesh import Change

NODE = Path(__file__).parents[1] / "e2e" / "node"
GET, PUT = "/meshwarden.examples.v1.Orders/Get", "/meshwarden.examples.v1.Orders/Put"
EVERYONE = {"from": [{"tenant": "acme", "service": "*"}]}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with open_rig(tmp_path) as opened:
        yield opened


class App:
    """An HTTP/1.1 program: answers with what it got, /fail with 503, /slow not at all; counts requests by line."""

    def __init__(self, name: str) -> None:
        self.name, self.address = name, ""
        self.calls = Counter[str]()
        self.hosts = Counter[str]()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                line = head[0].removesuffix(" HTTP/1.1")
                headers = [(name.lower(), value.strip()) for name, _, value in (one.partition(":") for one in head[1:])]
                self.calls[line] += 1
                self.hosts[dict(headers)["host"]] += 1
                if "/slow" in line:
                    await reader.read()  # until the caller is gone
                    return
                body = json.dumps({"line": line, "headers": headers}).encode()
                status = b"503 Told" if "/fail" in line else b"200 OK"
                said = f"x-app: {self.name}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
                writer.write(b"HTTP/1.1 " + status + b"\r\n" + said + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def apps() -> AsyncIterator[list[App]]:
    """Two of them."""
    made_apps, servers = [App("v1"), App("v2")], []
    for one in made_apps:
        servers.append(await asyncio.start_server(one.answer, "127.0.0.1", 0))
        one.address = f"127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}"
    yield made_apps
    for server in servers:
        server.close()


def routed(*rules: dict[str, Any], service: str = "billing", **more: Any) -> Change:
    return made("RoutePolicy", "platform", service, {"service": service, "rules": list(rules), **more})


def allowed(service: str) -> Change:
    return made("AccessPolicy", "platform", service, {"service": service, "allow": [EVERYONE]})


def endpoint(name: str, service: str, address: str, version: str = "v1") -> Change:
    host, port = address.split(":")
    spec = {"service": service, "address": host, "port": int(port), "version": version}
    return made("Endpoint", "platform", name, spec)


async def billed(rig: Rig, apps: list[App]) -> Sidecar:
    """Billing in two versions, each behind an Envoy, and another Envoy beside acme/web, which is returned."""
    services = [made("Service", "acme", name, {"protocol": "HTTP"}) for name in ("web", "shop")]
    rig.apply(
        made("Service", "platform", "billing", {"protocol": "HTTP", "exportTo": ["*"]}), allowed("billing"), *services
    )
    first, second = [await rig.envoy("platform", "billing", app.address) for app in apps]
    rig.apply(endpoint("a", "billing", first.address), endpoint("b", "billing", second.address, "v2"))
    return await rig.envoy("acme", "web")


def to(version: str, *, path: str = "", **match: Any) -> dict[str, Any]:
    found = {**match, **({"methods": [path]} if path else {})}
    return {"match": found, "split": [{"version": version, "weight": 1}]}


def calls(apps: list[App], line: str) -> int:
    return sum(app.calls[line] for app in apps)


async def test_envoy_ends_a_call_that_takes_too_long(rig: Rig, apps: list[App]) -> None:
    async with (await billed(rig, apps)).client() as client:
        rig.apply(routed({"match": {"methods": ["/slow/*"]}, "timeout": "1s"}, {"timeout": "3600s"}))

        async def ended() -> bool:
            begun_s = time.monotonic()
            try:
                answer = await client.get("http://billing/slow/1", timeout=20)
            except httpx.ReadTimeout:
                return False
            return answer.status_code == 504 and time.monotonic() - begun_s >= 1

        await until(ended, "504 after a second, and not before")
        assert (await client.get("http://billing/fast")).status_code == 200


async def test_envoy_makes_again_what_is_idempotent_and_nothing_else(rig: Rig, apps: list[App]) -> None:
    async with (await billed(rig, apps)).client() as client:
        retry = {"codes": ["503"], "attempts": 3, "backoff": {"base": "0.005s"}, "budget": {"percent": 100}}
        per_try = {"codes": ["504"], "attempts": 1, "perTryTimeout": "0.5s"}
        rig.apply(
            routed(
                {"match": {"methods": ["/slow/*"]}, "retry": per_try},
                {"match": {"methods": ["/fail/*"]}, "retry": retry},
                idempotent=["GET /fail/*", "/slow/*"],
            )
        )

        async def again() -> bool:
            before = calls(apps, "GET /fail/a")
            assert (await client.get("http://billing/fail/a")).status_code == 503
            return calls(apps, "GET /fail/a") - before == 4

        await until(again, "a call is made four times")
        assert (await client.post("http://billing/fail/a")).status_code == 503
        assert calls(apps, "POST /fail/a") == 1
        assert (await client.get("http://billing/failure")).status_code == 503
        assert calls(apps, "GET /failure") == 1, "no rule with a retry fits"
        assert (await client.get("http://billing/slow/1")).status_code == 504
        assert calls(apps, "GET /slow/1") == 2, "each attempt has its own time"


async def test_envoys_of_each_caller_go_its_way(rig: Rig, apps: list[App]) -> None:
    web = (await billed(rig, apps)).client()
    shop = (await rig.envoy("acme", "shop")).client()
    async with web, shop:
        rules = [to("v1", **{"from": [{"tenant": "acme", "service": "web"}]}), to("v2", **EVERYONE)]
        rig.apply(routed(*rules))

        async def apart() -> bool:
            found = [{(await one.get("http://billing/a")).headers["x-app"] for _ in range(8)} for one in (web, shop)]
            return found == [{"v1"}, {"v2"}]

        await until(apart, "web is led to v1 and shop to v2")
        rig.apply(routed(to("v2", **{"from": [{"tenant": "acme", "service": "web"}]}), to("v1", **EVERYONE)))

        async def turned() -> bool:
            found = [{(await one.get("http://billing/a")).headers["x-app"] for _ in range(8)} for one in (web, shop)]
            return found == [{"v2"}, {"v1"}]

        await until(turned, "and the other way round")


async def ordered(rig: Rig) -> None:
    """Orders, a program of gRPC.

    It has mTLS, but no xDS: C-core's servers over xDS can't end a call with nothing but an error, and only such a call
    is made again.
    """
    address = f"127.0.0.1:{free_port(random.SystemRandom())}"
    rig.apply(
        made("Service", "platform", "orders", {"protocol": "GRPC", "exportTo": ["acme"]}),
        *(made("Service", "acme", name, {"protocol": "GRPC"}) for name in ("web", "shop")),
        allowed("orders"),
        endpoint("o", "orders", address),
    )
    await rig.grpc("platform", "orders", "tls", address)


ORDERED: list[dict[str, Any]] = [
    {
        "match": {"headers": [{"name": "x-do", "exact": "slow"}], "from": [{"tenant": "acme", "service": "web"}]},
        "timeout": "1s",
    },
    {"retry": {"codes": ["UNAVAILABLE"], "attempts": 3, "backoff": {"base": "0.005s"}}},
]


async def test_grpc_ends_makes_again_and_tells_callers_apart(rig: Rig) -> None:
    await ordered(rig)
    rig.apply(routed(*ORDERED, service="orders", idempotent=[GET]))
    web, shop = await rig.grpc("acme", "web", "client"), await rig.grpc("acme", "shop", "client")

    async def works() -> dict[str, int] | None:
        found = await ask(web, "xds:///orders", GET)
        return found["calls"] if found["code"] == "OK" else None

    before = (await until(works, "orders answers"))[GET]
    assert (await ask(web, "xds:///orders", GET, x_do="fail"))["code"] == "UNAVAILABLE"
    assert (await ask(web, "xds:///orders", PUT, x_do="fail"))["code"] == "UNAVAILABLE"
    assert (await ask(web, "xds:///orders", GET))["calls"] == {GET: before + 5, PUT: 1}
    begun_s = time.monotonic()
    assert (await ask(web, "xds:///orders", GET, timeout_s=120, x_do="slow"))["code"] == "DEADLINE_EXCEEDED"
    ended_s = time.monotonic()
    assert ended_s - begun_s >= 1, "never before its time"
    # Of another caller only its own deadline counts, which is later than the route's with all that may be added to it.
    begun_s = time.monotonic()
    assert (await ask(shop, "xds:///orders", GET, timeout_s=4, x_do="slow"))["code"] == "DEADLINE_EXCEEDED"
    assert time.monotonic() - begun_s >= 3.9


async def test_grpc_through_an_envoy_gets_deadline_exceeded(rig: Rig) -> None:
    await ordered(rig)
    rig.apply(routed({"timeout": "1s"}, service="orders"))
    web = await rig.envoy("acme", "web")
    await rig.grpc("acme", "shop", "client")  # knows nothing of the mesh's names: it dials the socket
    plain = rig.processes[-1]

    async def ended() -> bool:
        found = await ask(plain, f"unix:{web.outbound}", GET, timeout_s=60, authority="orders", x_do="slow")
        return found["code"] == "DEADLINE_EXCEEDED"

    await until(ended, "the route's timeout ends a call")


@pytest.mark.needs("node", "npm")
async def test_node_ends_and_makes_again(rig: Rig) -> None:
    await ordered(rig)
    rig.apply(routed(*ORDERED, service="orders", idempotent=[GET]))
    orders = str(files("meshwarden.examples.orders") / "orders.proto")
    node = await rig.grpc("acme", "web", orders, client="node/1.14.1", command=("node", str(NODE / "client.js")))

    async def codes(**metadata: str) -> dict[str, int]:
        said = {"target": "xds:///orders", "timeout_s": 60, "metadata": metadata}
        found: dict[str, int] = (await tell(node, said))["codes"]
        return found

    await until(lambda: works(codes), "orders answers")
    begun_s = time.monotonic()
    assert await codes(**{"x-do": "slow"}) == {"DEADLINE_EXCEEDED": 1}
    assert time.monotonic() - begun_s >= 1
    assert await codes(**{"x-do": "fail"}) == {"UNAVAILABLE": 1}
    counting = await rig.grpc("acme", "web", "client")
    counted = await until(lambda: seen(counting), "the server says what it has counted")
    assert counted == 1 + 1 + 4 + 1, "the call that failed was made again three times"
    rig.apply(routed(*CHAOS, service="orders"))

    async def all_end() -> bool:
        return await codes(**{"x-do": "all"}) == {"UNAVAILABLE": 1}

    await until(all_end, "the fault is made")
    halves = await tell(node, {"target": "xds:///orders", "timeout_s": 60, "count": 300, "metadata": {"x-do": "half"}})
    assert halves["codes"].keys() == {"OK", "DATA_LOSS"}
    assert halves["codes"]["DATA_LOSS"] in likely(0.5, 300)


async def works(codes: Any) -> bool:
    return await codes() == {"OK": 1}


async def seen(client: Any) -> int | None:
    found = await ask(client, "xds:///orders", GET)
    return found["calls"][GET] if found["code"] == "OK" else None


def likely(share: float, of: int) -> range:
    """How many of so many, each by chance: once in 10^10 times it is outside of that."""
    spread = 6.5 * (of * share * (1 - share)) ** 0.5
    return range(int(of * share - spread), int(of * share + spread) + 2)


async def test_envoy_makes_faults_at_their_rate_for_the_calls_that_ask_for_them(rig: Rig, apps: list[App]) -> None:
    async with (await billed(rig, apps)).client() as client:
        asked = {"headers": [{"name": "x-chaos", "exact": "yes"}]}
        rig.apply(
            routed(
                {"match": {"methods": ["/half"]}, "fault": {"abort": {"httpStatus": 418, "percent": 50}}},
                {"fault": {"abort": {"httpStatus": 418, "percent": 100}, **asked}},
            )
        )

        async def answers(status: int, **headers: str) -> bool:
            return (await client.get("http://billing/a", headers=headers)).status_code == status

        await until(lambda: answers(418, **{"x-chaos": "yes"}), "a call that asks for it ends")
        # The fault is made where the call is: that says nothing of whether the servers take calls yet.
        await until(lambda: answers(200), "a call that doesn't goes on")
        before = calls(apps, "GET /a")
        assert await answers(200, **{"x-chaos": "no"})
        assert calls(apps, "GET /a") == before + 1
        codes = Counter([(await client.get("http://billing/half")).status_code for _ in range(300)])
        assert codes.keys() == {200, 418}
        assert codes[418] in likely(0.5, 300)


async def test_envoy_delays_a_call_before_the_service_gets_it(rig: Rig, apps: list[App]) -> None:
    """By what Envoy counts: its timers go by CLOCK_MONOTONIC_COARSE, so by a finer clock a delay may be too short."""
    web = await billed(rig, apps)
    delays = [
        {"match": {"methods": [path]}, "fault": {"delay": {"fixedDelay": delay, "percent": 100}}, "timeout": "7200s"}
        for path, delay in (("/wait", "0.5s"), ("/held", "3600s"))
    ]
    rig.apply(routed(*delays))
    async with web.client() as client:

        async def delayed() -> int:
            (await client.get("http://billing/wait")).raise_for_status()
            return await web.counted("fault.delays_injected")

        async def is_held(calls_held: int) -> bool:
            return await web.counted("fault.active_faults") == calls_held

        before = await until(delayed, "a call is delayed")
        async with anyio.create_task_group() as group:
            group.start_soon(partial(client.get, "http://billing/held", timeout=None))
            await until(lambda: is_held(1), "a call is held")
            assert await delayed() == before + 2, "one beside it goes on after its time"
            assert await is_held(1)
            group.cancel_scope.cancel()
        await until(lambda: is_held(0), "it ends with its caller")
        assert calls(apps, "GET /held") == 0


async def test_envoy_copies_calls_and_changes_headers(rig: Rig, apps: list[App]) -> None:
    first, shadow = apps
    services = [
        made("Service", "platform", name, {"protocol": "HTTP", "exportTo": ["acme"]}) for name in ("billing", "shadow")
    ]
    rig.apply(*services, made("Service", "acme", "web", {"protocol": "HTTP"}), allowed("billing"), allowed("shadow"))
    for name, app in (("billing", first), ("shadow", shadow)):
        rig.apply(endpoint(name, name, (await rig.envoy("platform", name, app.address)).address))
    rig.apply(
        routed(
            {"match": {"methods": ["/some"]}, "mirror": {"service": "shadow", "percent": 50}},
            {
                "mirror": {"service": "shadow"},
                "requestHeaders": {
                    "set": [{"name": "x-plan", "value": "100% %REQ(:path)%"}],
                    "add": [{"name": "x-hop", "value": "edge"}],
                    "remove": ["cookie"],
                },
                "responseHeaders": {"set": [{"name": "x-app", "value": "hidden"}]},
            },
        )
    )
    async with (await rig.envoy("acme", "web")).client() as client:
        headers = {"x-plan": "free", "x-hop": "own", "cookie": "a=1"}

        async def changed() -> httpx.Response | None:
            answer = await client.get("http://billing/all", headers=headers)
            return answer if answer.headers.get("x-app") == "hidden" else None

        got = (await until(changed, "the answer's header is another")).json()["headers"]
        assert [value for name, value in got if name == "x-plan"] == ["100% %REQ(:path)%"], "what it says and no more"
        assert [value for name, value in got if name == "x-hop"] == ["own", "edge"]
        assert "cookie" not in dict(got)
        await until(lambda: shadow.calls["GET /all"] == first.calls["GET /all"], "each call has a copy")
        assert set(shadow.hosts) == {"billing-shadow"}
        for _ in range(200):
            assert (await client.get("http://billing/some")).status_code == 200
        (await client.get("http://billing/last")).raise_for_status()
        await until(lambda: shadow.calls["GET /last"], "the last copy has arrived")
        assert shadow.calls["GET /some"] in likely(0.5, 200)


CHAOS: list[dict[str, Any]] = [
    {
        "match": {"headers": [{"name": "x-do", "exact": "half"}]},
        "fault": {"abort": {"grpcStatus": "DATA_LOSS", "percent": 50}},
    },
    {"fault": {"abort": {"httpStatus": 503, "percent": 100}, "headers": [{"name": "x-do", "exact": "all"}]}},
]


async def test_grpc_makes_faults_at_their_rate_for_the_calls_that_ask_for_them(rig: Rig) -> None:
    await ordered(rig)
    rig.apply(routed(*CHAOS, service="orders"))
    web = await rig.grpc("acme", "web", "client")
    before = await until(lambda: seen(web), "orders answers")
    codes = Counter([(await ask(web, "xds:///orders", PUT, x_do="half"))["code"] for _ in range(300)])
    assert codes.keys() == {"OK", "DATA_LOSS"}
    assert codes["DATA_LOSS"] in likely(0.5, 300)
    assert (await ask(web, "xds:///orders", GET, x_do="all"))["code"] == "UNAVAILABLE"
    assert (await ask(web, "xds:///orders", GET))["calls"][GET] == before + 1, "the fault has reached no server"


async def test_grpcs_own_clients_take_all_that_the_golden_meshes_compile_to(rig: Rig) -> None:
    """Nobody is there to be called; a configuration that one refuses fails the rig in the end."""
    for directory in ("route", "policy"):
        rig.mesh.apply(Change(key, message) for key, message in mesh_of(directory).all().items())
    web = await rig.grpc("acme", "web", "client")
    names = [str(name.name) for name in rig.mesh.visible("acme") if rig.mesh.resolve("acme", name.name) == name]
    assert {"orders", "trial", "shadow"} <= set(names)
    for name in names:
        assert (await ask(web, f"xds:///{name}", "/a.B/C"))["code"] == "UNAVAILABLE", name


@pytest.mark.needs("node", "npm")
async def test_node_takes_all_that_the_golden_mesh_compiles_to(rig: Rig) -> None:
    rig.mesh.apply(Change(key, message) for key, message in mesh_of("route").all().items())
    orders = str(files("meshwarden.examples.orders") / "orders.proto")
    node = await rig.grpc("acme", "web", orders, client="node/1.14.1", command=("node", str(NODE / "client.js")))
    for name in ("orders", "billing", "trial", "shadow"):
        assert (await tell(node, {"target": f"xds:///{name}", "timeout_s": 60}))["codes"] == {"UNAVAILABLE": 1}, name
