"""How much each tenant's programs may send through this node, in bytes and in things a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """What a tenant may send in the long run, and for how many seconds of it at once.

    Attributes:
        size_bytes: a second.
        items: spans, points and records of logs a second.
        burst_s: how much may come at once.
    """

    size_bytes: int
    items: int
    burst_s: float = 5.0


class Budget:
    """Two buckets for each tenant. A request is let in while neither is empty, and may overdraw them."""

    def __init__(self, rate: Rate, now_s: Callable[[], float] = time.monotonic) -> None:
        """Starts with full buckets; `now_s` is any clock that never goes back."""
        self._rate, self._now_s = rate, now_s
        # {tenant: (bytes spent of its bucket, things spent, when)}; no more tenants than the node has entries of.
        self._spent: dict[str, tuple[float, float, float]] = {}

    def wait_s(self, tenant: str) -> float:
        """How long a tenant has to wait; 0 if it may send."""
        size_bytes, items = self._spent_now(tenant)
        rate = self._rate
        over_s = max(size_bytes / rate.size_bytes, items / rate.items) - rate.burst_s
        return over_s if over_s >= 0 else 0.0

    def spend(self, tenant: str, size_bytes: int, items: int) -> None:
        """Charges a tenant for what it has sent."""
        spent_bytes, spent_items = self._spent_now(tenant)
        self._spent[tenant] = (spent_bytes + size_bytes, spent_items + items, self._now_s())

    def _spent_now(self, tenant: str) -> tuple[float, float]:
        size_bytes, items, at_s = self._spent.get(tenant, (0.0, 0.0, 0.0))
        passed_s = self._now_s() - at_s
        return (
            max(0.0, size_bytes - passed_s * self._rate.size_bytes),
            max(0.0, items - passed_s * self._rate.items),
        )
