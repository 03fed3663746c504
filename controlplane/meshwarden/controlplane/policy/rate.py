"""RatePolicy to neutral form, with the defaults of `per` and `burst` filled in."""

from typing import Any

from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Limit, Limits, Name


def limits(mesh: Mesh, service: Name) -> Limits:
    """How much each tenant may call a service. Of two policies, which validation refuses, the first by name counts."""
    for key, policy in mesh.of_service("RatePolicy", service).items():
        return Limits(service, tuple(_limit(item) for item in policy.spec.limits), Name(key.tenant, key.name))
    return Limits(service)


def _limit(item: Any) -> Limit:
    per_s = (item.per.seconds + item.per.nanos / 1e9) or 1.0
    tenth_of_a_second = int(item.requests / per_s / 10)
    return Limit(item.tenant, item.requests, per_s, item.burst or max(1, tenth_of_a_second))
