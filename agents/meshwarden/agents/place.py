"""Where the parts of a workload are on this node: addresses, sockets, and the inbound ports that stay the same.

An Envoy's inbound port is chosen once and kept on disk under the workload's id: with the same addresses as before, a
workload that comes back while the control plane is away is served from the cache.
"""

import json
import random
import socket
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from meshwarden.agents.cache import Cache
from meshwarden.agents.workload import Workload
from meshwarden.v1 import node_service_pb2 as node_pb

_log = structlog.get_logger()
_ITEM: Final = "ports"
_MAX_KEPT: Final = 4096
_FIRST_PORT: Final = 15_000
_TRIES: Final = 64
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """Where one workload is.

    Attributes:
        listen_address: where the mesh reaches it, `ip:port`; empty if it only calls.
        app_address: where its Envoy hands calls to the program, `ip:port`; empty without an Envoy, or if it only calls.
        envoy_directory: of its Envoy's bootstrap, log and sockets; None without an Envoy.
    """

    listen_address: str
    app_address: str = ""
    envoy_directory: Path | None = None

    @property
    def outbound(self) -> Path | None:
        """The Unix socket where its Envoy takes the program's calls."""
        return None if self.envoy_directory is None else self.envoy_directory / "outbound"

    @property
    def admin(self) -> Path | None:
        """The Unix socket of its Envoy's admin interface."""
        return None if self.envoy_directory is None else self.envoy_directory / "admin"

    @property
    def listen_port(self) -> int:
        """The port of `listen_address`; 0 if it only calls."""
        return int(self.listen_address.rpartition(":")[2] or 0)


def is_free(address: str, port: int) -> bool:
    """Whether a port can be listened on now, by one alone: Envoys would share it without a word."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
    return True


class Places:
    """The place of each workload of the node."""

    def __init__(self, advertise_address: str, cache: Cache, rng: random.Random) -> None:
        """Reads the ports of earlier runs from `cache`.

        Args:
            advertise_address: the IP address under which the mesh reaches this node.
            cache: where the ports are kept.
            rng: chooses ports, so that two agents of one machine choose apart.
        """
        self._address = advertise_address
        self._cache = cache
        self._rng = rng
        self._ports = _load(cache)
        self._places: dict[str, tuple[Workload, Place]] = {}

    def of(self, workload: Workload) -> Place:
        """Where a workload is; the same as long as it runs."""
        known = self._places.get(workload.id)
        if known is None or known[0] is not workload:
            known = self._places[workload.id] = (workload, self._choose(workload))
        return known[1]

    def keep(self, workload_ids: Container[str]) -> None:
        """Forgets those that run no more; their ports stay theirs."""
        for gone in [name for name in self._places if name not in workload_ids]:
            del self._places[gone]

    def _choose(self, workload: Workload) -> Place:
        if not workload.has_envoy:
            return Place(_text(self._address, workload.port) if workload.port else "")
        directory = workload.directory / "envoy"
        if not workload.port:
            return Place("", "", directory)
        port = self._inbound_port(workload)
        return Place(_text(self._address, port), _text(LOOPBACK, workload.port), directory)

    def _inbound_port(self, workload: Workload) -> int:
        taken = {place.listen_port for _, place in self._places.values()}
        taken |= {known.port for known, _ in self._places.values()} | {workload.port}
        declared = workload.entry.spec.inbound_port
        kept = self._ports.get(workload.id, 0)
        for port in (declared, kept):
            if port and port not in taken and is_free(self._address, port):
                break
            if port:
                _log.warning("inbound port taken", workload=workload.id, port=port)
        else:
            others = {port for name, port in self._ports.items() if name != workload.id}
            port = self._free_port(taken | others)
        if port != kept:
            self._ports.pop(workload.id, None)
            self._ports[workload.id] = port
            self._save()
        return port

    def _free_port(self, taken: Iterable[int]) -> int:
        avoid = set(taken)
        ports = _outside_of_callers()
        for _ in range(_TRIES if ports else 0):
            port = self._rng.choice(ports)
            if port not in avoid and is_free(self._address, port):
                return port
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((self._address, 0))
            return int(probe.getsockname()[1])

    def _save(self) -> None:
        while len(self._ports) > _MAX_KEPT:  # the longest unused go first
            del self._ports[next(name for name in self._ports if name not in self._places)]
        try:
            self._cache.save(_ITEM, json.dumps(self._ports).encode())
        except OSError as error:
            _log.error("ports not kept", reason=str(error))


def data_planes(workload: Workload, place: Place) -> list[node_pb.DataPlaneRef]:
    """The data planes of a workload: its gRPC, and its Envoy if it has one."""
    metadata = workload.entry.metadata
    proxyless = node_pb.DataPlaneRef(
        id=f"{workload.id}/grpc",
        tenant=metadata.tenant,
        entry=metadata.name,
        dialect=node_pb.DataPlaneRef.GRPC,
        listen_address="" if workload.has_envoy else place.listen_address,
    )
    if place.outbound is None:
        return [proxyless]
    envoy = node_pb.DataPlaneRef(
        id=f"{workload.id}/envoy",
        tenant=metadata.tenant,
        entry=metadata.name,
        dialect=node_pb.DataPlaneRef.ENVOY,
        listen_address=place.listen_address,
        app_address=place.app_address,
        outbound_path=str(place.outbound),
    )
    return [proxyless, envoy]


def _outside_of_callers() -> range:
    """Ports that the kernel gives to no outgoing connection."""
    try:
        first = int(_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return range(0)
    return range(_FIRST_PORT, first)


def _load(cache: Cache) -> dict[str, int]:
    body = cache.load(_ITEM)
    if body is None:
        return {}
    try:
        found = json.loads(body)
        return {str(name): int(port) for name, port in found.items() if 0 < int(port) <= 65535}
    except (ValueError, TypeError, AttributeError) as error:
        cache.set_aside(_ITEM, str(error))
        return {}


def _text(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
