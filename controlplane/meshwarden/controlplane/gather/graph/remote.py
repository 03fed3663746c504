"""What other regions have told, as graphs and for Prometheus.

Their series have names of their own, `meshwarden_remote_…`, and the label `region`: each region's own control plane
shows the same calls too, and who scrapes both would count them twice if they had one name. Quantiles and rates are as
of a region's last word, so that one that is silent does not look idle.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.graph.graph import Graph
from meshwarden.controlplane.gather.graph.ledger import Total
from meshwarden.controlplane.gather.metrics.metrics import IDLE, Metrics

# What one region may have us remember, whatever it tells.
SERIES_PER_REGION: Final = 50_000
EDGES_PER_REGION: Final = 20_000
_PREFIX: Final = "meshwarden_remote_"
_SHOWN: Final = (
    "meshwarden_requests",
    "call_duration_seconds",
    "request_duration_seconds",
    "meshwarden_series_overflow",
)


class _Region:
    """What one region has told."""

    def __init__(self, name: str, at: datetime, idle: timedelta) -> None:
        self.at = at
        self.graph = Graph(lambda: self.at, region=name, max_edges=EDGES_PER_REGION)
        self.metrics = Metrics(max_series=SERIES_PER_REGION, idle=idle)


class Remote(Collector):
    """The regions beside ours."""

    def __init__(self, regions: Iterable[str], clock: Callable[[], datetime], *, idle: timedelta = IDLE) -> None:
        """Starts empty.

        Args:
            regions: their names.
            clock: the present, aware.
            idle: after how long without a call a series is forgotten.
        """
        self._clock = clock
        self._regions = {region: _Region(region, clock(), idle) for region in regions}

    def recall(self, totals: Iterable[Total]) -> None:
        """Takes what was told before this process began: it counts in the graph's totals alone."""
        by_region: dict[str, list[Total]] = {}
        for total in totals:
            by_region.setdefault(total.region, []).append(total)
        for region, found in by_region.items():
            if region in self._regions:
                self._regions[region].graph.recall(found)

    def add(self, region: str, calls: Sequence[Call]) -> None:
        """Takes calls that a region tells of."""
        told = self._regions[region]
        told.at = self._clock()
        told.graph.add_late(calls)
        told.metrics.add(calls)

    def heard(self, region: str) -> None:
        """Takes note that a region has no more to tell at present."""
        self._regions[region].at = self._clock()

    def graphs(self) -> dict[str, Graph]:
        """What each region has told of who calls whom, {region: graph}."""
        return {region: told.graph for region, told in self._regions.items()}

    def collect(self) -> Iterable[Metric]:
        """Shows all there is, to Prometheus."""
        families: dict[str, Metric] = {}
        for region, told in self._regions.items():
            for family in told.metrics.collect():
                if not family.name.endswith(_SHOWN):
                    continue
                shown = families.get(family.name)
                if shown is None:
                    text = f"As other regions tell: {family.documentation}"
                    shown = families[family.name] = Metric(_named(family.name), text, family.type)
                for sample in family.samples:
                    shown.add_sample(_named(sample.name), {"region": region, **sample.labels}, sample.value)
        return families.values()


def _named(name: str) -> str:
    return _PREFIX + name.removeprefix("meshwarden_")
