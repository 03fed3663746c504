"""What an Envoy is told to do with its buckets, in the terms of its rate limit quota service.

Envoy's ways, which these assignments keep to (1.40): times are read in whole seconds, and an assignment without an end
ends at once; a bucket fills by whole calls, so it does each minute by sixty times its rate, which Envoy spreads
evenly. A changed bucket stays full to the same part. An assignment that is the same again prolongs the last.

Source: envoy/service/rate_limit_quota/v3/rlqs.proto, envoy/type/v3/ratelimit_strategy.proto.
"""

from collections.abc import Iterable
from typing import Any, Final

from meshwarden.agents.quota.point import MAX_BUCKETS, Amount, Key
from meshwarden.sdk.quota.unit import amount_of
from meshwarden.v1 import node_service_pb2, quota_service_pb2
from meshwarden.v1.resources_pb2 import Rate, RatePolicySpec
from meshwarden.xds import quota_names as names

STARTER: Final = Amount(2.0, 2.0)
"""What a bucket has of which nobody says anything."""
PATIENCE_S: Final = 0.25
"""So long a new bucket may wait for its first share; until then Envoy lets its calls pass."""
RENEWAL_S: Final = 1.0
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
    __slots__ = ("opened_s", "said", "said_s", "share", "used_s")

    def __init__(self, now_s: float) -> None:
        self.opened_s = self.used_s = self.said_s = now_s
        self.share: Amount | None = None
        self.said: dict[str, Any] | None = None


class Assignments:
    """The buckets of one Envoy. Time is passed in, in seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._buckets: dict[Key, _Bucket] = {}
        self._ends_s = float("-inf")

    def use(self, key: Key, now_s: float) -> bool:
        """Notes that calls came for a bucket; False if there are too many already."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                return False
            bucket = self._buckets[key] = _Bucket(now_s)
        bucket.used_s = now_s
        return True

    def grant(self, shares: Iterable[quota_service_pb2.Share]) -> None:
        """Takes shares; those of buckets that aren't there are let go."""
        for share in shares:
            bucket = self._buckets.get(Key.of(share.bucket))
            if bucket is not None:
                bucket.share = Amount.of(share)

    def prolong(self, ends_s: float) -> None:
        """The shares hold until `ends_s`."""
        self._ends_s = max(self._ends_s, ends_s)

    def due(self, limits: node_service_pb2.ServerLimits, now_s: float) -> list[dict[str, Any]]:
        """The actions to send now, in JSON form: what has changed, and what must be renewed."""
        actions, specs = [], {said.policy: said.spec for said in limits.policies}
        for key, bucket in list(self._buckets.items()):
            spec = specs.get(key.policy)
            if spec is None or _is_over(bucket, now_s):
                del self._buckets[key]
                actions.append(_action(key, {"abandon_action": {}}))
                continue
            strategy = self._strategy(bucket, spec, now_s)
            if strategy is not None and (strategy != bucket.said or now_s - bucket.said_s >= RENEWAL_S):
                bucket.said, bucket.said_s = strategy, now_s
                assigned = {"assignment_time_to_live": _ttl(spec), "rate_limit_strategy": strategy}
                actions.append(_action(key, {"quota_assignment_action": assigned}))
        return actions

    def _strategy(self, bucket: _Bucket, spec: RatePolicySpec, now_s: float) -> dict[str, Any] | None:
        """What a bucket is to do; None while its first share may yet come."""
        if spec.shadow:
            return ALLOW
        if now_s >= self._ends_s and spec.when_away == RatePolicySpec.DENY:
            return DENY
        if now_s >= self._ends_s and spec.when_away == RatePolicySpec.FALLBACK:
            return _tokens(_amount(spec.fallback))
        if bucket.share is not None:
            return _tokens(bucket.share)
        return _tokens(STARTER) if now_s - bucket.opened_s >= PATIENCE_S else None


def _ttl(spec: RatePolicySpec) -> str:
    """How long an assignment holds that the agent doesn't renew."""
    keeps = spec.when_away in (RatePolicySpec.WHEN_AWAY_UNSPECIFIED, RatePolicySpec.KEEP_LAST)
    return _KEPT if keeps else _LEASED


def _is_over(bucket: _Bucket, now_s: float) -> bool:
    return bucket.share is not None and bucket.share.rate <= 0 and now_s - bucket.used_s >= IDLE_S


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
