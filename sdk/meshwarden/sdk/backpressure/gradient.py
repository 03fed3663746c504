"""How many calls at once a server can do with, found from how long they take. Pure: time and chance are passed in.

Calls that wait for one another take longer the more of them there are. So the limit goes down by how much longer calls
take than they would among few, and up by its square root while they don't:

    limit := limit * min(1, TOLERANCE * alone / taken) + sqrt(limit)

With n calls at a server that can do c at once this comes to rest at n = TOLERANCE * c + sqrt(n), near the knee where
more calls at once would add to the time and nothing to the rate.

What "alone" is, is where limiters of this kind go wrong. The lowest time ever seen is too low, by chance, and stays so
when the work changes; a mean over a long time rises in a long overload, and the limit with it; a probe with hardly any
calls costs as much as it tells. Here it is the mean among at most half as many calls as the limit: it is seen when the
load is small, and else by a probe, in which half as many calls are let in for as long as it takes. If half as many are
still too many, they take half as long: so the limit goes down whatever the figure is, and the next probe lets in half
as many again.

Means are of cohorts: all that began in some time, whenever they end. Of what ended in some time the short ones would be
most.

The limit is that of the server, since what runs short is the server's; what a call takes is compared within its method,
else a change in the mix of fast and slow ones would look like load.

Source: Gradient2 of Netflix's concurrency-limits; Envoy's adaptive concurrency filter; Kleinrock, "Power and
deterministic rules of thumb for probabilistic problems in computer communications" (1979), for the knee.
"""

import math
from collections.abc import Callable
from typing import Final

TOLERANCE: Final = 1.25
"""How much longer than among few calls may take before the limit goes down."""
COHORT_S: Final = 0.1
LONGEST_COHORT_S: Final = 2.0
COHORT: Final = 20
PROBE: Final = 50
"""A cohort takes calls in for so long at least and at most, and until there are so many of them."""
FEW: Final = 5
"""Less than that say nothing."""
LONGEST_WAIT_S: Final = 10.0
"""How long it is waited for nine tenths of a cohort to end. Those that haven't count as what they took till then."""
PROBE_EVERY_S: Final = 5.0
PROBE_SHARE: Final = 20.0
"""A probe comes after so many times as long as the last one took: one call in forty is the price."""
HASTE_S: Final = 0.5
"""The pause before the first probe, and before one that looks deeper than the last."""
DEEPEST: Final = 1 / 16
STILL_QUEUED: Final = 0.75
"""By how much less than in proportion calls take less time in a probe, if there were no queue in it."""
MAX_METHODS: Final = 128
OTHER: Final = "_OTHER"
_START: Final = 20
_LEAST_FACTOR: Final = 0.5
_NEWS: Final = 0.5
_MOVED: Final = 0.2
_GROWTH: Final = 1.5
"""By how much the limit grows at first, until it is seen to be too high."""


class _Method:
    """What the calls of one method took: among few, if that is known, and in this cohort."""

    __slots__ = ("alone_s", "began_s", "ended", "open", "taken_s")

    def __init__(self) -> None:
        self.alone_s: float | None = None
        self.clear()

    def clear(self) -> None:
        """Begins another cohort."""
        self.ended = self.open = 0
        self.taken_s = self.began_s = 0.0

    def close(self, now_s: float) -> None:
        """Counts those that haven't ended as if they did now."""
        self.taken_s += self.open * now_s - self.began_s
        self.ended += self.open
        self.open, self.began_s = 0, 0.0

    def learn(self) -> None:
        """Takes the cohort as what it is like among few."""
        mean_s = self.taken_s / self.ended
        if not self.alone_s:
            self.alone_s = mean_s
            return
        # What is far off isn't chance. A few calls of a method say little about it.
        news = 1.0 if abs(mean_s - self.alone_s) > _MOVED * self.alone_s else _NEWS
        self.alone_s += news * min(1.0, self.ended / COHORT) * (mean_s - self.alone_s)


