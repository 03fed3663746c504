"""One change on its way to every agent, and what agents cost: `make bench NAME=push`.

All of it is of a mesh of a thousand services of ten endpoints (`push_mesh`), over mTLS, one connection an agent, with
acknowledgements read. The floor is a bare stream (`bare_stream`) that writes the same bytes to as many connections,
over the same front and TLS, and reads what comes back. Both have the same agents, in this process, and take turns.

- `endpoint change CPU, N agents`: what the server's process uses from the call until it has read the acknowledgements,
  a push to one agent. Heartbeats rest meanwhile; what it uses by itself is taken off only while it is watched for the
  last acknowledgements. The call is `Apply` for us, with all that this does (checked, stored, audited, compiled).
- `endpoint change last ack, N agents`: from the call until the last agent has acknowledged it.
- `policy change …`: the same for an AccessPolicy of the service that all agents serve.
- `endpoint change CPU, N agents, beside sovereign`: the same against what another control plane in Python
  (`push_sovereign`) uses to tell one client of such a change.
- `CPU per workload updated, 10 workloads a node`: control plane and agent together, against a bare stream to each.
- `memory per agent`: the server's resident memory with all agents connected, less that without any.
- `memory per service`: what a thousand services add to it, against their configuration as bytes.
- `reconnect, N agents`: from when all have lost it and come at once until the last has acknowledged its configuration;
  none may be refused. The bare stream writes the same bytes to each.
- `reconnect memory, N agents`: by how much the server's resident memory grows meanwhile at most, an agent.
- `cold start`: from the start of the process, on a store with all services, until an agent has acknowledged everything.
- `compile one change, S services`: see `compiling`.
"""

import asyncio
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import compiling, push_mesh, push_node
from benchmarks.control_plane import ControlPlane, control_plane
from benchmarks.process import Broken, forget_peak, peak_mib, raise_descriptor_limit, rss_mib, say
from benchmarks.push_side import ADAPT_S, Bare, Changes, Side, bare, our_agents, their_agents
from benchmarks.push_sovereign import NAME as SOVEREIGN
from benchmarks.push_sovereign import Sovereign, sovereign
from benchmarks.result import Case
from meshwarden.certs.svid import X509Svid

FLOOR = "a bare grpc.aio stream behind the same TLS front, same bytes"
WIRE = "the configuration of one as bytes on the wire"
SIZES = (100, 1000, 5000)
FILES_AN_AGENT = 4
RETURNING_AT_ONCE = 256
"""Handshakes under way: what a front takes on at once (`FrontLimits.handshakes`)."""
FEW = 3
"""Rounds of what takes long."""
KIB = 1024


@dataclass
class _Bench:
    """What all cases share."""

    plane: ControlPlane
    server: Bare
    svids: Sequence[X509Svid]
    rounds: int


async def run(agents: int, rounds: int) -> AsyncIterator[Case]:
    """Yields the cases, for a hundred agents, a thousand and five thousand up to `agents`, and for that many."""
    for case in compiling.cases(rounds):
        yield case
    limit = raise_descriptor_limit()
    if agents * FILES_AN_AGENT > limit:
        raise Broken(f"{agents} agents need {agents * FILES_AN_AGENT} open files; this process may have {limit}")
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as name:
        directory = Path(name)
        async with AsyncExitStack() as stack:
            say(f"push: starting a control plane and joining {agents} agents")
            plane = await stack.enter_async_context(control_plane(directory / "plane"))
            await plane.apply(*push_mesh.base(agents))
            svids = await plane.join([push_mesh.node(number) for number in range(agents)])
            server = await stack.enter_async_context(bare(directory / "bare", plane.bundle))
            bench = _Bench(plane, server, svids, rounds)
            yield await _memory_per_service(bench)
            for size in [size for size in SIZES if size < agents] + [agents]:
                async for case in _changes(bench, size, directory):
                    yield case
            for case in await _reconnect(bench):
                yield case
        yield await _cold_start(directory, svids[:1], min(rounds, FEW))


async def _memory_per_service(bench: _Bench) -> Case:
    """Applies the services while one agent looks on."""
    case = Case("push", f"memory per service, {push_mesh.SERVICES} services", WIRE, "KiB")
    async with our_agents(bench.plane, bench.svids[:1]) as agents:
        await agents.wait(1)
        await asyncio.sleep(ADAPT_S)
        before_mib = rss_mib(bench.plane.child.pid)
        say(f"push: applying {push_mesh.SERVICES} services of {push_mesh.ENDPOINTS} endpoints")
        await agents.wait(await bench.plane.apply(*push_mesh.services()))
        await asyncio.sleep(ADAPT_S)
        ours_kib = (rss_mib(bench.plane.child.pid) - before_mib) * KIB
    async with our_agents(bench.plane, bench.svids[:1]) as agents:
        await agents.wait(1)
        case.add(ours_kib / push_mesh.SERVICES, len(agents.payload) / KIB / push_mesh.SERVICES)
    return case


