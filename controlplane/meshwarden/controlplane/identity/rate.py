"""A token bucket for each of a bounded number of callers. Pure."""

from collections import OrderedDict
from datetime import datetime

CAPACITY = 100_000


class Rate:
    """Allows each caller so many at once, and so many a second."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        # {caller: (tokens, when)}, the longest unheard first
        self._buckets: OrderedDict[str, tuple[float, datetime]] = OrderedDict()

    def take(self, caller: str, now: datetime) -> float:
        """Takes one; returns 0, or in how many seconds there will be one."""
        tokens, since = self._buckets.pop(caller, (float(self._burst), now))
        # A clock that was set back takes nothing away.
        elapsed_s = max(0.0, (now - since).total_seconds())
        tokens = min(float(self._burst), tokens + elapsed_s * self._per_s)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) / self._per_s
        self._buckets[caller] = (tokens - 1 if tokens >= 1 else tokens, now)
        while len(self._buckets) > CAPACITY:
            self._buckets.popitem(last=False)
        return wait_s
