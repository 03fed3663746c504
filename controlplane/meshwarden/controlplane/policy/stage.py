"""Which nodes have the changes of a rollout, and what these are. Pure.

A share of nodes is all whose hash with the rollout's name is below a bound: so it takes no list, a share is part of
each larger one, every control plane finds the same, and a node that joins is in it or not without moving another one.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.policy.mesh import Change, Mesh
from meshwarden.controlplane.policy.neutral import Key, Name
from meshwarden.v1.resources_pb2 import RolloutStatus

EVERY: Final = 2**64 - 1
"""The bound of all nodes."""
_LIVE: Final = (RolloutStatus.RUNNING, RolloutStatus.PAUSED)
_OVER: Final = (RolloutStatus.COMMITTED, RolloutStatus.ROLLED_BACK, RolloutStatus.ABORTED)
_SHOWN: Final = 10
KINDS: Final = ("AccessPolicy", "RoutePolicy")
"""What a rollout may change."""


def is_live(rollout: Any) -> bool:
    """Whether some nodes have the changes of a `v1.Rollout`, and others not."""
    return rollout.status.phase in _LIVE


def is_over(rollout: Any) -> bool:
    """Whether a rollout has ended, this way or that."""
    return rollout.status.phase in _OVER


def hash_of(rollout: Any, node: str) -> int:
    """A number below 2^64 that says which nodes come first in this rollout."""
    text = f"{rollout.metadata.tenant}/{rollout.metadata.name}\n{node}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def has_changes(rollout: Any, node: str, place: Place) -> bool:
    """Whether a node, which says that it is at a place, has the changes at present."""
    if not is_live(rollout):
        return False
    below = rollout.status.hash_below
    if below == EVERY or hash_of(rollout, node) < below:
        return True
    for stage in rollout.spec.stages[: rollout.status.stage + 1]:
        part = stage.WhichOneof("part")
        if part == "all" or (part == "zone" and stage.zone == place.zone):
            return True
        if part == "region" and stage.region == place.region:
            return True
    return False


def bound_of(rollout: Any, stage: int, nodes: Iterable[str]) -> int:
    """The bound of hashes with a stage: that of so many of the nodes concerned as it says, and no less than before.

    Args:
        rollout: the rollout.
        stage: which stage begins.
        nodes: those that the changes concern.
    """
    before: int = rollout.status.hash_below
    said = rollout.spec.stages[stage]
    if said.WhichOneof("part") == "all":
        return EVERY
    hashes = sorted(hash_of(rollout, node) for node in nodes)
    if said.WhichOneof("part") != "percent":
        return before
    if said.percent == 100:
        return EVERY
    # Never more than it says, unless that is none.
    count = max(1, int(len(hashes) * said.percent / 100 + 1e-9))
    share = int(said.percent / 100 * EVERY)
    return max(before, (hashes[count - 1] + 1) if hashes else share)


def changes_of(rollout: Any) -> list[Change]:
    """What a rollout changes."""
    tenant, spec = rollout.metadata.tenant, rollout.spec
    found = [
        Change(Key(policy.DESCRIPTOR.name, tenant, policy.metadata.name), policy)
        for policy in (*spec.access_policies, *spec.route_policies)
    ]
    return found + [Change(Key(one.kind, tenant, one.name), None) for one in spec.deletions]


def services_of(rollout: Any, mesh: Mesh) -> Mapping[str, frozenset[Name]]:
    """The services that the policies which it changes are about, or shall be: `{kind of policy: services}`."""
    found: dict[str, set[Name]] = {kind: set() for kind in KINDS}
    for key, message in changes_of(rollout):
        for policy in (message, mesh.find(*key)):
            if policy is not None:
                found[key.kind].add(Name(key.tenant, policy.spec.service))
    return {kind: frozenset(services) for kind, services in found.items()}


def concerned(rollout: Any, mesh: Mesh) -> set[str]:
    """The nodes that a rollout concerns: where a service runs whose callers it is about, or any who may call one."""
    found, tenants = set[str](), set[str]()
    for kind, services in services_of(rollout, mesh).items():
        for service in services:
            if kind == "RoutePolicy" or mesh.is_external(service):
                tenants |= mesh.seers(service)
            else:
                for entry in mesh.of_service("WorkloadEntry", service).values():
                    found.update(entry.spec.nodes)
    return found | mesh.nodes_of(tenants)


def without_nodes(rollout: Any, mesh: Mesh, places: Mapping[str, Place]) -> Iterator[tuple[str, str]]:
    """What of a rollout is of no node that is there, as (field, text): maybe one is to come, maybe it is mistyped.

    Args:
        rollout: the rollout.
        mesh: what there is.
        places: the nodes that have joined, and where each says that it is.
    """
    about = [places[node] for node in concerned(rollout, mesh) if node in places]
    if not about:
        yield "spec", "it concerns no node that has joined: it is judged by no call"
        return
    for number, stage in enumerate(rollout.spec.stages):
        part = stage.WhichOneof("part")
        if part in ("zone", "region") and getattr(stage, part) not in {getattr(place, part) for place in about}:
            known = ", ".join(sorted({getattr(place, part) for place in about} - {""})[:_SHOWN]) or f"no {part}"
            text = f"no node that it concerns is in {part} {getattr(stage, part)}: they are in {known}"
            yield f"spec.stages[{number}].{part}", text
