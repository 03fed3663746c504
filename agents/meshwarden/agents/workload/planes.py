"""Which data planes a workload has, and at which addresses.

Addresses hold for a workload's id, not for a process: a program that is started again, also while the control plane is
away, finds the listeners of its predecessor in the cache.
"""

import json
import random
import socket
from pathlib import Path
from typing import Final

from meshwarden.agents.cache import Cache
from meshwarden.agents.workload.workload import Workload
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import resources_pb2 as resources

_PORTS: Final = "ports"
_MAX_PORTS: Final = 4096
_CHOICE: Final = 16_384  # ports to choose from
_TRIES: Final = 64


class Planes:
    """Addresses of data planes; the ports that were chosen are remembered."""

    def __init__(self, cache: Cache, address: str, rng: random.Random) -> None:
        """`address` is the IP address where the mesh reaches this node; `rng` chooses ports."""
        self._cache, self._address, self._rng = cache, address, rng
        self._ports = _parse_ports(cache)

    def refs(self, workload: Workload) -> list[node_pb.DataPlaneRef]:
        """What to ask the control plane for: a gRPC data plane each, and an Envoy where the entry wants one."""
        metadata = workload.entry.metadata
        grpc_plane = node_pb.DataPlaneRef(
            id=f"{workload.id}/grpc",
            tenant=metadata.tenant,
            entry=metadata.name,
            dialect=node_pb.DataPlaneRef.GRPC,
        )
        if workload.is_ingress and not workload.has_envoy:
            return [grpc_plane]
        if not workload.has_envoy:
            if workload.port and workload.service.spec.protocol == resources.ServiceSpec.GRPC:
                grpc_plane.listen_address = self._listen(workload.port)
            return [grpc_plane]
        envoy_plane = node_pb.DataPlaneRef(
            id=f"{workload.id}/envoy",
            tenant=metadata.tenant,
            entry=metadata.name,
            dialect=node_pb.DataPlaneRef.ENVOY,
            outbound_path=str(self.outbound(workload) or ""),
        )
        if workload.port:
            envoy_plane.listen_address = self._listen(self.mesh_port(workload))
            envoy_plane.app_address = f"127.0.0.1:{workload.port}"
        return [grpc_plane, envoy_plane]

    def mesh_port(self, workload: Workload) -> int:
        """Where the mesh reaches a workload: its Envoy's port, or its own; 0 if it only calls."""
        if not workload.port or not workload.has_envoy:
            return workload.port
        if workload.entry.spec.inbound_port:
            return workload.entry.spec.inbound_port
        if workload.id not in self._ports:
            self._ports[workload.id] = self._free_port()
            self._keep()
        return self._ports[workload.id]

    def outbound(self, workload: Workload) -> Path | None:
        """The socket where a workload's Envoy takes its calls; None without an Envoy, or a program."""
        has_one = workload.has_envoy and not workload.is_ingress
        return workload.directory / "envoy" / "outbound.sock" if has_one else None

    def inbound(self, workload: Workload) -> str:
        """The address where a workload's Envoy takes the mesh's calls; empty if it takes none."""
        return self._listen(self.mesh_port(workload)) if workload.has_envoy and workload.port else ""

    def _listen(self, port: int) -> str:
        return f"[{self._address}]:{port}" if ":" in self._address else f"{self._address}:{port}"

    def _free_port(self) -> int:
        """A port below those that the kernel lends to callers, any of which may be taken when an Envoy comes back."""
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        taken = set(self._ports.values())
        end = _first_lent_port()
        for port in self._rng.sample(range(max(1024, end - _CHOICE), end), _TRIES):
            if port not in taken and _is_free(family, self._address, port):
                return port
        with socket.socket(family) as probe:  # a crowded machine
            probe.bind((self._address, 0))
            return int(probe.getsockname()[1])

    def _keep(self) -> None:
        while len(self._ports) > _MAX_PORTS:
            del self._ports[next(iter(self._ports))]
        self._cache.keep(_PORTS, json.dumps(self._ports).encode())


def _is_free(family: socket.AddressFamily, address: str, port: int) -> bool:
    with socket.socket(family) as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _first_lent_port() -> int:
    """Where the range of ports for callers begins. Source: ip(7), ip_local_port_range."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = 0
    return first if first >= 1024 + 2 * _TRIES else 32_768


def _parse_ports(cache: Cache) -> dict[str, int]:
    body = cache.load(_PORTS)
    if body is None:
        return {}
    try:
        found = json.loads(body)
        if all(isinstance(port, int) and 0 < port < 65536 for port in found.values()):
            return dict(found)
    except (ValueError, AttributeError):
        pass
    cache.set_aside(_PORTS, "not the ports of workloads")
    return {}
