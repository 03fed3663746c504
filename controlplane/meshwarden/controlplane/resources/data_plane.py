"""Which limits each data plane can hold: what a service's Envoys can't is refused, in the policy and in the entry."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from meshwarden.controlplane.resources.model import ref_of, title
from meshwarden.controlplane.resources.reach import Width, width
from meshwarden.sdk.unit import REQUESTS, unit_of
from meshwarden.v1.resources_pb2 import RatePolicy, WorkloadEntry, WorkloadEntrySpec

MAX_POLICIES: Final = 8
"""Of one service: each call is held against all of them."""


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


def unheld(policies: Sequence[RatePolicy], entries: Sequence[WorkloadEntry]) -> Iterator[Unheld]:
    """What the data planes of one service can't hold of its policies, the narrowest of which come first."""
    for policy in policies[MAX_POLICIES:]:
        yield Unheld(policy, about(policy), f"a service has at most {MAX_POLICIES} RatePolicies")
    adaptive = [policy for policy in policies if policy.spec.HasField("adaptive")]
    for policy in adaptive[1:]:
        yield Unheld(policy, "spec.adaptive", f"{title(ref_of(adaptive[0]))} finds that limit already")
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
                f"{title(ref_of(known))} is for {envoy.metadata.tenant}/{envoy.spec.service} already, and an Envoy"
                f" ({title(ref_of(envoy))}) holds one RatePolicy of a service, one of several of its tenant and one of"
                " several tenants'"
            )
            yield Unheld(policy, about(policy), text)
        if (unit := unit_of(policy.spec)) != REQUESTS:
            field = "total" if policy.spec.HasField("total") else "limits[0]"
            yield Unheld(policy, f"spec.{field}.{unit}", f"an Envoy ({title(ref_of(envoy))}) counts requests only")
        if (place := _criticality(policy)) is not None:
            text = f"an Envoy ({title(ref_of(envoy))}) lets calls in as they come, whatever they matter"
            yield Unheld(policy, place, text)


def _criticality(policy: RatePolicy) -> str | None:
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
