"""How much more was let in than one limiter in one place would have let in: an estimate, from what points report. Pure.

What a report says is spread over the time since the point's last. Each second of it is then held against a bucket that
has the level's rate and burst: what doesn't fit was let in beyond the limit. A second is judged when the reports of it
are in, those of Envoys too, which come each five seconds.
"""

import math
from array import array
from typing import Final, TypeAlias

from meshwarden.controlplane.quota.tree import REST, Bucket, Level

LATE_S: Final = 7.0
"""When all reports of a second are in."""
LONGEST_S: Final = 5.0
"""Between the reports of a point."""
MAX_LEVELS: Final = 4096
_SECONDS: Final = 12

Path: TypeAlias = "tuple[str, ...]"
"""A bucket's, or a part of it from the left; of the policy's own level it is empty."""


class _Level:
    """The last seconds of one level."""

    __slots__ = ("excess", "judged", "left", "seconds")

    def __init__(self, now_s: float, burst: float) -> None:
        self.seconds, self.left, self.excess = array("d", bytes(8 * _SECONDS)), burst, 0.0
        # The second up to which it was judged, that one not among them.
        self.judged = int(now_s - LONGEST_S)

    def add(self, amount: float, since_s: float, now_s: float) -> None:
        """Counts what was let in between two moments."""
        first, last = max(int(since_s), self.judged), int(now_s)
        if first >= last:
            self.seconds[last % _SECONDS] += amount
            return
        passed_s = now_s - max(since_s, first)
        for second in range(first, last + 1):
            within_s = min(now_s, second + 1) - max(since_s, second)
            self.seconds[second % _SECONDS] += amount * within_s / passed_s

    def judge(self, rate: float, burst: float, now_s: float) -> None:
        """Holds the seconds whose reports are in against a rate and a burst."""
        upto = int(now_s - LATE_S)
        for second in range(self.judged, min(upto, self.judged + _SECONDS)):
            self.left += rate - self.seconds[second % _SECONDS]
            self.seconds[second % _SECONDS] = 0.0
            if self.left < 0:
                self.excess -= self.left
            self.left = min(max(self.left, 0.0), burst)
        if upto > self.judged + _SECONDS:  # nothing was heard of it for as long
            self.left = burst
        self.judged = max(self.judged, upto)


class Excess:
    """What was let in beyond each level of each policy, in bounded memory."""

    def __init__(self) -> None:
        # {policy: {path of a level: the level}}
        self._levels: dict[str, dict[Path, _Level]] = {}
        self._count = 0

    def add(self, bucket: Bucket, tree: Level, amount: float, since_s: float, now_s: float) -> None:
        """Counts what a point has let in of a bucket.

        Args:
            bucket: the bucket.
            tree: its policy's.
            amount: what went on, in the policy's unit.
            since_s: when the point spoke of the bucket before.
            now_s: the present.
        """
        since_s = max(since_s, now_s - LONGEST_S)
        for depth, level in enumerate(tree.along(bucket.path)):
            if level.ceiling == math.inf or (depth and bucket.path[depth - 1] == REST):
                continue
            burst = level.ceiling * level.burst_s
            known = self._level(bucket.policy, bucket.path[:depth], burst, now_s)
            if known is not None:
                known.judge(level.ceiling, burst, now_s)
                known.add(amount, since_s, now_s)

    def note(self, policy: str, path: Path, amount: float) -> None:
        """Counts what is known to be beyond a level: of calls at once, how many too many ran for so many seconds."""
        if (known := self._level(policy, path, 0.0, 0.0)) is not None:
            known.excess += amount

    def of_policy(self, policy: str, tree: Level, now_s: float) -> dict[Path, float]:
        """What was let in beyond each level, in the policy's unit, of calls at once times seconds; see `note`."""
        found = {}
        for path, known in self._levels.get(policy, {}).items():
            try:
                *_, level = tree.along(path)
            except KeyError:  # the policy has changed
                continue
            known.judge(level.ceiling, level.ceiling * level.burst_s, now_s)
            found[path] = known.excess
        return found

    def forget(self, policy: str) -> None:
        """The policy is gone, or counts something else."""
        self._count -= len(self._levels.pop(policy, {}))

    def _level(self, policy: str, path: Path, burst: float, now_s: float) -> _Level | None:
        levels = self._levels.setdefault(policy, {})
        known = levels.get(path)
        if known is None and self._count < MAX_LEVELS:
            self._count += 1
            known = levels[path] = _Level(now_s, burst)
        return known
