"""How much each calling tenant may use of one server as its share of limits that hold across the mesh.

A share is leased: so much a second, until a moment. `Leases` decides with it at each call, keeps the usage for
the next report, and takes what the answers say. Time is passed in, in seconds of any clock that never goes back;
nothing here blocks, reads a clock or does I/O.

A call is in one bucket: that of its method if its tenant's limit has a part for it, else that of the rest of its
tenant's calls. The levels above are held by how the shares are divided.

A bucket that is opened holds a few calls, so that a tenant's first need not wait for its share; one that has not been
used for a minute, and has no share, is forgotten.

Source: the algorithm and its bound, docs/quotas.md.
"""

import math
import threading
from collections.abc import Callable, Iterable
from typing import ClassVar, Final

from meshwarden.sdk.quota.bucket import UNSHARED_WAIT_S, Bucket, Large, Tenant, free_of, most_of
from meshwarden.sdk.quota.limit import ALLOWED, ANY_TENANT, Decision
from meshwarden.sdk.quota.unit import told, unit_of
from meshwarden.v1 import node_service_pb2, quota_service_pb2
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

MAX_TENANTS: Final = 16_384
"""How many tenants without a limit of their own have buckets; the calls of further ones are refused."""
SWEEP_S: Final = 1.0
"""How often idle ones are looked for while there are so many."""
OFTEN_S: Final = 0.25
"""So long after a report of usage refused calls can wait for the next."""


