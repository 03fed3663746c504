"""A real agent with ten workloads that all follow the endpoints of one service."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from benchmarks import push_mesh
from benchmarks.control_plane import ControlPlane
from benchmarks.idle import agent_config
from benchmarks.process import Broken, Child, python

WORKLOADS = 10
ATTEMPTS, PAUSE_S = 20, 0.5


@asynccontextmanager
async def node(plane: ControlPlane, directory: Path) -> AsyncIterator[Child]:
    """The agent, once each of its workloads has what it asks for."""
    directory.mkdir(mode=0o700)
    config = await agent_config(plane, push_mesh.WORKLOADS, directory)
    socket = directory / "state" / "run" / "agent.sock"
    async with AsyncExitStack() as stack:
        started = python("agent", ["-m", "meshwarden.agents", "run", "--config", str(config)], directory)
        agent = await stack.enter_async_context(started)
        await agent.until_listening(socket)
        for number in range(WORKLOADS):
            await _workload(stack, socket, directory, number)
        yield agent


async def _workload(stack: AsyncExitStack, socket: Path, directory: Path, number: int) -> None:
    """Starts one, again while the agent does not know its entry yet."""
    name = f"svc-0000.{push_mesh.TENANT}"
    command = [sys.executable, "-m", "benchmarks.ads_caller", str(socket), name]
    entry = f"{push_mesh.TENANT}/{push_mesh.WORKLOADS}"
    arguments = ["-m", "meshwarden.agents", "exec", "--socket", str(socket), "--entry", entry, "--", *command]
    for attempt in range(ATTEMPTS):
        program = await stack.enter_async_context(python(f"workload {number}", arguments, directory, is_asked=True))
        try:
            await program.answer()
        except Broken:
            if attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(PAUSE_S)
        else:
            return
