"""`apply to effect`: from Apply of an AccessPolicy until the first call that shows it, on a mesh of `meshwarden up`.

A client whose identity the samples' policies do not allow calls without a pause; the policy is changed so that it may,
and in the next round so that it may not. The reference is the same change on a bare xDS server (its snapshot is
replaced: no API, no store, no policy to compile, no agent between), with one gRPC client and server, or one Envoy.
"""

import asyncio
import json
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks import bare_xds
from benchmarks.process import Broken, Child, child, python, say
from benchmarks.result import Case
from meshwarden.agents.channel import ControlPlane as Place
from meshwarden.agents.channel import open_channel
from meshwarden.agents.envoy.bootstrap import envoy_bootstrap
from meshwarden.agents.envoy.supervisor import find_envoy
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.svid import X509Svid
from meshwarden.v1 import resource_service_pb2, resource_service_pb2_grpc, resources_pb2

GRPC_REFERENCE = "the same change on a bare xDS server with one gRPC client and server"
ENVOY_REFERENCE = "the same change on a bare xDS server with one Envoy"
NODE, TENANT, CALLER, ALLOWED = "node-a", "acme", "intruder", "web"
UP_S = 120.0
SETTLE_S = 0.5
RPC_S = 10.0

Change = Callable[[bool], Awaitable[None]]
Up = dict[str, Any]
"""What up.json says."""


@dataclass
class Side:
    """A client that polls, and what changes its permission."""

    poll: Child
    change: Change

    async def flip(self, is_allowed: bool) -> float:
        """Changes the permission; returns after how many ms a call showed it.

        Raises:
            Broken: the client does not see what it should.
        """
        wanted, before = ("allowed", "denied") if is_allowed else ("denied", "allowed")
        await self.poll.ask(wanted)
        if (first := (await self.poll.answer())["saw"]) != before:
            raise Broken(f"{self.poll.name}: calls are to be {before} before the change, and are {first}")
        begun_ns = time.monotonic_ns()
        await self.change(is_allowed)
        seen = await self.poll.answer()
        if seen["saw"] != wanted:
            raise Broken(f"{self.poll.name}: calls do not become {wanted} but are {seen['saw']}: {self.poll.tail()}")
        return float(seen["at_ns"] - begun_ns) / 1e6

    async def until(self, wanted: str) -> None:
        """Waits until calls are `wanted`."""
        await self.poll.ask(wanted)
        await self.poll.answer()
        if (seen := await self.poll.answer())["saw"] != wanted:
            raise Broken(f"{self.poll.name}: calls are {seen['saw']} and not {wanted}: {self.poll.tail()}")


async def run(_: int, rounds: int) -> AsyncIterator[Case]:
    """Yields both cases; a round is one change."""
    over_envoy = Case("effect", "apply to effect, Envoy", ENVOY_REFERENCE, "ms")
    over_grpc = Case("effect", "apply to effect, gRPC", GRPC_REFERENCE, "ms")
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mw-bench-")))
        mesh = await start(stack, directory)
        pairs = [
            (over_grpc, await client_side(stack, directory, mesh, "grpc", "orders"), await bare_grpc(stack, directory)),
            (
                over_envoy,
                await client_side(stack, directory, mesh, "http", "billing"),
                await bare_envoy(stack, directory),
            ),
        ]
        say(f"effect: {rounds} rounds")
        for number in range(rounds):
            for case, ours, theirs in pairs:
                is_allowed = number % 2 == 0
                await asyncio.sleep(SETTLE_S)
                case.add(await ours.flip(is_allowed), await theirs.flip(is_allowed))
                say(f"  {number + 1}: {case.name}: {case.ours[-1]:.1f} / {case.theirs[-1]:.1f} ms")
    for case in (over_envoy, over_grpc):
        yield case


async def start(stack: AsyncExitStack, directory: Path) -> Up:
    """Runs `meshwarden up` with the samples; returns what up.json says."""
    say("effect: starting a mesh with its samples")
    state = directory / "up"
    command = ["-m", "meshwarden.controlplane", "up", "--state-dir", str(state), "--json"]
    # Its context is no one else's business.
    started = python("up", command, directory, {"XDG_CONFIG_HOME": str(directory / "config")})
    up = await stack.enter_async_context(started)
    found: Up = json.loads(await up.until_written(state / "up.json", UP_S))
    return found


async def client_side(stack: AsyncExitStack, directory: Path, up: Up, kind: str, service: str) -> Side:
    """A client on the mesh that no policy lets in yet."""
    stub = resource_service_pb2_grpc.ResourceServiceStub(await channel(stack, up))

    async def change(is_allowed: bool) -> None:
        policy = _policy(service, CALLER if is_allowed else ALLOWED)
        await stub.Apply(resource_service_pb2.ApplyRequest(resources=[policy]), timeout=RPC_S)

    poll = await client(stack, directory, up, kind, *(["xds:///orders"] if kind == "grpc" else []))
    side = Side(poll, change)
    await side.until("denied")
    return side


