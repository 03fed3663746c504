"""How an endpoint is chosen, by real clients: Envoy, Python's gRPC and Node's, which call the same servers.

An ADS server serves compiled scopes; nothing of the agent or of the publisher is here, so that a failure is policy's.
"""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from google.protobuf import json_format

from meshwarden.certs import files
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.local.port import free_port
from meshwarden.controlplane.policy.compile import compile_scope
from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.policy.grpc import server
from meshwarden.controlplane.policy.mesh import Change, Key
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.scope import scopes_of
from meshwarden.v1 import resources_pb2
from meshwarden.xds.server import add_ads
from meshwarden.xds.snapshot import Snapshot

sys.path.insert(0, str(Path(__file__).parent))
from policy_rig import Rig, _bootstrap, made, until

ROOT = Path(__file__).parents[2]
PEER = Path(__file__).with_name("choice_peer.py")
NODE = ROOT / "tests" / "e2e" / "node"
PROTO = ROOT / "examples" / "meshwarden" / "examples" / "orders" / "orders.proto"
ORDERS = Name("platform", "orders")
HERE = Place("eu", "a")

pytestmark = [pytest.mark.needs("node", "npm")]


class Asked:
    """A caller: asks for lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process, **fixed: Any) -> None:
        self._process, self.fixed = process, fixed

    async def __call__(self, **fields: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"target": "xds:///orders", **self.fixed, **fields}).encode() + b"\n")
        await self._process.stdin.drain()
        answer: dict[str, Any] = json.loads(await self._process.stdout.readline())
        assert "error" not in answer, answer
        return answer

    async def ports(self, **fields: Any) -> set[str]:
        """The servers that answer, when all do."""
        answer = await self(**fields)
        assert set(answer["codes"]) == {"OK"}, answer
        return set(answer["versions"])


class World(Rig):
    """A mesh whose callers are in zone a of region eu."""

    def publish(self) -> None:
        for name, (ref, extra) in self.planes.items():
            entry = self.mesh.find("WorkloadEntry", ref.tenant, ref.entry)
            found = list(extra)
            place = HERE if self.mesh.near(ref.tenant) else None
            for scope in scopes_of(ref, "n1", entry, self.mesh.named, place):
                found += compile_scope(self.mesh, scope, ref, entry).resources
            self.snapshots[name] = Snapshot.of(found)
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()

    async def program(self, tenant: str, service: str, client: str, *command: str, listen: tuple[str, ...] = ()) -> Any:
        """Starts a proxyless program as a workload; it serves the addresses `listen`."""
        name = f"{tenant}/{service}#{len(self.planes)}/grpc"
        ref = self._ref(name, tenant, service, "GRPC", listen_address=listen[0] if listen else "", client=client)
        self.planes[name] = (ref, tuple(server.listener(address, Name(tenant, service)) for address in listen[1:]))
        self.publish()
        directory = self.root / f"program-{len(self.planes)}"
        svid, bundle = await self.svid(SpiffeId.workload("mesh.test", tenant, service)), await self.authority.bundle()
        directory.mkdir()
        files.publish(directory, {"tls.crt": svid.chain_pem(), "tls.key": svid.key_pem(), "ca.crt": bundle.pem()})
        (directory / "bootstrap.json").write_text(json.dumps(_bootstrap(self.socket, name, directory)))
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "GRPC_XDS_BOOTSTRAP": str(directory / "bootstrap.json")},
        )
        self.processes.append(process)
        return process

    async def orders(self, *ports: int) -> Any:
        """Starts a program that serves orders at these ports."""
        addresses = tuple(f"127.0.0.1:{port}" for port in ports)
        return await self.program(*ORDERS, "", sys.executable, str(PEER), "serve", *addresses, listen=addresses)

    async def callers(self, node: Path) -> dict[str, Asked]:
        """A caller of each kind."""
        python = await self.program("acme", "web", "c-core/58.0.0", sys.executable, str(PEER), "call")
        node_js = await self.program("acme", "web", "node/1.14.1", "node", str(node / "client.js"), str(PROTO))
        sidecar = await self.envoy("acme", "web")
        plain = await asyncio.create_subprocess_exec(
            sys.executable, str(PEER), "call", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.processes.append(plain)
        return {
            "python": Asked(python),
            "node": Asked(node_js),
            "envoy": Asked(plain, target=f"unix:{sidecar.outbound}", authority="orders.platform"),
        }

    def policy(self, **spec: Any) -> None:
        """The route policy of orders, from now on."""
        self.apply(made("RoutePolicy", *ORDERS, {"service": "orders", **spec}))


@contextlib.asynccontextmanager
async def opened(made_world: World) -> AsyncIterator[World]:
    """A world in which acme/web may call orders; in the end no data plane may have refused anything."""
    add_ads(made_world.server, made_world)
    made_world.server.add_insecure_port(f"unix:{made_world.socket}")
    await made_world.server.start()
    caller = {"from": [{"tenant": "acme", "service": "web"}]}
    made_world.apply(
        made("Service", *ORDERS, {"protocol": "GRPC", "exportTo": ["acme"]}),
        made("Service", "acme", "web", {"protocol": "GRPC"}),
        made("AccessPolicy", *ORDERS, {"service": "orders", "allow": [caller]}),
    )
    try:
        yield made_world
    finally:
        await made_world.stop()
        await made_world.server.stop(0)
    assert not made_world.nacks


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with opened(World(tmp_path)) as made_world:
        yield made_world


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Node's client is, with its packages as locked."""
    if (NODE / "node_modules").is_dir():  # `make test` has installed them
        return NODE
    directory = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "client.js"):
        shutil.copy(NODE / name, directory)
    command = ["npm", "ci", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(command, cwd=directory, check=True, timeout=200)
    return directory


def at(port: int, zone: str = "a", region: str = "eu", health: str = "HEALTHY") -> Change:
    spec = {"service": "orders", "address": "127.0.0.1", "port": port, "health": health, "version": "v1"}
    return made("Endpoint", "platform", f"e{port}", {**spec, "locality": {"region": region, "zone": zone}})


def ports_of(count: int) -> list[int]:
    rng, found = random.SystemRandom(), set[int]()
    while len(found) < count:
        found.add(free_port(rng))
    return sorted(found)


async def answered(caller: Asked, wanted: set[str], count: int = 30, **fields: Any) -> None:
    """Waits until all of so many calls are answered, by just these servers."""

    async def same() -> bool:
        answer = await caller(count=count, **fields)
        return set(answer["codes"]) == {"OK"} and set(answer["versions"]) == wanted

    await until(same, f"only {wanted} answer")


async def together(caller: Asked, **fields: Any) -> set[str]:
    """Waits until all of so many calls are answered by one server, and returns that."""

    async def same() -> set[str] | None:
        answer = await caller(count=30, **fields)
        return set(answer["versions"]) if set(answer["codes"]) == {"OK"} and len(answer["versions"]) == 1 else None

    found: set[str] = await until(same, "one server answers")
    return found


async def test_calls_that_are_alike_stay_together_breakers_cut_and_who_fails_is_left_out(
    world: World, node: Path
) -> None:
    ports = ports_of(3)
    names = {str(port) for port in ports}
    await world.orders(*ports)
    world.apply(*map(at, ports))
    callers = await world.callers(node)
    for caller in callers.values():
        await answered(caller, names)

    world.policy(loadBalancing={"ringHash": {"header": "x-user"}})
    for kind, caller in callers.items():
        await together(caller, metadata={"x-user": "u0"})
        seen = [await caller.ports(count=3, metadata={"x-user": f"u{number}"}) for number in range(12)]
        assert {len(one) for one in seen} == {1}, f"{kind}: each user at one server"
        assert set.union(*seen) == names, f"{kind}: users at all servers"

    world.policy(affinity={"cookie": {"name": "at"}})
    for kind in ("python", "envoy"):

        async def given(caller: Asked = callers[kind]) -> dict[str, Any] | None:
            answer = await caller()
            return answer if answer["cookies"] else None

        first = await until(given, f"{kind} gets a cookie")
        cookie = first["cookies"][0].partition(";")[0]
        assert await callers[kind].ports(count=20, metadata={"cookie": f"x=y; {cookie}"}) == set(first["versions"])
    await together(callers["node"], metadata={"cookie": "at=1"})
    seen = [await callers["node"].ports(metadata={"cookie": f"a=b; at={number}; c=d"}) for number in range(12)]
    assert len(set.union(*seen)) > 1, "another value may be elsewhere"

    world.policy(circuitBreaker={"maxRequests": 2})
    for kind, caller in callers.items():

        async def cut(caller: Asked = caller) -> bool:
            # Node counts calls once they are under way: the first eight, of one moment, all go.
            codes = (await caller(count=24, concurrency=8, metadata={"x-hold": "0.2"}))["codes"]
            return set(codes) == {"OK", "UNAVAILABLE"}

        await until(cut, f"{kind}: what is too much fails at once")
        assert await caller.ports(count=5), "and one after the other all go"

    bad = str(ports[0])
    failing = {"x-fail": bad}
    world.policy(
        outlierDetection={"consecutive5xx": 3, "interval": "1s", "baseEjectionTime": "3s", "maxEjectionPercent": 34}
    )
    for kind in ("python", "node"):
        # Node begins to count when its endpoints change.
        for health in ("UNHEALTHY", "HEALTHY"):
            world.apply(at(ports[1], health=health))
            await answered(callers[kind], names - ({str(ports[1])} if health == "UNHEALTHY" else set()))
        await answered(callers[kind], names - {bad}, metadata=failing, concurrency=3)
        # It comes back once its time is over; with nobody to fail it stays.
        await answered(callers[kind], names)


async def test_envoy_leaves_out_who_fails_and_takes_it_back(world: World) -> None:
    """Of gRPC it sees what is answered without a message, which an HTTP program needs not know of."""
    asked, failing = [0, 0], [True, False]

    async def answer(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                asked[number] += 1
                status = b"503 no" if failing[number] else b"200 yes"
                writer.write(b"HTTP/1.1 %s\r\ncontent-length: 1\r\n\r\n%d" % (status, number))
                await writer.drain()
        writer.close()

    caller = {"from": [{"tenant": "acme", "service": "web"}]}
    spec = {"consecutive5xx": 3, "interval": "0.5s", "baseEjectionTime": "2s"}
    world.apply(
        made("Service", "platform", "shop", {"protocol": "HTTP", "exportTo": ["acme"]}),
        made("AccessPolicy", "platform", "shop", {"service": "shop", "allow": [caller]}),
        made("RoutePolicy", "platform", "shop", {"service": "shop", "outlierDetection": spec}),
    )
    async with contextlib.AsyncExitStack() as stack:
        for number in range(2):
            program = await stack.enter_async_context(
                await asyncio.start_server(partial(answer, number), "127.0.0.1", 0)
            )
            address = f"127.0.0.1:{program.sockets[0].getsockname()[1]}"
            host, _, port = (await world.envoy("platform", "shop", address)).address.rpartition(":")
            place = {"service": "shop", "address": host, "port": int(port)}
            world.apply(made("Endpoint", "platform", f"shop-{number}", place))
        async with (await world.envoy("acme", "web")).client() as client:

            async def seen(wanted: set[str]) -> bool:
                return {(await client.get("http://shop/a")).text for _ in range(12)} == wanted

            await until(lambda: seen({"0", "1"}), "both are asked")
            await until(lambda: seen({"1"}), "who fails is not")
            count = asked[0]
            assert await seen({"1"})
            assert asked[0] == count, "and gets no call at all"
            failing[0] = False
            await until(lambda: seen({"0", "1"}), "it is asked again")


async def test_near_endpoints_come_first_and_others_when_they_are_gone(world: World, node: Path) -> None:
    near, other, far = ports_of(3)
    programs = {port: await world.orders(port) for port in (near, other, far)}
    world.policy(locality={})
    world.apply(at(near), at(other, "b"), at(far, "c", "us"))
    callers = await world.callers(node)
    for caller in callers.values():
        await answered(caller, {str(near)})

    # Killed: data planes see it before anybody tells them.
    programs[near].kill()
    await programs[near].wait()
    for caller in callers.values():
        await answered(caller, {str(other)})
    programs[other].kill()
    await programs[other].wait()
    for caller in callers.values():
        await answered(caller, {str(far)})
    for port in (near, other):
        programs[port] = await world.orders(port)
    for caller in callers.values():
        await answered(caller, {str(near)})

    # Frozen: its check fails, and the control plane says so.
    programs[near].send_signal(signal.SIGSTOP)
    world.apply(at(near, health="UNHEALTHY"))
    for caller in callers.values():
        await answered(caller, {str(other)}, timeout_s=5)
    programs[near].send_signal(signal.SIGCONT)
    world.apply(at(near))
    for caller in callers.values():
        await answered(caller, {str(near)})


async def test_of_a_zone_that_is_half_gone_both_kinds_of_data_plane_send_on_as_much(world: World, node: Path) -> None:
    near, gone, other = ports_of(3)
    await world.orders(near, gone, other)
    world.policy(locality={})
    world.apply(at(near), at(gone), at(other, "b"))
    callers = await world.callers(node)
    for caller in callers.values():
        await answered(caller, {str(near), str(gone)})
    world.apply(at(gone, health="UNHEALTHY"))
    for kind, caller in callers.items():
        await answered(caller, {str(near), str(other)})
        share = (await caller(count=400, concurrency=4))["versions"][str(near)] / 400
        assert 0.55 < share < 0.87, f"{kind}: 50 of 70 % stay, {share:.2f} do"


async def test_a_drain_moves_calls_and_fails_none(world: World, node: Path) -> None:
    first, second = ports_of(2)
    await world.orders(first, second)
    world.apply(at(first), at(second, "b"))
    callers = await world.callers(node)
    for caller in callers.values():
        await answered(caller, {str(first), str(second)})
    last: dict[str, set[str]] = {}
    codes: set[str] = set()

    async def keep_calling(kind: str, caller: Asked) -> None:
        """Calls, each of which takes a while, until it is cancelled."""
        while True:
            answer = await caller(count=12, concurrency=6, metadata={"x-hold": "0.05"})
            codes.update(answer["codes"])
            last[kind] = set(answer["versions"])

    async with anyio.create_task_group() as group:
        for kind, caller in callers.items():
            group.start_soon(keep_calling, kind, caller)
        drain = made("Drain", "platform", "zone-a", {"zone": "a"})
        for change, wanted in ((drain, {str(second)}), (Change(drain.key, None), {str(first), str(second)})) * 2:
            world.apply(change)
            await until(lambda wanted=wanted: last == dict.fromkeys(callers, wanted), f"calls go to {wanted}")
        group.cancel_scope.cancel()
    assert codes == {"OK"}


async def test_each_golden_choice_is_taken_by_each_kind_of_client(world: World, node: Path) -> None:
    services = []
    for fields in yaml.safe_load_all((ROOT / "tests" / "golden" / "choice" / "mesh.yaml").read_text()):
        kind, metadata = fields["kind"], fields["metadata"]
        if metadata["name"] == "web":
            continue
        message = json_format.ParseDict(fields, getattr(resources_pb2, kind)())
        world.mesh.apply([Change(Key(kind, metadata["tenant"], metadata["name"]), message)])
        services += [metadata["name"]] if kind == "Service" else []
    assert len(services) == 7
    callers = await world.callers(node)
    for name in services:
        # There is no such server: what counts is that its configuration is taken, which the end of the test looks at.
        for caller in (callers["python"], callers["node"]):
            assert (await caller(target=f"xds:///{name}.platform", timeout_s=20))["codes"] == {"UNAVAILABLE": 1}
