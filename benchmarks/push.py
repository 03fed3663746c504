"""One policy change on its way to every agent: `push CPU`, `push last ack`, and `memory` of so many sessions.

Every agent hosts one instance of the same gRPC service, so a change of the AccessPolicy of that service goes to all of
them. The reference is a bare stream (benchmarks/bare_stream.py) that writes the same bytes to as many connections, over
the same front and TLS, and reads what comes back. Both have the same agents, in this process, and take turns.

- `push last ack`: from the call (`Apply`; `Push` at the reference) until the last agent has acknowledged it.
- `push CPU`: what the server's process uses from the call until it has read the acknowledgements. Heartbeats rest
  meanwhile; what it uses by itself is taken off only while it is watched for the last acknowledgements.
- `memory`: the server's resident memory with all agents connected, less that without any.
"""

import asyncio
import itertools
import json
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks import bare_stream
from benchmarks.control_plane import TRUST_DOMAIN, ControlPlane, control_plane
from benchmarks.fleet import Fleet, fleet
from benchmarks.process import Broken, Child, cpu_s, python, raise_descriptor_limit, rss_mib, say
from benchmarks.result import Case
from meshwarden.agents.channel import ControlPlane as Place
from meshwarden.agents.channel import open_channel
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate, control_plane_dns_name
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1 import resources_pb2

REFERENCE = "a bare grpc.aio stream behind the same TLS front, same bytes"
TENANT, SERVICE = "bench", "api"
CALLERS = 25
NODES_AN_ENTRY = 500
SYNC = "/meshwarden.v1.NodeService/Sync"
HEARTBEAT_S = 5.0
# How long a server is left alone: to learn what it uses when idle, and to let it read what is still on its way.
IDLE_S = 0.5
# How little more than that it uses once all is read, and after how many looks that is taken for granted.
QUIET_S, MAX_WINDOWS = 0.005, 8
FILES_AN_AGENT = 4
ADAPT_S = 2.0


class NodeDialect:
    """An agent with one data plane, as the control plane knows it."""

    def __init__(self, node: int) -> None:
        self._plane = v1.DataPlaneRef(
            id=f"{TENANT}/{_entry(node)}#0/grpc",
            tenant=TENANT,
            entry=_entry(node),
            dialect=v1.DataPlaneRef.GRPC,
            listen_address="127.0.0.1:7000",
            client="c-core",
        )

    def first(self) -> bytes:
        """Hello."""
        hello = v1.NodeHello(agent_version="bench")
        hello.now.FromDatetime(utc_now())
        return v1.SyncRequest(hello=hello).SerializeToString()

    def take(self, message: bytes) -> tuple[int, list[bytes]]:
        """Asks for its configuration when welcomed, and acknowledges each revision of it."""
        said = v1.SyncResponse.FromString(message)
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