class Gradient:
    """The limit of one server. Not safe between threads."""

    def __init__(self, least: int, most: int, now_s: float, chance: Callable[[], float]) -> None:
        """Starts with 20, or what of it is allowed.

        Args:
            least: the limit is never below it.
            most: the limit is never above it.
            now_s: seconds of any clock that never goes back.
            chance: from 0 to 1, so that the servers of a service don't probe together.
        """
        self._chance = chance
        self._methods: dict[str, _Method] = {}
        self._limit = float(_START)
        self._probing, self._depth = False, 0.5
        self._rising = True
        self._ratio = 1.0
        self._cohort = self._peak = self._size = self._ended = 0
        self.bound(least, most)
        self._pause(now_s, HASTE_S)
        self._open(now_s)

    @property
    def limit(self) -> int:
        """How many calls may be at the server now."""
        return max(self._least, int(self._limit * self._depth)) if self._probing else int(self._limit)

    def bound(self, least: int, most: int) -> None:
        """Allows another range."""
        self._least, self._most = least, max(least, most)
        self._limit = min(max(self._limit, self._least), self._most)

    def begin(self, method: str, in_flight: int, now_s: float) -> int:
        """A call has been let in; with it there are `in_flight`.

        Returns:
            Its cohort, for `end`; 0 if it is of none.
        """
        if in_flight > self._peak:
            self._peak = in_flight
        if self._size and now_s >= self._full_s and (self._size >= self._wanted or now_s >= self._last_s):
            return 0
        one = self._methods.get(method) or self._method(method)
        self._size += 1
        one.open += 1
        one.began_s += now_s
        return self._cohort

    def refuse(self) -> None:
        """A call hasn't been let in."""
        self._peak = self._most + 1

    def end(self, cohort: int, method: str, began_s: float, now_s: float, is_measured: bool) -> bool:
        """A call has ended.

        Args:
            cohort: what `begin` returned.
            method: which one.
            began_s: when it was let in.
            now_s: when it ended.
            is_measured: whether what it took says anything.

        Returns:
            Whether the limit may have changed.
        """
        if cohort == self._cohort:
            one = self._methods.get(method) or self._method(method)
            one.open -= 1
            one.began_s -= began_s
            if is_measured:
                one.ended += 1
                one.taken_s += now_s - began_s
                self._ended += 1
            else:
                self._size -= 1
        return now_s >= self._full_s and self._turn(now_s)

    def _method(self, name: str) -> _Method:
        if len(self._methods) >= MAX_METHODS:
            name = OTHER
        return self._methods.setdefault(name, _Method())

    def _open(self, now_s: float) -> None:
        self._cohort += 1
        self._wanted = PROBE if self._probing else COHORT
        self._began_s, self._full_s, self._last_s = now_s, now_s + COHORT_S, now_s + LONGEST_COHORT_S
        self._peak = self._size = self._ended = 0
        for one in self._methods.values():
            one.clear()

    def _turn(self, now_s: float) -> bool:
        """Judges the cohort, if it is whole."""
        if self._size < self._wanted and now_s < self._last_s:
            return False
        is_late = now_s >= self._last_s + LONGEST_WAIT_S
        if self._ended < 0.9 * self._size and not is_late:
            return False
        before = self.limit
        for one in self._methods.values():
            one.close(now_s)
        if self._probing:
            self._end_probe(now_s)
        elif self._size >= FEW:
            self._adjust()
            self._probing = self._is_used and now_s >= self._next_probe_s
        self._open(now_s)
        return self.limit != before

    @property
    def _is_used(self) -> bool:
        """Whether there were so many calls that the limit may be what bounds them."""
        return self._peak > self._limit / 2

    def _adjust(self) -> None:
        if not self._is_used:
            self._learn()  # among few
            return
        if self._limit <= self._least:
            self._learn()  # nobody could look below: what calls take here is what they take
        self._ratio = self._slowdown()
        factor = max(_LEAST_FACTOR, min(1.0, TOLERANCE / self._ratio))
        self._rising = self._rising and factor == 1.0
        limit = self._limit * (_GROWTH if self._rising else factor) + math.sqrt(self._limit)
        self._limit = min(max(limit, self._least), self._most)

    def _end_probe(self, now_s: float) -> None:
        self._probing = False
        pause_s = max(PROBE_EVERY_S, PROBE_SHARE * (now_s - self._began_s))
        if self._size >= FEW:
            is_deep = self._ratio * self._depth > STILL_QUEUED * self._slowdown()
            if is_deep and self._depth > DEEPEST and self._limit * self._depth > self._least:
                self._depth /= 2
                pause_s = HASTE_S
            elif not is_deep:
                self._depth = min(0.5, self._depth * 2)
            self._learn()
        self._pause(now_s, pause_s)

    def _slowdown(self) -> float:
        """How many times as long as among few the calls of this cohort took."""
        expected_s = taken_s = 0.0
        for one in self._methods.values():
            if one.ended:
                if not one.alone_s:
                    one.learn()
                expected_s += one.ended * (one.alone_s or 0.0)
                taken_s += one.taken_s
        return taken_s / expected_s if expected_s > 0 else 1.0

    def _learn(self) -> None:
        for one in self._methods.values():
            if one.ended:
                one.learn()

    def _pause(self, now_s: float, pause_s: float) -> None:
        self._next_probe_s = now_s + pause_s * (0.5 + self._chance())
