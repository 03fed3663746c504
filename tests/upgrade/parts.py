"""A mesh of separate processes, each of which is moved from one version to another by itself."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.upgrade.release import Release

from meshwarden.controlplane.local import server_json
from meshwarden.controlplane.local.context import Context
from meshwarden.controlplane.local.mesh import AGENT_GRACE_S, GRACE_S, SAMPLE_GRACE_S, SERVER, environment, rank
from meshwarden.controlplane.local.operator import AgentLink, Operator
from meshwarden.controlplane.local.plan import AgentPlan, Options, Plan, toml
from meshwarden.controlplane.local.port import HOST, choose
from meshwarden.controlplane.local.process import Children, Program, children
from meshwarden.controlplane.local.record import Record, write_private
from meshwarden.controlplane.resources.manifest import parse_all
from meshwarden.v1.resources_pb2 import EndpointSpec

DEADLINE_S = 120.0
NODES = ("node-a", "node-b")


@dataclass(frozen=True)
class Serving:
    """A program that serves: instance, service, entry, node, and its module of the samples with arguments."""

    name: str
    service: str
    entry: str
    node: str
    command: tuple[str, ...]


SERVING = tuple(
    Serving(f"{service}-{node[-1]}", f"platform/{service}", f"platform/{entry}", node, command)
    for service, entry, command in (
        ("orders", "orders-v1", ("orders", "--version", "v1")),
        ("billing", "billing", ("billing",)),
    )
    for node in NODES
)


async def until(look: Callable[[], Awaitable[Any]], what: str) -> Any:
    """Waits for a condition; what it returned. Who doesn't answer yet is asked again."""
    last: object = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    if last := await look():
                        return last
                except Exception as error:  # a part that starts
                    last = error
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"did not come true: {what} ({last!r})") from None


