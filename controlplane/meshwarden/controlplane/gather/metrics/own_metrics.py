"""Sends the control plane's metrics on to backends, steadily: as `/metrics` shows them, but by OTLP.

What workloads measure themselves has gone on as it came, and other regions send their own.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

import anyio
import anyio.to_thread
import structlog
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from meshwarden.controlplane.gather.metrics.metrics import Metrics
from meshwarden.controlplane.gather.metrics.own_point import Batch
from meshwarden.controlplane.gather.resource import nanos
from meshwarden.controlplane.gather.tally import Tally

log = structlog.get_logger()

Put = Callable[[str, int, bytes], None]
"""Takes whose it is, how many points, and a serialised `ResourceMetrics`."""


class OwnMetrics:
    """Tells all there is each `interval`."""

    def __init__(
        self,
        metrics: Metrics,
        tally: Tally,
        others: Sequence[Collector],
        vitals: Collector,
        put: Put,
        clock: Callable[[], datetime],
        *,
        region: str,
        interval: timedelta,
    ) -> None:
        """Tells nothing until `run`. What others count begins now, but for the tally.

        Args:
            metrics: the calls, and what is said beside them.
            tally: what became of telemetry.
            others: what else may be read on another thread.
            vitals: what must be read on this one.
            put: takes what is told.
            clock: the present, aware.
            region: ours.
            interval: between two times.
        """
        self._metrics, self._tally, self._others, self._vitals = metrics, tally, others, vitals
        self._put, self._clock, self._region = put, clock, region
        self._interval_s = interval.total_seconds()
        self._began_ns = nanos(clock())

    async def run(self) -> None:
        """Tells until cancelled."""
        while True:
            await anyio.sleep(self._interval_s)
            await self.tell()

    async def tell(self) -> None:
        """Tells all there is now; what can't be read is told another time."""
        try:
            vitals, now_ns = list(self._vitals.collect()), nanos(self._clock())
            # There may be much of it: the writing goes to a thread.
            bodies = await anyio.to_thread.run_sync(self._bodies, vitals, now_ns)
        except Exception as error:  # of a disk, or a defect of ours: neither may end the server
            log.error("own metrics not told", error=f"{type(error).__name__}: {error}")
            return
        for tenant, count, body in bodies:
            self._put(tenant, count, body)

    def _bodies(self, vitals: Iterable[Metric], now_ns: int) -> list[tuple[str, int, bytes]]:
        batch = Batch(self._region, now_ns)
        counted, durations = self._metrics.calls()
        batch.add_requests(counted)
        for name, timed in durations.items():
            batch.add_durations(name, timed)
        for family in self._tally.collect():
            batch.add_family(family, self._tally.began_ns)
        for collected in (vitals, self._metrics.rest(), *(other.collect() for other in self._others)):
            for family in collected:
                batch.add_family(family, self._began_ns)
        return list(batch.bodies())
