"""How much an enforcement point wants of a bucket, estimated from what it reports. Pure: time is passed in."""

import math
from typing import Final

HALF_LIFE_S: Final = 1.0
"""A demand that falls is believed to half after so long; one that rises at once."""
SHORTEST_S: Final = 0.1
"""Reports that come closer together are counted together, so that two calls in a millisecond are not 2,000 a second."""


class Demand:
    """Calls a second that somebody wants to make, admitted and refused together."""

    __slots__ = ("_calls", "_since_s", "rate")

    def __init__(self, now_s: float) -> None:
        self.rate = 0.0
        self._calls, self._since_s = 0.0, now_s

    def add(self, calls: float, now_s: float, ceiling: float) -> None:
        """Counts what was wanted since the last report; no more than a ceiling is ever believed."""
        self._calls += calls
        passed_s = now_s - self._since_s
        if passed_s < SHORTEST_S:
            if self._calls > self.rate * SHORTEST_S:  # rises at once
                self.rate = min(ceiling, self._calls / SHORTEST_S)
            return
        rate = min(ceiling, self._calls / passed_s)
        kept = 0.5 ** (passed_s / HALF_LIFE_S)
        self.rate = rate if rate > self.rate else rate + (self.rate - rate) * kept
        self._calls, self._since_s = 0.0, now_s

    def peak(self, at_once: float, now_s: float, ceiling: float) -> None:
        """Notes how many of what is counted at once were wanted since the last report; no more than a ceiling."""
        passed_s, self._since_s = max(0.0, now_s - self._since_s), now_s
        wanted = min(ceiling, at_once)
        self.rate = max(wanted, wanted + (self.rate - wanted) * 0.5 ** (passed_s / HALF_LIFE_S))

    def planned_at_once(self) -> float:
        """What of that to set aside: a tenth more, and one, so that a next call finds one."""
        return 1.1 * self.rate + 1.0

    def planned(self, interval_s: float) -> float:
        """What to set aside: a tenth more, and as much as calls at random vary between two reports.

        Source: the spread of a Poisson process is the root of its mean; two of them hold 97 of 100 intervals.
        """
        return 1.1 * self.rate + 2.0 * math.sqrt(self.rate / interval_s) + 0.5
