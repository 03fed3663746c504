"""How limits are divided, for Prometheus."""

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from meshwarden.controlplane.quota.division import Division
from meshwarden.controlplane.quota.policy import name_of
from meshwarden.controlplane.quota.tree import Bucket
from meshwarden.sdk.quota.unit import REQUESTS

_BUCKET: Final = ("policy", "tenant", "service", "method")

_PERIOD: Final = {
    "limit": "The most that a bucket may have in its policy's hour, day or month.",
    "granted": "What of that was given to enforcement points, less what they gave back.",
    "used": "What of that was used, as far as they have said.",
    "held": "What of that they have at hand.",
    "lost": "What of that nobody says that he has.",
    "left": "What can still be given.",
    "excess": "What was used beyond the limit: what calls took more than they were let in for.",
    "end_seconds": "When the period ends, in seconds since 1970.",
}


def of_quotas(division: Division) -> Iterable[Metric]:
    """The series of limits that hold across the mesh; of no more buckets than `usage.MAX_BUCKETS`."""
    dividing = GaugeMetricFamily("meshwarden_quota_dividing", "Whether this control plane divides limits.")
    dividing.add_metric([], division.leases is not None)
    yield dividing
    total = CounterMetricFamily(
        "meshwarden_quota_used",
        "What was used under limits that hold across the mesh: allowed, limited, and what shadow mode let through.",
        labels=[*_BUCKET, "unit", "decision"],
    )
    units = {policy: tree.unit for policy in division.policies() if (tree := division.tree(policy)) is not None}
    for bucket, used in division.usages.all.items():
        named = name_of(bucket)
        labels = [*(getattr(named, name) for name in _BUCKET), units.get(named.policy, REQUESTS)]
        total.add_metric([*labels, "allowed"], used.allowed)
        total.add_metric([*labels, "limited"], used.denied)
        total.add_metric([*labels, "shadowed"], used.shadowed)
    yield total
    yield _excess(division, units)
    yield from _shares(division)
    ignored = CounterMetricFamily(
        "meshwarden_quota_ignored", "What nodes said of limits and was not believed.", labels=["reason"]
    )
    for reason, count in sorted(division.ignored().items()):
        ignored.add_metric([reason], count)
    yield ignored


def _excess(division: Division, units: Mapping[str, str]) -> CounterMetricFamily:
    found = CounterMetricFamily(
        "meshwarden_quota_excess",
        "About what was let in beyond a level's rate and burst: what one limiter in one place would have refused."
        " Of calls at once how many too many ran, times seconds.",
        labels=[*_BUCKET, "unit"],
    )
    for policy in division.policies():
        for path, amount in division.excess(policy).items():
            named = name_of(Bucket(policy, path))
            labels = [getattr(named, name) for name in _BUCKET]
            found.add_metric([*labels, units.get(policy, REQUESTS)], amount)
    return found


def _shares(division: Division) -> Iterable[Metric]:
    texts = {
        "limit": "The most that a bucket may have, in its unit a second.",
        "demand": "What is wanted of a bucket, in its unit a second.",
        "share": "What enforcement points were told that they may use of a bucket, in its unit a second.",
        "held": "What they may be using: more than the share until a lower one is obeyed.",
        "points": "How many enforcement points have a part of a bucket.",
        "lease_age_seconds": "How long ago the point with a part of a bucket was heard of that was silent longest.",
    }
    families = _gauges("meshwarden_quota", texts)
    periods = _gauges("meshwarden_quota_period", _PERIOD)
    for policy in division.policies():
        for state in division.states(policy, lambda tenant: True, whole=True):
            labels = [getattr(state.bucket, name) for name in _BUCKET]
            if state.HasField("period"):
                periods["limit"].add_metric(labels, state.limit)
                for name in ("granted", "used", "held", "lost", "left"):
                    periods[name].add_metric(labels, getattr(state.period, name))
                periods["excess"].add_metric(labels, max(0.0, state.period.used - state.limit))
                periods["end_seconds"].add_metric(labels, state.period.end.seconds)
                continue
            for name in ("limit", "demand", "share", "held"):
                families[name].add_metric(labels, getattr(state, name))
            families["points"].add_metric(labels, len(state.points))
            if state.points:
                oldest = max(point.age.ToNanoseconds() for point in state.points)
                families["lease_age_seconds"].add_metric(labels, oldest / 1e9)
    yield from families.values()
    yield from periods.values()


def _gauges(prefix: str, texts: Mapping[str, str]) -> dict[str, GaugeMetricFamily]:
    return {name: GaugeMetricFamily(f"{prefix}_{name}", text, labels=_BUCKET) for name, text in texts.items()}
