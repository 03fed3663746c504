"""Who takes turns in `push`: our control plane and the bare stream, each with the same agents."""

import asyncio
import itertools
import json
import random
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from benchmarks import bare_stream, push_mesh
from benchmarks.control_plane import TRUST_DOMAIN, ControlPlane
from benchmarks.envoy_front import before
from benchmarks.fleet import CONNECTING_AT_ONCE, Fleet, Way, fleet
from benchmarks.process import Broken, Child, cpu_s, python
from meshwarden.agents.channel import ControlPlane as Place
from meshwarden.agents.channel import open_channel
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate, control_plane_dns_name
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.local.port import free_port
from meshwarden.v1 import node_service_pb2 as v1

SYNC = "/meshwarden.v1.NodeService/Sync"
HEARTBEAT_S = 5.0
# How long a server is left alone: to learn what it uses when idle, and to let it read what is still on its way.
IDLE_S = 0.5
# How little more than that it uses once all is read, and after how many looks that is taken for granted.
QUIET_S, MAX_WINDOWS = 0.005, 8
ADAPT_S = 2.0
ENVOY = "envoy"
"""The way to the bare stream that is no way of its own: an Envoy ends TLS before it."""
CLEAR = {"socket": "inner/bare.sock", "splice": "splice.sock"}
"""The ways without TLS, and the Unix sockets that they lead to."""


class NodeDialect:
    """An agent with one data plane, as the control plane knows it."""

    def __init__(self, node: int) -> None:
        entry = push_mesh.entry(node)
        self._plane = v1.DataPlaneRef(
            id=f"{push_mesh.TENANT}/{entry}#0/grpc",
            tenant=push_mesh.TENANT,
            entry=entry,
            dialect=v1.DataPlaneRef.GRPC,
            listen_address=f"127.0.0.1:{push_mesh.PORT}",
            client="c-core",
        )

    def first(self) -> bytes:
        """Hello."""
        hello = v1.NodeHello(agent_version="bench")
        hello.now.FromDatetime(utc_now())
        return v1.SyncRequest(hello=hello).SerializeToString()

    def take(self, message: bytes) -> tuple[int, list[bytes]]:
        """Asks for its configuration when welcomed, and acknowledges each revision of it."""
        said = _HEADS.FromString(message)
        kind = said.WhichOneof("message")
        if kind == "welcome":
            interest = v1.SyncRequest(interest=v1.Interest(data_planes=[self._plane]))
            return 0, [interest.SerializeToString()]
        if kind != "config":
            return 0, []
        if refused := [plane.refused for plane in said.config.data_planes if plane.refused]:
            raise Broken(f"the control plane refused a data plane: {refused[0]}")
        ack = v1.SyncRequest(ack=v1.ConfigAck(revision=said.config.revision))
        return said.config.revision, [ack.SerializeToString()]

    def heartbeat(self) -> bytes:
        """A sign of life."""
        return v1.SyncRequest(heartbeat=v1.Heartbeat()).SerializeToString()


def _heads() -> Any:
    """SyncResponse without the scopes of a configuration, of which there are megabytes: they are not looked at."""
    file = descriptor_pb2.FileDescriptorProto()
    v1.DESCRIPTOR.CopyToProto(file)
    update = next(message for message in file.message_type if message.name == "ConfigUpdate")
    kept = [field for field in update.field if field.name != "scopes"]
    del update.field[:]
    update.field.extend(kept)
    pool = descriptor_pool.DescriptorPool()
    _add(pool, v1.DESCRIPTOR.dependencies)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(v1.SyncResponse.DESCRIPTOR.full_name))


def _add(pool: descriptor_pool.DescriptorPool, files: Sequence[Any]) -> None:
    for file in files:
        _add(pool, file.dependencies)
        pool.AddSerializedFile(file.serialized_pb)


_HEADS = _heads()


class BareDialect:
    """A connection to the bare server: every message is acknowledged by as many bytes as an agent would."""

    def __init__(self, *, wants_last: bool = False) -> None:
        self._count, self._first = 0, bare_stream.AGAIN if wants_last else b"hello"

    def first(self) -> bytes:
        """Asks for what was pushed last, or for nothing."""
        return self._first

    def take(self, message: bytes) -> tuple[int, list[bytes]]:
        """Counts; the welcome is the first."""
        self._count += 1
        return self._count, [] if self._count == 1 else [b"acked"]

    def heartbeat(self) -> None:
        """None: the stream is bare."""


@dataclass
class Side:
    """A server under measurement with its agents.

    Attributes:
        child: its process.
        agents: connected to it.
        push: makes a change and returns the mark that all agents are to reach.
        beside: other processes whose CPU is to be known.
        idle: the share of a core that each process uses when nothing happens, one figure a round.
    """

    child: Child
    agents: Fleet
    push: Callable[[], Awaitable[int]]
    beside: Sequence[Child] = ()
    idle: dict[int, list[float]] = field(default_factory=dict)

    async def measure(self) -> tuple[list[float], float]:
        """One push: the CPU of each process and the time to the last acknowledgement, in seconds."""
        with self.agents.silent():
            loop, pids = asyncio.get_running_loop(), [child.pid for child in (self.child, *self.beside)]
            at_rest = list(map(cpu_s, pids))
            await asyncio.sleep(IDLE_S)
            before, begun_s = list(map(cpu_s, pids)), loop.time()
            for pid, now_s, then_s in zip(pids, before, at_rest, strict=True):
                self.idle.setdefault(pid, []).append((now_s - then_s) / IDLE_S)
            idle = [statistics.median(self.idle[pid]) for pid in pids]
            over_s = await self.agents.wait(await self.push())
            used = list(map(cpu_s, pids))
            spent = [now_s - then_s for now_s, then_s in zip(used, before, strict=True)]
            # What the agents have written last is still to be read.
            for _ in range(MAX_WINDOWS):
                await asyncio.sleep(IDLE_S)
                now = list(map(cpu_s, pids))
                window = [now_s - then_s for now_s, then_s in zip(now, used, strict=True)]
                spent = [a + max(0.0, b - c * IDLE_S) for a, b, c in zip(spent, window, idle, strict=True)]
                used = now
                if all(b < c * IDLE_S * 1.5 + QUIET_S for b, c in zip(window, idle, strict=True)):
                    break
            return spent, over_s - begun_s


