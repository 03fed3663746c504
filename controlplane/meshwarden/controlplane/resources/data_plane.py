"""Which limits each data plane can hold: what a service's Envoys can't is refused, in the policy and in the entry."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from meshwarden.controlplane.resources.model import ref_of, title
from meshwarden.controlplane.resources.reach import Width, width
from meshwarden.sdk.quota.unit import REQUESTS, unit_of
from meshwarden.v1.resources_pb2 import RatePolicy, WorkloadEntry, WorkloadEntrySpec

_OF_SERVICE: Final = {
    Width.SERVICE: (8, "of its own"),
    Width.TENANT: (4, "of several services of its tenant"),
    Width.MESH: (4, "of several tenants'"),
}
"""How many policies of each width a service has at most: each call is held against all of them. Counted by themselves,
so that nobody's own are in the way of one that reaches further."""


class Unheld(NamedTuple):
    """What can't be held.

    Attributes:
        policy: whose wish it is.
        field: its field.
        reason: why not.
    """

    policy: RatePolicy
    field: str
    reason: str


def unheld(
    policies: Sequence[RatePolicy], entries: Sequence[WorkloadEntry], name: Callable[[RatePolicy], str]
) -> Iterator[Unheld]:
    """What the data planes of one service can't hold of its policies, the narrowest of which come first.

    Args:
        policies: all that the service has.
        entries: all that serve it.
        name: what a policy is called before who is told of it.
    """
    yield from _too_many(policies)
    adaptive = [policy for policy in policies if policy.spec.HasField("adaptive")]
    for policy in adaptive[1:]:
        yield Unheld(policy, "spec.adaptive", f"{name(adaptive[0])} finds that limit already")
    envoy = next((entry for entry in entries if is_envoy(entry)), None)
    if envoy is None:
        return
    for policy in adaptive:
        text = f"an Envoy ({title(ref_of(envoy))}) can't hold it: its own knows of no tenants"
        yield Unheld(policy, "spec.adaptive", text)
    first: dict[Width, RatePolicy] = {}
    for policy in policies:
        if policy.spec.period:
            text = f"an Envoy ({title(ref_of(envoy))}) holds rates alone, no amounts for a period"
            yield Unheld(policy, "spec.period", text)
            continue
        known = first.setdefault(width(policy.metadata.tenant, policy.spec), policy)
        if known is not policy:
            text = (
                f"{name(known)} is for {envoy.metadata.tenant}/{envoy.spec.service} already, and an Envoy"
                f" ({title(ref_of(envoy))}) holds one RatePolicy of a service, one of several of its tenant and one of"
                " several tenants'"
            )
            yield Unheld(policy, about(policy), text)
        if (unit := unit_of(policy.spec)) != REQUESTS:
            field = "total" if policy.spec.HasField("total") else "limits[0]"
            yield Unheld(policy, f"spec.{field}.{unit}", f"an Envoy ({title(ref_of(envoy))}) counts requests only")
        if (place := criticality_of(policy)) is not None:
            text = f"an Envoy ({title(ref_of(envoy))}) lets calls in as they come, whatever they matter"
            yield Unheld(policy, place, text)


def _too_many(policies: Sequence[RatePolicy]) -> Iterator[Unheld]:
    count = Counter[Width]()
    for policy in policies:
        wide = width(policy.metadata.tenant, policy.spec)
        count[wide] += 1
        most, which = _OF_SERVICE[wide]
        if count[wide] > most:
            yield Unheld(policy, about(policy), f"a service has at most {most} RatePolicies {which}")


def criticality_of(policy: RatePolicy) -> str | None:
    """The first field that says how much calls matter."""
    for number, limit in enumerate(policy.spec.limits):
        parts = [("", limit.methods)]
        parts += [(f".services[{index}]", part.methods) for index, part in enumerate(limit.services)]
        for place, methods in parts:
            for index, method in enumerate(methods):
                if method.criticality:
                    return f"spec.limits[{number}]{place}.methods[{index}].criticality"
    return None


def about(policy: RatePolicy) -> str:
    """The field that says which services a policy is about."""
    return "spec.service" if policy.spec.service else "spec.services"


def is_envoy(entry: WorkloadEntry) -> bool:
    """Whether an Envoy takes the calls of a workload."""
    return entry.spec.data_plane == WorkloadEntrySpec.ENVOY
