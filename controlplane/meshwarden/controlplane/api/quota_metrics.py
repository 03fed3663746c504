"""How limits are divided, for Prometheus."""

from collections.abc import Iterable
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from meshwarden.controlplane.quota.division import Division
from meshwarden.controlplane.quota.policy import name_of
from meshwarden.sdk.unit import REQUESTS

_BUCKET: Final = ("policy", "tenant", "service", "method")


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
    yield from _shares(division)
    ignored = CounterMetricFamily(
        "meshwarden_quota_ignored", "What nodes said of limits and was not believed.", labels=["reason"]
    )
    for reason, count in sorted(division.ignored().items()):
        ignored.add_metric([reason], count)
    yield ignored


def _shares(division: Division) -> Iterable[Metric]:
    texts = {
        "limit": "The most that a bucket may have, in its unit a second.",
        "demand": "What is wanted of a bucket, in its unit a second.",
        "share": "What enforcement points were told that they may use of a bucket, in its unit a second.",
        "held": "What they may be using: more than the share until a lower one is obeyed.",
        "points": "How many enforcement points have a part of a bucket.",
    }
    families = {
        name: GaugeMetricFamily(f"meshwarden_quota_{name}", text, labels=_BUCKET) for name, text in texts.items()
    }
    for policy in division.policies():
        for state in division.states(policy, lambda tenant: True, whole=True):
            labels = [getattr(state.bucket, name) for name in _BUCKET]
            for name in ("limit", "demand", "share", "held"):
                families[name].add_metric(labels, getattr(state, name))
            families["points"].add_metric(labels, len(state.points))
    yield from families.values()
