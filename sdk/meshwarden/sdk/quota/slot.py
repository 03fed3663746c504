"""How many calls of each tenant one server may serve at once, as its share of a limit across the mesh or by itself.

A share is a number of slots. A call has one until its handler has ended: what was taken away while calls run is free
when they have ended, and is told as in use until then. A bucket that is opened has one slot until its share comes.

Which bucket a call is in may change while it runs, with the policy. So calls are counted by tenant and method, and
buckets are counted up from that.
"""

from collections import Counter
from collections.abc import Callable
from typing import ClassVar, Final, cast

from meshwarden.sdk.quota.bucket import UNSHARED_WAIT_S, Bucket, Tenant
from meshwarden.sdk.quota.lease import Leases
from meshwarden.sdk.quota.limit import ALLOWED, Decision
from meshwarden.v1 import node_service_pb2, quota_service_pb2
from meshwarden.v1.resources_pb2 import RatePolicySpec

STARTER: Final = 1.0
"""Slots of a bucket that was just opened."""


class Slot(Bucket):
    """A bucket of slots: how many there are, and are in use."""

    __slots__ = ("in_use", "peak")

    def __init__(self, most: tuple[float, float], now_s: float) -> None:
        super().__init__(most, now_s)
        self.in_use = self.peak = 0

    @property
    def starter(self) -> float:
        """How many it has until its share comes."""
        return STARTER

    @property
    def alone(self) -> float:
        """How many it has that never had a share, while none can come."""
        return STARTER

    def take_spilled(self, now_s: float) -> float:
        """Nothing: slots don't come by themselves."""
        return 0.0

    def tune(self, rate: float, burst: float, now_s: float) -> None:
        """Has another number of slots from now on."""
        self.rate = min(rate, self.most[0])
        self.burst = float(int(min(burst, self.most[1])))

    def admits(self, amount: float, free: float) -> bool:
        """Whether there is a slot, and such a part of them beside it, whole ones; the first of all in any case."""
        most = self.burst if self.in_use == 0 else self.burst - int(free * self.burst)
        return self.in_use + amount <= most

    def is_lately_used(self, now_s: float) -> bool:
        """Whether there is something to say of it, or was a moment ago."""
        return self.in_use > 0 or self.peak > 0 or super().is_lately_used(now_s)

    def is_idle(self, now_s: float) -> bool:
        """Whether it may be forgotten."""
        return self.in_use == 0 and super().is_idle(now_s)

    def take_usage(self) -> tuple[int, int, int, int]:
        """What was used since the last time: allowed, denied, shadowed, and the most at once."""
        peak, self.peak = max(self.peak, self.in_use), self.in_use
        return (*super().take_usage()[:3], peak)

    def wait_s(self, amount: float) -> float:
        """When a call will have ended nobody knows."""
        return UNSHARED_WAIT_S


class Slots(Leases):
    """The slots of one server under one policy. Safe to share between threads."""

    _make: ClassVar[type[Bucket]] = Slot

    def __init__(self, press: Callable[[], None] = lambda: None) -> None:
        """`press` is called when a report should not wait; it must not block."""
        super().__init__(press)
        self._running = Counter[tuple[str, str]]()

    def update(self, limits: node_service_pb2.PolicyLimits, now_s: float) -> None:
        """Puts other limits in force. Calls that run go on, and count where they count now."""
        super().update(limits, now_s)
        with self._lock:
            for tenant in self._tenants.values():
                for _, bucket in tenant.buckets():
                    _slot(bucket).in_use = 0
            for (name, method), count in self._running.items():
                known = self._find_or_open(name, now_s)
                if isinstance(known, Tenant):
                    self._add(known, method, count, now_s)

    def take(self, tenant: str, method: str, amount: float, now_s: float, free: float | None = None) -> Decision:
        """Takes a slot, if one is free; a tenant that no limit names is not limited."""
        with self._lock:
            if now_s >= self._ends_s and not self._stale:
                self._set_stale(True, now_s)
            known = self._find_or_open(tenant, now_s)
            if isinstance(known, Tenant):
                bucket = self._slot(known, method, now_s)
                bucket.used_s = now_s
                if not bucket.admits(1, bucket.free if free is None else free):
                    decision = self._refuse(bucket, 1, "tenant" if bucket is known.rest else "method")
                    if not decision.allowed:
                        return decision
                else:
                    bucket.allowed += 1
                self._add(known, method, 1, now_s)
            elif not known.allowed:
                return known
            self._running[tenant, method] += 1
            return ALLOWED

    def give_back(self, tenant: str, method: str, amount: float, now_s: float) -> None:
        """Frees a slot that was taken for a call that another policy has refused."""
        self._free(tenant, method, now_s, counted=1)

    def charge(self, tenant: str, method: str, amount: float, now_s: float) -> float:
        """A call takes no more than its slot."""
        return 0.0

    def end(self, tenant: str, method: str, now_s: float) -> None:
        """Frees the slot of a call that has ended."""
        self._free(tenant, method, now_s, counted=0)

    def report(self, now_s: float, *, usage: bool = True, full: bool = False) -> quota_service_pb2.PointReport:
        """What there is to say; that fewer slots are obeyed never goes without how many are in use."""
        return super().report(now_s, usage=True, full=full)

    # -- below, with the lock held but for `_free`

    def _free(self, tenant: str, method: str, now_s: float, *, counted: int) -> None:
        with self._lock:
            self._running[tenant, method] -= 1
            if self._running[tenant, method] <= 0:
                del self._running[tenant, method]
            known = self._tenants.get(tenant)
            if known is not None:
                bucket = self._add(known, method, -1, now_s)
                bucket.allowed -= counted
                bucket.used_s = now_s

    def _slot(self, tenant: Tenant, method: str, now_s: float) -> Slot:
        key = tenant.keys.get(method)
        return _slot(self._part(tenant, key, now_s) if key is not None else tenant.rest)

    def _add(self, tenant: Tenant, method: str, count: int, now_s: float) -> Slot:
        bucket = self._slot(tenant, method, now_s)
        bucket.in_use = max(0, bucket.in_use + count)
        bucket.peak = max(bucket.peak, bucket.in_use)
        return bucket

    def _sweep(self, now_s: float) -> None:
        if self._spec.scope == RatePolicySpec.POINT:
            for tenant in self._tenants.values():  # what nobody is told of keeps no bucket
                for _, bucket in tenant.buckets():
                    bucket.take_usage()
        super()._sweep(now_s)

    def _tune(self, bucket: Bucket, now_s: float) -> None:
        if self._spec.scope == RatePolicySpec.POINT:
            bucket.tune(*bucket.most, now_s)
        else:
            super()._tune(bucket, now_s)


def _slot(bucket: Bucket) -> Slot:
    return cast(Slot, bucket)  # as `_make` has it
