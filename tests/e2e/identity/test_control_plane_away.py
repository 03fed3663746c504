"""The control plane is killed, and agents and workloads start again without it: no call fails, and then all catch up.

`make test` keeps it away for a minute, `make soak` for ten (MESHWARDEN_AWAY_S). Renewals come due meanwhile: what
certificates live is chosen so.
"""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from meshwarden.controlplane.local import sample
from meshwarden.controlplane.local.check.call import BILLING, ORDERS, listening, only
from meshwarden.controlplane.local.check.mesh import tls_client
from meshwarden.controlplane.local.check.probe import Probe, probe
from meshwarden.controlplane.local.kernel import MARK
from meshwarden.controlplane.local.mesh import LocalMesh, agent_command, rank
from meshwarden.controlplane.local.plan import NODES, Options
from meshwarden.controlplane.local.process import Children, children
from meshwarden.controlplane.local.record import Record

AWAY_S = float(os.environ.get("MESHWARDEN_AWAY_S", "60"))
# Half of it is over before the outage is, for those that were issued just before; it ends long after.
LIFE = timedelta(seconds=round(1.2 * AWAY_S + 240))
DEADLINE_S = 120.0
RATE = 5
PLANES = {"grpc": (ORDERS, "OK"), "http": (BILLING, "200")}
UNASKED = ": the control plane could not be asked"
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(AWAY_S + 900)]


async def until(look: Callable[[], Awaitable[Any]], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Waits for a condition; what it returned. Who doesn't answer yet is asked again."""
    last: BaseException | None = None
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                try:
                    if found := await look():
                        return found
                except Exception as error:  # a part of the mesh that starts
                    last = error
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"did not come true: {what} ({last!r})") from None


class Mesh:
    """The samples' mesh, whose parts are stopped and started one by one."""

    def __init__(self, local: LocalMesh, kept: Children) -> None:
        self.local, self.kept = local, kept

    async def start(self) -> None:
        await asyncio.to_thread(self.local.prepare)
        await self.local.start_control_plane(None, {})
        for agent in self.local.plan.agents:
            await self.local.start_agent(agent)
        await self.local.wait_for_agents()
        resources = [item.resource for item in sample.manifests(("shop",), os.getuid(), *NODES)]
        for resource in resources:
            if resource.HasField("workload_entry"):
                resource.workload_entry.spec.svid_ttl.FromTimedelta(LIFE)
        await self.local.operator.apply(resources)
        for one in self.local.samples:
            await self.local.start_sample(one)
        await self.local.wait_for_samples(lambda _: None)

    def probe(self, name: str, node: str, entry: str) -> Any:
        """A program of an entry on a node."""
        socket, environment = self.local.plan.agent(node).agent_socket, {MARK: str(self.local.plan.state_dir)}
        return probe(name, agent_command(), socket, entry, self.local.plan.logs, environment)

    async def serials(self) -> dict[tuple[str, str], dict[str, str]]:
        """{(node, entry): {instance: the number of its certificate}}, as the agents say."""
        found: dict[tuple[str, str], dict[str, str]] = {}
        for node, link in self.local.agents.items():
            for state in (await link.status()).workloads:
                found.setdefault((node, f"{state.tenant}/{state.entry}"), {})[state.id] = state.serial
        return found

    async def unrenewed(self) -> set[tuple[str, str]]:
        """The (node, entry) whose renewal could not be asked for, as the agents say."""
        said = {node: (await link.status()).last_error.split("; ") for node, link in self.local.agents.items()}
        return {
            (node, error.partition(UNASKED)[0]) for node, errors in said.items() for error in errors if UNASKED in error
        }

    async def kill_agent(self, node: str) -> None:
        """Kills an agent and starts it: it goes on from its cache, with the programs that have gone on without it."""
        ran = {item.id for item in (await self.local.agents[node].status()).workloads}
        child = self.kept[self.local.plan.agent(node).name]
        await child.stop(signal.SIGKILL)
        await child.start()

        async def back() -> bool:
            status = await self.local.agents[node].status()
            return not status.connected and {item.id for item in status.workloads if item.serial} == ran

        await until(back, f"the agent of {node} knows its programs and their certificates")

    async def restart(self, name: str) -> None:
        """Stops and starts a server among the samples, and waits until it shakes hands."""
        pid = await self.local.restart_sample(name)
        context = tls_client(self.local.server.ca_file.read_bytes())

        async def serves() -> bool:
            for host, port in listening(pid):
                _, writer = await asyncio.open_connection(host, port, ssl=context)
                writer.close()
                return True
            return False

        await until(serves, f"{name} serves from the agent's cache")

    async def caught_up(self) -> bool:
        """Whether the control plane has all nodes, and they the newest revision and all that they had to wait for."""
        status = await self.local.operator.status()
        return not await self.unrenewed() and all(
            node.connected and node.acked_revision == status.revision for node in status.nodes
        )


@pytest.fixture
async def mesh(directory: Path) -> AsyncIterator[Mesh]:
    rng, options = random.Random(), Options(directory / "away")
    options.state_dir.mkdir(mode=0o700)
    async with children(Record(options.state_dir), print, rng, rank) as kept:
        local = LocalMesh(options.plans()[0], options, kept, rng)
        try:
            made = Mesh(local, kept)
            await made.start()
            yield made
        finally:
            await local.close()


@asynccontextmanager
async def steady(*callers: tuple[Probe, str]) -> AsyncIterator[None]:
    """Calls go on, of each probe on a plane; at the end all of them must have passed."""
    for caller, plane in callers:
        await caller.ask("steady_start", id=plane, call={"op": plane, "rate": RATE, **PLANES[plane][0]})
    yield
    for caller, plane in callers:
        answer = await caller.ask("steady_stop", id=plane)
        assert only(answer, PLANES[plane][1], f"{caller.name}, {plane}") > 0


async def test_no_call_fails_while_the_control_plane_is_away(mesh: Mesh) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        # Killed, node-a's agent takes its Envoys along: who stays there calls without one.
        globex = await stack.enter_async_context(mesh.probe("globex", "node-b", "globex/web"))
        acme = await stack.enter_async_context(mesh.probe("acme", "node-a", "acme/web"))
        ending = await stack.enter_async_context(AsyncExitStack())
        again = await ending.enter_async_context(mesh.probe("again", "node-a", "acme/web"))
        await until(mesh.caught_up, "all is in force")
        # Who has not called yet has no configuration to go on with.
        for caller in (globex, acme, again):
            for op, (call, code) in PLANES.items():
                only(await caller.ask(op, count=5, **call), code, f"{caller.name}, {op}")
        async with steady((globex, "grpc"), (globex, "http"), (acme, "grpc")):
            before = await mesh.serials()
            await mesh.local.stop_server()
            back_s = loop.time() + AWAY_S
            await mesh.kill_agent("node-a")
            # One of two: callers come back to a server when they try it again, a second later or so.
            await mesh.restart("orders-v1-a")
            # A program that starts again; one that was not there would wait for the control plane.
            await ending.aclose()
            again = await stack.enter_async_context(mesh.probe("again", "node-a", "acme/web"))
            async with steady((again, "grpc"), (again, "http")):
                unrenewed = await until(mesh.unrenewed, "a renewal comes due", LIFE.total_seconds())
                await asyncio.sleep(max(0.0, back_s - loop.time()))
                unrenewed |= await mesh.unrenewed()
                await mesh.local.start_server()
                await until(mesh.caught_up, "all catch up")
                after = await mesh.serials()
    assert unrenewed & before.keys()
    for at in unrenewed & before.keys():
        assert not set(before[at].values()) & set(after[at].values()), at
