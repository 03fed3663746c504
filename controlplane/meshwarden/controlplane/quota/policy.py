"""A rate policy as the tree that is divided, and its buckets as messages name them. Pure."""

import math
from dataclasses import replace

from meshwarden.controlplane.policy.neutral import Limit, Limits, MethodLimit, Rate, ServiceLimit
from meshwarden.controlplane.quota.lease import Share
from meshwarden.controlplane.quota.ledger import Grant
from meshwarden.controlplane.quota.ledgers import Terms
from meshwarden.controlplane.quota.tree import OTHERS, REST, Bucket, Level
from meshwarden.v1 import quota_service_pb2 as pb


def tree_of(limits: Limits) -> Level:
    """The tree of a policy whose limits hold across the mesh."""
    total = _per_s(limits.total.amount, limits.total) if limits.total is not None else math.inf
    parts = {limit.tenant: _tenant(limit) for limit in limits.limits}
    return Level(ceiling=total, parts=parts, unit=limits.unit, shadow=limits.shadow)


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
    tenant, *parts = bucket.path
    method = next((part for part in parts if part.startswith("/")), "")
    service = next((part for part in parts if part and not part.startswith("/")), "")
    return pb.Bucket(policy=bucket.policy, tenant=tenant, service=service, method=method)


def share_to_proto(share: Share) -> pb.Share:
    """A share as its point is told of it, which knows what it serves."""
    bucket = name_of(share.bucket)
    bucket.ClearField("service")
    return pb.Share(bucket=bucket, rate=share.rate, burst=share.burst)


def grant_to_proto(policy: str, turn: int, grant: Grant, until_s: float) -> pb.Share:
    """What a point was given of an amount for a period, which ends in so many seconds, as it is told of it."""
    bucket = name_of(Bucket(policy, grant.path))
    bucket.ClearField("service")
    chunk = pb.Chunk(series=grant.series, turn=turn, amount=grant.amount, spent=grant.spent)
    chunk.until.FromNanoseconds(round(max(0.0, until_s) * 1e9))
    return pb.Share(bucket=bucket, chunk=chunk)


def terms_of(limits: Limits) -> Terms | None:
    """What the amounts of a policy are for; None if they are rates."""
    return Terms(limits.period, limits.zone, limits.unit) if limits.period is not None else None


def _tenant(limit: Limit) -> Level:
    if not limit.services:
        return _by_method(limit)
    parts = {str(part.service): _by_method(part) for part in limit.services}
    return replace(_level(limit, {**parts, REST: _rest(limit)}), by_service=True)


def _by_method(limit: Limit | ServiceLimit) -> Level:
    parts = {part.method: _level(part) for part in limit.methods}
    return _level(limit, {**parts, REST: _rest(limit)} if parts else {})


def _rest(limit: Limit | ServiceLimit) -> Level:
    """What fits no part of a limit: of the parts' weight 1, and at most the whole."""
    rate = limit.rate
    return Level(ceiling=_per_s(rate.amount, rate), burst_s=_burst_s(rate))


def _level(limit: Limit | ServiceLimit | MethodLimit, parts: dict[str, Level] | None = None) -> Level:
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
