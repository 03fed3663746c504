"""How much each calling tenant may use of one server out of amounts for an hour, a day or a month.

An amount is given in chunks, which are used up. `Chunks` decides with what it has at each call, asks for the next
while half of the last is left, and keeps what it was given, has left and has given back as sums: so nothing that is
said twice, late or never to or by the agent makes an amount grow. Time is passed in, in seconds of any clock that never
goes back; nothing here blocks, reads a clock or does I/O.

Nothing is there before it was given: unlike a rate's, a bucket is opened empty. So a call that finds nothing may wait
for a moment until more is given; if that doesn't come no other call waits until it has. Who is away from his agent goes
on with what he has.
"""

import functools
import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from meshwarden.sdk.quota.limit import ALLOWED, ANY_TENANT, ONE, Coming, Decision
from meshwarden.sdk.quota.part import key_of, keys_of
from meshwarden.sdk.quota.unit import amount_of, told, unit_of
from meshwarden.v1 import node_service_pb2, quota_service_pb2
from meshwarden.v1.resources_pb2 import MethodLimit, RateLimit, RatePolicySpec

LATELY_S: Final = 10.0
IDLE_S: Final = 60.0
"""What isn't used for so long is given back."""
MAX_TENANTS: Final = 16_384
"""How many tenants without a limit of their own have buckets; the calls of further ones are refused."""
SWEEP_S: Final = 1.0
"""How often idle ones are looked for while there are so many."""
LONGEST_WAIT_S: Final = 86_400.0
"""A refused caller is told to come back in a day at the latest: a limit may be raised."""
WAIT_S: Final = 0.25
"""For so long a call may wait for more."""
_SOON_S: Final = 0.5
_MOST: Final = 1e15


@dataclass(slots=True, eq=False)
class _Bucket:
    """What this server has of one bucket in one turn, and what was used since the last report.

    Attributes:
        series, turn, amount, left, returned, wanted: as in the message Chunks.
        used_s: when a call came last.
        turned_s: when the turn began here.
        until_s: when it ends.
        low: at how much left more is asked for.
        asked: whether it was asked for since there was more.
        coming: what calls wait for, until `waits_until_s`.
        news: whether there is something to say though no call came.
        spent: whose limit has nothing left to be given.
        most: the most that a period can have for it.
        whose: whose limit that is.
        allowed: what calls took that were let in.
        denied: what those would have taken that were not.
        shadowed: what was let in for the shadow's sake alone.
    """

    series: int
    used_s: float
    turned_s: float
    turn: int = 0
    until_s: float = -math.inf
    amount: float = 0.0
    left: float = 0.0
    returned: float = 0.0
    wanted: float = 0.0
    low: float = 0.0
    asked: bool = False
    coming: Future[None] | None = None
    waits_until_s: float = -math.inf
    news: bool = False
    spent: str = ""
    most: float = math.inf
    whose: str = ""
    allowed: float = 0.0
    denied: float = 0.0
    shadowed: float = 0.0

    def obey(self, chunk: quota_service_pb2.Chunk, until_s: float, now_s: float) -> None:
        """Takes what it was given in all."""
        if chunk.turn != self.turn:
            # What calls took before there was anything is taken out of the first that comes.
            self.left = 0.0 if self.turn else min(self.left, 0.0)
            self.turn, self.turned_s = chunk.turn, now_s
            self.amount = self.returned = 0.0
        if self.amount < chunk.amount <= _MOST:
            self.left += chunk.amount - self.amount
            self.amount = chunk.amount
            self.low, self.wanted, self.asked = self.left / 2, 0.0, False
        self.until_s, self.spent, self.news = until_s, chunk.spent, True
        self.arrive()

    def arrive(self) -> None:
        """Has those who wait for more look again."""
        if self.coming is not None:
            self.coming.set_result(None)
            self.coming = None

    def is_spent(self, now_s: float) -> bool:
        """Whether nothing more will come in this period."""
        return bool(self.spent) and now_s < self.until_s

    def give_back(self) -> None:
        """Gives back what is left."""
        if self.left > 0:
            self.returned += self.left
            self.left, self.low, self.news = 0.0, 0.0, True

    def say(self, usage: quota_service_pb2.BucketUsage) -> None:
        """Puts what there is to say into a message, and begins to count anew."""
        allowed = max(0, int(self.allowed))
        usage.allowed, usage.denied, usage.shadowed = allowed, int(self.denied), int(self.shadowed)
        # More may have been put back since than was taken: that counts against what will be.
        self.allowed, self.denied, self.shadowed = self.allowed - allowed, 0.0, 0.0
        chunks = usage.chunks
        chunks.series, chunks.turn, chunks.amount, chunks.left = self.series, self.turn, self.amount, self.left
        chunks.returned, chunks.wanted = self.returned, self.wanted
        chunks.asks = not self.spent and (self.wanted > 0 or self.left < self.low)
        self.wanted, self.news = 0.0, False


