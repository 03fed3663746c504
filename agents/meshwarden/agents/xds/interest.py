"""What this node asks the control plane for: each workload's data planes, and what their clients call themselves.

What a client is told depends on what it is: so the control plane is asked anew when another kind of client comes. What
was seen last stands while none is there, so that a program that is started again finds its configuration.
"""

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Final

from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.workload import Workload
from meshwarden.v1 import node_service_pb2 as node_pb

Refs = Callable[[Workload], Iterable[node_pb.DataPlaneRef]]

_MOST: Final = 4096
_SWITCH: Final = b"GRPC_EXPERIMENTAL_XDS_MTLS_SPIFFE="
_ON: Final = {"c-core": (b"1", b"t", b"true", b"y", b"yes"), "go": (b"true",)}
_MOST_CLIENTS: Final = 8
# Source: each client's own code, which writes `Node.user_agent_name`.
_KINDS: Final = {"gRPC C-core": "c-core", "gRPC Node": "node", "gRPC Go": "go", "gRPC Java": "java", "envoy": "envoy"}


def client_of(node: Any) -> str:
    """What a client calls itself in its `envoy.config.core.v3.Node`, "c-core/58.0.0" for one; its word, and no more."""
    said = str(node.user_agent_name)
    kind = next((kind for name, kind in _KINDS.items() if said.startswith(name)), "unknown")
    if node.WhichOneof("user_agent_version_type") == "user_agent_build_version":
        version = node.user_agent_build_version.version
        return f"{kind}/{version.major_number}.{version.minor_number}.{version.patch}"
    found = re.search(r"\d{1,6}(\.\d{1,6}){0,3}", node.user_agent_version[:255], re.ASCII)
    return f"{kind}/{found[0]}" if found is not None else kind


def is_home_only(client: str, pid: int | None) -> bool:
    """Whether a client knows our own trust domain alone, as far as we can see.

    Node's reads no bundle map, and those of C-core and Go do where their environment says so (gRFC A87); that of
    another user's program may be hidden from us.

    Args:
        client: what it is, as `client_of` says.
        pid: its process, if that is known.
    """
    kind = client.partition("/")[0]
    if kind not in _ON or pid is None:
        return kind == "node"
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    said = next((item.removeprefix(_SWITCH) for item in environment if item.startswith(_SWITCH)), b"")
    return said.lower() not in _ON[kind]


class Interest:
    """The data planes of all workloads."""

    def __init__(self, refs: Refs, registry: Registry, say: Callable[[list[node_pb.DataPlaneRef]], object]) -> None:
        """Puts it together.

        Args:
            refs: the data planes of a workload, with the addresses that they have now.
            registry: knows who runs.
            say: tells the control plane the whole set.
        """
        self._refs, self._registry, self._say = refs, registry, say
        # {data plane: (its clients, whether one of them knows our own trust domain alone)}
        self._clients: dict[str, tuple[str, bool]] = {}
        # {workload id: the workload, of which a program has the SDK}
        self._attended: dict[str, Workload] = {}

    def refs(self, workload: Workload) -> list[node_pb.DataPlaneRef]:
        """The data planes of a workload."""
        found = list(self._refs(workload))
        for ref in found:
            ref.client, ref.home_only = self._clients.get(ref.id, ("", False))
            is_grpcs_server = ref.dialect == node_pb.DataPlaneRef.GRPC and bool(ref.client and ref.listen_address)
            ref.without_sdk = is_grpcs_server and self._attended.get(workload.id) is not workload
        return found

    def tell(self) -> None:
        """Says which configuration this node needs."""
        self._say([ref for workload in self._registry.workloads.values() for ref in self.refs(workload)])

    def heard(self, data_plane: str, clients: Collection[tuple[str, bool]]) -> None:
        """Takes a data plane's clients, and whether each knows our own trust domain alone; of none the last stand."""
        text = ", ".join(sorted({name for name, _ in clients})[:_MOST_CLIENTS])
        told = text, any(home_only for _, home_only in clients)
        if not text or self._clients.get(data_plane) == told:
            return
        while len(self._clients) >= _MOST:
            del self._clients[next(iter(self._clients))]
        self._clients[data_plane] = told
        self.tell()

    def attend(self, workload: Workload) -> None:
        """Takes it that a program of a workload asks for what the SDK holds."""
        if self._attended.get(workload.id) is workload:
            return
        running = self._registry.workloads
        self._attended = {known: one for known, one in self._attended.items() if running.get(known) is one}
        was_missed = any(ref.without_sdk for ref in self.refs(workload))
        self._attended[workload.id] = workload
        if was_missed:
            self.tell()