async def channel(stack: AsyncExitStack, up: Up) -> grpc.aio.Channel:
    """The operator's, to the control plane."""
    place = Place(up["control_plane"]["address"], up["trust_domain"])
    bundle = Bundle.parse_pem(up["trust_domain"], Path(up["control_plane"]["ca_file"]).read_bytes())
    svid = X509Svid.load(Path(up["admin"]["cert_file"]).read_bytes(), Path(up["admin"]["key_file"]).read_bytes())
    return await stack.enter_async_context(open_channel(place, bundle, svid))


async def client(stack: AsyncExitStack, directory: Path, up: Up, kind: str, *arguments: str) -> Child:
    """Starts benchmarks/poll.py as a workload of the mesh."""
    command = under_agent(up, NODE, f"{TENANT}/{CALLER}", f"bench-{kind}")
    command += ["-m", "benchmarks.poll", kind, *arguments]
    return await stack.enter_async_context(child(f"our {kind} client", command, directory, is_asked=True))


def under_agent(up: Up, node: str, entry: str, instance: str, *flags: str) -> list[str]:
    """The command that runs this Python as an instance of an entry; what it is to run follows."""
    agent_socket = next(agent["agent_socket"] for agent in up["agents"] if agent["node"] == node)
    command = [sys.executable, "-m", "meshwarden.agents", "exec", "--socket", agent_socket, *flags]
    return [*command, "--entry", entry, "--instance", instance, "--", sys.executable]


async def bare_grpc(stack: AsyncExitStack, directory: Path) -> Side:
    """A gRPC client and server under a bare xDS server."""
    path, address = directory / "grpc-xds.sock", f"127.0.0.1:{_free_port()}"
    source = await stack.enter_async_context(bare_xds.bare_xds(path))

    async def change(is_allowed: bool) -> None:
        source.put(*bare_xds.grpc_server(address, is_allowed))

    await change(False)
    bootstrap = directory / "grpc-xds.json"
    server = {
        "server_uri": f"unix:{path}",
        "channel_creds": [{"type": "insecure"}],
        "server_features": ["xds_v3", "ignore_resource_deletion"],
    }
    template = "grpc/server?xds.resource.listening_address=%s"
    bootstrap.write_text(
        json.dumps(
            {"xds_servers": [server], "node": {"id": "bare"}, "server_listener_resource_name_template": template}
        )
    )
    arguments = ["-m", "benchmarks.bare_orders", address]
    await stack.enter_async_context(
        python("bare gRPC server", arguments, directory, {"GRPC_XDS_BOOTSTRAP": str(bootstrap)})
    )
    return await _bare(stack, directory, ["grpc", address], change)


async def bare_envoy(stack: AsyncExitStack, directory: Path) -> Side:
    """An Envoy under a bare xDS server."""
    path, listens = directory / "envoy-xds.sock", directory / "envoy.sock"
    source = await stack.enter_async_context(bare_xds.bare_xds(path))

    async def change(is_allowed: bool) -> None:
        source.put(*bare_xds.envoy(listens, is_allowed))

    await change(False)
    bootstrap = directory / "envoy.json"
    fields = envoy_bootstrap("bare", "bare", "", "", path, directory / "admin.sock")
    del fields["layered_runtime"]  # nobody gives it any
    bootstrap.write_text(json.dumps(fields))
    command = [str(find_envoy()), "-c", str(bootstrap), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warn"]
    envoy = await stack.enter_async_context(child("bare Envoy", command, directory))
    await envoy.until_listening(listens)
    return await _bare(stack, directory, ["http", str(listens)], change)


async def _bare(stack: AsyncExitStack, directory: Path, arguments: list[str], change: Change) -> Side:
    command = [sys.executable, "-m", "benchmarks.poll", *arguments]
    poll = await stack.enter_async_context(child(f"bare {arguments[0]} client", command, directory, is_asked=True))
    side = Side(poll, change)
    await side.until("denied")
    return side


def _policy(service: str, caller: str) -> resources_pb2.Resource:
    """A policy of its own, beside those of the samples: what any of them allows is allowed."""
    rule = resources_pb2.AccessRule()
    getattr(rule, "from").add(tenant=TENANT, service=caller)
    policy = resources_pb2.AccessPolicy(
        kind="AccessPolicy",
        metadata=resources_pb2.Metadata(tenant="platform", name=f"bench-{service}"),
        spec=resources_pb2.AccessPolicySpec(service=service, allow=[rule]),
    )
    return resources_pb2.Resource(access_policy=policy)


def _free_port() -> int:
    """A port that nobody has now: gRPC's xDS servers can't take port 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
