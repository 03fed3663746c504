"""What workloads measure themselves, sent by OTLP and shown to Prometheus beside the mesh's own series.

Each tenant has a bounded number of samples; a point that would need more is counted as dropped by the stage
`control.metrics`, and the series that are there go on. A series of which nothing came for a while is forgotten, and
gives its room back. Where two tenants call different things by one name, both are shown, without a type.
"""

import copy
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from meshwarden.controlplane.gather.metrics.workload_name import Labels, labels_of, name_of, place_of
from meshwarden.controlplane.gather.metrics.workload_point import (
    MOST_SAMPLES,
    Number,
    Sample,
    Value,
    is_delta,
    kind_of,
    new_value,
)
from meshwarden.controlplane.gather.resource import Checked
from meshwarden.controlplane.gather.tally import METRICS, Tally

SAMPLES_PER_TENANT: Final = 5000
MAX_SAMPLES: Final = 100_000
# A gauge of a program that has ended says nothing, and programs send every minute or more often.
IDLE: Final = timedelta(minutes=5)
_TEXT: Final = "Of workloads, as they say."
_SWEEP_S: Final = 10.0
_NO_VALUE: Final = 1  # a flag. Source: OTLP, DataPointFlags
_SUFFIXES: Final = {"counter": "_total"}
_Key = tuple[str, str, Labels]


class _Full(Exception):
    """The tenant has used up its samples."""


@dataclass(slots=True)
class _Series:
    tenant: str
    value: Value
    size: int = 0
    heard_s: float = 0.0


@dataclass
class _Family:
    """Series of one name and kind, for one page."""

    name: str
    kind: str
    rows: list[tuple[Labels, list[Sample]]] = field(default_factory=list)

    def names(self) -> set[str]:
        """All that its samples are called, and itself."""
        return {self.name, *(self.name + sample[0] for _, samples in self.rows for sample in samples)}


class WorkloadMetrics(Collector):
    """The series of all tenants."""

    def __init__(
        self,
        tally: Tally,
        *,
        samples_per_tenant: int = SAMPLES_PER_TENANT,
        max_samples: int = MAX_SAMPLES,
        idle: timedelta = IDLE,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts empty.

        Args:
            tally: counts what is shown and what is not.
            samples_per_tenant: how many each tenant has; a histogram is as many as its buckets.
            max_samples: how many all of them have.
            idle: after how long without a point a series is forgotten.
            monotonic_s: a clock that never goes back.
        """
        self._tally = tally
        self._samples_per_tenant, self._max_samples = samples_per_tenant, max_samples
        self._idle_s, self._monotonic_s = idle.total_seconds(), monotonic_s
        # Prometheus reads on another thread.
        self._lock = threading.Lock()
        self._series: dict[_Key, _Series] = {}
        self._used = Counter[str]()
        self._swept_s = monotonic_s()

    def add(self, checked: Checked) -> None:
        """Takes points of a workload, each of which comes once."""
        shown, dropped = 0, Counter[str]()
        with self._lock:
            for scope in checked.message.scope_metrics:
                place = place_of(checked.message.resource.attributes, scope.scope)
                for metric in scope.metrics:
                    shown += self._add(checked.tenant, place, metric, dropped)
        self._tally.received(METRICS, "point", checked.tenant, checked.items)
        self._tally.passed(METRICS, "point", checked.tenant, shown)
        for reason, count in dropped.items():
            self._tally.drop(METRICS, "point", reason, checked.tenant, count)

    def _add(self, tenant: str, place: Mapping[str, str], metric: Any, dropped: Counter[str]) -> int:
        shown, kind = 0, kind_of(metric)
        if not kind:
            return 0
        data = getattr(metric, metric.WhichOneof("data"))
        for point in data.data_points:
            try:
                name = name_of(metric.name, metric.unit, kind)
                key = (name, kind, labels_of(point.attributes, place))
                self._take(key, tenant, point, is_delta(data))
                shown += 1
            except ValueError:
                dropped["malformed"] += 1
            except _Full:
                dropped["series_full"] += 1
        return shown

    def _take(self, key: _Key, tenant: str, point: Any, delta: bool) -> None:
        series = self._series.get(key)
        if point.flags & _NO_VALUE:
            if series is not None:
                self._forget(key)
            return
        if series is None:
            series = _Series(tenant, new_value(key[1]))
        # A histogram may grow, and where there may be no room for that it is tried out first.
        grows = not isinstance(series.value, Number) and self._left(tenant) < MOST_SAMPLES
        value = copy.deepcopy(series.value) if grows else series.value
        value.take(point, delta)
        more = value.size() - series.size
        if more > 0 and not self._has_room(tenant, more):
            raise _Full
        self._used[tenant] += more if key in self._series else value.size()  # it may have been idle itself
        series.value, series.size, series.heard_s = value, value.size(), self._monotonic_s()
        self._series[key] = series

    def _left(self, tenant: str) -> int:
        return min(self._samples_per_tenant - self._used[tenant], self._max_samples - self._used.total())

    def _has_room(self, tenant: str, size: int) -> bool:
        for is_swept in (False, True):
            if size <= self._left(tenant):
                return True
            # To look for what is idle takes long: whoever sends too much may not have it done for each point.
            if is_swept or self._monotonic_s() - self._swept_s < _SWEEP_S:
                return False
            self._forget_idle()
        return False

    def _forget_idle(self) -> None:
        self._swept_s = self._monotonic_s()
        since_s = self._swept_s - self._idle_s
        for key in [key for key, series in self._series.items() if series.heard_s < since_s]:
            self._forget(key)

    def _forget(self, key: _Key) -> None:
        series = self._series.pop(key)
        self._used[series.tenant] -= series.size
        if not self._used[series.tenant]:
            del self._used[series.tenant]

    def collect(self) -> Iterable[Metric]:
        """Shows all there is, to Prometheus."""
        families: dict[tuple[str, str], _Family] = {}
        with self._lock:
            self._forget_idle()
            used = dict(self._used)
            for (name, kind, labels), series in self._series.items():
                family = families.setdefault((name, kind), _Family(name, kind))
                family.rows.append((labels, list(series.value.samples(_SUFFIXES.get(kind, "")))))
        yield from _shown(list(families.values()))
        gauge = GaugeMetricFamily(
            "meshwarden_workload_samples",
            f"Samples of its workloads' own metrics that a tenant has, of {self._samples_per_tenant}.",
            labels=["tenant"],
        )
        for tenant, count in used.items():
            gauge.add_metric([tenant], count)
        yield gauge


def _shown(families: Iterable[_Family]) -> Iterable[Metric]:
    """The families; those of which a name is another's too are taken apart."""
    claims = Counter(name for family in families for name in family.names())
    apart: dict[str, Metric] = {}
    for family in families:
        is_alone = all(claims[name] == 1 for name in family.names())
        whole = Metric(family.name, _TEXT, family.kind)
        for labels, samples in family.rows:
            for suffix, further, value, exemplar in samples:
                name = family.name + suffix
                said = {**dict(labels), **further}
                if is_alone:
                    whole.add_sample(name, said, value, exemplar=exemplar)
                else:
                    apart.setdefault(name, Metric(name, _TEXT, "unknown")).add_sample(name, said, value)
        if is_alone:
            yield whole
    yield from apart.values()
