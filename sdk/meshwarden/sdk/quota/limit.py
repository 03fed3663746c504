"""How much each calling tenant may use of one server by itself: token buckets of a policy with scope POINT.

Time is passed in, in seconds of any clock that never goes back. Nothing here blocks, reads a clock or does I/O.

A bucket is what is left in it and since when. Sums of times (as in GCRA's virtual scheduling) would lose the last calls
of a large burst to rounding, the more the longer the machine has been up.
"""

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, NamedTuple

from meshwarden.sdk.quota.unit import amount_of
from meshwarden.v1 import node_service_pb2, resources_pb2

ANY_TENANT = "*"
# Buckets of tenants without a limit of their own; past it the full ones, which say nothing, are forgotten.
MAX_BUCKETS = 16_384
DEBT_S: Final = 60.0
"""The most that a bucket owes is its burst, and what the limit gives in so many seconds; the rest is forgiven."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a call may go on.

    Attributes:
        allowed: whether it may.
        retry_after_s: if not, after how many seconds one more may.
        level: if not, whose limit it is: "total" (only of an amount for a period), "tenant", "service" or "method".
        policy: if not, the policy's name.
        most: if no such call ever may: how much one may take at most.
        coming: if not, but soon perhaps: what it may wait for. It is not counted as refused then.
    """

    allowed: bool
    retry_after_s: float = 0.0
    level: str = ""
    policy: str = ""
    most: float | None = None
    coming: "Coming | None" = None


class Coming(NamedTuple):
    """What a call may wait for that found nothing.

    Attributes:
        arrived: done when there is more, or will be none: take again then.
        until_s: until when to wait for it, on the clock of `take`.
        refuse: has the call counted as refused, and returns that decision: for who waits no more.
    """

    arrived: "Future[None]"
    until_s: float
    refuse: Callable[[], Decision]


@dataclass(frozen=True, slots=True)
class Rate:
    """A bucket's shape: seconds for one in the long run, and how much may come at once."""

    interval_s: float
    burst: int

    @property
    def least(self) -> float:
        """How far below nothing it may be."""
        return -(DEBT_S / self.interval_s + self.burst)


ALLOWED: Final = Decision(allowed=True)
ONE: Final = 1 - 1e-6
"""A whole call, but for what rounding takes."""


class Limiter:
    """The buckets of one server under one policy, one per calling tenant. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._policy = ""
        self._rates: dict[str, Rate] = {}
        # What is left in a bucket, and as of when; absent: it is full.
        self._buckets: dict[str, tuple[float, float]] = {}

    def update(self, limits: node_service_pb2.PolicyLimits, now_s: float) -> None:
        """Puts other limits in force. A bucket keeps the calls that were spent of it, up to the new burst."""
        rates = {limit.tenant: _rate(limit) for limit in limits.spec.limits}
        with self._lock:
            self._policy = limits.policy
            old, self._rates = self._rates, rates
            kept = {}
            for tenant, bucket in self._buckets.items():
                before = old.get(tenant) or old.get(ANY_TENANT)
                after = rates.get(tenant) or rates.get(ANY_TENANT)
                if before is not None and after is not None:
                    spent = before.burst - _left(bucket, before, now_s)
                    kept[tenant] = (max(0.0, after.burst - spent), now_s)
            self._buckets = kept

    def take(self, tenant: str, method: str, amount: float, now_s: float, free: float | None = None) -> Decision:
        """Takes so much of a tenant's bucket, whatever the method; one that no limit names is not limited."""
        if not self._rates:
            return ALLOWED
        with self._lock:
            rate = self._rates.get(tenant) or self._rates.get(ANY_TENANT)
            if rate is None:
                return ALLOWED
            bucket = self._buckets.get(tenant)
            left = rate.burst if bucket is None else _left(bucket, rate, now_s)
            need = amount if not free else max(amount, min(float(rate.burst), amount + free * rate.burst))
            if amount > rate.burst:
                return Decision(False, math.inf, "tenant", self._policy, float(rate.burst))
            if left < need * ONE:
                return Decision(False, (need - left) * rate.interval_s, "tenant", self._policy)
            if bucket is None and len(self._buckets) >= MAX_BUCKETS:
                self._forget_full(now_s)
            self._buckets[tenant] = (left - amount, now_s)
            return ALLOWED

    def give_back(self, tenant: str, method: str, amount: float, now_s: float) -> None:
        """Puts back what was taken for a call that another policy has refused."""
        self.charge(tenant, method, -amount, now_s)

    def charge(self, tenant: str, method: str, amount: float, now_s: float) -> float:
        """Takes more, or puts back; see `meshwarden.sdk.quota.admission.Engine`."""
        with self._lock:
            rate, bucket = self._rates.get(tenant) or self._rates.get(ANY_TENANT), self._buckets.get(tenant)
            if rate is not None and (bucket is not None or amount > 0):
                bucket = bucket or (float(rate.burst), now_s)  # it was full, and forgotten
                left = max(rate.least, min(float(rate.burst), _left(bucket, rate, now_s) - amount))
                self._buckets[tenant] = (left, now_s)
                return max(0.0, -left * rate.interval_s)
        return 0.0

    def end(self, tenant: str, method: str, now_s: float) -> None:
        """A call that was let in has ended, which frees nothing."""

    def _forget_full(self, now_s: float) -> None:
        self._buckets = {
            tenant: bucket
            for tenant, bucket in self._buckets.items()
            if (rate := self._rates.get(tenant) or self._rates.get(ANY_TENANT))
            and _left(bucket, rate, now_s) < rate.burst
        }


def _left(bucket: tuple[float, float], rate: Rate, now_s: float) -> float:
    """What is in a bucket now."""
    left, at_s = bucket
    return min(float(rate.burst), left + max(0.0, now_s - at_s) / rate.interval_s)


def retry_after(decision: Decision) -> str:
    """The seconds to wait, whole and at least 1, as HTTP's `Retry-After` has them (RFC 9110 §10.2.3)."""
    return str(max(1, math.ceil(decision.retry_after_s)))


def _rate(limit: resources_pb2.RateLimit) -> Rate:
    per_s = limit.per.ToTimedelta().total_seconds() or 1.0
    amount = max(1, amount_of(limit))
    return Rate(per_s / amount, limit.burst or max(1, int(amount / per_s / 10)))
