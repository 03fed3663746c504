"""Which limits each data plane can hold: what a service's Envoys can't is refused, in the policy and in the entry."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from meshwarden.controlplane.resources.model import ref_of, title
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
    """What the data planes of one service can't hold of its policies, which are in the order of their names."""
    for policy in policies[MAX_POLICIES:]:
        yield Unheld(policy, "spec.service", f"a service has at most {MAX_POLICIES} RatePolicies")
    envoy = next((entry for entry in entries if is_envoy(entry)), None)
    if envoy is not None:
        for policy in policies[1:]:
            first, entry = title(ref_of(policies[0])), title(ref_of(envoy))
            text = f"{first} is for this service already, and an Envoy ({entry}) holds one RatePolicy of a service"
            yield Unheld(policy, "spec.service", text)


def is_envoy(entry: WorkloadEntry) -> bool:
    """Whether an Envoy takes the calls of a workload."""
    return entry.spec.data_plane == WorkloadEntrySpec.ENVOY
