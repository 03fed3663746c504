"""Exemplars: a few calls of a count whose traces can be looked up, the newest of each of the slowest buckets."""

from collections.abc import Iterable
from typing import Final

from meshwarden.sdk.red.histogram import bound_of
from meshwarden.v1 import report_pb2

MOST: Final = 4
"""How many a count carries."""
TraceIds = tuple[bytes, bytes]
"""A trace id of 16 bytes and a span id of 8."""


class Exemplars:
    """Of one count, by the bucket of BOUNDS_S that they fall into."""

    __slots__ = ("_by_bucket",)

    def __init__(self) -> None:
        # {bucket: (ids, duration in seconds, seconds since 1970)}: messages are made of those that stay.
        self._by_bucket: dict[int, tuple[TraceIds, float, float]] = {}

    def add(self, trace: TraceIds, duration_s: float, time_s: float) -> None:
        """Takes a call that ended `time_s` seconds after 1970 began."""
        self._by_bucket[bound_of(duration_s)] = (trace, duration_s, time_s)
        if len(self._by_bucket) > MOST:
            del self._by_bucket[min(self._by_bucket)]

    def update(self, exemplars: Iterable[report_pb2.Exemplar]) -> None:
        """Takes those of another count; what is none is left out."""
        for exemplar in exemplars:
            if is_sound(exemplar):
                time_s = exemplar.time.seconds + exemplar.time.nanos / 1e9
                self.add((exemplar.trace_id, exemplar.span_id), exemplar.duration_s, time_s)

    def merge(self, other: "Exemplars") -> None:
        """Takes those of another count."""
        for trace, duration_s, time_s in other._by_bucket.values():
            self.add(trace, duration_s, time_s)

    def to_proto(self) -> list[report_pb2.Exemplar]:
        """Returns them as messages."""
        found = []
        for (trace_id, span_id), duration_s, time_s in self._by_bucket.values():
            exemplar = report_pb2.Exemplar(trace_id=trace_id, span_id=span_id, duration_s=duration_s)
            exemplar.time.FromNanoseconds(int(time_s * 1e9))
            found.append(exemplar)
        return found


def is_sound(exemplar: report_pb2.Exemplar) -> bool:
    """Whether both ids are ids and the duration is one."""
    return (
        (len(exemplar.trace_id), len(exemplar.span_id)) == (16, 8)
        and any(exemplar.trace_id)
        and any(exemplar.span_id)
        and 0 <= exemplar.duration_s <= 86_400.0  # NaN is nowhere in between
        and 0 <= exemplar.time.seconds < 2**33
    )
