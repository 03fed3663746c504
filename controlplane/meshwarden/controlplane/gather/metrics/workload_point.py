"""What workloads' own metrics say: the value of one series, which takes one point after the other.

Sums and histograms that tell what came since the last point (delta) are added up. Each point is taken once, and in the
order in which it was sent: whoever calls sees to that.

Errors: ValueError, for a point that makes no sense.

Source: OpenTelemetry metrics data model.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    AGGREGATION_TEMPORALITY_DELTA,
    Metric,
)
from prometheus_client.core import Exemplar

# Buckets of exponential histograms become at most 2^(1/4) wide, 19 %, and no more than these.
_MAX_SCALE: Final = 2
_MIN_SCALE: Final = -10
MAX_BUCKETS: Final = 160
MOST_SAMPLES: Final = 1024
"""More than any series is shown as: an agent takes no more than 512 quantiles of a point."""
_MAX_EXPONENT: Final = 1024  # of a float
_ID_BYTES: Final = ((16, "trace_id"), (8, "span_id"))
# (what is added to a metric's name, further labels, value, exemplar)
Sample = tuple[str, dict[str, str], float, Exemplar | None]


def kind_of(metric: Metric) -> str:
    """What Prometheus calls it: "counter", "gauge", "histogram" or "summary"; empty where there is none."""
    data = metric.WhichOneof("data")
    if data == "sum":
        return "counter" if metric.sum.is_monotonic else "gauge"
    return {"gauge": "gauge", "summary": "summary"}.get(data or "", "histogram" if data else "")


@dataclass(slots=True)
class Number:
    """A sum or a gauge; a counter's never falls."""

    is_counter: bool = False
    value: float = 0.0

    def take(self, point: Any, is_delta: bool) -> None:
        """Takes a point.

        Raises:
            ValueError: it has no value, or a counter's is less than 0.
        """
        kind = point.WhichOneof("value")
        if kind is None:
            raise ValueError("a point without a value")
        value = float(getattr(point, kind))
        if self.is_counter and not value >= 0:
            raise ValueError("a counter below 0")
        self.value = self.value + value if is_delta else value

    def samples(self, suffix: str) -> Iterator[Sample]:
        """What is shown of it."""
        yield suffix, {}, self.value, None

    def size(self) -> int:
        """How many samples that is."""
        return 1


@dataclass(slots=True)
class Buckets:
    """A histogram.

    Attributes:
        bounds: the upper ones, of an explicit histogram.
        counts: {number of a bucket: how many fell into it}; of an exponential one by its index, else by its place.
        scale: of an exponential histogram.
        low: how many are not above `low_to`: zeros, of an exponential histogram.
    """

    bounds: tuple[float, ...] | None = None
    counts: Counter[int] = field(default_factory=Counter)
    scale: int = _MAX_SCALE
    low: int = 0
    low_to: float = 0.0
    count: int = 0
    total: float = 0.0
    exemplars: dict[float, Exemplar] = field(default_factory=dict)

    def take(self, point: Any, is_delta: bool) -> None:
        """Takes a point of either kind of histogram.

        Raises:
            ValueError: it makes no sense.
        """
        came = _explicit(point) if "explicit_bounds" in point.DESCRIPTOR.fields_by_name else _exponential(point)
        if is_delta and came.bounds == self.bounds and self.count:
            self._add(came)
        else:
            came.exemplars = {**(self.exemplars if came.bounds == self.bounds else {}), **came.exemplars}
            for name in self.__slots__:
                setattr(self, name, getattr(came, name))

    def _add(self, came: "Buckets") -> None:
        scale = min(self.scale, came.scale)
        self.counts = _scaled(self.counts, self.scale - scale) + _scaled(came.counts, came.scale - scale)
        self.scale = scale
        self._fit()
        self.low, self.low_to = self.low + came.low, max(self.low_to, came.low_to)
        self.count, self.total = self.count + came.count, self.total + came.total
        self.exemplars |= came.exemplars

    def _fit(self) -> None:
        while self.bounds is None and self.counts and max(self.counts) - min(self.counts) >= MAX_BUCKETS:
            self.counts, self.scale = _scaled(self.counts, 1), self.scale - 1

    def samples(self, _: str) -> Iterator[Sample]:
        """What is shown of it."""
        total = 0
        for bound, count in self._rows():
            total += count
            yield "_bucket", {"le": _bound(bound)}, total, self._exemplar(bound)
        # A sum of what may be below 0 is no counter. Source: OpenMetrics 1.0, "Histogram".
        if self.total >= 0 and not (self.bounds and self.bounds[0] < 0):
            yield "_count", {}, self.count, None
            yield "_sum", {}, self.total, None

    def _exemplar(self, bound: float) -> Exemplar | None:
        return self.exemplars.get(bound) if self.bounds is not None else None

    def _rows(self) -> Iterator[tuple[float, int]]:
        if self.bounds is not None:
            for index, bound in enumerate((*self.bounds, math.inf)):
                yield bound, self.counts[index]
            return
        last, shown = (self.low_to if self.low else -1.0), self.low
        if self.low:
            yield last, self.low
        waiting = 0
        for index in range(min(self.counts, default=0), max(self.counts, default=-1) + 1):
            waiting += self.counts[index]
            exponent = (index + 1) * 2.0**-self.scale
            bound = 2.0**exponent if exponent < _MAX_EXPONENT else math.inf
            # What a number can't tell apart, or what lies among the zeros, counts with what is above it.
            if last < bound < math.inf:
                yield bound, waiting
                last, shown, waiting = bound, shown + waiting, 0
        yield math.inf, self.count - shown

    def size(self) -> int:
        """How many samples that is."""
        if self.bounds is not None:
            return len(self.bounds) + 3
        return (max(self.counts) - min(self.counts) + 1 if self.counts else 0) + 4


