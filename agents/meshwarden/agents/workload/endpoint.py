"""What the checks of a workload say of it, and which endpoints a node reports for that."""

import asyncio
import hashlib
import ssl
from collections.abc import Mapping
from typing import Final

from meshwarden.agents.workload.workload import Workload
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import resources_pb2 as pb

_TIMEOUT_S: Final = 1.0


class Health:
    """How one workload does, by its checks."""

    def __init__(self, threshold: int) -> None:
        """`threshold` failures in a row make it unhealthy."""
        self._threshold = threshold
        self._failures = 0
        self.state: pb.EndpointSpec.Health.ValueType | None = None
        """EndpointSpec.Health; None until the first success: an endpoint that was never up is not reported."""

    def saw(self, healthy: bool) -> bool:
        """Takes the outcome of a check; whether the state has changed."""
        before = self.state
        self._failures = 0 if healthy else self._failures + 1
        if healthy:
            self.state = pb.EndpointSpec.HEALTHY
        elif self.state is not None and self._failures >= self._threshold:
            self.state = pb.EndpointSpec.UNHEALTHY
        return self.state != before


async def check_http(port: int, path: str, tls: ssl.SSLContext | None = None) -> bool:
    """Asks a program over HTTP/1.1 on the loopback interface; any 2xx is healthy."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                await writer.drain()
                words = (await reader.readline()).split()
            finally:
                writer.close()
    except (OSError, ValueError):
        return False
    return len(words) > 1 and words[0].startswith(b"HTTP/") and len(words[1]) == 3 and words[1].startswith(b"2")


async def is_listening(host: str, port: int) -> bool:
    """Whether anybody takes connections there; nothing is said to them."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.transport.abort()
    return True


def endpoint_id(workload_id: str) -> str:
    """A DNS label for a workload's endpoint, the same as long as the workload's id is."""
    readable = "".join(char if char.isascii() and char.isalnum() else "-" for char in workload_id.lower())
    digest = hashlib.sha256(workload_id.encode()).hexdigest()[:10]
    return f"{readable[:50].strip('-')}-{digest}".lstrip("-")


def endpoints(
    workloads: Mapping[str, Workload], health: Mapping[str, Health], address: str, ports: Mapping[str, int]
) -> list[node_pb.NodeEndpoint]:
    """The whole set to report: `ports` says where the mesh reaches each workload (its Envoy's port, or its own)."""
    found = []
    for name, workload in workloads.items():
        state = health[name].state if name in health else None
        if state is None or name not in ports:
            continue
        metadata = workload.entry.metadata
        found.append(
            node_pb.NodeEndpoint(
                id=endpoint_id(name),
                tenant=metadata.tenant,
                entry=metadata.name,
                address=address,
                port=ports[name],
                health=state,
            )
        )
    return found
