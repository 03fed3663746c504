"""How many calls a second each tenant makes, over the last few seconds."""

from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime

from meshwarden.controlplane.gather.call import Call
from meshwarden.v1.report_pb2 import CallStat

# Where a decision stands in what `read` returns. Who throttles itself is limited, too.
_DECISIONS: dict[int, int] = {CallStat.ALLOWED: 0, CallStat.LIMITED: 1, CallStat.THROTTLED: 1, CallStat.DENIED: 2}
# (tenant, source, destination, decision, reporter)
_Key = tuple[str, str, str, int, int]


class Rates:
    """A sliding window of counts. Both sides of a call may report it: each edge counts the side that saw more."""

    def __init__(self, clock: Callable[[], datetime], window_s: int = 10) -> None:
        self._clock = clock
        self._window_s = window_s
        self._started = self._second()
        self._seconds: deque[tuple[int, dict[_Key, int]]] = deque()

    def _second(self) -> int:
        return int(self._clock().timestamp())

    def add(self, calls: Iterable[Call]) -> None:
        """Counts calls as of now."""
        now = self._second()
        if not self._seconds or self._seconds[-1][0] != now:
            self._seconds.append((now, {}))
            self._prune(now)
        counts = self._seconds[-1][1]
        for call in calls:
            key = (call.tenant, call.source, call.destination, call.decision, call.reporter)
            counts[key] = counts.get(key, 0) + call.count

    def _prune(self, now: int) -> None:
        while self._seconds and not now - self._window_s < self._seconds[0][0] <= now:
            self._seconds.popleft()

    def read(self) -> dict[str, tuple[float, float, float]]:
        """Calls per second as {tenant: (allowed, limited, denied)}."""
        now = self._second()
        self._prune(now)
        edges: dict[tuple[str, str, str, int], dict[int, int]] = {}
        for _, counts in self._seconds:
            for (*edge, reporter), count in counts.items():
                sides = edges.setdefault(tuple(edge), {})  # type: ignore[arg-type]
                sides[reporter] = sides.get(reporter, 0) + count
        span_s = max(1, min(self._window_s, now - self._started))
        rates: dict[str, list[float]] = {}
        for (tenant, _, _, decision), sides in edges.items():
            rates.setdefault(tenant, [0.0, 0.0, 0.0])[_DECISIONS[decision]] += max(sides.values()) / span_s
        return {tenant: (allowed, limited, denied) for tenant, (allowed, limited, denied) in rates.items()}
