"""How much of a limit is left unused: a model of the run of `benchmarks.accuracy`, in a time of its own.

Calls come at random to points that take them out of buckets of their own, as there. Shares are divided by the real
`Leases`, and taken from the SDK's, or as an agent's real `Assignments` tell an Envoy; what is modelled is the way
between the two: how often points report (Envoys each five seconds), how long a word takes, when it is acknowledged, and
an Envoy's buckets (`EnvoyBuckets`). The reference are the same calls at the same points where somebody who knows how
often each tenant is going to call each point gives each at once its part of what is fair, with no more saved up than
the bound of docs/quotas.md lets points save. What that leaves unused is chance: nobody could use it who can't know when
a call will come.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from benchmarks import accuracy_figures as figures
from benchmarks.accuracy_figures import Record
from benchmarks.result import Case
from meshwarden.agents.quota.assignment import Assignments
from meshwarden.agents.quota.point import Key
from meshwarden.controlplane.quota.allocator import fill
from meshwarden.controlplane.quota.lease import Lease, Share, Usage
from meshwarden.controlplane.quota.leases import Leases as Divided
from meshwarden.controlplane.quota.pool import Pool
from meshwarden.controlplane.quota.tree import Bucket, Level, Point
from meshwarden.sdk.quota.lease import OFTEN_S, Leases
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec
from meshwarden.xds import quota_names

POLICY: Final = "platform/orders"
WARM_S, STEADY_S, TURN_S = 20.0, 60.0, 30.0
WAY_S, TICK_S, LEAST_S = 0.06, 0.5, 0.1
_ENVOY_S, _OBEYED_S, _STEP_S = 5.0, 0.5, 0.25
_Event = tuple[float, int, Callable[..., None], tuple[Any, ...]]


def cases(
    limit: int, mean: Mapping[str, float], weights: Mapping[str, float], points: int, envoys: int
) -> Iterator[Case]:
    """Yields what is left unused of a limit: of such, and of one of seven times as many calls."""
    for times in (1, 7):
        case = Case(
            "quota",
            f"under-use, model, {limit * times} calls a second",
            "who knows how often each point is called",
            "%",
            may_be_nothing=True,
        )
        more = {tenant: rate * times for tenant, rate in mean.items()}
        for seed in range(3 if times == 1 else 1):
            ours, theirs = (World(limit * times, more, weights, points, envoys, seed) for _ in range(2))
            case.add(ours.run(ours.divide), theirs.run(theirs.foresee))
        yield case
    case = Case("quota", "over-admission 10 s, model", "one bucket in one process", "%", "lower", may_be_nothing=True)
    for seed in range(3):
        ours, theirs = (World(limit, mean, weights, points, envoys, seed) for _ in range(2))
        ours.run(ours.divide)
        theirs.run(theirs.keep_together)
        case.add(ours.over_admission(), theirs.over_admission())
    yield case


class World:
    """Points, who divides, and what happens when."""

    def __init__(
        self, limit: int, mean: Mapping[str, float], weights: Mapping[str, float], points: int, envoys: int, seed: int
    ) -> None:
        self._limit, self._mean, self._weights = limit, mean, weights
        self._rng, self._due, self._numbers = random.Random(seed), list[_Event](), itertools.count()
        self._parts = [1 / (number + 1) ** 0.7 for number in range(points)]
        self._is_envoy = [number % 3 == 1 and number // 3 < envoys for number in range(points)]
        self._envoys: dict[int, EnvoyBuckets] = {}
        self._tree = Level(ceiling=limit, parts={t: Level(weight=w, ceiling=limit) for t, w in weights.items()})
        self._divided = Divided(0.0, learn=False)
        self._divided.put(POLICY, self._tree)
        self._points = [Point(f"node-{number % 2}", f"orders/{number}") for number in range(points)]
        limits = [RateLimit(tenant=tenant, requests=limit, burst=limit) for tenant in weights]
        self._leases = [Leases() for _ in range(points)]
        for leases in self._leases:
            leases.update(PolicyLimits(policy=POLICY, spec=RatePolicySpec(limits=limits)), 0.0)
            leases.prolong(math.inf, 0.0)
        self._obeyed, self._told_s, self._asks = [0] * points, [-math.inf] * points, [False] * points
        self._ticked_s, self._will_tick = -math.inf, False
        # [left, since when] of the one bucket for all, if there is one.
        self._whole: list[float] | None = None
        self._served: dict[str, list[float]] = {tenant: [] for tenant in weights}
        self._offered: dict[str, list[float]] = {tenant: [] for tenant in weights}

    def run(self, begin: Callable[[], None]) -> float:
        """How many per cent were not used of what was called for, up to the limit, in a minute after the first."""
        for tenant in self._mean:
            self._at(0.0, self._call, tenant)
        begin()
        while self._due[0][0] < WARM_S + STEADY_S:
            now_s, _, act, arguments = heapq.heappop(self._due)
            act(now_s, *arguments)
        return figures.under_use(Record(self._served, self._offered), self._limit, WARM_S, WARM_S + STEADY_S)

    def over_admission(self) -> float:
        """By how many per cent the fullest ten seconds of that minute exceed the limit."""
        served = Record(self._served, self._offered).all_served()
        return figures.over_admission(served, self._limit, 10.0, WARM_S, WARM_S + STEADY_S)

    def keep_together(self) -> None:
        """Has all calls pass one bucket, as if there were one point."""
        self._whole = [float(self._limit), 0.0]

    def divide(self) -> None:
        """Has shares divided by what points report."""
        self._at(0.0, self._tick, True)
        for number, is_envoy in enumerate(self._is_envoy):
            self._at(self._rng.random(), self._report_steadily, number, _ENVOY_S if is_envoy else 1.0)
            if is_envoy:
                self._envoys[number] = self._envoy()
                self._at(self._rng.random(), self._say_obeyed_steadily, number)
                self._at(self._rng.random() * _STEP_S, self._assign_steadily, number)

    def _envoy(self) -> "EnvoyBuckets":
        return EnvoyBuckets()

    def foresee(self) -> None:
        """Has shares given by who knows how often each tenant calls."""
        self._at(0.0, self._give)

    def _at(self, moment_s: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._due, (moment_s, next(self._numbers), act, arguments))

    def _rate(self, tenant: str, now_s: float) -> float:
        """How often a tenant calls; it rises and falls by two fifths."""
        turn = list(self._mean).index(tenant) / 4
        return self._mean[tenant] * (1 + 0.4 * math.sin(math.tau * (now_s / TURN_S + turn)))

    def _call(self, now_s: float, tenant: str) -> None:
        most = 1.4 * self._mean[tenant]
        self._at(now_s + self._rng.expovariate(most), self._call, tenant)
        if self._rng.random() * most > self._rate(tenant, now_s):
            return
        (number,) = self._rng.choices(range(len(self._points)), self._parts)
        self._offered[tenant].append(now_s)
        if self._whole is not None:
            if self._take_together(now_s):
                self._served[tenant].append(now_s)
            return
        leases, envoy = self._leases[number], self._envoys.get(number)
        is_allowed = envoy.take(tenant, now_s) if envoy else leases.take(tenant, "/x/Y", 1, now_s).allowed
        if is_allowed:
            self._served[tenant].append(now_s)
        if leases.presses and not self._asks[number] and not self._is_envoy[number]:
            self._asks[number] = True
            self._at(max(now_s, self._told_s[number] + OFTEN_S), self._report, number)

    def _take_together(self, now_s: float) -> bool:
        assert self._whole is not None
        left, since_s = self._whole
        left = min(self._limit, left + self._limit * (now_s - since_s))
        self._whole = [left - (left >= 1), now_s]
        return left >= 1

    # -- as it is

    def _report_steadily(self, now_s: float, number: int, every_s: float) -> None:
        if now_s - self._told_s[number] >= 0.9 * every_s:
            self._report(now_s, number)
        self._at(now_s + every_s, self._report_steadily, number, every_s)

    def _say_obeyed_steadily(self, now_s: float, number: int) -> None:
        """What an agent says for its Envoy, that lives."""
        self._at(now_s + WAY_S, self._hear, number, {}, self._obeyed[number])
        self._at(now_s + 1.0, self._say_obeyed_steadily, number)

    def _assign_steadily(self, now_s: float, number: int) -> None:
        self._envoys[number].assign(now_s)
        self._at(now_s + _STEP_S, self._assign_steadily, number)

    def _report(self, now_s: float, number: int) -> None:
        self._told_s[number], self._asks[number] = now_s, False
        if number in self._envoys:
            usages = self._envoys[number].report(now_s)
        else:
            usages = {
                Bucket(POLICY, (used.bucket.tenant,)): Usage(used.allowed, used.denied, spilled=used.spilled)
                for used in self._leases[number].report(now_s).usages
            }
        self._at(now_s + WAY_S, self._hear, number, usages, self._obeyed[number])

    def _hear(self, now_s: float, number: int, usages: dict[Bucket, Usage], obeyed: int) -> None:
        self._divided.report(self._points[number], usages, now_s, acknowledged=obeyed)
        if self._divided.presses and not self._will_tick:
            self._will_tick = True
            self._at(max(now_s, self._ticked_s + LEAST_S), self._tick, False)

    def _tick(self, now_s: float, steadily: bool) -> None:
        self._will_tick, self._ticked_s = False, now_s
        told, shares = self._divided.tick(now_s)
        for point, given in shares.items():
            self._at(now_s + WAY_S, self._obey, self._points.index(point), told, given)
        if steadily:
            self._at(now_s + TICK_S, self._tick, True)

    def _obey(self, now_s: float, number: int, told: int, shares: list[Share]) -> None:
        self._grant(now_s, number, shares)
        self._at(now_s + (_OBEYED_S if self._is_envoy[number] else LEAST_S), self._acknowledge, number, told)

    def _acknowledge(self, now_s: float, number: int, told: int) -> None:
        self._obeyed[number] = max(self._obeyed[number], told)
        self._at(now_s + WAY_S, self._hear, number, {}, self._obeyed[number])

    # -- as nobody can

    def _give(self, now_s: float) -> None:
        wanted = [self._rate(tenant, now_s) for tenant in self._mean]
        weights = [self._weights[tenant] for tenant in self._mean]
        rates = dict(zip(self._mean, fill(self._limit, weights, [0.0] * len(wanted), wanted), strict=True))
        pool, whole = Pool(self._tree), sum(self._parts)
        for number, part in enumerate(self._parts):
            leases = [Lease(self._points[number], Bucket(POLICY, (tenant,)), 0.0, now_s) for tenant in rates]
            given = [pool.share(lease, rates[lease.bucket.path[0]] * part / whole) for lease in leases]
            self._grant(now_s, number, given)
        self._at(now_s + LEAST_S, self._give)

    def _grant(self, now_s: float, number: int, shares: list[Share]) -> None:
        said = [
            pb.Share(
                bucket=pb.Bucket(policy=POLICY, tenant=share.bucket.path[0]),
                rate=share.rate,
                burst=share.burst,
                more=share.more,
            )
            for share in shares
        ]
        if number in self._envoys:
            self._envoys[number].grant(said, now_s)
        else:
            self._leases[number].grant(said, now_s)


class EnvoyBuckets:
    """The buckets of an Envoy and what its agent has it do with them, as Envoy 1.40 does.

    A bucket that is told to do something else is made anew and holds the same part, in whole calls: what it had saved
    up of one is lost each time.
    """

    def __init__(self, when_away: Any = RatePolicySpec.KEEP_LAST, ends_s: float = math.inf) -> None:
        self._assignments = Assignments()
        self.prolong = self._assignments.prolong
        self.prolong(ends_s)
        spec = RatePolicySpec(when_away=when_away)
        self._limits = ServerLimits(policies=[PolicyLimits(policy=POLICY, spec=spec)])
        self.held: dict[str, tuple[float, float]] = {}
        # {tenant: [most, filled each second, left, since when, allowed, denied]}
        self._known: dict[str, list[float]] = {}

    def take(self, tenant: str, now_s: float) -> bool:
        """Whether a call is let through."""
        if tenant not in self._known:
            self._known[tenant] = [1.0, math.inf, 1.0, now_s, 0, 0]
            self._assignments.report(Key(POLICY, tenant, ""), 0, 0, now_s)
        bucket = self._known[tenant]
        self._fill(bucket, now_s)
        is_allowed = bucket[2] >= 1
        bucket[2] -= is_allowed
        bucket[4 if is_allowed else 5] += 1
        return is_allowed

    def report(self, now_s: float) -> dict[Bucket, Usage]:
        """What was used since the last report."""
        found = {}
        for tenant, bucket in self._known.items():
            allowed, denied = int(bucket[4]), int(bucket[5])
            spilled = self._assignments.report(Key(POLICY, tenant, ""), allowed, denied, now_s)
            found[Bucket(POLICY, (tenant,))] = Usage(allowed, denied, spilled=spilled)
            bucket[4] = bucket[5] = 0
        return found

    def grant(self, shares: list[pb.Share], now_s: float) -> None:
        """Takes shares."""
        self.held.update({share.bucket.tenant: (share.rate, share.burst) for share in shares})
        self._assignments.grant(shares, now_s)
        self.assign(now_s)

    def assign(self, now_s: float) -> None:
        """Does what the agent says now."""
        for action in self._assignments.due(self._limits, now_s):
            bucket = self._known.get(action["bucket_id"]["bucket"][quota_names.TENANT])
            if bucket is None or "quota_assignment_action" not in action:
                continue
            said = action["quota_assignment_action"]["rate_limit_strategy"].get("token_bucket")
            most, rate = (said["max_tokens"], said["tokens_per_fill"] / 60) if said else (1.0, 0.0)
            if [most, rate] != bucket[:2]:
                self._fill(bucket, now_s)
                bucket[2] = float(int(most * bucket[2] / bucket[0])) if said else 0.0
                bucket[:2] = [most, rate]

    def _fill(self, bucket: list[float], now_s: float) -> None:
        bucket[2] = min(bucket[0], bucket[2] + (now_s - bucket[3]) * bucket[1]) if now_s > bucket[3] else bucket[2]
        bucket[3] = now_s
