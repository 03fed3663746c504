"""`memory, agent with 200 workloads`: what an agent holds that has their certificates and serves them.

Each workload is a process of a user of its own, which needs root: it asks the Workload API for its X.509-SVID and keeps
the stream open. The reference does the same for as many, with nothing else around it: see `bare_workload_api`.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.control_plane import ControlPlane, control_plane
from benchmarks.idle import agent_config
from benchmarks.process import Broken, Child, pss_mib, python, rss_mib, say
from benchmarks.result import Case
from meshwarden.v1.resources_pb2 import (
    Metadata,
    Resource,
    Selectors,
    Service,
    ServiceSpec,
    Tenant,
    WorkloadEntry,
    WorkloadEntrySpec,
)

WORKLOADS = 200
FIRST_UID = 200_000
REFERENCE = "a grpc.aio server that has as many SVIDs in memory and serves them"
MAX_ROUNDS = 3  # a start is much the same as the next
SETTLE_S = 2.0
ANSWERED_S = 90.0


async def run(rounds: int) -> AsyncIterator[Case]:
    """Yields both cases.

    Raises:
        Broken: we aren't root.
    """
    if os.geteuid() != 0:
        raise Broken(f"memory, agent with {WORKLOADS} workloads: each is of a user of its own, which takes root")
    rss = Case("identity", f"memory, agent with {WORKLOADS} workloads", REFERENCE, "MiB")
    pss = Case("identity", f"memory, agent with {WORKLOADS} workloads, PSS", REFERENCE, "MiB")
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # workloads reach the sockets below it
        async with control_plane(directory / "plane") as plane:
            await plane.apply(*_resources())
            for number in range(min(rounds, MAX_ROUNDS)):
                say(f"workloads: round {number + 1}")
                await _round(plane, f"node-{number}", directory / str(number), rss, pss)
    for case in (rss, pss):
        yield case


def _resources() -> list[Resource]:
    tenant = Resource(tenant=Tenant(kind="Tenant", metadata=Metadata(name="acme")))
    spec = ServiceSpec(protocol=ServiceSpec.GRPC)
    service = Resource(service=Service(kind="Service", metadata=Metadata(tenant="acme", name="w"), spec=spec))
    nodes = [f"node-{number}" for number in range(MAX_ROUNDS)]
    entries = [
        WorkloadEntry(
            kind="WorkloadEntry",
            metadata=Metadata(tenant="acme", name=f"w{number}"),
            spec=WorkloadEntrySpec(service="w", nodes=nodes, selectors=Selectors(uid=FIRST_UID + number)),
        )
        for number in range(WORKLOADS)
    ]
    return [tenant, service, *(Resource(workload_entry=entry) for entry in entries)]


async def _round(plane: ControlPlane, node: str, directory: Path, rss: Case, pss: Case) -> None:
    """Starts both anew, with their callers, and looks at them side by side."""
    directory.mkdir()
    directory.chmod(0o711)
    config = await agent_config(plane, node, directory)
    async with AsyncExitStack() as stack:
        started = python("agent", ["-m", "meshwarden.agents", "run", "--config", str(config)], directory)
        agent = await stack.enter_async_context(started)
        started = python("server", ["-m", "benchmarks.bare_workload_api", str(directory), str(WORKLOADS)], directory)
        server = await stack.enter_async_context(started)
        await server.until_written(directory / "ready.json")
        await agent.until_listening(directory / "state" / "run" / "workload-api.sock")
        for path in (directory / "state" / "run" / "workload-api.sock", directory / "api.sock"):
            await _call(stack, path, directory)
        await asyncio.sleep(SETTLE_S)
        rss.add(rss_mib(agent.pid), rss_mib(server.pid))
        pss.add(pss_mib(agent.pid), pss_mib(server.pid))


async def _call(stack: AsyncExitStack, socket: Path, directory: Path) -> Child:
    """Starts the workloads of one side, and returns once each has its certificate."""
    arguments = ["-m", "benchmarks.workload_callers", str(socket), str(FIRST_UID), str(WORKLOADS)]
    callers = await stack.enter_async_context(python(f"callers of {socket.stem}", arguments, directory, is_asked=True))
    told = (await callers.answer(ANSWERED_S))["told"]
    if told != WORKLOADS:
        raise Broken(f"{WORKLOADS - told} workloads got no certificate: {callers.tail()}")
    return callers
