"""How much each calling tenant may use of one server as its share of limits that hold across the mesh.

A share is leased: so many calls a second, until a moment. `Leases` decides with it at each call, keeps the usage for
the next report, and takes what the answers say. Time is passed in, in seconds of any clock that never goes back;
nothing here blocks, reads a clock or does I/O.

A call is in one bucket: that of its method if its tenant's limit has a part for it, else that of the rest of its
tenant's calls. The levels above are held by how the shares are divided.

What is in a bucket is counted absolutely: another share fills it at another rate but puts nothing into it, so that a
limit that moves between points mints no calls. A bucket that is opened holds `STARTER` calls, so that a tenant's first
call need not wait for its share; one that has not been used for `IDLE_S`, and has no share, is forgotten.

Source: the algorithm and its bound, docs/quotas.md.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from meshwarden.sdk.limit import ALLOWED, ANY_TENANT, DEBT_S, ONE, Decision
from meshwarden.sdk.unit import amount_of
from meshwarden.v1 import node_service_pb2, quota_service_pb2
from meshwarden.v1.resources_pb2 import MethodLimit, Rate, RateLimit, RatePolicySpec

STARTER: Final = 2.0
"""Calls in a bucket that was just opened; calls a second of one that never had a share, while none can come."""
IDLE_S: Final = 60.0
LATELY_S: Final = 10.0
MAX_TENANTS: Final = 16_384
"""How many tenants without a limit of their own have buckets; the calls of further ones are refused."""
_UNSHARED_WAIT_S: Final = 1.0
_Limit: TypeAlias = "RateLimit | MethodLimit | Rate"


class _Bucket:
    """One bucket: what is in it and as of when, how it fills, its share, and what was used since the last report."""

    __slots__ = ("allowed", "at_s", "burst", "denied", "lease", "left", "most", "rate", "shadowed", "used_s")

    def __init__(self, most: tuple[float, float], now_s: float) -> None:
        self.most = most
        self.left, self.at_s, self.used_s = STARTER, now_s, now_s
        self.rate, self.burst = 0.0, STARTER
        self.lease: tuple[float, float] | None = None
        self.allowed = self.denied = self.shadowed = 0.0

    @property
    def least(self) -> float:
        """How far below nothing it may be."""
        rate, burst = self.most
        return -(rate * DEBT_S + burst)

    def lends(self, amount: float) -> bool:
        """Whether it lets through what seems to be too much: by rounding, or if it is full and the limit could."""
        return self.left >= amount * ONE or (0 < self.burst * ONE <= self.left and amount <= self.most[1])

    def fill(self, now_s: float) -> float:
        """Brings it to now, and returns what is in it."""
        if now_s > self.at_s:
            self.left = min(self.burst, self.left + (now_s - self.at_s) * self.rate)
            self.at_s = now_s
        return self.left

    def tune(self, rate: float, burst: float, now_s: float) -> None:
        """Fills it differently from now on."""
        self.fill(now_s)
        self.rate = min(rate, self.most[0])
        # Less than one would never let a call through.
        self.burst = max(1.0, min(burst, self.most[1])) if self.rate > 0 else burst
        self.left = min(self.left, self.burst)

    def take_usage(self) -> tuple[int, int, int]:
        """What was used since the last time: allowed, denied, shadowed."""
        used = max(0, int(self.allowed)), int(self.denied), int(self.shadowed)
        # More may have been put back since than was taken: that counts against what will be.
        self.allowed, self.denied, self.shadowed = self.allowed - used[0], 0, 0
        return used

    def wait_s(self, amount: float) -> float:
        """In how many seconds there is so much."""
        return (amount - self.left) / self.rate if self.rate > 0 else _UNSHARED_WAIT_S


class _Tenant:
    """The buckets of one tenant: one for each of its methods that has a limit, and one for the rest of its calls."""

    __slots__ = ("limit", "methods", "parts", "rest")

    def __init__(self, limit: RateLimit, now_s: float) -> None:
        self.limit = limit
        self.rest = _Bucket(_most(limit), now_s)
        self.methods = {part.method: part for part in limit.methods}
        self.parts: dict[str, _Bucket] = {}

    def buckets(self) -> Iterable[tuple[str, _Bucket]]:
        """Its buckets: (method, bucket); the method of the rest is empty."""
        return (("", self.rest), *self.parts.items())


class Leases:
    """The buckets of one server under one policy. Safe to share between threads."""

    def __init__(self, press: Callable[[], None] = lambda: None) -> None:
        """`press` is called when a report should not wait; it must not block."""
        self._lock = threading.Lock()
        self._press, self._pressed = press, False
        self._policy, self._spec = "", RatePolicySpec()
        self._limits: dict[str, RateLimit] = {}
        self._tenants: dict[str, _Tenant] = {}
        self._ends_s, self._stale = float("-inf"), True

    def update(self, limits: node_service_pb2.PolicyLimits, now_s: float) -> None:
        """Puts other limits in force. What was spent stays spent, and shares stay what they are."""
        with self._lock:
            if limits.policy != self._policy:
                self._tenants = {}
            self._policy, self._spec = limits.policy, limits.spec
            self._limits = {limit.tenant: limit for limit in limits.spec.limits}
            before, self._tenants = self._tenants, {}
            for name, tenant in before.items():
                limit = self._limits.get(name) or self._limits.get(ANY_TENANT)
                if limit is not None:
                    self._tenants[name] = self._changed(tenant, limit, now_s)

    def take(self, tenant: str, method: str, amount: float, now_s: float) -> Decision:
        """Takes so much out of the bucket of a call; a tenant that no limit names is not limited."""
        with self._lock:
            if now_s >= self._ends_s and not self._stale:
                self._set_stale(True, now_s)
            known = self._tenants.get(tenant)
            if known is None:
                limit = self._limits.get(tenant) or self._limits.get(ANY_TENANT)
                if limit is None:
                    return ALLOWED
                known = self._open(tenant, limit, now_s)
                if known is None:
                    return Decision(False, _UNSHARED_WAIT_S, "tenant", self._policy)
            bucket = self._part(known, method, now_s) if method in known.methods else known.rest
            # As `fill` does it; a call costs a tenth of a microsecond.
            if now_s > bucket.at_s:
                left = bucket.left + (now_s - bucket.at_s) * bucket.rate
                bucket.left = left if left < bucket.burst else bucket.burst
                bucket.at_s = now_s
            bucket.used_s = now_s
            if bucket.left < amount and not bucket.lends(amount):
                return self._refuse(bucket, amount, "tenant" if bucket is known.rest else "method")
            bucket.left -= amount
            bucket.allowed += amount
            return ALLOWED

    def give_back(self, tenant: str, method: str, amount: float, now_s: float) -> None:
        """Puts back what was taken for a call that another policy has refused."""
        self.charge(tenant, method, -amount, now_s)

    def charge(self, tenant: str, method: str, amount: float, now_s: float) -> float:
        """Takes more, or puts back; see `meshwarden.sdk.admission.Engine`."""
        with self._lock:
            known = self._tenants.get(tenant)
            if known is None:
                return 0.0
            bucket = known.parts.get(method, known.rest) if method in known.methods else known.rest
            bucket.left = max(bucket.least, min(bucket.burst, bucket.fill(now_s) - amount))
            bucket.allowed += amount
            return bucket.wait_s(0) if bucket.left < 0 else 0.0

    def end(self, tenant: str, method: str, now_s: float) -> None:
        """A call that was let in has ended, which frees nothing."""

    @property
    def presses(self) -> bool:
        """Whether a call was refused or a bucket opened since the last report of usage."""
        return self._pressed

    def report(self, now_s: float, *, usage: bool = True, full: bool = False) -> quota_service_pb2.PointReport:
        """What there is to say.

        Args:
            now_s: the present.
            usage: whether to say what was used since that was last said. Buckets that were used lately are told with
                nothing, since what isn't told changes nothing.
            full: whether to say what may be used now.
        """
        told, held = [], []
        with self._lock:  # for as short as can be: calls wait meanwhile
            policy = self._policy
            if usage:
                self._pressed = False
            for name, tenant in list(self._tenants.items()):
                for method, bucket in tenant.buckets():
                    if usage and (bucket.allowed >= 1 or bucket.denied or now_s - bucket.used_s < LATELY_S):
                        told.append((name, method, *bucket.take_usage()))
                    if full and bucket.rate > 0:
                        held.append((name, method, bucket.rate, bucket.burst))
                self._forget_idle(name, tenant, now_s)
        report = quota_service_pb2.PointReport()
        for name, method, allowed, denied, shadowed in told:
            named = quota_service_pb2.Bucket(policy=policy, tenant=name, method=method)
            report.usages.add(bucket=named, allowed=allowed, denied=denied, shadowed=shadowed)
        for name, method, rate, burst in held:
            named = quota_service_pb2.Bucket(policy=policy, tenant=name, method=method)
            report.held.add(bucket=named, rate=rate, burst=burst)
        return report

    def grant(self, shares: Iterable[quota_service_pb2.Share], now_s: float) -> None:
        """Obeys shares; those of buckets that aren't there are let go."""
        with self._lock:
            for share in shares:
                bucket = self._find(share.bucket)
                if bucket is not None:
                    bucket.lease = (max(0.0, share.rate), max(0.0, share.burst))
                    self._tune(bucket, now_s)

    def prolong(self, ends_s: float, now_s: float) -> None:
        """The leases hold until `ends_s`."""
        with self._lock:
            self._ends_s = max(self._ends_s, ends_s)
            if self._stale and now_s < self._ends_s:
                self._set_stale(False, now_s)

    # -- below, with the lock held

    def _refuse(self, bucket: _Bucket, amount: float, level: str) -> Decision:
        self._ask()
        if self._spec.shadow:
            bucket.allowed += amount
            bucket.shadowed += amount
            return ALLOWED
        bucket.denied += amount
        return Decision(False, bucket.wait_s(amount), level, self._policy)

    def _ask(self) -> None:
        if not self._pressed:
            self._pressed = True
            self._press()

    def _open(self, name: str, limit: RateLimit, now_s: float) -> _Tenant | None:
        if limit.tenant == ANY_TENANT and len(self._tenants) >= MAX_TENANTS + len(self._limits):
            for known, idle in list(self._tenants.items()):
                self._forget_idle(known, idle, now_s)
            if len(self._tenants) >= MAX_TENANTS + len(self._limits):
                return None
        made = self._tenants[name] = _Tenant(limit, now_s)
        self._begin(made.rest, now_s)
        return made

    def _part(self, tenant: _Tenant, method: str, now_s: float) -> _Bucket:
        part = tenant.parts.get(method)
        if part is None:
            part = tenant.parts[method] = _Bucket(_most(tenant.methods[method]), now_s)
            self._begin(part, now_s)
        return part

    def _begin(self, bucket: _Bucket, now_s: float) -> None:
        self._tune(bucket, now_s)
        self._ask()

    def _changed(self, tenant: _Tenant, limit: RateLimit, now_s: float) -> _Tenant:
        """A tenant's buckets under another limit."""
        made = _Tenant(limit, now_s)
        made.rest = tenant.rest
        made.parts = {method: part for method, part in tenant.parts.items() if method in made.methods}
        for method, bucket in made.buckets():
            bucket.most = _most(made.methods[method] if method else limit)
            self._tune(bucket, now_s)
        return made

    def _set_stale(self, stale: bool, now_s: float) -> None:
        self._stale = stale
        for tenant in self._tenants.values():
            for _, bucket in tenant.buckets():
                self._tune(bucket, now_s)

    def _tune(self, bucket: _Bucket, now_s: float) -> None:
        spec, lease = self._spec, bucket.lease
        if not self._stale:
            # Until its share comes it has what it was opened with.
            bucket.tune(*(lease or (0.0, STARTER)), now_s)
        elif spec.when_away == RatePolicySpec.DENY:
            bucket.tune(0.0, 0.0, now_s)
        elif spec.when_away == RatePolicySpec.FALLBACK:
            bucket.tune(*_most(spec.fallback), now_s)
        else:
            bucket.tune(*(lease or (STARTER, STARTER)), now_s)

    def _forget_idle(self, name: str, tenant: _Tenant, now_s: float) -> None:
        for method, part in list(tenant.parts.items()):
            if _is_idle(part, now_s):
                del tenant.parts[method]
        if not tenant.parts and _is_idle(tenant.rest, now_s):
            del self._tenants[name]

    def _find(self, named: quota_service_pb2.Bucket) -> _Bucket | None:
        tenant = self._tenants.get(named.tenant)
        if tenant is None or named.policy != self._policy:
            return None
        return tenant.parts.get(named.method) if named.method else tenant.rest


def _most(limit: _Limit) -> tuple[float, float]:
    """The rate in calls a second and the burst of a limit."""
    per_s = limit.per.seconds + limit.per.nanos / 1e9 or 1.0
    return amount_of(limit) / per_s, float(max(1, limit.burst))


def _is_idle(bucket: _Bucket, now_s: float) -> bool:
    return (
        now_s - bucket.used_s >= IDLE_S
        # One in debt is kept until the whole limit could have paid it.
        and bucket.left + (now_s - bucket.used_s) * bucket.most[0] >= 0
        and not (bucket.allowed >= 1 or bucket.denied)
        and (bucket.lease is None or bucket.lease[0] <= 0)
    )
