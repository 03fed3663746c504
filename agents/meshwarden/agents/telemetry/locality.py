"""In which region a called service's endpoints are: the control plane's word, by the endpoints that it gave out."""

from typing import Final

from meshwarden.agents.telemetry.access_log import service_of_cluster
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.xds.scopes import ScopeStore
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, Snapshot

_ASSIGNMENT: Final = "envoy.config.endpoint.v3.ClusterLoadAssignment"
_Regions = dict[str, dict[str, str]]


class Localities:
    """The regions of the endpoints that a tenant's workloads on this node are given."""

    def __init__(self, registry: Registry, scopes: ScopeStore) -> None:
        self._registry = registry
        self._scopes = scopes
        self._known: dict[str, tuple[Snapshot, _Regions]] = {}

    def region(self, tenant: str, service: str, address: str) -> str:
        """The region of the endpoint that took a call.

        Args:
            tenant: the caller's.
            service: `<tenant>/<service>`, the one called.
            address: `host:port` of the endpoint; empty where nobody has said which one it was.

        Returns:
            Its region, or that of all endpoints of the service if it is but one; else empty.
        """
        regions = self._regions(tenant).get(service, {})
        if address in regions:
            return regions[address]
        different = set(regions.values())
        return different.pop() if len(different) == 1 else ""

    def _regions(self, tenant: str) -> _Regions:
        for workload in self._registry.workloads.values():
            if workload.spiffe_id.tenant != tenant:
                continue
            snapshot = self._scopes.snapshot(f"{workload.id}/grpc")
            if snapshot is None:
                continue
            known = self._known.get(tenant)
            if known is None or known[0] is not snapshot:
                known = self._known[tenant] = (snapshot, _regions_in(snapshot))
            return known[1]
        known = self._known.get(tenant)
        return {} if known is None else known[1]


def _regions_in(snapshot: Snapshot) -> _Regions:
    found: _Regions = {}
    for name, item in snapshot.named(api.ENDPOINT).items():
        if service := service_of_cluster(name):
            found.setdefault(service, {}).update(_addresses(item))
    return found


def _addresses(item: Resource) -> dict[str, str]:
    """The region of each address: {"host:port": region}."""
    found: dict[str, str] = {}
    try:
        assignment = api.parse(_ASSIGNMENT, item.body)
    except api.ApiError:
        return found
    for group in assignment.endpoints:  # type: ignore[attr-defined]
        for member in group.lb_endpoints:
            address = member.endpoint.address.socket_address
            host = f"[{address.address}]" if ":" in address.address else address.address
            found[f"{host}:{address.port_value}"] = group.locality.region
    return found