@dataclass(frozen=True)
class Bare:
    """The bare server, running.

    Attributes:
        child: its process.
        way: to it, for each agent.
        channel: to it.
        beside: what else it takes.
    """

    child: Child
    way: Way
    channel: grpc.aio.Channel
    beside: Sequence[Child] = ()

    async def push(self, payload: bytes) -> None:
        """Has it write these bytes to all that are connected."""
        call: Any = self.channel.unary_unary(bare_stream.PUSH)
        await call(payload)


@asynccontextmanager
async def bare(
    directory: Path, clients: Bundle, way: str = "front", caller: X509Svid | None = None
) -> AsyncIterator[Bare]:
    """Runs the bare server, which takes whom `clients` has signed, such as `caller`; `way` as `bare_stream` says."""
    bundle = await _certify(directory, clients)
    async with AsyncExitStack() as stack:
        arguments = ["-m", "benchmarks.bare_stream", str(directory), "socket" if way == ENVOY else way]
        child = await stack.enter_async_context(python("bare stream", arguments, directory))
        port, beside = json.loads(await child.until_written(directory / "bare.json"))["port"], []
        if way == ENVOY:
            port = free_port(random.SystemRandom())
            beside = [await stack.enter_async_context(before(directory, port))]
        to = partial(open_channel, Place(f"127.0.0.1:{port}", TRUST_DOMAIN), bundle)
        if way in CLEAR:
            to = partial(_open_unix, directory / CLEAR[way])
        channel = await stack.enter_async_context(to(caller))
        yield Bare(child, to, channel, beside)


def _open_unix(path: Path, _: X509Svid | None) -> grpc.aio.Channel:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    return grpc.aio.insecure_channel(f"unix:{path}", options)


async def _certify(directory: Path, clients: Bundle) -> Bundle:
    """Makes the bare server's directory, with a certificate like the control plane's; returns who signed it."""
    directory.mkdir(mode=0o700)
    authority, key = MemoryAuthority(TRUST_DOMAIN, utc_now), new_key()
    template = LeafTemplate(
        SpiffeId.control_plane(TRUST_DOMAIN, "bare"), timedelta(hours=1), (control_plane_dns_name(TRUST_DOMAIN),)
    )
    svid = X509Svid.of(await authority.sign(template, key.public_key(), utc_now()), key)
    for name, content in {"tls.crt": svid.chain_pem(), "tls.key": svid.key_pem(), "ca.crt": clients.pem()}.items():
        (directory / name).write_bytes(content)
    return await authority.bundle()


async def certificates(agents: int) -> tuple[Bundle, list[X509Svid]]:
    """A trust domain, and so many nodes' certificates of it."""
    authority, svids = MemoryAuthority(TRUST_DOMAIN, utc_now), []
    for number in range(agents):
        template, key = (
            LeafTemplate(SpiffeId.for_node(TRUST_DOMAIN, "bare", f"node-{number}"), timedelta(hours=1)),
            new_key(),
        )
        svids.append(X509Svid.of(await authority.sign(template, key.public_key(), utc_now()), key))
    return await authority.bundle(), svids


@asynccontextmanager
async def our_agents(
    plane: ControlPlane, svids: Sequence[X509Svid], at_once: int = CONNECTING_AT_ONCE
) -> AsyncIterator[Fleet]:
    """Agents of our control plane; they are told of their configuration within the block."""
    dialects = [NodeDialect(number) for number in range(len(svids))]
    way = partial(open_channel, plane.place, plane.bundle)
    async with fleet(way, svids, SYNC, dialects, HEARTBEAT_S, at_once) as agents:
        yield agents


@asynccontextmanager
async def their_agents(
    server: Bare, svids: Sequence[X509Svid], at_once: int = CONNECTING_AT_ONCE, *, want_last: bool = False
) -> AsyncIterator[Fleet]:
    """As many of the bare server; what it has pushed last is written to each if they want that."""
    dialects = [BareDialect(wants_last=want_last) for _ in svids]
    async with fleet(server.way, svids, bare_stream.STREAM, dialects, HEARTBEAT_S, at_once) as agents:
        yield agents


class Changes:
    """What is changed: an endpoint of a service that all see, or the policy of the service that all serve."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane, self._numbers = plane, itertools.count(1)

    async def endpoint(self) -> int:
        """Moves an endpoint of the first service to another port."""
        return await self._plane.apply(push_mesh.endpoint(0, 0, push_mesh.PORT + next(self._numbers)))

    async def policy(self) -> int:
        """Lets the same callers call another method."""
        return await self._plane.apply(push_mesh.policy(next(self._numbers)))
