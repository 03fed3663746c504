"""Whether cached configuration was made for the addresses that a data plane has now.

A workload that comes back while the control plane is away may have been given another port. Its Envoy must not be told
the old ones: they may be another program's by now.
"""

from typing import Any, Final

from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, Snapshot

_LISTENER: Final = "envoy.config.listener.v3.Listener"
_CLUSTER: Final = "envoy.config.cluster.v3.Cluster"
INBOUND: Final = "inbound"
OUTBOUND: Final = "outbound"
APP: Final = "app"


def fits(snapshot: Snapshot, ref: node_pb.DataPlaneRef) -> bool:
    """Whether an Envoy's own listeners and its program's cluster have the addresses of `ref`.

    gRPC needs no such look: its server's listener is asked for by its address.
    """
    if ref.dialect != node_pb.DataPlaneRef.ENVOY:
        return True
    listeners, clusters = snapshot.named(api.LISTENER), snapshot.named(api.CLUSTER)
    return (
        _listens_at(listeners.get(INBOUND)) == ref.listen_address
        and _listens_at(listeners.get(OUTBOUND)) == ref.outbound_path
        and _leads_to(clusters.get(APP)) == ref.app_address
    )


def _listens_at(item: Resource | None) -> str:
    if item is None:
        return ""
    try:
        listener: Any = api.parse(_LISTENER, item.body)
    except api.ApiError:
        return "unreadable"
    return _text(listener.address)


def _leads_to(item: Resource | None) -> str:
    if item is None:
        return ""
    try:
        cluster: Any = api.parse(_CLUSTER, item.body)
    except api.ApiError:
        return "unreadable"
    places = [end.endpoint.address for group in cluster.load_assignment.endpoints for end in group.lb_endpoints]
    return _text(places[0]) if len(places) == 1 else ""


def _text(address: Any) -> str:
    if address.WhichOneof("address") == "pipe":
        return str(address.pipe.path)
    host, port = address.socket_address.address, address.socket_address.port_value
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
