"""Endpoints in the form that both dialects take: an `envoy.config.endpoint.v3.ClusterLoadAssignment`."""

from typing import Any

from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.v1 import resources_pb2
from meshwarden.xds import api
from meshwarden.xds.snapshot import Resource, resource

# A state that we do not know takes no calls.
_HEALTH = {
    resources_pb2.EndpointSpec.HEALTH_UNSPECIFIED: "HEALTHY",
    resources_pb2.EndpointSpec.HEALTHY: "HEALTHY",
    resources_pb2.EndpointSpec.DRAINING: "DRAINING",
}

_RANK = {"HEALTHY": 0, "DRAINING": 1, "UNHEALTHY": 2}


def cluster_name(service: Name, version: str = "") -> str:
    """The name of a service's cluster and of its endpoints: of one version, or of every version alike."""
    canonical = f"{service.name}.{service.tenant}"
    return f"{canonical}|{version}" if version else canonical


def assignment(mesh: Mesh, service: Name, version: str = "") -> Resource:
    """The endpoints of a service, by locality; an assignment without any if there are none.

    An empty answer is an answer: without one a client waits 15 s for it. A service whose identity is revoked has none,
    nor has one of a trust domain that is trusted no more.
    """
    localities: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for spec in () if mesh.is_cut_off(service) else _distinct(mesh, service, version):
        place = (spec.locality.region, spec.locality.zone)
        localities.setdefault(place, []).append(_endpoint(spec))
    name = cluster_name(service, version)
    groups = [
        {"locality": {"region": region, "zone": zone}, "load_balancing_weight": _weight(found), "lb_endpoints": found}
        for (region, zone), found in sorted(localities.items())
    ]
    fields = {"cluster_name": name, "endpoints": groups}
    return resource(api.build("envoy.config.endpoint.v3.ClusterLoadAssignment", fields), name)


def _distinct(mesh: Mesh, service: Name, version: str) -> list[Any]:
    """The endpoints, each address once and the healthiest record of it.

    Two records of one address are possible, when a workload came back under another name; gRPC refuses the lot then.
    """
    found: dict[tuple[str, int], Any] = {}
    for item in mesh.of_service("Endpoint", service).values():
        if not version or item.spec.version == version:
            known = found.setdefault((item.spec.address, item.spec.port), item.spec)
            if _RANK[_health(item.spec)] < _RANK[_health(known)]:
                found[item.spec.address, item.spec.port] = item.spec
    return list(found.values())


def takes_calls(spec: Any) -> bool:
    """Whether an endpoint, by its `EndpointSpec`, takes new calls."""
    return _health(spec) == "HEALTHY"


def _health(spec: Any) -> str:
    return _HEALTH.get(spec.health, "UNHEALTHY")


def _weight(endpoints: list[dict[str, Any]]) -> int:
    """A locality's share: what it can take. At least 1, for gRPC leaves out a locality without weight."""
    return max(1, len([item for item in endpoints if item["health_status"] == "HEALTHY"]))


def _endpoint(spec: Any) -> dict[str, Any]:
    address = {"socket_address": {"address": spec.address, "port_value": spec.port}}
    return {"endpoint": {"address": address}, "health_status": _health(spec)}
