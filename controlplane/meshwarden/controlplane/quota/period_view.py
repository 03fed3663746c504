"""How the amounts of a policy with a period stand, for whoever asks. Pure: it reads what `Ledgers` hold."""

from collections.abc import Callable
from typing import Final

from meshwarden.controlplane.quota.holding import Account, Holding
from meshwarden.controlplane.quota.ledger import Ledger
from meshwarden.controlplane.quota.ledgers import Ledgers
from meshwarden.controlplane.quota.period import Period
from meshwarden.controlplane.quota.policy import name_of
from meshwarden.controlplane.quota.tree import Bucket, Path
from meshwarden.controlplane.quota.usage import Usages
from meshwarden.v1.admin_service_pb2 import QuotaPeriod, QuotaState

_WHOSE: Final = {
    "total": "the total is",
    "tenant": "the tenant's limit is",
    "service": "the service's part is",
    "method": "the method's part is",
}


def states(
    policy: str, ledgers: Ledgers, usages: Usages, shown: Callable[[str], bool], now_s: float, *, whole: bool
) -> list[QuotaState]:
    """The buckets of a policy, by tenant, service and method.

    Args:
        policy: its full name.
        ledgers: all there are.
        usages: what was used since this process began.
        shown: whether a calling tenant's buckets are shown.
        now_s: the present, on the clock of `ledgers`.
        whole: whether enforcement points are shown.
    """
    ledger, period = ledgers.find(policy), ledgers.period(policy)
    if ledger is None or period is None:
        return []
    by_path: dict[Path, list[Holding]] = {}
    for holding in ledger.holdings.values():
        by_path.setdefault(holding.path, []).append(holding)
    counts = {bucket.path: used for bucket, used in usages.of_policy(policy)}
    before = ledgers.before(policy)
    found = []
    for path in sorted({*by_path, *ledger.accounts, *counts}):
        if not shown(path[0]) or ledger.tree.find(path) is None:
            continue
        state = _state(Bucket(policy, path), ledger, period, by_path.get(path, []), now_s)
        if before is not None:
            state.period.used_before = before.accounts.get(path, Account()).used
        if (count := counts.get(path)) is not None:
            state.allowed, state.denied, state.shadowed = count.allowed, count.denied, count.shadowed
        if not whole:
            del state.points[:]
        found.append(state)
    return found


def _state(bucket: Bucket, ledger: Ledger, period: Period, holdings: list[Holding], now_s: float) -> QuotaState:
    path, account = bucket.path, ledger.accounts.get(bucket.path, Account())
    *_, level = ledger.tree.along(path)
    live = [holding for holding in holdings if ledger.lives(holding, now_s)]
    held = sum(holding.out for holding in live)
    room, whose = ledger.room(path)
    state = QuotaState(
        bucket=name_of(bucket),
        limit=ledger.tree.least_ceiling(path),
        floor=level.floor,
        unit=ledger.tree.unit,
        demand=sum(holding.demand.rate for holding in live),
        period=QuotaPeriod(
            granted=account.granted,
            used=account.used,
            held=held,
            # More may be at hand than was written as given: what points had before this process began.
            lost=max(0.0, account.granted - account.used - held),
            left=room,
        ),
    )
    state.period.start.FromSeconds(int(period.start_s))
    state.period.end.FromSeconds(int(period.end_s))
    for holding in sorted(live, key=lambda one: one.point):
        node, name = holding.point
        state.points.add(node=node, point=name, demand=holding.demand.rate, share=holding.out)
    state.reason = f"{_WHOSE[whose]} used up" if room < 1 else f"{room:.0f} can still be given"
    if room >= 1 and (kept := min(room, ledger.kept.get(path, 0.0))) >= 1:
        state.reason += f", {kept:.0f} of it to points that have had little"
    return state
