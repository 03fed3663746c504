"""A rate policy as the tree that is divided, and its buckets as messages name them. Pure."""

import math

from meshwarden.controlplane.policy.neutral import Limit, Limits, MethodLimit, Rate
from meshwarden.controlplane.quota.lease import Share
from meshwarden.controlplane.quota.tree import REST, Bucket, Level
from meshwarden.v1 import quota_service_pb2 as pb


def tree_of(limits: Limits) -> Level:
    """The tree of a policy whose limits hold across the mesh."""
    total = _per_s(limits.total.amount, limits.total) if limits.total is not None else math.inf
    return Level(ceiling=total, parts={limit.tenant: _tenant(limit) for limit in limits.limits})


def bucket_of(named: pb.Bucket, tree: Level) -> Bucket:
    """The bucket that a message names; it is none of the tree's if the tree has none of that name."""
    level = tree.parts.get(named.tenant) or tree.parts.get("*")
    is_divided = level is not None and bool(level.parts)
    if not is_divided and not named.method:
        return Bucket(named.policy, (named.tenant,))
    return Bucket(named.policy, (named.tenant, named.method or REST))


def name_of(bucket: Bucket) -> pb.Bucket:
    """How messages name a bucket."""
    tenant, *method = bucket.path
    return pb.Bucket(policy=bucket.policy, tenant=tenant, method=method[0] if method else "")


def share_to_proto(share: Share) -> pb.Share:
    """A share as messages have it."""
    return pb.Share(bucket=name_of(share.bucket), rate=share.rate, burst=share.burst)


def _tenant(limit: Limit) -> Level:
    parts = {part.method: _level(part) for part in limit.methods}
    if parts:
        rate = limit.rate
        parts[REST] = Level(ceiling=_per_s(rate.amount, rate), burst_s=_burst_s(rate))
    return _level(limit, parts)


def _level(limit: Limit | MethodLimit, parts: dict[str, Level] | None = None) -> Level:
    rate = limit.rate
    return Level(
        weight=limit.weight,
        floor=_per_s(limit.floor, rate),
        ceiling=_per_s(rate.amount, rate),
        burst_s=_burst_s(rate),
        parts=parts or {},
    )


def _burst_s(rate: Rate) -> float:
    return rate.burst / _per_s(rate.amount, rate)


def _per_s(amount: int, rate: Rate) -> float:
    return amount / rate.per_s