class Leases:
    """The buckets of one server under one policy. Safe to share between threads."""

    _make: ClassVar[type[Bucket]] = Bucket

    def __init__(self, press: Callable[[], None] = lambda: None) -> None:
        """`press` is called when a report should not wait; it must not block.

        Nor should one wait for longer than `OFTEN_S` while this `presses`.
        """
        self._lock = threading.Lock()
        self._press, self._pressed, self._told_s = press, False, float("-inf")
        self._policy, self._unit, self._spec = "", "", RatePolicySpec()
        self._limits: dict[str, RateLimit] = {}
        self._tenants: dict[str, Tenant] = {}
        self._ends_s, self._stale = float("-inf"), True
        self._swept_s = float("-inf")

    def update(self, limits: node_service_pb2.PolicyLimits, now_s: float) -> None:
        """Puts other limits in force. What was spent stays spent, and shares stay what they are."""
        with self._lock:
            if limits.policy != self._policy:
                self._tenants = {}
            self._policy, self._unit, self._spec = limits.policy, told(unit_of(limits.spec)), limits.spec
            self._limits = {limit.tenant: limit for limit in limits.spec.limits}
            before, self._tenants = self._tenants, {}
            for name, tenant in before.items():
                limit = self._limits.get(name) or self._limits.get(ANY_TENANT)
                if limit is not None:
                    self._tenants[name] = self._changed(tenant, limit, now_s)

    def take(self, tenant: str, method: str, amount: float, now_s: float, free: float | None = None) -> Decision:
        """Takes so much out of the bucket of a call; a tenant that no limit names is not limited."""
        with self._lock:
            if now_s >= self._ends_s and not self._stale:
                self._set_stale(True, now_s)
            known = self._tenants.get(tenant)
            if known is None:
                opened = self._find_or_open(tenant, now_s)
                if not isinstance(opened, Tenant):
                    return opened
                known = opened
            key = known.keys.get(method)
            bucket = self._part(known, key, now_s) if key is not None else known.rest
            # As `fill` does it; a call costs a tenth of a microsecond.
            if now_s > bucket.at_s:
                left, burst = bucket.left + (now_s - bucket.at_s) * bucket.rate, bucket.burst
                if left > burst:
                    bucket.spilled += left - burst
                    left = burst
                bucket.left = left
                bucket.at_s = now_s
            bucket.used_s = now_s
            if free is None:
                free = bucket.free
            if (free or bucket.left < amount) and not bucket.admits(amount, free):
                return self._refuse(bucket, amount, "tenant" if bucket is known.rest else "method")
            bucket.left -= amount
            bucket.allowed += amount
            return ALLOWED

    def give_back(self, tenant: str, method: str, amount: float, now_s: float) -> None:
        """Puts back what was taken for a call that another policy has refused."""
        self.charge(tenant, method, -amount, now_s)

    def charge(self, tenant: str, method: str, amount: float, now_s: float) -> float:
        """Takes more, or puts back; see `meshwarden.sdk.quota.admission.Engine`."""
        with self._lock:
            known: Tenant | Decision | None = self._tenants.get(tenant)
            if known is None and amount > 0:  # a call that was silent until its bucket was forgotten
                known = self._find_or_open(tenant, now_s)
            if not isinstance(known, Tenant):
                return known.retry_after_s if known is not None else 0.0
            key = known.keys.get(method)
            if key is not None and (amount > 0 or key in known.parts):
                bucket = self._part(known, key, now_s)
            else:
                bucket = known.rest
            bucket.used_s = max(bucket.used_s, now_s)
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
            full: whether to say what may be used once that is answered: what was given last, whether its lease still
                runs or not.
        """
        used, held = [], []
        with self._lock:  # for as short as can be: calls wait meanwhile
            policy, unit = self._policy, self._unit
            stale = self._stale or now_s >= self._ends_s  # then others may have what would run over here
            if usage:
                self._pressed, self._told_s = False, now_s
            for name, tenant in list(self._tenants.items()):
                for method, bucket in tenant.buckets():
                    if usage and bucket.is_lately_used(now_s):
                        spilled = bucket.take_spilled(now_s)
                        used.append((name, method, *bucket.take_usage(), 0.0 if stale else spilled))
                    if full and bucket.lease is not None and bucket.lease[0] > 0:
                        rate, burst = bucket.lease
                        held.append((name, method, min(rate, bucket.most[0]), burst))
                self._forget_idle(name, tenant, now_s)
        report = quota_service_pb2.PointReport()
        for name, method, allowed, denied, shadowed, in_use, spilled in used:
            named = quota_service_pb2.Bucket(policy=policy, tenant=name, method=method, unit=unit)
            said = report.usages.add(bucket=named, allowed=allowed, denied=denied, shadowed=shadowed, in_use=in_use)
            said.spilled = spilled
        for name, method, rate, burst in held:
            named = quota_service_pb2.Bucket(policy=policy, tenant=name, method=method, unit=unit)
            report.held.add(bucket=named, rate=rate, burst=burst)
        return report

    def grant(self, shares: Iterable[quota_service_pb2.Share], now_s: float) -> bool:
        """Obeys shares; those of buckets that aren't there, or that count something else, are let go.

        Returns:
            Whether one is lower than it was: then others wait for our word that it is obeyed.
        """
        lower = False
        with self._lock:
            for share in shares:
                bucket = self._find(share.bucket)
                if bucket is not None and not share.HasField("chunk"):
                    lower = lower or share.rate < bucket.rate
                    bucket.lease = (max(0.0, share.rate), max(0.0, share.burst))
                    self._tune(bucket, now_s)
                    if share.more > 0 and not self._stale:
                        bucket.put(share.more)
        return lower

    def prolong(self, ends_s: float, now_s: float) -> None:
        """The leases hold until `ends_s`."""
        with self._lock:
            self._ends_s = max(self._ends_s, ends_s)
            if self._stale and now_s < self._ends_s:
                self._set_stale(False, now_s)

    # -- below, with the lock held

    def _refuse(self, bucket: Bucket, amount: float, level: str) -> Decision:
        self._ask(bucket.used_s)
        if self._spec.shadow:
            bucket.allowed += amount
            bucket.shadowed += amount
            return ALLOWED
        _, most = bucket.most
        bucket.denied += min(amount, most)
        if amount > most:
            return Decision(False, math.inf, level, self._policy, most)
        return Decision(False, bucket.wait_s(amount), level, self._policy)

    def _ask(self, now_s: float) -> None:
        if not self._pressed:
            self._pressed = True
            if now_s - self._told_s >= OFTEN_S:
                self._press()

    def _find_or_open(self, name: str, now_s: float) -> Tenant | Decision:
        """The buckets of a tenant, or the decision about its call if it has none."""
        known = self._tenants.get(name)
        if known is not None:
            return known
        limit = self._limits.get(name) or self._limits.get(ANY_TENANT)
        if limit is None:
            return ALLOWED
        return self._open(name, limit, now_s) or Decision(False, UNSHARED_WAIT_S, "tenant", self._policy)

    def _open(self, name: str, limit: RateLimit, now_s: float) -> Tenant | None:
        if limit.tenant == ANY_TENANT and not self._has_room(now_s):
            return None
        made = self._tenants[name] = Tenant(limit, self._make, now_s)
        self._begin(made.rest, now_s)
        return made

    def _has_room(self, now_s: float) -> bool:
        """Whether one more tenant may have buckets; looks for idle ones, which takes a while, once a second."""
        most = MAX_TENANTS + len(self._limits)
        if len(self._tenants) >= most and now_s - self._swept_s >= SWEEP_S:
            self._swept_s = now_s
            self._sweep(now_s)
        return len(self._tenants) < most

    def _sweep(self, now_s: float) -> None:
        for name, tenant in list(self._tenants.items()):
            self._forget_idle(name, tenant, now_s)

    def _part(self, tenant: Tenant, key: str, now_s: float) -> Bucket:
        part = tenant.parts.get(key)
        if part is None:
            limit = tenant.methods[key]
            part = tenant.parts[key] = self._make(most_of(limit), now_s)
            part.free = free_of(limit)
            self._begin(part, now_s)
        return part

    def _begin(self, bucket: Bucket, now_s: float) -> None:
        self._tune(bucket, now_s)
        self._pressed = True
        self._press()

    def _changed(self, tenant: Tenant, limit: RateLimit, now_s: float) -> Tenant:
        """A tenant's buckets under another limit."""
        made = Tenant(limit, self._make, now_s)
        made.rest = tenant.rest
        made.parts = {method: part for method, part in tenant.parts.items() if method in made.methods}
        for method, bucket in made.buckets():
            bucket.most = most_of(made.methods[method] if method else limit)
            bucket.free = free_of(made.methods[method]) if method else 0.0
            self._tune(bucket, now_s)
        return made

    def _set_stale(self, stale: bool, now_s: float) -> None:
        self._stale = stale
        for tenant in self._tenants.values():
            for _, bucket in tenant.buckets():
                self._tune(bucket, now_s)
                bucket.spilled = 0.0

    def _tune(self, bucket: Bucket, now_s: float) -> None:
        spec, lease = self._spec, bucket.lease
        if not self._stale:
            # Until its share comes it has what it was opened with.
            bucket.tune(*(lease or (0.0, bucket.starter)), now_s)
        elif spec.when_away == RatePolicySpec.DENY:
            bucket.tune(0.0, 0.0, now_s)
        elif spec.when_away == RatePolicySpec.FALLBACK:
            bucket.tune(*most_of(spec.fallback), now_s)
        else:
            bucket.tune(*(lease or (bucket.alone, max(bucket.alone, bucket.starter))), now_s)

    def _forget_idle(self, name: str, tenant: Tenant, now_s: float) -> None:
        for method, part in list(tenant.parts.items()):
            if part.is_idle(now_s):
                del tenant.parts[method]
        if not tenant.parts and tenant.rest.is_idle(now_s):
            del self._tenants[name]

    def _find(self, named: quota_service_pb2.Bucket) -> Bucket | None:
        tenant = self._tenants.get(named.tenant)
        if tenant is None or named.policy != self._policy or named.unit != self._unit:
            return None
        return tenant.parts.get(named.method) if named.method else tenant.rest


class Costs(Leases):
    """The same of what calls cost."""

    _make: ClassVar[type[Bucket]] = Large
