"""What can be seen of a mesh from this machine, without the control plane: processes, sockets, agents, logs."""

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from meshwarden.controlplane.local import kernel, record
from meshwarden.controlplane.local.context import Context
from meshwarden.v1.admin_service_pb2 import NodeState
from meshwarden.v1.workload_service_pb2 import AgentStatusRequest, AgentStatusResponse
from meshwarden.v1.workload_service_pb2_grpc import WorkloadServiceStub

TIMEOUT_S: Final = 3.0
_TAIL_BYTES: Final = 64 << 10
_GRAVE: Final = ("error", "critical")


@dataclass(frozen=True)
class AgentSeen:
    """What was seen of an agent.

    Attributes:
        node: its node; the socket's path where nobody knows.
        socket: where it should answer.
        status: its word; None if it didn't answer.
        fault: why it didn't; empty if it did.
        is_silent: whether something listens there that does not answer.
    """

    node: str
    socket: str
    status: AgentStatusResponse | None = None
    fault: str = ""
    is_silent: bool = field(default=False)

    def as_node(self) -> NodeState:
        """Its word in the control plane's form."""
        status = self.status or AgentStatusResponse()
        return NodeState(
            node=self.node,
            connected=status.connected,
            acked_revision=status.revision,
            nacks=status.nacks,
            workloads=status.workloads,
            health=status.health,
        )


def agents(context: Context) -> Iterator[AgentSeen]:
    """Asks each agent of the context that is on this machine."""
    for path in context.agent_sockets:
        yield _agent(context, path)


def _agent(context: Context, path: str) -> AgentSeen:
    # `up` names an agent's directory after its node.
    node = Path(path).parent.parent.name if context.state_dir else path
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(TIMEOUT_S)
        try:
            probe.connect(path)
        except OSError as error:
            ended = process(context, f"agent-{node}")
            return AgentSeen(node, path, fault=f"{path}: {error.strerror or error}{ended and f'; {ended}'}")
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"unix:{Path(path).absolute()}", options=options) as channel:
        stub: Any = WorkloadServiceStub(channel)
        try:
            status = stub.AgentStatus(AgentStatusRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            failed: Any = error
            if failed.code() is grpc.StatusCode.PERMISSION_DENIED:
                return AgentSeen(node, path, status=AgentStatusResponse(node=node, connected=True))
            stopped = process(context, f"agent-{node}")
            fault = stopped or f"nothing came within {TIMEOUT_S:g} s from {path}"
            return AgentSeen(node, path, fault=fault, is_silent=True)
    return AgentSeen(status.node, path, status=status)


def process(context: Context, name: str) -> str:
    """What is wrong with a process that `up` has started: "process 17 is stopped by a signal"; empty if nothing is."""
    if not context.state_dir:
        return ""
    for item in record.load(Path(context.state_dir)):
        if item.name == name:
            if kernel.start_time(item.pid) != item.start_time:
                return f"process {item.pid} has ended"
            return f"process {item.pid} is stopped by a signal" if kernel.is_stopped(item.pid) else ""
    return f"no process of `up` is {name}" if (Path(context.state_dir) / record.FILE).exists() else "`up` does not run"


def connects(address: str) -> str:
    """Why nobody can connect to "HOST:PORT"; empty if one can."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S):
            return ""
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", "") or str(error)


def last_error(context: Context, name: str) -> str:
    """The last error in a log of `up`; empty if there is none near its end."""
    if not context.state_dir:
        return ""
    path = Path(context.state_dir) / "logs" / f"{name}.log"
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        for line in reversed(file.read().decode(errors="replace").splitlines()):
            if found := _error_in(line):
                return found
    return ""


def _error_in(line: str) -> str:
    try:
        said = json.loads(line)
    except ValueError:
        return line[:300] if line.startswith(("Error", "error")) else ""
    if not isinstance(said, dict) or said.get("level") not in _GRAVE:
        return ""
    about = said.get("reason") or said.get("error") or ""
    return f"{said.get('timestamp', '')[:19]} {said.get('event', '')}{about and f': {about}'}"[:300]
