"""What rollouts do, and since when: for Prometheus."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric

from meshwarden.controlplane.policy.mesh import Key
from meshwarden.v1.resources_pb2 import Rollout, RolloutStatus

# {phase: since when a rollout is in it}; those that are over have their end.
_SINCE: Final = {
    RolloutStatus.PENDING: "start_time",
    RolloutStatus.RUNNING: "stage_time",
    RolloutStatus.PAUSED: "pause_time",
}


def of_rollouts(rollouts: Mapping[Key, Rollout], now: datetime) -> Iterable[Metric]:
    """Shows of each rollout how long it is in its phase; of one that runs, in its stage.

    Args:
        rollouts: those that there are, those that are over as well.
        now: the present, aware.
    """
    text = "Seconds since a rollout is in its phase; of one that runs, in its stage."
    family = GaugeMetricFamily("meshwarden_rollout_phase_seconds", text, labels=["tenant", "rollout", "phase"])
    for key, rollout in rollouts.items():
        status = rollout.status
        since = getattr(status, _SINCE.get(status.phase, "end_time")).ToDatetime(UTC)
        labels = [key.tenant, key.name, RolloutStatus.Phase.Name(status.phase)]
        family.add_metric(labels, max(0.0, (now - since).total_seconds()))
    yield family
