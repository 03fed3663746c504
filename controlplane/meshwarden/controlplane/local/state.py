"""What runs now: asked of the control plane and of each agent, and written to `up.json` whenever it changes."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import grpc.aio

from meshwarden.certs.issue import control_plane_dns_name
from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId
from meshwarden.controlplane.local.error import LocalError
from meshwarden.controlplane.local.mesh import LocalMesh, instance_of
from meshwarden.controlplane.local.record import write_private
from meshwarden.v1.admin_service_pb2 import GetStatusResponse
from meshwarden.v1.node_service_pb2 import WorkloadState
from meshwarden.v1.workload_service_pb2 import AgentStatusResponse

REFRESH_S = 1.0


@dataclass
class State:
    """What was last heard.

    Attributes:
        status: of the control plane; None before its first word.
        is_server_up: whether the last question was answered.
        agents: {node: its agent's last word}.
        away: the nodes whose agent didn't answer the last question.
        up_json: what up.json says of the region; of the first, all that it says.
    """

    status: GetStatusResponse | None = None
    is_server_up: bool = False
    agents: dict[str, AgentStatusResponse] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    up_json: dict[str, Any] = field(default_factory=dict)


class Keeper:
    """Keeps the state current.

    Attributes:
        states: what was last heard of each region.
    """

    def __init__(self, meshes: Sequence[LocalMesh], report: Callable[[str], None]) -> None:
        self.states = [State() for _ in meshes]
        self._meshes = meshes
        self._report = report
        self._is_written = True

    @property
    def state(self) -> State:
        """What was last heard of the first region."""
        return self.states[0]

    async def refresh(self) -> None:
        """Asks everyone once; who doesn't answer keeps their last word."""
        async with anyio.create_task_group() as group:
            for mesh, state in zip(self._meshes, self.states, strict=True):
                group.start_soon(_ask, mesh, state)
        now = [up_json(mesh, state) for mesh, state in zip(self._meshes, self.states, strict=True)]
        if len(now) > 1:
            now[0] = {**now[0], "regions": list(now)}
        if now[0] != self.state.up_json or not self._is_written:
            for state, said in zip(self.states, now, strict=True):
                state.up_json.clear()
                state.up_json.update(said)
            self._write()

    def _write(self) -> None:
        """Writes up.json; where that fails, on a full disk for one, the mesh goes on and the next round tries again."""
        was_written = self._is_written
        try:
            write_private(self._meshes[0].plan.up_json, json.dumps(self.state.up_json, indent=2) + "\n")
            self._is_written = True
        except OSError as error:
            self._is_written = False
            if was_written:
                self._report(f"{error.filename}: {error.strerror}: it is not current")

    async def run(self) -> None:
        """Refreshes until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_S)
            await self.refresh()


async def _ask(mesh: LocalMesh, state: State) -> None:
    try:
        state.status = await mesh.operator.status()
        state.is_server_up = True
    except (grpc.aio.AioRpcError, LocalError):
        state.is_server_up = False
    for node, link in mesh.agents.items():
        try:
            state.agents[node] = await link.status()
            state.away.discard(node)
        except grpc.aio.AioRpcError:
            state.away.add(node)


def up_json(mesh: LocalMesh, state: State) -> dict[str, Any]:
    """Where everything of a running region is, as up.json states it."""
    context = mesh.context()
    return {
        "trust_domain": mesh.options.trust_domain,
        "region": mesh.plan.region,
        "control_plane": {"address": context.address, "ca_file": context.ca_file},
        "admin": {"cert_file": context.cert_file, "key_file": context.key_file},
        "metrics_url": mesh.server.metrics_url,
        "rest": {"url": mesh.server.rest_url, "server_name": control_plane_dns_name(mesh.options.trust_domain)},
        "agents": [
            {
                "node": agent.node,
                "agent_socket": str(agent.agent_socket),
                "workload_api_socket": str(agent.workload_api_socket),
            }
            for agent in mesh.plan.agents
        ],
        "workloads": [
            _workload(node, item) for node, answer in sorted(state.agents.items()) for item in answer.workloads
        ],
        "envoys": [
            {"name": envoy.name, "admin_socket": envoy.admin_socket, "outbound": envoy.outbound}
            for _, answer in sorted(state.agents.items())
            for envoy in answer.envoys
        ],
    }


def service_of(workload: WorkloadState) -> str:
    """The service that a workload's identity names; empty while it has none."""
    try:
        return SpiffeId.parse(workload.spiffe_id).service or ""
    except InvalidSpiffeId:
        return ""


def _workload(node: str, item: WorkloadState) -> dict[str, Any]:
    return {
        "name": instance_of(item.id),
        "tenant": item.tenant,
        "service": service_of(item),
        "node": node,
        "pid": item.pid,
        "spiffe_id": item.spiffe_id,
        "entry": item.entry,
    }
