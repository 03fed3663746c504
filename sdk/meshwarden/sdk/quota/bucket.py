"""What one server's calls of one tenant are taken out of: token buckets. Time is passed in; nothing here blocks.

What is in a bucket is counted absolutely: another share fills it at another rate but puts nothing into it, so that a
limit that moves between points mints no calls.
"""

from collections.abc import Iterable
from typing import Final, TypeAlias

from meshwarden.sdk.backpressure.criticality import FREE_OF_BUCKET, Criticality
from meshwarden.sdk.quota.limit import DEBT_S, ONE
from meshwarden.sdk.quota.part import key_of, keys_of
from meshwarden.sdk.quota.unit import amount_of
from meshwarden.v1.resources_pb2 import MethodLimit, Rate, RateLimit

STARTER: Final = 2.0
"""What is in a bucket that was just opened: calls, or enough of anything else to let one in."""
STARTING_PART: Final = 1 / 50
"""In that of a limit of which more may come at once there is so much of that: its share is half a second away."""
IDLE_S: Final = 60.0
LATELY_S: Final = 10.0
UNSHARED_WAIT_S: Final = 1.0
_Limit: TypeAlias = "RateLimit | MethodLimit | Rate"


class Bucket:
    """One bucket: what is in it and as of when, how it fills, its share, and what was used since the last report."""

    __slots__ = (
        "allowed",
        "at_s",
        "burst",
        "denied",
        "free",
        "lease",
        "left",
        "most",
        "rate",
        "shadowed",
        "spilled",
        "used_s",
    )

    def __init__(self, most: tuple[float, float], now_s: float) -> None:
        self.most, self.free = most, 0.0
        self.left, self.at_s, self.used_s = self.starter, now_s, now_s
        self.rate, self.burst = 0.0, self.starter
        self.lease: tuple[float, float] | None = None
        self.allowed = self.denied = self.shadowed = self.spilled = 0.0

    @property
    def starter(self) -> float:
        """What it has until its share comes."""
        return max(STARTER, self.most[1] * STARTING_PART)

    @property
    def alone(self) -> float:
        """What a second brings of one that never had a share, while none can come."""
        return STARTER

    @property
    def least(self) -> float:
        """How far below nothing it may be."""
        rate, burst = self.most
        return -(rate * DEBT_S + burst)

    def admits(self, amount: float, free: float) -> bool:
        """Whether it lets so much through and has such a part of its burst left.

        A full one does in any case, if the whole limit could.
        """
        if (amount + free * self.burst) * ONE <= self.left:
            return True
        return 0 < self.burst * ONE <= self.left and amount <= self.most[1]

    def fill(self, now_s: float) -> float:
        """Brings it to now, and returns what is in it."""
        if now_s > self.at_s:
            self.left += (now_s - self.at_s) * self.rate
            self.at_s = now_s
            self._cut()
        return self.left

    def tune(self, rate: float, burst: float, now_s: float) -> None:
        """Fills it differently from now on."""
        self.fill(now_s)
        self.rate = min(rate, self.most[0])
        # Less than one would never let a call through.
        self.burst = max(1.0, min(burst, self.most[1])) if self.rate > 0 else burst
        self._cut()

    def _cut(self) -> None:
        """Lets run over what it can't hold."""
        if self.left > self.burst:
            self.spilled += self.left - self.burst
            self.left = self.burst

    def put(self, more: float) -> None:
        """Puts so much into it, once."""
        self.left += min(more, self.burst)
        self._cut()

    def take_spilled(self, now_s: float) -> float:
        """What has run over since the last time."""
        self.fill(now_s)
        spilled, self.spilled = self.spilled, 0.0
        return spilled

    def is_lately_used(self, now_s: float) -> bool:
        """Whether there is something to say of it, or was a moment ago."""
        return self.allowed >= 1 or self.denied > 0 or now_s - self.used_s < LATELY_S

    def is_idle(self, now_s: float) -> bool:
        """Whether it may be forgotten."""
        return (
            now_s - self.used_s >= IDLE_S
            # One in debt is kept until the whole limit could have paid it.
            and self.left + (now_s - self.used_s) * self.most[0] >= 0
            and not (self.allowed >= 1 or self.denied)
            and (self.lease is None or self.lease[0] <= 0)
        )

    def take_usage(self) -> tuple[int, int, int, int]:
        """What was used since the last time: allowed, denied, shadowed, and at once."""
        used = max(0, int(self.allowed)), int(self.denied), int(self.shadowed), 0
        # More may have been put back since than was taken: that counts against what will be.
        self.allowed, self.denied, self.shadowed = self.allowed - used[0], 0, 0
        return used

    def wait_s(self, amount: float) -> float:
        """In how many seconds there is so much, or it is full."""
        return (min(amount, self.burst) - self.left) / self.rate if self.rate > 0 else UNSHARED_WAIT_S


class Large(Bucket):
    """A bucket of which a call takes many."""

    __slots__ = ()

    @property
    def alone(self) -> float:
        """A fiftieth of the limit: what one point of many would have."""
        return max(STARTER, self.most[0] / 50)


class Tenant:
    """The buckets of one tenant: one for each of its methods and classes that has a limit, and one for all else.

    Attributes:
        keys: which part a method's calls are in, {method: key}.
        methods: the limits of parts, by key.
        parts: the buckets of those that are used, by key.
        rest: the bucket of its other calls.
    """

    __slots__ = ("keys", "limit", "methods", "parts", "rest")

    def __init__(self, limit: RateLimit, make: type[Bucket], now_s: float) -> None:
        self.limit = limit
        self.rest = make(most_of(limit), now_s)
        self.keys, self.methods = keys_of(limit.methods), {key_of(part): part for part in limit.methods}
        self.parts: dict[str, Bucket] = {}

    def buckets(self) -> Iterable[tuple[str, Bucket]]:
        """Its buckets: (method, bucket); the method of the rest is empty."""
        return (("", self.rest), *self.parts.items())


def most_of(limit: _Limit) -> tuple[float, float]:
    """The rate in calls a second and the burst of a limit."""
    per_s = limit.per.seconds + limit.per.nanos / 1e9 or 1.0
    return amount_of(limit) / per_s, float(max(1, limit.burst))


def free_of(limit: MethodLimit) -> float:
    """Which part of a method's burst must be left after a call that doesn't say how much it matters."""
    return FREE_OF_BUCKET[Criticality(limit.criticality)] if limit.criticality else 0.0
