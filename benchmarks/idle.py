"""`memory, idle agent`: what an agent holds that is connected and hosts nothing, against a grpc.aio server that idles.

Resident memory (RSS) counts shared pages in full; the proportional set size (PSS) shares them out among all processes
that have them, so it depends on how many Pythons run beside.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.control_plane import TRUST_DOMAIN, ControlPlane, control_plane
from benchmarks.process import Child, pss_mib, python, rss_mib, say
from benchmarks.result import Case
from meshwarden.controlplane.local.plan import toml

REFERENCE = "an idle grpc.aio server on the same Python"
MAX_ROUNDS = 3  # a start is much the same as the next
SETTLE_S = 2.0
CONNECT_S = 30.0
LOOK_S = 0.1


async def run(_: int, rounds: int) -> AsyncIterator[Case]:
    """Yields both cases."""
    rss = Case("idle", "memory, idle agent", REFERENCE, "MiB")
    pss = Case("idle", "memory, idle agent, PSS", REFERENCE, "MiB")
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as directory:
        async with control_plane(Path(directory, "plane")) as plane:
            for number in range(min(rounds, MAX_ROUNDS)):
                say(f"idle: round {number + 1}")
                await _round(plane, f"node-{number}", Path(directory, str(number)), rss, pss)
    for case in (rss, pss):
        yield case


async def _round(plane: ControlPlane, node: str, directory: Path, rss: Case, pss: Case) -> None:
    """Starts both anew and looks at them side by side."""
    directory.mkdir(mode=0o700)
    config = await agent_config(plane, node, directory)
    async with AsyncExitStack() as stack:
        started = python("agent", ["-m", "meshwarden.agents", "run", "--config", str(config)], directory)
        agent = await stack.enter_async_context(started)
        started = python("idle server", ["-m", "benchmarks.idle_server", str(directory)], directory)
        server = await stack.enter_async_context(started)
        await server.until_written(directory / "idle.json")
        await _connected(plane, node, agent)
        await asyncio.sleep(SETTLE_S)
        rss.add(rss_mib(agent.pid), rss_mib(server.pid))
        pss.add(pss_mib(agent.pid), pss_mib(server.pid))


async def agent_config(plane: ControlPlane, node: str, directory: Path) -> Path:
    """Writes what an agent is to be told, with a join token of its own; returns the file."""
    token, roots, config = directory / "join-token", directory / "roots.pem", directory / "agent.toml"
    token.write_text(await plane.join_token(node))
    token.chmod(0o600)
    roots.write_bytes(plane.bundle.pem())
    settings = {
        "node": node,
        "trust_domain": TRUST_DOMAIN,
        "control_plane": plane.place.address,
        "ca_file": str(roots),
        "join_token_file": str(token),
        "state_dir": str(directory / "state"),
    }
    config.write_text(toml(settings))
    return config


async def _connected(plane: ControlPlane, node: str, agent: Child) -> None:
    async with asyncio.timeout(CONNECT_S):
        while node not in {state.node for state in (await plane.status()).nodes if state.connected}:
            agent.check()
            await asyncio.sleep(LOOK_S)