async def _changes(bench: _Bench, size: int, directory: Path) -> AsyncIterator[Case]:
    """Changes to so many agents; memory and the cost of a workload where those are all."""
    plane, server, svids = bench.plane, bench.server, bench.svids[:size]
    is_all = size == len(bench.svids)
    memory = Case("push", f"memory per agent, {size} agents", FLOOR, "KiB")
    async with AsyncExitStack() as stack:
        idle = rss_mib(plane.child.pid), rss_mib(server.child.pid)
        say(f"push: connecting {size} agents, here and to the reference")
        ours = await stack.enter_async_context(our_agents(plane, svids))
        theirs = await stack.enter_async_context(their_agents(server, svids))
        await ours.wait(1)
        await theirs.wait(1)
        await asyncio.sleep(ADAPT_S)
        grown = rss_mib(plane.child.pid) - idle[0], rss_mib(server.child.pid) - idle[1]
        memory.add(*(mib * KIB / size for mib in grown))
        node = await stack.enter_async_context(push_node.node(plane, directory / "node")) if is_all else None
        other = await stack.enter_async_context(sovereign(directory / "sovereign")) if is_all else None
        marks = iter(range(2, 1 << 30))

        async def same() -> int:
            await server.push(ours.payload)
            return next(marks)

        changes = Changes(plane)
        reference = Side(server.child, theirs, same)
        for kind, change in (("endpoint", changes.endpoint), ("policy", changes.policy)):
            side = Side(plane.child, ours, change, [node] if node is not None else [])
            third = other if kind == "endpoint" else None
            async for case in _turns(kind, size, side, reference, third, bench.rounds):
                yield case
        await _check(plane, size)
    if is_all:
        yield memory


async def _turns(
    kind: str, size: int, ours: Side, theirs: Side, third: Sovereign | None, rounds: int
) -> AsyncIterator[Case]:
    cpu = Case("push", f"{kind} change CPU, {size} agents", FLOOR, "µs a push")
    beside_sovereign = Case("push", f"{cpu.name}, beside sovereign", SOVEREIGN, "µs a push")
    last = Case("push", f"{kind} change last ack, {size} agents", FLOOR, "ms")
    each = Case("push", f"CPU per workload updated, {push_node.WORKLOADS} workloads a node", f"{FLOOR}, to each", "µs")
    say(f"push: {kind} change, {rounds} rounds")
    for number in range(rounds):
        (used_s, *beside), last_s = await ours.measure()
        (floor_s,), floor_last_s = await theirs.measure()
        if third is not None:
            beside_sovereign.add(used_s / size * 1e6, await third.update() * 1e6)
        cpu.add(used_s / size * 1e6, floor_s / size * 1e6)
        last.add(last_s * 1e3, floor_last_s * 1e3)
        for agent_s in beside:
            each.add((used_s / size + agent_s) / push_node.WORKLOADS * 1e6, floor_s / size * 1e6)
        say(
            f"  {number + 1}: {used_s / size * 1e6:.0f} / {floor_s / size * 1e6:.0f} µs of CPU a push, "
            f"{last_s * 1e3:.0f} / {floor_last_s * 1e3:.0f} ms to the last ack"
        )
    for side, whose in ((ours, "ours"), (theirs, "theirs")):
        say(f"push: {whose} idles at {statistics.median(side.idle[side.child.pid]):.1%} of a core")
    for case in (cpu, last):
        yield case
    if kind == "endpoint" and each.ours:
        yield each
    if third is not None:
        yield beside_sovereign


async def _reconnect(bench: _Bench) -> list[Case]:
    """All at once, as after a loss of the control plane."""
    size = len(bench.svids)
    case = Case("push", f"reconnect, {size} agents", f"{FLOOR} to each", "s")
    memory = Case("push", f"reconnect memory, {size} agents", f"{FLOOR} to each", "KiB an agent")
    pids = bench.plane.child.pid, bench.server.child.pid
    idle = [rss_mib(pid) for pid in pids]
    loop = asyncio.get_running_loop()
    async with our_agents(bench.plane, bench.svids[:1]) as one:
        await one.wait(1)
        await bench.server.push(one.payload)
    for number in range(min(bench.rounds, FEW)):
        for pid in pids:
            forget_peak(pid)
        begun_s = loop.time()
        async with our_agents(bench.plane, bench.svids, RETURNING_AT_ONCE) as agents:
            ours_s = await agents.wait(1) - begun_s
        begun_s = loop.time()
        async with their_agents(bench.server, bench.svids, RETURNING_AT_ONCE, want_last=True) as agents:
            theirs_s = await agents.wait(2) - begun_s
        grown = [peak_mib(pid) - idle_mib for pid, idle_mib in zip(pids, idle, strict=True)]
        say(f"push: reconnect {number + 1}: {ours_s:.1f} / {theirs_s:.1f} s, {grown[0]:.0f} / {grown[1]:.0f} MiB more")
        case.add(ours_s, theirs_s)
        memory.add(*(mib * KIB / size for mib in grown))
    return [case, memory]


async def _cold_start(directory: Path, svid: Sequence[X509Svid], rounds: int) -> Case:
    case = Case("push", f"cold start, {push_mesh.SERVICES} services", f"{FLOOR}, started likewise", "s")
    loop = asyncio.get_running_loop()
    for number in range(rounds):
        begun_s = loop.time()
        async with control_plane(directory / "plane") as plane, our_agents(plane, svid) as agents:
            ours_s = await agents.wait(1) - begun_s
            payload, bundle = agents.payload, plane.bundle
        begun_s = loop.time()
        async with bare(directory / f"bare-{number}", bundle) as server:
            await server.push(payload)
            async with their_agents(server, svid, want_last=True) as agents:
                theirs_s = await agents.wait(2) - begun_s
        say(f"push: cold start {number + 1}: {ours_s:.2f} / {theirs_s:.2f} s")
        case.add(ours_s, theirs_s)
    return case


async def _check(plane: ControlPlane, agents: int) -> None:
    """The control plane must have seen every acknowledgement, or the figures are of something else."""
    status = await plane.status()
    connected = [node for node in status.nodes if node.connected and node.node != push_mesh.WORKLOADS]
    behind = [node.node for node in connected if node.acked_revision < status.revision]
    if len(connected) != agents or behind:
        raise Broken(f"{len(connected)} of {agents} nodes have a session; behind: {behind[:5]}")
