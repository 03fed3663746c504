"""A rate policy as the tree that is divided, and its buckets as messages name them. Pure."""

import math
from dataclasses import dataclass, replace

from meshwarden.controlplane.policy.neutral import Limit, Limits, MethodLimit, Rate, ServiceLimit
from meshwarden.controlplane.quota.holding import Grant
from meshwarden.controlplane.quota.lease import Share
from meshwarden.controlplane.quota.ledgers import Terms
from meshwarden.controlplane.quota.tree import OTHERS, REST, Bucket, Level
from meshwarden.sdk.quota.unit import CONCURRENT, Unit, told
from meshwarden.v1 import quota_service_pb2 as pb


def tree_of(limits: Limits, region: str) -> Level:
    """The tree of a policy whose limits hold across the mesh, as far as a region gives it out."""
    part = _Part.of_region(limits, region)
    total = part.per_s(limits.total) if limits.total is not None else math.inf
    burst_s = _burst_s(limits.total) if limits.total is not None else math.inf
    parts = {limit.tenant: part.tenant(limit) for limit in limits.limits}
    return Level(ceiling=total, burst_s=burst_s, parts=parts, unit=limits.unit, shadow=limits.shadow)


def bucket_of(named: pb.Bucket, tree: Level, service: str) -> Bucket:
    """The bucket that the message of a point of a service names; it is none of the tree's if that has none such."""
    path, level = [named.tenant], tree.parts.get(named.tenant) or tree.parts.get(OTHERS)
    if level is not None and level.by_service:
        path.append(service if service in level.parts else REST)
        level = level.part(path[-1])
    if named.method or (level is not None and level.parts):
        path.append(named.method or REST)
    return Bucket(named.policy, tuple(path))


def name_of(bucket: Bucket) -> pb.Bucket:
    """How people are shown a bucket."""
    tenant, *parts = bucket.path or ("",)
    # A service is "tenant/name", a method "/package.Service/Method", and a class has no slash.
    service = next((part for part in parts if "/" in part and not part.startswith("/")), "")
    method = next((part for part in parts if part not in (REST, service)), "")
    return pb.Bucket(policy=bucket.policy, tenant=tenant, service=service, method=method)


def share_to_proto(share: Share, unit: Unit) -> pb.Share:
    """A share in its policy's unit as its point is told of it, which knows what it serves."""
    bucket = _told(share.bucket, unit)
    return pb.Share(bucket=bucket, rate=share.rate, burst=share.burst, more=share.more)


def grant_to_proto(policy: str, unit: Unit, turn: int, grant: Grant, until_s: float) -> pb.Share:
    """What a point was given of an amount for a period, which ends in so many seconds, as it is told of it."""
    bucket = _told(Bucket(policy, grant.path), unit)
    chunk = pb.Chunk(series=grant.series, turn=turn, amount=grant.amount, spent=grant.spent)
    chunk.until.FromNanoseconds(round(max(0.0, until_s) * 1e9))
    return pb.Share(bucket=bucket, chunk=chunk)


def _told(bucket: Bucket, unit: Unit) -> pb.Bucket:
    named = name_of(bucket)
    named.ClearField("service")
    named.unit = told(unit)
    return named


def terms_of(limits: Limits) -> Terms | None:
    """What the amounts of a policy are for; None if they are rates."""
    return Terms(limits.period, limits.zone, limits.unit) if limits.period is not None else None


@dataclass(frozen=True, slots=True)
class _Part:
    """What a region gives out of all amounts: the part between two of so many.

    Attributes:
        first: where its part begins.
        last: where it ends.
        of: how many there are.
        whole: whether amounts can't be had in part; then the regions' parts are whole, and together the amount.
    """

    first: int
    last: int
    of: int
    whole: bool

    @classmethod
    def of_region(cls, limits: Limits, region: str) -> "_Part":
        """A region's; it has none where a policy names others alone."""
        whole = limits.unit == CONCURRENT or limits.period is not None
        if not limits.regions:
            return cls(0, 1, 1, whole)
        weights = dict(limits.regions)
        before = sum(weight for name, weight in limits.regions if name < region)
        return cls(before, before + weights.get(region, 0), sum(weights.values()), whole)

    def tenant(self, limit: Limit) -> Level:
        """The level of a tenant."""
        if not limit.services:
            return self._by_method(limit)
        parts = {str(part.service): self._by_method(part) for part in limit.services}
        return replace(self._level(limit, {**parts, REST: self._rest(limit)}), by_service=True)

    def per_s(self, rate: Rate) -> float:
        """What the region gives out of a rate a second."""
        if self.whole:
            return (rate.amount * self.last // self.of - rate.amount * self.first // self.of) / rate.per_s
        return _per_s(rate.amount, rate) * (self.last - self.first) / self.of

    def _by_method(self, limit: Limit | ServiceLimit) -> Level:
        parts = {part.method: self._level(part) for part in limit.methods}
        return self._level(limit, {**parts, REST: self._rest(limit)} if parts else {})

    def _rest(self, limit: Limit | ServiceLimit) -> Level:
        """What fits no part of a limit: of the parts' weight 1, and at most the whole."""
        return Level(ceiling=self.per_s(limit.rate), burst_s=_burst_s(limit.rate))

    def _level(self, limit: Limit | ServiceLimit | MethodLimit, parts: dict[str, Level] | None = None) -> Level:
        return Level(
            weight=limit.weight,
            floor=self._floor(limit.floor, limit.rate),
            ceiling=self.per_s(limit.rate),
            burst_s=_burst_s(limit.rate),
            parts=parts or {},
        )

    def _floor(self, floor: int, rate: Rate) -> float:
        if self.whole:
            return floor * (self.last - self.first) // self.of / rate.per_s
        return _per_s(floor, rate) * (self.last - self.first) / self.of


def _burst_s(rate: Rate) -> float:
    return rate.burst / _per_s(rate.amount, rate)


def _per_s(amount: int, rate: Rate) -> float:
    return amount / rate.per_s
