"""How much each calling tenant may use of one server: token buckets, kept as one number each.

Time is passed in, in seconds of any clock that never goes back. Nothing here blocks, reads a clock or does I/O.

Source: GCRA, ITU-T I.371 Annex A (virtual scheduling).
"""

import math
import threading
from dataclasses import dataclass

from meshwarden.v1 import node_service_pb2, resources_pb2

ANY_TENANT = "*"
# Buckets of tenants without a limit of their own; past it the full ones, which say nothing, are forgotten.
MAX_BUCKETS = 16_384


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a call may go on; if not, after how many seconds one more may."""

    allowed: bool
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Rate:
    """A bucket's shape: seconds between calls in the long run, and how many calls may come at once."""

    interval_s: float
    burst: int


_ALLOWED = Decision(allowed=True)


class Limiter:
    """The buckets of one server, one per calling tenant. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rates: dict[str, Rate] = {}
        # When the bucket will be full again (GCRA's theoretical arrival time); absent: it is full.
        self._full_at: dict[str, float] = {}
        self.policy = ""

    def update(self, limits: node_service_pb2.ServerLimits, now_s: float) -> None:
        """Puts other limits in force. A bucket keeps the calls that were spent of it, up to the new burst."""
        rates = {limit.tenant: _rate(limit) for limit in limits.limits}
        with self._lock:
            old, self._rates = self._rates, rates
            self.policy = limits.policy
            kept = {}
            for tenant, full_at in self._full_at.items():
                before = old.get(tenant) or old.get(ANY_TENANT)
                after = rates.get(tenant) or rates.get(ANY_TENANT)
                if before is not None and after is not None and full_at > now_s:
                    spent = min((full_at - now_s) / before.interval_s, after.burst)
                    kept[tenant] = now_s + spent * after.interval_s
            self._full_at = kept

    def take(self, tenant: str, now_s: float) -> Decision:
        """Takes one call of `tenant` out of its bucket; a tenant that no limit names is not limited."""
        with self._lock:
            rate = self._rates.get(tenant) or self._rates.get(ANY_TENANT)
            if rate is None:
                return _ALLOWED
            full_at = self._full_at.get(tenant, now_s)
            after = (full_at if full_at > now_s else now_s) + rate.interval_s
            # The slack of a billionth keeps sums of floats from refusing the last call of a burst.
            wait_s = after - now_s - rate.burst * rate.interval_s
            if wait_s > rate.interval_s * 1e-9 + abs(now_s) * 4e-16:
                return Decision(allowed=False, retry_after_s=wait_s)
            if tenant not in self._full_at and len(self._full_at) >= MAX_BUCKETS:
                self._forget_full(now_s)
            self._full_at[tenant] = after
            return _ALLOWED

    def _forget_full(self, now_s: float) -> None:
        self._full_at = {tenant: full_at for tenant, full_at in self._full_at.items() if full_at > now_s}


def retry_after(decision: Decision) -> str:
    """The seconds to wait, whole and at least 1, as HTTP's `Retry-After` has them (RFC 9110 §10.2.3)."""
    return str(max(1, math.ceil(decision.retry_after_s)))


def _rate(limit: resources_pb2.RateLimit) -> Rate:
    per_s = limit.per.ToTimedelta().total_seconds() or 1.0
    requests = max(1, limit.requests)
    return Rate(per_s / requests, limit.burst or max(1, int(requests / per_s / 10)))
