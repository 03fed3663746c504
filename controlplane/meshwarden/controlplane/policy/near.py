"""Endpoints as callers at one place prefer them: their own zone, then their region, then all others.

A zone of which enough is healthy takes all calls of its own. One of which less is takes as many as it can, and the rest
goes on to those further away: this is what Envoy does by its overprovisioning factor, and gRPC doesn't do at all. So it
is done here, by weights within the first priority, and Envoy's own factor is set so high that it leaves them alone.
Further priorities are for what data planes see before we do: nobody of the first can be reached.

Source: Envoy, "Priority levels", "Locality weighted load balancing"; gRFC A37, A56 (gRPC fails over, and never spills).
"""

from typing import Any, Final

from meshwarden.controlplane.policy.choice import choice
from meshwarden.controlplane.policy.endpoint import Place, build, group, healthy, localities
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.xds.snapshot import Resource

# Envoy takes a priority for whole as long as one in a thousand is healthy, and never more than it has calls.
_LEAVES_ALONE: Final = {"overprovisioning_factor": 100_000}
# Shares of calls are told in so many parts; a locality with any healthy endpoint gets one at least.
_PARTS: Final = 100_000

Found = dict[Place, list[dict[str, Any]]]


def assignments(mesh: Mesh, service: Name, place: Place) -> tuple[Resource, ...]:
    """The endpoints of every version of a service alike and of each, for callers at a place; none if it is all one."""
    percent = choice(mesh, service).near
    if not percent:
        return ()
    versions = ("", *mesh.versions(service))
    return tuple(
        _assignment(service, version, localities(mesh, service, version), place, percent) for version in versions
    )


def _assignment(service: Name, version: str, found: Found, place: Place, percent: int) -> Resource:
    groups = []
    first, others = _split(_tiers(found, place), percent)
    for tier, parts in first:
        takers = sum(map(healthy, tier.values())) or 1
        for where, endpoints in tier.items():
            # Alone, a tier is weighed by what its localities can take, as without a preference.
            weight = healthy(endpoints) if len(first) == 1 else parts * healthy(endpoints) // takers
            groups.append(group(where, endpoints, max(1, weight)))
    for priority, tier in enumerate(others, start=1):
        groups += [group(where, found, max(1, healthy(found)), priority) for where, found in tier.items()]
    return build(service, version, groups, policy=_LEAVES_ALONE)


def _tiers(found: Found, place: Place) -> list[Found]:
    """The endpoints by how near they are; tiers that have some."""
    tiers: list[Found] = [{}, {}, {}]
    for where, endpoints in found.items():
        distance = 0 if where == place else 1 if where.region == place.region else 2
        tiers[distance][where] = endpoints
    return [tier for tier in tiers if tier]


def _split(tiers: list[Found], percent: int) -> tuple[list[tuple[Found, int]], list[Found]]:
    """The tiers that share the calls, each with its parts of `_PARTS`, and those for when none of them is there."""
    first: list[tuple[Found, int]] = []
    left = _PARTS
    for number, tier in enumerate(tiers):
        takes = _PARTS * 100 * sum(map(healthy, tier.values())) // (percent * sum(map(len, tier.values())))
        first.append((tier, min(left, takes)))
        left -= first[-1][1]
        if not left:
            return first, tiers[number + 1 :]
    return first, []
