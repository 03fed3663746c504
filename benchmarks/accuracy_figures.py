"""How near to its limits a mesh has let calls through, by when calls came and which were served. Pure."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshwarden.controlplane.quota.allocator import fill

Moments = Sequence[float]
"""When something happened, in seconds, rising."""


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        served: when calls of each tenant were served, as the servers say.
        offered: when each tenant called, as the callers say.
    """

    served: Mapping[str, Moments]
    offered: Mapping[str, Moments]

    def all_served(self) -> list[float]:
        """When calls of any tenant were served."""
        return sorted(moment for moments in self.served.values() for moment in moments)


def rate(moments: Moments, begin_s: float, end_s: float) -> float:
    """How many a second there were in a time."""
    return (bisect_left(moments, end_s) - bisect_left(moments, begin_s)) / (end_s - begin_s)


def over_admission(served: Moments, limit: float, window_s: float, begin_s: float, end_s: float) -> float:
    """By how many per cent the fullest window exceeds what the limit gives in it; 0 if none does.

    What may be saved up for a burst counts as exceeding: only of windows that it fills is nothing left of it.
    """
    fullest = 0
    for start in range(bisect_left(served, begin_s), bisect_left(served, end_s - window_s)):
        fullest = max(fullest, bisect_right(served, served[start] + window_s) - start)
    return max(0.0, 100 * (fullest / (limit * window_s) - 1))


def fair(record: Record, limit: float, weights: Mapping[str, float], begin_s: float, end_s: float) -> dict[str, float]:
    """What each tenant should have had a second: all it called for, or its part by weight where that is too little."""
    tenants = sorted(weights)
    wanted = [rate(record.offered[tenant], begin_s, end_s) for tenant in tenants]
    shares = fill(limit, [weights[tenant] for tenant in tenants], [0.0] * len(tenants), wanted)
    return dict(zip(tenants, shares, strict=True))


def under_use(record: Record, limit: float, begin_s: float, end_s: float) -> float:
    """How many per cent were not served of the lesser of the limit and what was called for, second by second."""
    should = had = 0.0
    for start, end in _slices(begin_s, end_s, 1.0):
        wanted = sum(rate(moments, start, end) for moments in record.offered.values())
        should += min(limit, wanted)
        had += sum(rate(moments, start, end) for moments in record.served.values())
    return max(0.0, 100 * (1 - had / should))


def jain(record: Record, limit: float, weights: Mapping[str, float], begin_s: float, end_s: float) -> float:
    """Jain's index of what each tenant had beside its fair part, the mean of slices of ten seconds; 1 is fair.

    Source: Jain, Chiu and Hawe, "A Quantitative Measure of Fairness" (DEC-TR-301, 1984).
    """
    found = []
    for start, end in _slices(begin_s, end_s, 10.0):
        parts = fair(record, limit, weights, start, end)
        ratios = [rate(record.served[tenant], start, end) / part for tenant, part in parts.items() if part > 0]
        found.append(sum(ratios) ** 2 / (len(ratios) * sum(ratio * ratio for ratio in ratios)))
    return sum(found) / len(found)


def converged_s(record: Record, event_s: float, end_s: float, *, hold_s: float = 5.0, least: float = 0.05) -> float:
    """How long after an event each tenant has what it has in the last third of the time, and keeps it.

    What differs over `hold_s` by less than `least` of it, or by less than three standard deviations of so many calls at
    random, is the same. Infinite if it is not so to the end.
    """
    settled_s, step_s = end_s - (end_s - event_s) / 3, 0.25
    means = {tenant: rate(moments, settled_s, end_s) for tenant, moments in record.served.items()}

    def is_settled(start: float) -> bool:
        return all(
            abs(rate(record.served[tenant], start, start + hold_s) - mean)
            <= max(least * mean, 3 * math.sqrt(max(mean, 1 / hold_s) / hold_s))
            for tenant, mean in means.items()
        )

    last = int((end_s - hold_s - event_s) / step_s)
    since = last + 1
    while since > 0 and is_settled(event_s + (since - 1) * step_s):
        since -= 1
    return since * step_s if since <= last else math.inf


def _slices(begin_s: float, end_s: float, length_s: float) -> list[tuple[float, float]]:
    """A time in pieces; what is left at its end is let go."""
    count = int((end_s - begin_s) / length_s)
    return [(begin_s + number * length_s, begin_s + (number + 1) * length_s) for number in range(count)]
