"""What this node asks the control plane for: each workload's data planes, and what their clients call themselves.

What a client is told depends on what it is: so the control plane is asked anew when another kind of client comes. What
was seen last stands while none is there, so that a program that is started again finds its configuration.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from meshwarden.agents.registry import Registry
from meshwarden.agents.workload import Workload
from meshwarden.v1 import node_service_pb2 as node_pb

Refs = Callable[[Workload], Iterable[node_pb.DataPlaneRef]]

_MOST: Final = 4096
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
        self._clients: dict[str, str] = {}

    def refs(self, workload: Workload) -> list[node_pb.DataPlaneRef]:
        """The data planes of a workload."""
        found = list(self._refs(workload))
        for ref in found:
            ref.client = self._clients.get(ref.id, "")
        return found

    def tell(self) -> None:
        """Says which configuration this node needs."""
        self._say([ref for workload in self._registry.workloads.values() for ref in self.refs(workload)])

    def heard(self, data_plane: str, clients: Iterable[str]) -> None:
        """Takes which clients a data plane has; of none the last ones stand."""
        text = ", ".join(sorted(set(clients))[:_MOST_CLIENTS])
        if not text or self._clients.get(data_plane) == text:
            return
        while len(self._clients) >= _MOST:
            del self._clients[next(iter(self._clients))]
        self._clients[data_plane] = text
        self.tell()
