"""How far behind nodes are, and what is refused, by tenant: for Prometheus."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric

from meshwarden.v1.admin_service_pb2 import NodeState

# {the changes that a node is behind: what they are called}, the largest first.
_BEHIND: Final = {10: "10+", 2: "2-9", 1: "1", 0: "0"}


def of_progress(nodes: Iterable[NodeState], recent: Sequence[int]) -> Iterable[Metric]:
    """Shows how many nodes are how far behind, and how many refusals each tenant's data planes have.

    Args:
        nodes: those that have joined; one that is at another control plane is counted there.
        recent: the newest revisions of the mesh, in order.
    """
    here = [node for node in nodes if not node.control_plane]
    behind, nacks = Counter(dict.fromkeys(_BEHIND.values(), 0)), Counter[str]()
    for node in here:
        changes = len(recent) - bisect_right(recent, node.acked_revision)
        behind[next(word for least, word in _BEHIND.items() if changes >= least)] += 1
        tenants = {ref.id: ref.tenant for ref in node.data_planes}
        for tenant in set(tenants.values()):
            nacks[tenant] += 0
        for nack in node.nacks:
            nacks[tenants.get(nack.data_plane, "")] += 1
    text = "Nodes, by how many changes of the mesh they have not acknowledged."
    family = GaugeMetricFamily("meshwarden_nodes_behind", text, labels=["changes"])
    for word, count in behind.items():
        family.add_metric([word], count)
    yield family
    text = "What each tenant's data planes refuse at present."
    family = GaugeMetricFamily("meshwarden_tenant_nacks", text, labels=["tenant"])
    for tenant, count in sorted(nacks.items()):
        family.add_metric([tenant], count)
    yield family
