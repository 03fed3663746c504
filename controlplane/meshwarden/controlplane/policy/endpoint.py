"""Endpoints in the form that both dialects take: an `envoy.config.endpoint.v3.ClusterLoadAssignment`."""

from typing import Any, Final, NamedTuple

from meshwarden.controlplane.policy.choice import choice
from meshwarden.controlplane.policy.mesh import Key, Mesh
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


class Place(NamedTuple):
    """Where a node or an endpoint is: its locality."""

    region: str
    zone: str


NOWHERE: Final = Place("", "")


_RANK = {"HEALTHY": 0, "DRAINING": 1, "UNHEALTHY": 2}


def cluster_name(service: Name, version: str = "") -> str:
    """The name of a service's cluster and of its endpoints: of one version, or of every version alike."""
    canonical = f"{service.name}.{service.tenant}"
    return f"{canonical}|{version}" if version else canonical


def speaker_cluster(service: Name, version: str, tenant: str) -> str:
    """The name of an ingress's cluster of a service, for callers of a tenant; its endpoints have the service's name."""
    return f"{cluster_name(service)}|{version}|{tenant}"


def assignment(mesh: Mesh, service: Name, version: str = "") -> Resource:
    """The endpoints of a service, by locality; an assignment without any if there are none.

    An empty answer is an answer: without one a client waits 15 s for it. A service whose identity is revoked has none,
    nor has one of a trust domain that is trusted no more.
    """
    found = localities(mesh, service, version)
    return build(service, version, [group(place, one, max(1, healthy(one))) for place, one in found.items()])


def assignments(mesh: Mesh, service: Name) -> tuple[Resource, ...]:
    """The endpoints of every version alike and of each; none if it depends on where the caller is which come first."""
    if choice(mesh, service).near:
        return ()
    return tuple(assignment(mesh, service, version) for version in ("", *mesh.versions(service)))


def build(service: Name, version: str, groups: list[dict[str, Any]], **more: Any) -> Resource:
    """An assignment of groups, which `group` makes; `more` are fields of it."""
    name = cluster_name(service, version)
    fields = {"cluster_name": name, "endpoints": groups, **more}
    return resource(api.build("envoy.config.endpoint.v3.ClusterLoadAssignment", fields), name)


def group(place: Place, endpoints: list[dict[str, Any]], weight: int, priority: int = 0) -> dict[str, Any]:
    """The endpoints of one place. gRPC leaves out a locality without weight, which is what it can take."""
    found = {
        "locality": {"region": place.region, "zone": place.zone},
        "load_balancing_weight": weight,
        "lb_endpoints": endpoints,
    }
    return found | ({"priority": priority} if priority else {})


def localities(mesh: Mesh, service: Name, version: str = "") -> dict[Place, list[dict[str, Any]]]:
    """The endpoints that callers may know, by place, in order."""
    found: dict[Place, list[dict[str, Any]]] = {}
    for spec, state in () if mesh.is_cut_off(service) else _distinct(mesh, service, version):
        found.setdefault(Place(spec.locality.region, spec.locality.zone), []).append(_endpoint(spec, state))
    return dict(sorted(found.items()))


def count(mesh: Mesh, service: Name, version: str = "") -> int:
    """How many endpoints take calls."""
    found = () if mesh.is_cut_off(service) else _distinct(mesh, service, version)
    return sum(state == "HEALTHY" for _, state in found)


def _distinct(mesh: Mesh, service: Name, version: str) -> list[tuple[Any, str]]:
    """The endpoints with their state, each address once and the healthiest record of it.

    Two records of one address are possible, when a workload came back under another name; gRPC refuses the lot then.
    """
    found: dict[tuple[str, int], tuple[Any, str]] = {}
    for key, item in mesh.of_service("Endpoint", service).items():
        if not version or item.spec.version == version:
            state = state_of(mesh, key, item.spec)
            known = found.setdefault((item.spec.address, item.spec.port), (item.spec, state))
            if _RANK[state] < _RANK[known[1]]:
                found[item.spec.address, item.spec.port] = item.spec, state
    return list(found.values())


def state_of(mesh: Mesh, key: Key, spec: Any) -> str:
    """An endpoint's health as data planes are told it: "HEALTHY" if it is to get new calls."""
    own = _health(spec)
    return "DRAINING" if own == "HEALTHY" and mesh.drains.find(key, spec) is not None else own


def takes_calls(spec: Any) -> bool:
    """Whether an endpoint, by its own `EndpointSpec`, takes new calls; a drain may keep them from it."""
    return _health(spec) == "HEALTHY"


def _health(spec: Any) -> str:
    return _HEALTH.get(spec.health, "UNHEALTHY")


def healthy(endpoints: list[dict[str, Any]]) -> int:
    """How many of some endpoints take calls."""
    return len([item for item in endpoints if item["health_status"] == "HEALTHY"])


def _endpoint(spec: Any, state: str) -> dict[str, Any]:
    address = {"socket_address": {"address": spec.address, "port_value": spec.port}}
    return {"endpoint": {"address": address}, "health_status": state}
