"""A mesh of `meshwarden up` for benchmarks of limits, with servers that count what they serve, and callers."""

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.process import Broken, Child, child, python
from meshwarden.controlplane.cli.failure import Unreachable
from meshwarden.controlplane.local import record as processes

NODES: Final = ("node-a", "node-b")
CALL_S: Final = 180.0
TRACED: Final = {"ratio": 0.01}
"""What part of the traces is recorded: a mesh in which calls are counted is not to be busy with spans."""

Manifest = dict[str, Any]


class Mesh:
    """The mesh; what is started in it ends with it."""

    def __init__(self, stack: AsyncExitStack, directory: Path, up: Child, said: dict[str, Any]) -> None:
        """`said` is what up.json says; see `running`."""
        self._stack, self.directory, self._up, self._said = stack, directory, up, said

    async def apply(self, resources: Iterable[Manifest]) -> None:
        """Applies resources as an operator would; while the control plane is away, again and again.

        Raises:
            Broken: they are refused, or it is away for three minutes.
        """
        path = self.directory / "applied.yaml"
        path.write_text(yaml.safe_dump_all(resources))
        await self._meshwarden("apply", "-f", str(path))

    async def delete(self, kind: str, name: str) -> None:
        """Deletes a resource.

        Raises:
            Broken: that is refused.
        """
        await self._meshwarden("delete", kind, name)

    async def start(self, node: str, entry: str, *arguments: str, is_asked: bool = False) -> Child:
        """Runs `python -m ARGUMENTS` as an instance of an entry."""
        sockets = {agent["node"]: agent["agent_socket"] for agent in self._said["agents"]}
        command = [sys.executable, "-m", "meshwarden.agents", "exec", "--socket", sockets[node], "--entry", entry, "--"]
        started = child(
            f"{entry.replace('/', '-')}-{node}",
            [*command, sys.executable, "-m", *arguments],
            self.directory,
            is_asked=is_asked,
        )
        return await self._stack.enter_async_context(started)

    def pid(self, name: str) -> int:
        """The process of a part of the mesh, "server" or "agent-node-a"."""
        return next(item.pid for item in processes.load(self.directory / "up") if item.name == name)

    async def until(self, is_so: Callable[[], bool], what: str) -> None:
        """Waits until something is so.

        Raises:
            Broken: it isn't within three minutes.
        """
        try:
            async with asyncio.timeout(CALL_S):
                while not is_so():
                    self._up.check()
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise Broken(f"{what}: not within {CALL_S:g} s") from None

    async def _meshwarden(self, *arguments: str) -> None:
        deadline_s = time.monotonic() + CALL_S
        while True:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "meshwarden.controlplane", *arguments),
                env={**os.environ, "XDG_CONFIG_HOME": str(self.directory / "config")},
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            _, said = await process.communicate()
            if not process.returncode:
                return
            if process.returncode != Unreachable.exit_code or time.monotonic() > deadline_s:
                raise Broken(f"meshwarden {arguments[0]}: {said.decode()}")
            self._up.check()


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Mesh]:
    """Runs a mesh of two nodes and no samples for the length of the block.

    Raises:
        Broken: it doesn't come up.
    """
    state = directory / "up"
    command = ["-m", "meshwarden.controlplane", "up", "--no-samples", "--state-dir", str(state), "--json"]
    # Its context is no one else's business.
    started = python("up", command, directory, {"XDG_CONFIG_HOME": str(directory / "config")})
    async with started as up, AsyncExitStack() as stack:
        yield Mesh(stack, directory, up, json.loads(await up.until_written(state / "up.json", CALL_S)))


def resource(kind: str, tenant: str, name: str, **spec: Any) -> Manifest:
    """A manifest."""
    metadata = {"tenant": tenant, "name": name} if tenant else {"name": name}
    return {"kind": kind, "metadata": metadata, **({"spec": spec} if spec else {})}


def entry(tenant: str, name: str, service: str, node: str, **spec: Any) -> Manifest:
    """A workload entry for a program of our own user."""
    ours = {"selectors": {"uid": os.getuid()}, "insecureSameUser": True}
    return resource("WorkloadEntry", tenant, name, service=service, nodes=[node], **ours, **spec)


def callers(tenants: Mapping[str, Any], data_plane: str = "PROXYLESS") -> list[Manifest]:
    """Tenants, each with a service `web` and an entry for it on the first node; and the tenant `platform`."""
    found = [resource("Tenant", "", "platform")]
    for tenant in tenants:
        found.append(resource("Tenant", "", tenant))
        found.append(resource("Service", tenant, "web", protocol="GRPC", traceSampling=TRACED))
        found.append(entry(tenant, "web", "web", NODES[0], dataPlane=data_plane))
    return found


def service(name: str, protocol: str, tenants: Iterable[str]) -> list[Manifest]:
    """A service of `platform` that `web` of those tenants may call."""
    allowed = [{"tenant": tenant, "service": "web"} for tenant in tenants]
    return [
        resource(
            "Service",
            "platform",
            name,
            protocol=protocol,
            exportTo=[one["tenant"] for one in allowed],
            traceSampling=TRACED,
        ),
        resource("AccessPolicy", "platform", name, service=name, allow=[{"from": allowed}]),
    ]


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now: gRPC's xDS servers can't take port 0."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(listener.getsockname()[1]) for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