@dataclass(slots=True)
class Quantiles:
    """A summary, which older programs send."""

    values: dict[float, float] = field(default_factory=dict)
    count: int = 0
    total: float = 0.0

    def take(self, point: Any, _: bool) -> None:
        """Takes a point; what is no quantile is left out.

        Raises:
            ValueError: something in it is below 0.
        """
        if not point.sum >= 0 or any(one.value < 0 for one in point.quantile_values):
            raise ValueError("a summary of what is below 0")
        self.values = {one.quantile: one.value for one in point.quantile_values if 0 <= one.quantile <= 1}
        self.count, self.total = point.count, point.sum

    def samples(self, _: str) -> Iterator[Sample]:
        """What is shown of it."""
        for quantile, value in self.values.items():
            yield "", {"quantile": _bound(quantile)}, value, None
        yield "_count", {}, self.count, None
        yield "_sum", {}, self.total, None

    def size(self) -> int:
        """How many samples that is."""
        return len(self.values) + 2


Value = Number | Buckets | Quantiles


def new_value(kind: str) -> Value:
    """What takes points of a kind."""
    if kind == "histogram":
        return Buckets()
    return Quantiles() if kind == "summary" else Number(kind == "counter")


def is_delta(data: Any) -> bool:
    """Whether points tell what came since the one before.

    Raises:
        ValueError: they don't say.
    """
    if "aggregation_temporality" not in data.DESCRIPTOR.fields_by_name:
        return False
    if data.aggregation_temporality not in (AGGREGATION_TEMPORALITY_CUMULATIVE, AGGREGATION_TEMPORALITY_DELTA):
        raise ValueError("a sum that says neither what it began with nor that it goes on")
    return bool(data.aggregation_temporality == AGGREGATION_TEMPORALITY_DELTA)


def _explicit(point: Any) -> Buckets:
    bounds, counts = tuple(point.explicit_bounds), point.bucket_counts
    if not (len(counts) == len(bounds) + 1 or (not counts and not bounds)) or len(bounds) > MAX_BUCKETS:
        raise ValueError(f"{len(counts)} buckets and {len(bounds)} bounds")
    if any(not low < high for low, high in pairwise(bounds)) or not all(map(math.isfinite, bounds)):
        raise ValueError("bounds that do not grow")
    if counts and sum(counts) != point.count:
        raise ValueError("a count that is not that of the buckets")
    places = (
        Counter({index: count for index, count in enumerate(counts) if count}) if counts else Counter({0: point.count})
    )
    made = Buckets(bounds, places, count=point.count, total=point.sum)
    made.exemplars = _exemplars(point, bounds)
    return made


def _exponential(point: Any) -> Buckets:
    if (
        not _MIN_SCALE <= point.scale <= 20
        or max(map(len, (point.positive.bucket_counts, point.negative.bucket_counts))) > 2048
    ):
        raise ValueError("a scale or a number of buckets that nobody needs")
    negative = sum(point.negative.bucket_counts)
    counts = Counter(
        {point.positive.offset + at: count for at, count in enumerate(point.positive.bucket_counts) if count}
    )
    if point.zero_count + negative + counts.total() != point.count:
        raise ValueError("a count that is not that of the buckets")
    scale = min(point.scale, _MAX_SCALE)
    made = Buckets(None, _scaled(counts, point.scale - scale), scale, count=point.count, total=point.sum)
    made.low, made.low_to = point.zero_count + negative, max(0.0, point.zero_threshold)
    if not math.isfinite(made.low_to):
        raise ValueError("zeros without a bound")
    made._fit()
    return made


def _scaled(counts: Counter[int], steps: int) -> Counter[int]:
    """The same in buckets that are wider by 2^steps."""
    if not steps:
        return counts
    found = Counter[int]()
    for index, count in counts.items():
        found[index >> steps] += count
    return found


def _exemplars(point: Any, bounds: Sequence[float]) -> dict[float, Exemplar]:
    found = {}
    for one in point.exemplars:
        value = float(getattr(one, one.WhichOneof("value") or "as_double"))
        ids = {name: getattr(one, name).hex() for size, name in _ID_BYTES if len(getattr(one, name)) == size}
        if "trace_id" in ids and math.isfinite(value):
            bound = next((bound for bound in bounds if value <= bound), math.inf)
            found[bound] = Exemplar(ids, value, one.time_unix_nano / 1e9)
    return found


def _bound(value: float) -> str:
    return "+Inf" if value == math.inf else repr(float(value))