class BareDialect:
    """A connection to the bare server: every message is acknowledged by as many bytes as an agent would."""

    def __init__(self) -> None:
        self._count = 0

    def first(self) -> bytes:
        """Anything."""
        return b"hello"

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
        memory_mib: what the agents' sessions hold.
        idle: the share of a core that it uses when nothing happens, one figure a round.
    """

    child: Child
    agents: Fleet
    push: Callable[[], Awaitable[int]]
    memory_mib: float
    idle: list[float] = field(default_factory=list)


async def run(agents: int, rounds: int) -> AsyncIterator[Case]:
    """Yields the three cases."""
    limit = raise_descriptor_limit()
    if agents * FILES_AN_AGENT > limit:
        raise Broken(f"{agents} agents need {agents * FILES_AN_AGENT} open files; this process may have {limit}")
    cpu = Case("push", f"push CPU, {agents} agents", REFERENCE, "ms")
    last = Case("push", f"push last ack, {agents} agents", REFERENCE, "ms")
    memory = Case("push", f"memory, {agents} agents", REFERENCE, "MiB")
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mw-bench-")))
        say(f"push: starting a control plane and joining {agents} agents")
        plane = await stack.enter_async_context(control_plane(directory / "plane"))
        await plane.apply(*_mesh(agents))
        svids = await plane.join([f"node-{number}" for number in range(agents)])
        say("push: connecting them, here and to the reference")
        ours = await stack.enter_async_context(_ours(plane, svids))
        theirs = await stack.enter_async_context(_theirs(directory / "bare", plane.bundle, svids, ours.agents))
        memory.add(ours.memory_mib, theirs.memory_mib)
        say(f"push: {rounds} rounds")
        for number in range(rounds):
            a, b = await _measure(ours), await _measure(theirs)
            cpu.add(a[0], b[0])
            last.add(a[1], b[1])
            say(f"  {number + 1}: {a[0]:.0f} / {b[0]:.0f} ms CPU, {a[1]:.0f} / {b[1]:.0f} ms to the last ack")
        say(f"push: idle, {statistics.median(ours.idle):.1%} / {statistics.median(theirs.idle):.1%} of a core")
        await _check(plane, agents)
    for case in (cpu, last, memory):
        yield case


async def _measure(side: Side) -> tuple[float, float]:
    """One push: CPU and time to the last acknowledgement, both in ms."""
    with side.agents.silent():
        loop, pid = asyncio.get_running_loop(), side.child.pid
        at_rest_s = cpu_s(pid)
        await asyncio.sleep(IDLE_S)
        before_s, begun_s = cpu_s(pid), loop.time()
        side.idle.append((before_s - at_rest_s) / IDLE_S)
        idle = statistics.median(side.idle)
        over_s = await side.agents.wait(await side.push())
        used_s = cpu_s(pid)
        push_s = used_s - before_s
        # What the agents have written last is still to be read.
        for _ in range(MAX_WINDOWS):
            await asyncio.sleep(IDLE_S)
            window_s, used_s = cpu_s(pid) - used_s, cpu_s(pid)
            push_s += max(0.0, window_s - idle * IDLE_S)
            if window_s < idle * IDLE_S * 1.5 + QUIET_S:
                break
        return push_s * 1e3, (over_s - begun_s) * 1e3


@asynccontextmanager
async def _ours(plane: ControlPlane, svids: Sequence[X509Svid]) -> AsyncIterator[Side]:
    numbers = itertools.count(1)
    idle_mib = rss_mib(plane.child.pid)
    dialects = [NodeDialect(number) for number in range(len(svids))]
    async with fleet(plane.place, plane.bundle, svids, SYNC, dialects, HEARTBEAT_S) as agents:
        await agents.wait(1)
        await asyncio.sleep(ADAPT_S)

        async def push() -> int:
            return await plane.apply(_policy(next(numbers)))

        yield Side(plane.child, agents, push, rss_mib(plane.child.pid) - idle_mib)


@asynccontextmanager
async def _theirs(directory: Path, clients: Bundle, svids: Sequence[X509Svid], ours: Fleet) -> AsyncIterator[Side]:
    bundle = await _certify(directory, clients)
    async with python("bare stream", ["-m", "benchmarks.bare_stream", str(directory)], directory) as child:
        port = json.loads(await child.until_written(directory / "bare.json"))["port"]
        place = Place(f"127.0.0.1:{port}", TRUST_DOMAIN)
        idle_mib, marks = rss_mib(child.pid), itertools.count(2)
        dialects = [BareDialect() for _ in svids]
        async with (
            open_channel(place, bundle, None) as channel,
            fleet(place, bundle, svids, bare_stream.STREAM, dialects, HEARTBEAT_S) as agents,
        ):
            await agents.wait(1)
            await asyncio.sleep(ADAPT_S)
            call: Any = channel.unary_unary(bare_stream.PUSH)

            async def push() -> int:
                await call(ours.payload)
                return next(marks)

            yield Side(child, agents, push, rss_mib(child.pid) - idle_mib)


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


async def _check(plane: ControlPlane, agents: int) -> None:
    """The control plane must have seen every acknowledgement, or the figures are of something else."""
    status = await plane.status()
    behind = [node.node for node in status.nodes if not node.connected or node.acked_revision < status.revision]
    if len(status.nodes) != agents or behind:
        raise Broken(f"{len(status.nodes)} of {agents} nodes have a session; behind: {behind[:5]}")


def _entry(node: int) -> str:
    return f"{SERVICE}-{node // NODES_AN_ENTRY}"


def _mesh(agents: int) -> list[resources_pb2.Resource]:
    """The resources that the agents live by."""
    grpc_spec = resources_pb2.ServiceSpec(protocol=resources_pb2.ServiceSpec.GRPC)
    found = [
        resources_pb2.Resource(
            tenant=resources_pb2.Tenant(
                kind="Tenant", metadata=resources_pb2.Metadata(name=TENANT), spec=resources_pb2.TenantSpec()
            )
        )
    ]
    for name in (SERVICE, *_callers()):
        service = resources_pb2.Service(kind="Service", metadata=_named(name), spec=grpc_spec)
        found.append(resources_pb2.Resource(service=service))
    for start in range(0, agents, NODES_AN_ENTRY):
        spec = resources_pb2.WorkloadEntrySpec(
            service=SERVICE,
            nodes=[f"node-{number}" for number in range(start, min(agents, start + NODES_AN_ENTRY))],
            selectors=resources_pb2.Selectors(uid=1000),
            port=7000,
        )
        entry = resources_pb2.WorkloadEntry(kind="WorkloadEntry", metadata=_named(_entry(start)), spec=spec)
        found.append(resources_pb2.Resource(workload_entry=entry))
    return [*found, _policy(0)]


def _policy(number: int) -> resources_pb2.Resource:
    """The policy of the service: for each number another one of the same size."""
    rule = resources_pb2.AccessRule(methods=[f"/bench.Api/Get{number:06}"])
    getattr(rule, "from").extend(resources_pb2.Caller(service=name) for name in _callers())
    policy = resources_pb2.AccessPolicy(
        kind="AccessPolicy",
        metadata=_named(SERVICE),
        spec=resources_pb2.AccessPolicySpec(service=SERVICE, allow=[rule]),
    )
    return resources_pb2.Resource(access_policy=policy)


def _callers() -> list[str]:
    return [f"caller-{number:02}" for number in range(CALLERS)]


def _named(name: str) -> resources_pb2.Metadata:
    return resources_pb2.Metadata(tenant=TENANT, name=name)
