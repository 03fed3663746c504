"""What the services measure: the `Stats` RPC of each shows it as of now, OpenTelemetry sends it to the node's agent.

Where OpenTelemetry is not installed, `Stats` alone shows it.
"""

import bisect
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from meshwarden.examples.daena.daena_pb2 import Point, StatsResponse
from meshwarden.examples.daena.error import DaenaError

try:
    from opentelemetry import metrics
except ImportError:
    HAS_METRICS = False
else:
    HAS_METRICS = True

Attributes = Mapping[str, str]
Series = tuple[tuple[str, str], ...]

MAX_SERIES: Final = 64
OVERFLOW: Final[Series] = (("otel.metric.overflow", "true"),)
"""Takes what comes after an instrument's series are full. Source: OpenTelemetry metrics SDK, cardinality limits."""
SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TOKENS: Final = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0)
"""Source: semantic conventions, gen_ai.client.token.usage."""


class Counter:
    """A sum that only grows, by series."""

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit = name, unit
        self._lock = threading.Lock()
        self._told = _meter().create_counter(name, unit) if HAS_METRICS else None
        self._sums: dict[Series, float] = {}

    def add(self, amount: float, attributes: Attributes | None = None) -> None:
        """Adds an amount of 0 or more."""
        with self._lock:
            series = _series(self._sums, attributes)
            self._sums[series] = self._sums.get(series, 0.0) + amount
        if self._told is not None:
            self._told.add(amount, attributes)

    def points(self) -> list[Point]:
        """The series."""
        with self._lock:
            found = list(self._sums.items())
        return [Point(name=self.name, unit=self.unit, attributes=dict(key), value=value) for key, value in found]


class Histogram:
    """How often values of which size came, by series."""

    def __init__(self, name: str, unit: str, bounds: tuple[float, ...]) -> None:
        self.name, self.unit = name, unit
        self._bounds = bounds
        self._lock = threading.Lock()
        make = _meter().create_histogram if HAS_METRICS else None
        self._told = make(name, unit, explicit_bucket_boundaries_advisory=bounds) if make else None
        self._series: dict[Series, tuple[list[int], list[float]]] = {}

    def record(self, value: float, attributes: Attributes | None = None) -> None:
        """Takes one value."""
        with self._lock:
            key = _series(self._series, attributes)
            buckets, total = self._series.setdefault(key, ([0] * (len(self._bounds) + 1), [0.0]))
            buckets[bisect.bisect_left(self._bounds, value)] += 1
            total[0] += value
        if self._told is not None:
            self._told.record(value, attributes)

    def points(self) -> list[Point]:
        """The series."""
        with self._lock:
            found = [(key, list(buckets), total[0]) for key, (buckets, total) in self._series.items()]
        return [
            Point(
                name=self.name,
                unit=self.unit,
                attributes=dict(key),
                value=total,
                count=sum(buckets),
                bounds=self._bounds,
                buckets=buckets,
            )
            for key, buckets, total in found
        ]


class Gauge:
    """A value of the moment, by series."""

    def __init__(self, name: str, unit: str, read: Callable[[], Iterable[tuple[float, Attributes]]]) -> None:
        self.name, self.unit = name, unit
        self._read = read
        if HAS_METRICS:
            _meter().create_observable_gauge(name, [self._observe], unit)

    def _observe(self, _: Any) -> Iterable[Any]:
        try:
            return [metrics.Observation(value, attributes) for value, attributes in self._read()]
        except DaenaError:  # its program ends, or can't read it now
            return []

    def points(self) -> list[Point]:
        """The series."""
        return [
            Point(name=self.name, unit=self.unit, attributes=dict(attributes), value=value)
            for value, attributes in self._read()
        ]


class Meter:
    """Makes instruments and shows them."""

    def __init__(self) -> None:
        self._instruments: list[Counter | Histogram | Gauge] = []

    def counter(self, name: str, unit: str) -> Counter:
        """A sum that only grows."""
        made = Counter(name, unit)
        self._instruments.append(made)
        return made

    def histogram(self, name: str, unit: str, bounds: tuple[float, ...]) -> Histogram:
        """A distribution; `bounds` are the upper ones of its buckets."""
        made = Histogram(name, unit, bounds)
        self._instruments.append(made)
        return made

    def gauge(self, name: str, unit: str, read: Callable[[], Iterable[tuple[float, Attributes]]]) -> None:
        """Values that `read` gives each time they are asked for."""
        self._instruments.append(Gauge(name, unit, read))

    def stats(self) -> StatsResponse:
        """All series."""
        return StatsResponse(points=[point for instrument in self._instruments for point in instrument.points()])


def _meter() -> Any:
    return metrics.get_meter("meshwarden.examples.daena")


def _series(known: Mapping[Series, object], attributes: Attributes | None) -> Series:
    series = tuple(sorted((attributes or {}).items()))
    return series if series in known or len(known) < MAX_SERIES else OVERFLOW
