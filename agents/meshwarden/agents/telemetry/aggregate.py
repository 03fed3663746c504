"""Counts of calls, kept per minute, in bounded memory."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from meshwarden.v1 import report_pb2 as pb

BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds of the buckets of duration; a last one has none."""
OTHER: Final = "_OTHER"
_BUCKETS: Final = len(BOUNDS_S) + 1
_MAX_METHODS: Final = 200
_MAX_KEYS: Final = 50_000
_METHOD_LENGTH: Final = 512


@dataclass(frozen=True)
class CallKey:
    """What calls are counted by; `minute` is the beginning of one, in seconds since 1970."""

    source: str
    destination: str
    method: str
    status: str
    decision: int
    reporter: int
    revision: int
    minute: int


@dataclass
class _Sum:
    count: int = 0
    duration_s: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * _BUCKETS)


class Aggregator:
    """Adds up calls until they are taken."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._sums: dict[CallKey, _Sum] = {}
        self._methods: dict[str, set[str]] = {}
        self.dropped = 0
        """Calls for which there was no room since the last take."""

    def add_call(
        self,
        source: str,
        destination: str,
        method: str,
        status: str,
        decision: int,
        reporter: int,
        revision: int,
        duration_s: float,
    ) -> None:
        """Counts one call that has just ended."""
        key = self._key(source, destination, method, status, decision, reporter, revision)
        found = self._sum(key, 1)
        if found is not None:
            found.count += 1
            found.duration_s += duration_s
            found.buckets[bisect_left(BOUNDS_S, duration_s)] += 1

    def add(self, stat: pb.CallStat) -> None:
        """Adds counts that somebody else has made; identities in it must be the agent's word by now.

        The minute is ours: a sender's clock is not believed.
        """
        key = self._key(
            stat.source, stat.destination, stat.method, stat.status, stat.decision, stat.reporter, stat.revision
        )
        found = self._sum(key, stat.count)
        if found is not None:
            found.count += stat.count
            found.duration_s += stat.duration_sum_s
            for index, count in enumerate(stat.duration_buckets[:_BUCKETS]):
                found.buckets[index] += count

    def take(self, most: int) -> list[pb.CallStat]:
        """Removes and returns up to `most` counts, the oldest first."""
        keys = list(self._sums)[:most]
        return [_stat(key, self._sums.pop(key)) for key in keys]

    def __len__(self) -> int:
        return len(self._sums)

    def _key(
        self, source: str, destination: str, method: str, status: str, decision: int, reporter: int, revision: int
    ) -> CallKey:
        now = int(self._clock().timestamp())
        method = self._bounded(destination, method)
        return CallKey(source, destination, method, status[:32], decision, reporter, revision, now - now % 60)

    def _bounded(self, destination: str, method: str) -> str:
        known = self._methods.setdefault(destination, set())
        if method in known:
            return method
        if len(known) >= _MAX_METHODS or len(method) > _METHOD_LENGTH:
            return OTHER
        known.add(method)
        return method

    def _sum(self, key: CallKey, count: int) -> _Sum | None:
        found = self._sums.get(key)
        if found is None:
            if len(self._sums) >= _MAX_KEYS:
                self.dropped += count
                return None
            found = self._sums[key] = _Sum()
        return found


def merge(stats: Iterable[pb.CallStat], aggregator: Aggregator) -> None:
    """Adds several counts."""
    for stat in stats:
        aggregator.add(stat)


def _stat(key: CallKey, total: _Sum) -> pb.CallStat:
    stat = pb.CallStat(
        source=key.source,
        destination=key.destination,
        method=key.method,
        status=key.status,
        decision=key.decision,  # type: ignore[arg-type]
        reporter=key.reporter,  # type: ignore[arg-type]
        revision=key.revision,
        count=total.count,
        duration_sum_s=total.duration_s,
        duration_buckets=total.buckets,
    )
    stat.minute.FromSeconds(key.minute)
    return stat
