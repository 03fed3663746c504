"""What of a policy's rates went unused, for those who go short of it at that moment. Pure: time is passed in.

A bucket that is full runs over, which its point says; a rate that no lease holds is nobody's for a while. Both are
given out once more, as an amount and not as a rate, to points that have just refused something. So nothing is given
twice, and a share need not move for what a moment brings.

It is given at once or not at all, and never much of it: an idle mesh would else save up more than bursts.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

from meshwarden.controlplane.quota.allocator import fill
from meshwarden.controlplane.quota.lease import Lease
from meshwarden.controlplane.quota.tree import Level, Path

PART: Final = 0.1
"""So large a part of a level's rate may be given out once more, and what comes of the level in so many seconds kept."""
LEAST: Final = 1.0
"""Less is not worth saying; of small limits so much may be kept."""
FORGOTTEN_S: Final = 1.0
"""Nothing is kept of a level of which nobody has gone short for so long."""


class _Kept:
    """What there is of one level."""

    __slots__ = ("_at_s", "_ceiling", "_may", "held", "left", "short_s")

    def __init__(self, ceiling: float, now_s: float) -> None:
        self._ceiling, self._at_s, self.short_s = ceiling, now_s, now_s
        self._may = self.left = 0.0
        # The most that was held since then: what was before isn't known.
        self.held = ceiling

    @property
    def _most(self) -> float:
        return max(LEAST, PART * self._ceiling)

    def add(self, amount: float) -> None:
        """So much went unused."""
        taken = max(0.0, min(amount, self._most - self.left, self._may))
        self._may -= taken
        self.left += taken

    def turn(self, now_s: float, held: float) -> None:
        """Brings it to now, when so much is held."""
        passed_s, self._at_s = now_s - self._at_s, now_s
        self._may = min(self._most, self._may + PART * self._ceiling * passed_s)
        self.add(passed_s * (self._ceiling - max(held, self.held)))
        self.held = held


class Spares:
    """What there is of each level of one policy, and who goes short."""

    def __init__(self) -> None:
        self._levels: dict[Path, _Kept] = {}
        self._short: dict[Lease, float] = {}

    def hear(self, lease: Lease, spilled: float, refused: float) -> None:
        """Takes what a point says of a bucket: how much ran over, and how much was refused."""
        self._add(lease, spilled)
        if refused > 0 and lease.given > 0:
            self._short[lease] = refused
        else:
            self._short.pop(lease, None)

    def grow(self, lease: Lease, more: float) -> None:
        """Notes that more is held."""
        for kept in self._along(lease):
            kept.held += more

    def forget(self, lease: Lease) -> None:
        """Notes that a lease is gone."""
        self._short.pop(lease, None)

    def hand_out(self, tree: Level, held: Callable[[Path], float], now_s: float) -> dict[Lease, float]:
        """What each lease gets of it, whose point has gone short: level by level by weight, among points as they lack.

        Args:
            tree: the policy's.
            held: what is held below a level.
            now_s: the present.
        """
        for path in {lease.bucket.path[:depth] for lease in self._short for depth in range(len(lease.bucket.path) + 1)}:
            *_, level = tree.along(path)
            if level.ceiling < math.inf:
                self._levels.setdefault(path, _Kept(level.ceiling, now_s)).short_s = now_s
        for path, kept in list(self._levels.items()):
            if now_s - kept.short_s > FORGOTTEN_S:
                del self._levels[path]
            else:
                kept.turn(now_s, held(path))
        found: dict[Lease, float] = {}
        leases = list(self._short)
        wanted = self._wanted(tree, (), leases)
        if LEAST <= wanted < math.inf:
            self._give(tree, (), leases, wanted, found)
        for lease, amount in found.items():
            self._short[lease] = max(0.0, self._short[lease] - amount)
            for kept in self._along(lease):
                kept.left = max(0.0, kept.left - amount)
        return found

    def _add(self, lease: Lease, amount: float) -> None:
        for kept in self._along(lease):
            kept.add(amount)

    def _along(self, lease: Lease) -> list[_Kept]:
        path = lease.bucket.path
        levels = (self._levels.get(path[:depth]) for depth in range(len(path) + 1))
        return [kept for kept in levels if kept is not None]

    def _wanted(self, level: Level, path: Path, leases: Sequence[Lease]) -> float:
        """What leases below a level lack, as far as there is so much of it."""
        if level.parts:
            wanted = sum(self._wanted(level.part(name), (*path, name), some) for name, some in _parts(path, leases))
        else:
            wanted = sum(self._short[lease] for lease in leases)
        kept = self._levels.get(path)
        return wanted if kept is None else min(wanted, kept.left)

    def _give(
        self, level: Level, path: Path, leases: Sequence[Lease], amount: float, found: dict[Lease, float]
    ) -> None:
        if not level.parts:
            lacking = sum(self._short[lease] for lease in leases)
            found.update({lease: amount * self._short[lease] / lacking for lease in leases if lacking > 0})
            return
        parts = [(name, level.part(name), some) for name, some in _parts(path, leases)]
        wants = [self._wanted(part, (*path, name), some) for name, part, some in parts]
        given = fill(amount, [part.weight for _, part, _ in parts], [0.0] * len(parts), wants)
        for (name, part, some), more in zip(parts, given, strict=True):
            self._give(part, (*path, name), some, more, found)


def _parts(path: Path, leases: Sequence[Lease]) -> list[tuple[str, list[Lease]]]:
    """Leases by the part of a level that they are of."""
    found: dict[str, list[Lease]] = {}
    for lease in leases:
        found.setdefault(lease.bucket.path[len(path)], []).append(lease)
    return list(found.items())