class _Tenant:
    """The buckets of one tenant, as those of `meshwarden.sdk.quota.bucket.Tenant`."""

    __slots__ = ("keys", "limit", "methods", "parts", "rest")

    def __init__(self, limit: RateLimit, rest: _Bucket) -> None:
        self.limit, self.rest = limit, rest
        self.keys, self.methods = keys_of(limit.methods), {key_of(part): part for part in limit.methods}
        self.parts: dict[str, _Bucket] = {}

    def buckets(self) -> Iterable[tuple[str, _Bucket]]:
        """Its buckets: (method, bucket); the method of the rest is empty."""
        return (("", self.rest), *self.parts.items())

    def bucket(self, method: str) -> _Bucket | None:
        """The one of a method's calls, if it is there yet."""
        key = self.keys.get(method)
        return self.parts.get(key) if key is not None else self.rest


class Chunks:
    """The buckets of one server under one policy. Safe to share between threads."""

    def __init__(self, press: Callable[[], None], new_series: Callable[[], int]) -> None:
        """Has nothing yet.

        Args:
            press: is called when a report should not wait; it must not block.
            new_series: gives a number above 0 that nobody else has.
        """
        self._lock = threading.Lock()
        self._press, self._pressed, self._new_series = press, False, new_series
        self._policy, self._unit, self._spec = "", "", RatePolicySpec()
        self._limits: dict[str, RateLimit] = {}
        self._tenants: dict[str, _Tenant] = {}
        self._ends_s, self._closed = -math.inf, False
        self._swept_s = -math.inf

    def update(self, limits: node_service_pb2.PolicyLimits, now_s: float) -> None:
        """Puts other limits in force; what was given stays."""
        with self._lock:
            self._policy, self._unit, self._spec = limits.policy, told(unit_of(limits.spec)), limits.spec
            self._limits = {limit.tenant: limit for limit in limits.spec.limits}
            before, self._tenants = self._tenants, {}
            for name, tenant in before.items():
                limit = self._limits.get(name) or self._limits.get(ANY_TENANT)
                if limit is not None:
                    made = self._tenants[name] = _Tenant(limit, tenant.rest)
                    made.parts = {method: part for method, part in tenant.parts.items() if method in made.methods}
                    for method, bucket in made.buckets():
                        self._bound(bucket, limit, made.methods.get(method))

    def take(self, tenant: str, method: str, amount: float, now_s: float, free: float | None = None) -> Decision:
        """Takes so much out of the bucket of a call; a tenant that no limit names is not limited.

        Nothing is saved up in an amount that is used up, so `free`, a part of that, means nothing.
        """
        with self._lock:
            known = self._tenants.get(tenant) or self._open(tenant, now_s)
            if known is None:
                if tenant in self._limits or ANY_TENANT in self._limits:
                    return Decision(False, _SOON_S, "tenant", self._policy)
                return ALLOWED
            bucket = known.bucket(method)
            if bucket is None:
                key = known.keys[method]
                bucket = known.parts[key] = self._bucket(known.limit, known.methods[key], now_s)
            bucket.used_s = now_s
            if bucket.left < amount * ONE or now_s >= bucket.until_s or self._is_stopped(now_s):
                return self._refuse(bucket, amount, "tenant" if bucket is known.rest else "method", now_s)
            bucket.left -= amount
            bucket.allowed += amount
            if bucket.left < bucket.low and not bucket.asked:
                bucket.asked = True
                self._ask()
            return ALLOWED

    def give_back(self, tenant: str, method: str, amount: float, now_s: float) -> None:
        """Puts back what was taken at `now_s` for a call that another policy has refused, or that took less."""
        with self._lock:
            known = self._tenants.get(tenant)
            bucket = known.bucket(method) if known is not None else None
            # What was taken of another turn is not there to be put back.
            if bucket is not None and bucket.turned_s <= now_s:
                bucket.left = min(bucket.left + amount, bucket.amount - bucket.returned)
                bucket.allowed -= amount

    def charge(self, tenant: str, method: str, amount: float, now_s: float) -> float:
        """Takes more; see `quota.admission.Engine`. Nothing is put back of which nobody knows the turn."""
        with self._lock:
            # A call may have been silent until its bucket was forgotten.
            known = self._tenants.get(tenant) or (self._open(tenant, now_s) if amount > 0 else None)
            if known is None:
                return 0.0
            bucket = known.bucket(method)
            if bucket is None:
                key = known.keys[method]
                bucket = known.parts[key] = self._bucket(known.limit, known.methods[key], now_s)
            bucket.used_s, more = now_s, max(0.0, amount)
            bucket.left -= more
            bucket.allowed += more
            if bucket.left < bucket.low and not bucket.asked:
                bucket.asked = True
                self._ask()
            return _SOON_S if bucket.left < 0 and not self._spec.shadow else 0.0

    def end(self, tenant: str, method: str, now_s: float) -> None:
        """A call that was let in has ended, which frees nothing."""

    @property
    def presses(self) -> bool:
        """Whether more should be given soon."""
        return self._pressed

    def report(self, now_s: float, *, usage: bool = True, full: bool = False) -> quota_service_pb2.PointReport:
        """What there is to say.

        Args:
            now_s: the present.
            usage: whether to say what was used since that was last said.
            full: whether to say it of all buckets, not only of those that were used lately.
        """
        report = quota_service_pb2.PointReport()
        if not (usage or full):
            return report
        with self._lock:
            self._pressed, unit = False, self._unit
            for name, tenant in list(self._tenants.items()):
                for method, bucket in tenant.buckets():
                    if now_s - bucket.used_s >= IDLE_S:
                        bucket.give_back()
                    if full or bucket.news or bucket.denied or now_s - bucket.used_s < LATELY_S:
                        named = quota_service_pb2.Bucket(policy=self._policy, tenant=name, method=method, unit=unit)
                        bucket.say(report.usages.add(bucket=named))
                self._forget_idle(name, tenant, now_s)
        return report

    def grant(self, shares: Iterable[quota_service_pb2.Share], base_s: float, now_s: float) -> None:
        """Takes chunks; those of buckets that aren't there are let go.

        Args:
            shares: what was given.
            base_s: when the report was sent that was answered last.
            now_s: the present.
        """
        with self._lock:
            for share in shares:
                tenant = self._tenants.get(share.bucket.tenant)
                named = share.bucket.method
                bucket = (tenant.parts.get(named) if named else tenant.rest) if tenant is not None else None
                chunk = share.chunk
                if bucket is not None and chunk.series == bucket.series and not self._closed:
                    until_s = base_s + chunk.until.seconds + chunk.until.nanos / 1e9
                    bucket.obey(chunk, until_s, now_s)

    def prolong(self, ends_s: float, now_s: float) -> None:
        """The agent and the control plane are there until `ends_s`."""
        self._ends_s = max(self._ends_s, ends_s)

    def close(self) -> None:
        """Gives back all that is left, to be said by the next report, and lets no call in any more."""
        with self._lock:
            self._closed = True
            for tenant in self._tenants.values():
                for _, bucket in tenant.buckets():
                    bucket.give_back()
                    bucket.arrive()

    # -- below, with the lock held

    def _is_stopped(self, now_s: float) -> bool:
        return self._closed or (self._spec.when_away == RatePolicySpec.DENY and now_s >= self._ends_s)

    def _refuse(self, bucket: _Bucket, amount: float, level: str, now_s: float) -> Decision:
        """The decision about a call for which there is too little."""
        if amount <= bucket.most and not bucket.is_spent(now_s):
            is_waiting = not self._spec.shadow and self._may_wait(bucket, now_s)
            # Those who wait need theirs together; others come again one by one.
            wanted = bucket.wanted + amount if is_waiting else max(bucket.wanted, amount)
            bucket.wanted = min(wanted, bucket.most)
            self._ask()
            if is_waiting and bucket.coming is not None:
                late = functools.partial(self._deny_late, bucket, amount, level, now_s)
                return Decision(
                    False, _SOON_S, level, self._policy, coming=Coming(bucket.coming, bucket.waits_until_s, late)
                )
        return self._deny(bucket, amount, level, now_s)

    def _may_wait(self, bucket: _Bucket, now_s: float) -> bool:
        """Whether a call may wait for what is asked for: while somebody answers, and nobody has waited in vain."""
        if self._closed or -math.inf < self._ends_s <= now_s:
            return False
        if bucket.coming is None:
            bucket.coming, bucket.waits_until_s = Future(), now_s + WAIT_S
        return now_s < bucket.waits_until_s

    def _deny_late(self, bucket: _Bucket, amount: float, level: str, now_s: float) -> Decision:
        with self._lock:
            return self._deny(bucket, amount, level, now_s)

    def _deny(self, bucket: _Bucket, amount: float, level: str, now_s: float) -> Decision:
        """Counts a call as refused, but in shadow mode."""
        if self._spec.shadow:
            bucket.allowed += amount
            bucket.shadowed += amount
            return ALLOWED
        bucket.denied += min(amount, bucket.most)
        if amount > bucket.most:
            return Decision(False, math.inf, bucket.whose, self._policy, bucket.most)
        if not bucket.is_spent(now_s):
            return Decision(False, _SOON_S, level, self._policy)
        return Decision(False, min(bucket.until_s - now_s, LONGEST_WAIT_S), bucket.spent, self._policy)

    def _ask(self) -> None:
        if not self._pressed:
            self._pressed = True
            self._press()

    def _bucket(self, limit: RateLimit, part: MethodLimit | None, now_s: float) -> _Bucket:
        made = _Bucket(self._new_series(), used_s=now_s, turned_s=now_s)
        self._bound(made, limit, part)
        return made

    def _bound(self, bucket: _Bucket, limit: RateLimit, part: MethodLimit | None) -> None:
        """Notes the least of the limits that a bucket's calls are held against."""
        bounds = [(amount_of(limit), "tenant")]
        if part is not None:
            bounds.append((amount_of(part), "method"))
        if self._spec.HasField("total"):
            bounds.append((amount_of(self._spec.total), "total"))
        bucket.most, bucket.whose = min(bounds)

    def _open(self, name: str, now_s: float) -> _Tenant | None:
        limit = self._limits.get(name) or self._limits.get(ANY_TENANT)
        if limit is None or (limit.tenant == ANY_TENANT and not self._has_room(now_s)):
            return None
        made = self._tenants[name] = _Tenant(limit, self._bucket(limit, None, now_s))
        return made

    def _has_room(self, now_s: float) -> bool:
        """Whether one more tenant may have buckets; looks for idle ones, which takes a while, once a second."""
        most = MAX_TENANTS + len(self._limits)
        if len(self._tenants) >= most and now_s - self._swept_s >= SWEEP_S:
            self._swept_s = now_s
            for name, tenant in list(self._tenants.items()):
                self._forget_idle(name, tenant, now_s)
        return len(self._tenants) < most

    def _forget_idle(self, name: str, tenant: _Tenant, now_s: float) -> None:
        """Forgets what was given back a while ago."""
        for method, part in list(tenant.parts.items()):
            if _is_over(part, now_s):
                del tenant.parts[method]
        if not tenant.parts and _is_over(tenant.rest, now_s):
            del self._tenants[name]


def _is_over(bucket: _Bucket, now_s: float) -> bool:
    return now_s - bucket.used_s >= 2 * IDLE_S and bucket.left <= 0 and not bucket.news
