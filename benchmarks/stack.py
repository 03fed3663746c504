"""What it costs to write to every agent, by who ends TLS: `make bench NAME=stack`.

A bare stream (`bare_stream`) writes four KiB to agents over mTLS, one connection each, and reads as much back as they
acknowledge: behind our front on asyncio, which is the reference, and

- with TLS ended by grpcio itself, which can't swap its certificate safely and doesn't check what we check (ADR 2);
- behind an Envoy that ends TLS, makes a few connections of the many, and says in a header who is calling;
- over a Unix socket in the clear, and over one that the front splices: what grpc.aio takes by itself, what the splice
  takes besides, and by what is left to the reference what TLS takes.

CPU is that of the server and of what stands before it.
"""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.process import Broken, raise_descriptor_limit, rss_mib, say
from benchmarks.push_side import ENVOY, Bare, Side, bare, certificates, their_agents
from benchmarks.result import Case

FLOOR = "the same behind our front on asyncio"
WAYS = {
    "grpc": "TLS of grpcio's own",
    ENVOY: "an Envoy that ends TLS",
    "socket": "grpc.aio alone, in the clear",
    "splice": "the front in the clear",
}
PAYLOAD = b"x" * 4096
FILES_AN_AGENT = 4
KIB = 1024


async def run(agents: int, rounds: int) -> AsyncIterator[Case]:
    """Yields the cases."""
    limit = raise_descriptor_limit()
    if agents * FILES_AN_AGENT > limit:
        raise Broken(f"{agents} agents need {agents * FILES_AN_AGENT} open files; this process may have {limit}")
    for way, what in WAYS.items():
        say(f"stack: {what}, {agents} agents")
        async for case in _beside(way, what, agents, rounds):
            yield case


async def _beside(way: str, what: str, agents: int, rounds: int) -> AsyncIterator[Case]:
    """One way and the reference, in turns."""
    cpu = Case("stack", f"write CPU, {agents} agents, {what}", FLOOR, "µs a push")
    last = Case("stack", f"write last ack, {agents} agents, {what}", FLOOR, "ms")
    memory = Case("stack", f"memory per agent, {agents} agents, {what}", FLOOR, "KiB")
    bundle, svids = await certificates(agents)
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as name:
        async with AsyncExitStack() as stack:
            sides, grown = [], []
            for place in (way, "front"):
                server = await stack.enter_async_context(bare(Path(name, place), bundle, place, svids[0]))
                before = _rss_mib(server)
                fleet = await stack.enter_async_context(their_agents(server, svids))
                await fleet.wait(1)
                grown.append((_rss_mib(server) - before) * KIB / agents)
                marks = iter(range(2, 1 << 30))

                async def push(server: Bare = server, marks: Iterator[int] = marks) -> int:
                    await server.push(PAYLOAD)
                    return next(marks)

                sides.append(Side(server.child, fleet, push, server.beside))
            memory.add(*grown)
            for number in range(rounds):
                (ours, ours_s), (theirs, theirs_s) = [await side.measure() for side in sides]
                cpu.add(sum(ours) / agents * 1e6, sum(theirs) / agents * 1e6)
                last.add(ours_s * 1e3, theirs_s * 1e3)
                parts = " + ".join(f"{used_s / agents * 1e6:.0f}" for used_s in ours)
                say(f"  {number + 1}: {parts} / {cpu.theirs[-1]:.0f} µs of CPU a push")
    for case in (cpu, last, memory):
        yield case


def _rss_mib(server: Bare) -> float:
    return sum(rss_mib(child.pid) for child in (server.child, *server.beside))
