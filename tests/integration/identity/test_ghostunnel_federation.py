"""SPIRE's suites `ghostunnel-federation` and `envoy-sds-v3` (federated): two whole meshes that call each other.

a.test calls b.test by every stack: Envoy to Envoy, proxyless gRPC, the SDK, and the SDK's front for grpc.aio. A third
authority, evil.test, is trusted by both for its own identities, and makes up others.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from federated_world import (
    AIO_SERVER,
    CALLER,
    SDK_SERVER,
    XDS_SERVER,
    Forger,
    Program,
    World,
    ends,
    entry,
    get,
    is_open,
    made,
)
from policy_world import HTTP
from tests.written import written

from meshwarden.controlplane.identity import bundle_document
from meshwarden.controlplane.identity import federation as federating
from meshwarden.v1.admin_service_pb2 import (
    AllowRequest,
    ChangeRootRequest,
    DenyRequest,
    DenyTarget,
    GetStatusRequest,
)

pytestmark = pytest.mark.needs("curl", "node", "npm")
WEB = "spiffe://a.test/tenant/acme/service/web"
SERVERS = {"xds": XDS_SERVER, "sdk": SDK_SERVER, "aio": AIO_SERVER}
# Those that know their own trust domain alone, and how whoever is of it fares. Node's server lets nobody in: it does
# not find what a route says of the filter that would, which grpc-js-xds 1.14 keeps under another name than it asks
# for.
OWN_ALONE = {"plain": "OK", "node": "PERMISSION_DENIED"}
NODE = Path(__file__).parents[2] / "e2e" / "node"
EVIL = "spiffe://evil.test/tenant/acme/service/web"
LOCAL = "spiffe://b.test/tenant/acme/service/web"


@pytest.fixture
async def worlds(
    short_dir: Path, agent_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[World, World]]:
    # What else takes minutes.
    monkeypatch.setattr(bundle_document, "REFRESH", timedelta(seconds=1))
    monkeypatch.setattr(federating, "MIN_REFRESH", timedelta(seconds=0.2))
    monkeypatch.setattr(federating, "RETRY", timedelta(seconds=0.5))
    made_worlds = []
    for name in ("a", "b"):
        (directory := short_dir / name).mkdir(mode=0o711)
        made_worlds.append(World(f"{name}.test", directory, lambda world: agent_of(world, world.directory)))
    async with anyio.create_task_group() as group:
        for world in made_worlds:
            await world.begin(group)
        yield made_worlds[0], made_worlds[1]
        for world in made_worlds:
            await world.channel.close()
        group.cancel_scope.cancel()


async def declare(a: World, b: World, evil: Forger) -> None:
    """What the operators of both say."""
    tenants = [made("Tenant", "", "acme"), made("Tenant", "", "platform")]
    programs = (*SERVERS, *OWN_ALONE)
    served = [*b.serves("bill", "HTTP", envoy=True), *(one for name in programs for one in b.serves(name, "GRPC"))]
    await b.apply(
        *tenants,
        b.trusts("a", a.endpoint, a.bundle),
        b.trusts("evil", 1, evil.bundle),
        made("Service", "acme", "web", protocol="HTTP"),
        entry("acme", "web"),
        *served,
        made(
            "AccessPolicy",
            "platform",
            "bill",
            service="bill",
            # Whoever is of acme here may do all, and of acme there one service one thing.
            allow=[
                {"from": [{"tenant": "acme", "service": "*"}]},
                {"from": [{"spiffeId": WEB}], "methods": ["GET /x"]},
            ],
        ),
        made(
            "RatePolicy",
            "platform",
            "bill",
            service="bill",
            scope="POINT",
            limits=[{"tenant": "acme", "requests": 1, "per": "3600s"}, {"tenant": "*", "requests": 100000}],
        ),
        *(
            made(
                "AccessPolicy",
                "platform",
                name,
                service=name,
                allow=[{"from": [{"trustDomain": "a.test"}]}, {"from": [{"tenant": "acme", "service": "*"}]}],
            )
            for name in ("xds", "sdk", *OWN_ALONE)
        ),
    )
    there = []
    for name in ("bill", *programs):
        protocol = "HTTP" if name == "bill" else "GRPC"
        identity = f"spiffe://b.test/tenant/platform/service/{name}"
        there += [
            made("Service", "platform", name, protocol=protocol, exportTo=["acme"], spiffeId=identity),
            made("Endpoint", "platform", name, service=name, address="127.0.0.1", port=b.ports[name]),
        ]
    await a.apply(
        *tenants,
        a.trusts("b", b.endpoint, b.bundle),
        a.trusts("evil", 1, evil.bundle),
        made("Service", "acme", "web", protocol="HTTP"),
        made("Service", "acme", "home", protocol="GRPC"),
        *there,
        entry("acme", "web", dataPlane="ENVOY"),
    )


async def start(a: World, b: World) -> tuple[Program, str]:
    """Starts all programs; the one that calls, and the socket of its Envoy."""
    for world in (a, b):
        await world.join()
    b.agent.exec("bill", sys.executable, "-c", HTTP)
    for name, program in SERVERS.items():
        b.agent.exec(name, sys.executable, "-c", program)
    without = ("env", "-u", "GRPC_EXPERIMENTAL_XDS_MTLS_SPIFFE")
    b.agent.exec("plain", *without, sys.executable, "-c", XDS_SERVER)
    b.agent.exec("node", "node", "server.js", cwd=NODE)
    code = f"import os; print(os.environ['MESHWARDEN_OUTBOUND'], flush=True)\n{CALLER}"
    caller = a.agent.exec("web", sys.executable, "-c", code)
    outbound = await asyncio.to_thread(caller.stdout.readline)
    assert outbound, caller.stderr.read()
    return Program(caller), outbound.strip()


async def test_two_meshes_call_each_other_as_long_as_they_trust(worlds: tuple[World, World], short_dir: Path) -> None:
    a, b = worlds
    evil = Forger("evil.test", short_dir)
    await declare(a, b, evil)
    web, outbound = await start(a, b)
    await calls_on_every_stack(a, b, web, outbound)
    await a_tenant_of_the_same_name_is_somebody_else(outbound)
    await nobody_forges(a, b, evil, web, outbound)
    await who_is_denied_here_is_refused(b, web, outbound)
    await who_knows_its_own_trust_domain_alone_is_told_of(a, b, web)
    await a_root_changes_while_calls_go_on(a, b, web, outbound)
    await trust_that_is_taken_back_holds_at_the_next_call(a, b, web, outbound)


async def calls_on_every_stack(a: World, b: World, web: Program, outbound: str) -> None:
    async def code() -> int | tuple[int, str]:
        status, said = await get(outbound, "bill.platform", "/x")
        return status if status == 200 else (status, said)

    await ends(code, 200, "Envoy to Envoy")
    said = (await get(outbound, "bill.platform", "/x"))[1]
    assert f"URI={WEB}" in said
    for how, name, answer in (("xds", "xds", WEB), ("sdk", "sdk", f"{WEB} None"), ("sdk", "aio", f"{WEB} None")):

        async def called(how: str = how, name: str = name) -> tuple[str, str]:
            return await web.call(how, f"{name}.platform")

        await ends(called, ("OK", answer), f"{how} to {name}")


async def a_tenant_of_the_same_name_is_somebody_else(outbound: str) -> None:
    # What acme of b.test may, by a wildcard, acme of a.test may not.
    assert (await get(outbound, "bill.platform", "/y"))[0] == 403
    # Nor is it held to that one's limit, of one call an hour; nor to what it says of itself.
    header = {"x-meshwarden-tenant": "acme", "x-forwarded-client-cert": f"URI={LOCAL}"}
    for _ in range(5):
        status, said = await get(outbound, "bill.platform", "/x", **header)
        assert status == 200, said
        assert LOCAL not in said


async def nobody_forges(a: World, b: World, evil: Forger, web: Program, outbound: str) -> None:
    forged = {
        "another trust domain's identity": (LOCAL,),
        "of a federated one": (WEB,),
        "two at once": (EVIL, LOCAL),
        "two at once, the other way": (LOCAL, EVIL),
        "a list in one": (f"{EVIL},{LOCAL}",),
        "a header's field in one": (f"{EVIL};URI={LOCAL}",),
        "a quoted one": (f'{EVIL}";URI="{LOCAL}',),
        "a newline": (f"{EVIL}\n{LOCAL}",),
        "upper case": (LOCAL.replace("b.test", "B.test"),),
        "no scheme of ours": (LOCAL.replace("spiffe", "https"),),
        "its own, which no policy names": (EVIL,),
    }
    others = (*SERVERS, *OWN_ALONE)

    async def listen() -> bool:
        return all(is_open(b.ports[name]) for name in others)

    await ends(listen, True, "all servers listen")
    for what, names in forged.items():
        leaf = evil.leaf(*names)
        ways = (evil.calls(b.ports["bill"], leaf, "/x"), *(evil.calls(b.ports[name], leaf) for name in others))
        for name, answer in zip(("bill", *others), await asyncio.gather(*ways), strict=True):
            assert answer in ("refused", "403", "200 grpc 7", "200 grpc 16"), f"{name}: {what}"
    # As a server: callers of a.test's own service, and of one of b.test's, are not taken in.
    for identity in ("spiffe://a.test/tenant/acme/service/home", "spiffe://b.test/tenant/platform/service/sdk"):
        for names in ((identity,), (EVIL, identity), (identity, EVIL)):
            async with evil.serving(evil.leaf(*names)) as impostor:
                name, tenant = ("home", "acme") if "home" in identity else ("sdk", "platform")
                at = made("Endpoint", tenant, name, service=name, address="127.0.0.1", port=impostor.port)
                await a.apply(at)
                fake = f"{name}.{tenant}"

                async def tried(fake: str = fake, impostor: Any = impostor) -> bool:
                    assert (await get(outbound, fake, "/x"))[0] == 503
                    assert (await web.call("xds", fake))[0] == "UNAVAILABLE"
                    return bool(impostor.asked)

                await ends(tried, True, f"{names} is asked")
                assert impostor.taken == 0
    back = made("Endpoint", "platform", "sdk", service="sdk", address="127.0.0.1", port=b.ports["sdk"])
    await a.apply(back)


async def who_is_denied_here_is_refused(b: World, web: Program, outbound: str) -> None:
    targets = [DenyTarget(spiffe_id=WEB)]
    await b.admin.Deny(DenyRequest(targets=targets, reason="leaked"), timeout=60)

    async def said() -> tuple[Any, ...]:
        # gRPC's RBAC refuses it by one status, and our check, where the word has come before, by another.
        words = {"PERMISSION_DENIED": "refused", "UNAUTHENTICATED": "refused"}
        codes = [(await web.call("xds" if name == "xds" else "sdk", f"{name}.platform"))[0] for name in SERVERS]
        return (await get(outbound, "bill.platform", "/x"))[0], *(words.get(code, code) for code in codes)

    await ends(said, (403, "refused", "refused", "refused"), "it is refused everywhere")
    await b.admin.Allow(AllowRequest(targets=targets, reason="a new key"), timeout=60)
    await ends(said, (200, "OK", "OK", "OK"), "it is let in again")


async def who_knows_its_own_trust_domain_alone_is_told_of(a: World, b: World, web: Program) -> None:
    async def warnings(world: World) -> str:
        status = await world.admin.GetStatus(GetStatusRequest(), timeout=60)
        return " ".join(text for text in status.warnings if "our own trust domain alone" in text)

    async def plain() -> bool:
        return "platform/plain#1/grpc (c-core" in await warnings(b) and is_open(b.ports["plain"])

    await ends(plain, True, "a server that isn't told of bundle maps is told of")
    assert "platform/xds#1" not in await warnings(b)
    own = Program(b.agent.exec("web", sys.executable, "-c", CALLER))
    for name, fares in OWN_ALONE.items():

        async def home(name: str = name) -> str:
            return (await own.call("xds", f"{name}.platform"))[0]

        await ends(home, fares, f"whoever is of its own trust domain calls {name}")
        assert (await web.call("xds", f"{name}.platform"))[0] == "UNAVAILABLE", f"{name} was called from another"
    orders = str(files("meshwarden.examples.orders") / "orders.proto")
    client = a.agent.exec("web", "node", "client.js", orders, cwd=NODE)

    def ask() -> str:
        client.stdin.write(json.dumps({"target": "xds:///xds.platform", "timeout_s": 50}) + "\n")
        client.stdin.flush()
        return str(client.stdout.readline())

    answer = json.loads(await asyncio.to_thread(ask))
    assert answer["codes"] == {"UNAVAILABLE": 1}, answer

    async def node() -> bool:
        return "(node/" in await warnings(a)

    await ends(node, True, "so is Node's client")
    client.stdin.close()
    await asyncio.to_thread(client.wait, 60)


async def a_root_changes_while_calls_go_on(a: World, b: World, web: Program, outbound: str) -> None:
    answers: list[str] = []
    done = asyncio.Event()

    async def go_on() -> None:
        while not done.is_set():
            found = [str((await get(outbound, "bill.platform", "/x"))[0])]
            for how, name in (("xds", "xds"), ("sdk", "aio")):
                found.append((await web.call(how, f"{name}.platform"))[0])
            answers.append(" ".join(found))

    async def known() -> bool:
        found = [json.loads(text) for _, text in written(a.agent.state_dir / "run", "bundles.json")]
        return bool(found) and all(len(one["trust_domains"]["b.test"]["keys"]) == 2 for one in found)

    async with anyio.create_task_group() as group:
        group.start_soon(go_on)
        roots = (await b.admin.ChangeRoot(ChangeRootRequest(change="PREPARE"), timeout=60)).roots
        await ends(known, True, "a.test's programs know the root that b.test has prepared")
        old, new = roots[0].fingerprint, roots[-1].fingerprint

        async def activated() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):  # an agent has not said yet that it knows it
                await b.admin.ChangeRoot(ChangeRootRequest(change="ACTIVATE", fingerprint=new), timeout=60)
                return True
            return False

        await ends(activated, True, "the new root signs")
        before = certificates(b)
        await b.admin.ChangeRoot(ChangeRootRequest(change="TAINT", fingerprint=old), timeout=60)

        async def renewed() -> bool:
            return not before & certificates(b)

        await ends(renewed, True, "b.test's programs have certificates by it")
        rounds = len(answers)

        async def called() -> bool:
            return len(answers) > rounds + 1

        await ends(called, True, "calls go on")
        done.set()
    assert set(answers) == {"200 OK OK"}


def certificates(world: World) -> set[bytes]:
    """Those of a mesh's programs."""
    return {content for _, content in written(world.agent.state_dir / "run", "tls.crt")}


async def trust_that_is_taken_back_holds_at_the_next_call(a: World, b: World, web: Program, outbound: str) -> None:
    await b.delete("TrustDomain", "platform", "a")

    async def http() -> bool:
        return (await get(outbound, "bill.platform", "/x"))[0] in (403, 503)

    await ends(http, True, "Envoy")
    for how, name in (("xds", "xds"), ("sdk", "sdk"), ("sdk", "aio")):

        async def refused(how: str = how, name: str = name) -> bool:
            return (await web.call(how, f"{name}.platform"))[0] in (
                "UNAVAILABLE",
                "PERMISSION_DENIED",
                "UNAUTHENTICATED",
            )

        await ends(refused, True, f"{how} to {name}")
    assert is_open(b.ports["bill"])
