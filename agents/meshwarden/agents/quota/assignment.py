"""What an Envoy is told to do with its buckets, in the terms of its rate limit quota service.

Envoy's ways, which these assignments keep to (1.40): times are read in whole seconds, and an assignment without an end
ends at once; a bucket fills by whole calls, so it does each minute by sixty times its rate, which Envoy spreads
evenly. An assignment that is the same again prolongs the last.

A changed bucket stays full to the same part, but in whole calls: what it had saved up of the next call is lost, each
time. Of few calls a second that is most of them. So a share that grows is told each two seconds, and what a bucket lost
that has refused calls comes back to it.

Source: envoy/service/rate_limit_quota/v3/rlqs.proto, envoy/type/v3/ratelimit_strategy.proto.
"""

from collections.abc import Iterable
from typing import Any, Final

from meshwarden.agents.quota.point import MAX_BUCKETS, MAX_COUNT, Amount, Key
from meshwarden.sdk.quota.bucket import STARTER, STARTING_PART, most_of
from meshwarden.sdk.quota.limit import ANY_TENANT
from meshwarden.sdk.quota.part import key_of
from meshwarden.sdk.quota.unit import amount_of
from meshwarden.v1 import node_service_pb2, quota_service_pb2
from meshwarden.v1.resources_pb2 import Rate, RatePolicySpec
from meshwarden.xds import quota_names as names

PATIENCE_S: Final = 0.25
"""So long a new bucket may wait for its first share; until then Envoy lets its calls pass."""
RENEWAL_S: Final = 1.0
MORE_S: Final = 2.0
"""So long after a change it can wait for more."""
BACK_S: Final = 2.75
"""A bucket gets back what it lost at such a pace until its next report: twice as much, half of which is lost again. Of
what it then has had too much it gets nothing back next time."""
IDLE_S: Final = 15.0
"""A bucket without a share that was not used for so long is let go."""
_FILL_S: Final = 60
_MOST: Final = 2**32 - 1
_LEASED: Final = "4s"
"""How long what must not be kept without the agent holds: it is renewed each second."""
_KEPT: Final = "86400s"

ALLOW: Final[dict[str, Any]] = {"blanket_rule": "ALLOW_ALL"}
DENY: Final[dict[str, Any]] = {"blanket_rule": "DENY_ALL"}


class _Bucket:
    """One bucket.

    Attributes:
        changes: how often it was told to do something else since its last report.
        kept: how many calls less it let through than its share gave: what it holds, and what it lost. Below 0, how many
            more.
        summed_s: up to when what its share gave is in `kept`.
        back: calls a second that it gets beside its share, for what it lost.
        is_away: whether it was told what holds while nobody divides.
    """

    __slots__ = (
        "back",
        "changed_s",
        "changes",
        "is_away",
        "kept",
        "opened_s",
        "said",
        "said_s",
        "share",
        "summed_s",
        "used_s",
    )

    def __init__(self, now_s: float) -> None:
        self.opened_s = self.used_s = self.said_s = self.changed_s = self.summed_s = now_s
        self.share: Amount | None = None
        self.said: dict[str, Any] | None = None
        self.changes, self.kept, self.back, self.is_away = 0, 0.0, 0.0, False

    def sum(self, now_s: float) -> None:
        """Adds what its share gave until now."""
        if self.share is not None:
            self.kept += (now_s - self.summed_s) * self.share.rate
        self.summed_s = now_s

    def grant(self, share: Amount, more: float, now_s: float) -> None:
        """Takes a share, and what is given beside it once."""
        self.sum(now_s)
        self.share = share
        self.kept += more
        self.back += more / BACK_S

    def report(self, allowed: int, denied: int, now_s: float) -> float:
        """Takes what was let through and refused since the last report; returns how much ran over.

        A bucket that refused calls has lost what it didn't let through: to each change less than a call.
        """
        self.sum(now_s)
        self.used_s = now_s
        self.kept -= allowed
        held = max(1.0, self.share.burst if self.share is not None else 0.0)
        lost = max(0.0, min(self.kept, self.changes + 1.0)) if denied else 0.0
        spilled = max(0.0, self.kept - max(held, lost))
        self.kept -= spilled
        self.back, self.changes = lost / BACK_S, 0
        return spilled

    def say(self, strategy: dict[str, Any], now_s: float) -> dict[str, Any] | None:
        """What is to be said of it now: what changes, and at times what holds. More can wait for a moment."""
        can_wait = now_s - self.changed_s < MORE_S and not self.is_away and _is_more(strategy, self.said)
        if strategy != self.said and not can_wait:
            self.said, self.changed_s = strategy, now_s
            self.changes += 1
        elif now_s - self.said_s < RENEWAL_S:
            return None
        self.said_s = now_s
        return self.said


