"""How limits are divided at this moment, and why so, for whoever asks. Pure: it reads what `Leases` hold."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from meshwarden.controlplane.quota.lease import Lease
from meshwarden.controlplane.quota.leases import Leases
from meshwarden.controlplane.quota.policy import name_of
from meshwarden.controlplane.quota.tree import REST, Bucket, Level, Point
from meshwarden.controlplane.quota.usage import Usages
from meshwarden.sdk.quota.unit import CONCURRENT, REQUESTS
from meshwarden.v1.admin_service_pb2 import QuotaState

_NEAR: Final = 0.97
_ENOUGH: Final = ", and it has them"


def measured(amount: float, unit: str) -> str:
    """A rate, in words: "4.5/s" of requests, "4 at once", "4.5 cost/s"."""
    if unit == CONCURRENT:
        return f"{amount:.0f} at once"
    return f"{amount:.1f}/s" if unit == REQUESTS else f"{amount:.1f} {unit}/s"


def states(
    policy: str, tree: Level, leases: Leases, usages: Usages, shown: Callable[[str], bool], now_s: float, *, whole: bool
) -> list[QuotaState]:
    """The buckets of a policy, by tenant and method.

    Args:
        policy: its full name.
        tree: its tree.
        leases: all there are.
        usages: what was used.
        shown: whether a calling tenant's buckets are shown.
        now_s: the present, on the clock of `leases`.
        whole: whether others' demand and the enforcement points are.
    """
    by_bucket: dict[Bucket, list[Lease]] = {}
    for lease in leases.find(policy):
        by_bucket.setdefault(lease.bucket, []).append(lease)
    used = dict(usages.of_policy(policy))
    demands = {bucket: sum(lease.demand.rate for lease in held) for bucket, held in by_bucket.items()}
    excess = leases.excess(policy, now_s)
    found = []
    for bucket in sorted({*by_bucket, *used}):
        if not shown(bucket.path[0]) or tree.find(bucket.path) is None:
            continue
        state = _state(bucket, tree, by_bucket.get(bucket, ()))
        # What is left of a tenant's calls has all of the tenant's limit.
        state.excess = excess.get(tuple(part for part in bucket.path if part != REST), 0.0)
        for at in state.points:
            at.age.FromNanoseconds(round(max(0.0, now_s - leases.heard_s(Point(at.node, at.point))) * 1e9))
        state.reason = _reason(state, bucket, tree, demands, whole=whole)
        if (away := leases.away(bucket)) and state.reason.endswith(_ENOUGH):
            state.reason += f"; a part is kept for {away} point{'s that are' if away > 1 else ' that is'} away"
        if (counts := used.get(bucket)) is not None:
            state.allowed, state.denied, state.shadowed = counts.allowed, counts.denied, counts.shadowed
        if not whole:
            del state.points[:]
        found.append(state)
    return found


def _state(bucket: Bucket, tree: Level, leases: Sequence[Lease]) -> QuotaState:
    *_, level = tree.along(bucket.path)
    state = QuotaState(
        bucket=name_of(bucket),
        limit=tree.least_ceiling(bucket.path),
        floor=level.floor,
        weight=level.weight,
        demand=sum(lease.demand.rate for lease in leases),
        share=sum(lease.given for lease in leases),
        held=sum(lease.held for lease in leases),
        unit=tree.unit,
        in_use=sum(lease.in_use for lease in leases),
    )
    for lease in sorted(leases, key=lambda lease: lease.point):
        at = state.points.add(node=lease.point.node, point=lease.point.name, demand=lease.demand.rate)
        at.share, at.in_use = lease.given, lease.in_use
    return state


def _reason(state: QuotaState, bucket: Bucket, tree: Level, demands: dict[Bucket, float], *, whole: bool) -> str:
    if not state.points:
        return "not used at present"

    def limited(amount: float) -> str:
        return f"{amount:g} at once" if tree.unit == CONCURRENT else f"{amount:g}/s"

    wants = f"{measured(state.demand, tree.unit)} are wanted"
    if state.share >= state.demand * _NEAR and state.demand < state.limit * _NEAR:
        return f"{wants}{_ENOUGH}"
    tenant_level = tree.part(bucket.path[0])
    if state.share >= state.limit * _NEAR:
        return f"{wants}; it has its limit of {limited(state.limit)}"
    for depth, level in enumerate(list(tree.along(bucket.path))[1:-1], 1):
        above = bucket.path[:depth]
        if _sum(demand for other, demand in demands.items() if other.path[:depth] == above) > level.ceiling:
            whose, parts = "tenant" if depth == 1 else "service", "services" if level.by_service else "methods"
            return f"{wants}; the {whose}'s limit of {limited(level.ceiling)} is short, and divided among its {parts}"
    total, wanted = tree.ceiling, _sum(demands.values())
    if wanted > total:
        weighed = f"by weights (this one's is {tenant_level.weight:g}"
        weighed += f", its floor {limited(tenant_level.floor)})" if tenant_level.floor else ")"
        others = f": {measured(wanted, tree.unit)} are wanted of it" if whole else ""
        return f"{wants}; the total of {limited(total)} is short{others}, and divided {weighed}"
    if state.held > state.share or state.share < state.demand:
        return f"{wants}; what others had comes to it when they have given it back"
    return f"{wants}{_ENOUGH}"


def _sum(rates: Iterable[float]) -> float:
    return sum(rates)
