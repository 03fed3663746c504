"""Until when services take calls in the clear, and who still calls so: for Prometheus."""

from collections.abc import Iterable
from datetime import UTC, datetime

from prometheus_client.core import GaugeMetricFamily, Metric

from meshwarden.controlplane.api.edges import SOON
from meshwarden.controlplane.policy import permissive
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.v1.admin_service_pb2 import NodeState


def of_edges(mesh: Mesh, nodes: Iterable[NodeState], now: datetime) -> Iterable[Metric]:
    """Shows of each service that says so how long it takes calls in the clear, and how many addresses called of late.

    Args:
        mesh: what there is.
        nodes: those that have joined; one that is at another control plane is counted there.
        now: the present, aware.
    """
    left = {
        name: said.until_s - now.timestamp()
        for name in mesh.services()
        if (said := permissive.find(mesh, name)) is not None
    }
    callers: dict[Name, set[str]] = {name: set() for name in left}
    for node in nodes if left else ():
        for seen in node.health.clear_callers if not node.control_plane else ():
            addresses = callers.get(Name(seen.tenant, seen.service))
            if addresses is not None and now - seen.last.ToDatetime(UTC) <= SOON:
                addresses.add(seen.address)
    labels = ["tenant", "service"]
    text = "Seconds until a service takes no calls in the clear any more; below 0 since it takes none."
    family = GaugeMetricFamily("meshwarden_permissive_expiry_seconds", text, labels=labels)
    for name, left_s in left.items():
        family.add_metric(list(name), left_s)
    yield family
    text = "Addresses that called a service in the clear within seven days, as agents saw since they started."
    family = GaugeMetricFamily("meshwarden_permissive_callers", text, labels=labels)
    for name, addresses in callers.items():
        family.add_metric(list(name), len(addresses))
    yield family