class Assignments:
    """The buckets of one Envoy. Time is passed in, in seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._buckets: dict[Key, _Bucket] = {}
        self._ends_s = float("-inf")

    def report(self, key: Key, allowed: int, denied: int, now_s: float) -> float | None:
        """Notes what calls came for a bucket since its last report.

        Returns:
            How much of what it might let through ran over; None if there are too many buckets already.
        """
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                return None
            bucket = self._buckets[key] = _Bucket(now_s)
        return bucket.report(allowed, denied, now_s)

    def grant(self, shares: Iterable[quota_service_pb2.Share], now_s: float) -> None:
        """Takes shares; those of buckets that aren't there are let go."""
        for share in shares:
            bucket = self._buckets.get(Key.of(share.bucket))
            if bucket is not None:
                bucket.grant(Amount.of(share), share.more if 0 < share.more < MAX_COUNT else 0.0, now_s)

    def prolong(self, ends_s: float) -> None:
        """The shares hold until `ends_s`."""
        self._ends_s = max(self._ends_s, ends_s)

    def due(self, limits: node_service_pb2.ServerLimits, now_s: float) -> list[dict[str, Any]]:
        """The actions to send now, in JSON form: what has changed, and what must be renewed."""
        actions, specs = [], {policy.policy: policy.spec for policy in limits.policies}
        for key, bucket in list(self._buckets.items()):
            spec = specs.get(key.policy)
            if spec is None or _is_over(bucket, now_s):
                del self._buckets[key]
                actions.append(_action(key, {"abandon_action": {}}))
                continue
            strategy = self._strategy(key, bucket, spec, now_s)
            said = None if strategy is None else bucket.say(strategy, now_s)
            if now_s < self._ends_s:
                bucket.is_away = False
            if said is not None:
                assigned = {"assignment_time_to_live": _ttl(spec), "rate_limit_strategy": said}
                actions.append(_action(key, {"quota_assignment_action": assigned}))
        return actions

    def _strategy(self, key: Key, bucket: _Bucket, spec: RatePolicySpec, now_s: float) -> dict[str, Any] | None:
        """What a bucket is to do; None while its first share may yet come."""
        if spec.shadow:
            return ALLOW
        if now_s >= self._ends_s and spec.when_away in (RatePolicySpec.DENY, RatePolicySpec.FALLBACK):
            # Its share is others' by now.
            bucket.summed_s, bucket.is_away = now_s, True
            return DENY if spec.when_away == RatePolicySpec.DENY else _tokens(_amount(spec.fallback))
        if bucket.share is not None:
            return _tokens(Amount(bucket.share.rate + bucket.back, bucket.share.burst))
        return _tokens(_starter(spec, key)) if now_s - bucket.opened_s >= PATIENCE_S else None


def _starter(spec: RatePolicySpec, key: Key) -> Amount:
    """What a bucket has of which nobody says anything: what an SDK server's begins with."""
    limits = {limit.tenant: limit for limit in spec.limits}
    limit = limits.get(key.tenant) or limits.get(ANY_TENANT)
    if limit is None:
        return Amount(STARTER, STARTER)
    part = next((part for part in limit.methods if key_of(part) == key.method), None)
    return Amount(STARTER, max(STARTER, most_of(part or limit)[1] * STARTING_PART))


def _ttl(spec: RatePolicySpec) -> str:
    """How long an assignment holds that the agent doesn't renew."""
    keeps = spec.when_away in (RatePolicySpec.WHEN_AWAY_UNSPECIFIED, RatePolicySpec.KEEP_LAST)
    return _KEPT if keeps else _LEASED


def _is_over(bucket: _Bucket, now_s: float) -> bool:
    return bucket.share is not None and bucket.share.rate <= 0 and now_s - bucket.used_s >= IDLE_S


def _is_more(strategy: dict[str, Any], than: dict[str, Any] | None) -> bool:
    new, old = strategy.get("token_bucket"), (than or {}).get("token_bucket")
    return bool(new and old and all(new[name] >= old[name] for name in ("max_tokens", "tokens_per_fill")))


def _tokens(amount: Amount) -> dict[str, Any]:
    fill = int(amount.rate * _FILL_S)
    if fill < 1:
        return DENY
    tokens = {
        "max_tokens": min(_MOST, max(1, int(amount.burst))),
        "tokens_per_fill": min(_MOST, fill),
        "fill_interval": f"{_FILL_S}s",
    }
    return {"token_bucket": tokens}


def _amount(rate: Rate) -> Amount:
    per_s = rate.per.seconds + rate.per.nanos / 1e9 or 1.0
    return Amount(amount_of(rate) / per_s, float(rate.burst))


def _action(key: Key, what: dict[str, Any]) -> dict[str, Any]:
    bucket = {names.POLICY: key.policy, names.TENANT: key.tenant, names.METHOD: key.method}
    return {"bucket_id": {"bucket": bucket}, **what}