class Mesh:
    """A control plane, two agents, and two instances each of a gRPC and of an HTTP service."""

    def __init__(self, plan: Plan, kept: Children, ports: dict[str, int]) -> None:
        self.plan, self.kept, self.ports = plan, kept, ports
        self.agents = {agent.node: agent for agent in plan.agents}
        self.links: dict[str, AgentLink] = {}
        self.operator: Operator

    def context(self) -> Context:
        """How commands find it."""
        found = server_json.read(self.plan.server_json)
        assert found is not None
        address, directory = found[0], self.plan.operator
        sockets = tuple(str(agent.agent_socket) for agent in self.plan.agents)
        files = (str(address.ca_file), str(directory / "tls.crt"), str(directory / "tls.key"))
        return Context(address.address, *files, str(self.plan.state_dir), sockets)

    async def start(self, version: Release) -> None:
        """Starts control plane and agents as a version, which makes all that they keep."""
        write_private(self.plan.passphrase, secrets.token_urlsafe(32))
        write_private(self.plan.server_config, self._server_toml())
        await self._start(SERVER, version)
        await until(self.listens, "the control plane listens")
        self.operator = Operator(self.context())
        for node, agent in self.agents.items():
            write_private(agent.token, await until(lambda node=node: self.operator.join_token(node), "a token"))
            write_private(agent.config, self._agent_toml(agent))
            await self._start(agent.name, version)
            self.links[node] = AgentLink(agent.agent_socket)
        await until(self.is_current, "the nodes join")

    async def serve(self, version: Release) -> None:
        """Starts the programs that serve."""
        for one in SERVING:
            await self._start(one.name, version)
        await until(self.is_whole, "all programs serve")

    async def move(self, name: str, version: Release) -> None:
        """Ends a part in good order and starts it as another version, as docs/upgrade.md says it."""
        child, before = self.kept[name], await self.joined()
        await child.stop()
        child.program = replace(child.program, argv=self._argv(name, version))
        if name == SERVER:
            self.plan.server_json.unlink(missing_ok=True)
        await child.start()
        if name == SERVER:
            await until(self.listens, "the control plane listens")
        again = {(one.node, one.service) for one in SERVING if one.name == name}
        # Its Envoys end with an agent.
        again |= {(agent.node, "platform/billing") for agent in self.plan.agents if agent.name == name}

        async def is_back() -> bool:
            now = await self.joined()
            return await self.is_whole() and all(now.get(one) not in (None, before.get(one)) for one in again)

        await until(is_back, f"the mesh is whole once {name} is {version.name}")

    async def is_current(self) -> bool:
        """What `meshwarden status` is to show: each node connected, and at the newest revision."""
        status = await self.operator.status()
        return {node.node for node in status.nodes} == set(NODES) and all(
            node.connected and node.acked_revision == status.revision for node in status.nodes
        )

    async def is_whole(self) -> bool:
        """Whether it is current and every program takes calls."""
        endpoints = await self.operator.endpoints()
        healthy = [item for item in endpoints if item.spec.node and item.spec.health == EndpointSpec.HEALTHY]
        return await self.is_current() and len(healthy) == len(SERVING)

    async def joined(self) -> dict[tuple[str, str], int]:
        """{(node, service): the revision at which its endpoint has changed last}."""
        found = [item for item in await self.operator.endpoints() if item.spec.node]
        return {
            (item.spec.node, f"{item.metadata.tenant}/{item.spec.service}"): item.metadata.record.revision
            for item in found
        }

    async def listens(self) -> bool:
        """Whether the control plane that runs listens."""
        found = server_json.read(self.plan.server_json)
        return found is not None and found[1] == self.kept[SERVER].pid

    async def apply(self, text: str) -> int:
        """Applies manifests; the revision."""
        return await self.operator.apply([item.resource for item in parse_all([("test", text)])])

    def exec(self, version: Release, node: str, entry: str, instance: str, *more: str) -> tuple[str, ...]:
        """A command of a version as an instance of an entry."""
        socket = str(self.agents[node].agent_socket)
        head = (version.python, "-m", "meshwarden.agents", "exec", "--socket", socket)
        return (*head, "--entry", entry, "--instance", instance, *more)

    async def _start(self, name: str, version: Release) -> None:
        grace_s = GRACE_S[SERVER] if name == SERVER else AGENT_GRACE_S if name.startswith("agent-") else SAMPLE_GRACE_S
        log = self.plan.logs / f"{name}.log"
        program = Program(name, self._argv(name, version), environment(self.plan), log, grace_s)
        (await self.kept.start(program)).settle()

    def _argv(self, name: str, version: Release) -> tuple[str, ...]:
        if name == SERVER:
            return (version.python, "-m", "meshwarden.controlplane", SERVER, "--config", str(self.plan.server_config))
        for agent in self.plan.agents:
            if name == agent.name:
                return (version.python, "-m", "meshwarden.agents", "run", "--config", str(agent.config))
        one = next(one for one in SERVING if one.name == name)
        command = ("--", version.python, "-m", f"meshwarden.examples.{one.command[0]}", *one.command[1:])
        return self.exec(version, one.node, one.entry, one.name, "--port", str(self.ports[name]), *command)

    # Both versions take these files as they are.

    def _server_toml(self) -> str:
        settings = {
            "trust_domain": "mesh.test",
            "region": self.plan.region,
            "state_dir": str(self.plan.server),
            "operator_directory": str(self.plan.operator),
            "listen": f"{HOST}:{self.ports[SERVER]}",
            "metrics_listen": f"{HOST}:{self.ports['metrics']}",
        }
        authority: dict[str, str | bool] = {
            "kind": "disk",
            "passphrase": f"file:{self.plan.passphrase}",
            "create": True,
        }
        return toml(settings) + "\n[authority]\n" + toml(authority)

    def _agent_toml(self, agent: AgentPlan) -> str:
        address = self.context()
        return toml(
            {
                "node": agent.node,
                "zone": agent.zone,
                "trust_domain": "mesh.test",
                "control_plane": address.address,
                "ca_file": address.ca_file,
                "join_token_file": str(agent.token),
                "state_dir": str(agent.directory),
                "agent_socket": str(agent.agent_socket),
                "workload_api_socket": str(agent.workload_api_socket),
                "advertise_address": HOST,
                "metrics_listen": f"{HOST}:{self.ports[agent.node]}",
            }
        )


@asynccontextmanager
async def open_mesh(directory: Path) -> AsyncIterator[Mesh]:
    """A mesh whose state is in `directory`; nothing runs yet."""
    plan, rng = Options(directory).plans()[0], random.Random()
    for made in (plan.logs, plan.server, *(agent.directory for agent in plan.agents)):
        made.mkdir(mode=0o700, parents=True)
    names = [SERVER, "metrics", *NODES, *(one.name for one in SERVING)]
    ports = choose(directory / "ports.json", names, rng)
    async with children(Record(directory), print, rng, rank) as kept:
        mesh = Mesh(plan, kept, ports)
        try:
            yield mesh
        finally:
            for link in mesh.links.values():
                await link.close()
            if hasattr(mesh, "operator"):
                await mesh.operator.close()
