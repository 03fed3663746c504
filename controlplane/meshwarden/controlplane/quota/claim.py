"""What of an amount is an enforcement point's whatever the others claim: half of an equal part. Pure.

A point is believed what it says it wants and has used, since nobody else has seen it. So that one that lies can't have
everything, each of the others keeps half of what it would have if all had the same. Equal parts are of nodes, of a
node's workloads, and of a workload's points: who runs more of them, or makes some up, has no more for it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from meshwarden.controlplane.quota.tree import Path, Point

KEPT: Final = 0.5


def equal_parts(points: Sequence[Point]) -> list[float]:
    """The part of one that each would have, in order; names of points begin with their workload's."""
    homes = [(point.node, point.name.rpartition("/")[0]) for point in points]
    of_home = Counter(homes)
    of_node = Counter(node for node, _ in of_home)
    return [1.0 / (len(of_node) * of_node[node] * of_home[node, workload]) for node, workload in homes]


class Kept:
    """What of a period's amounts is kept for points that have had little of them, as of one moment."""

    def __init__(self, part: float) -> None:
        """Keeps such a part of each point's equal part."""
        self._part = part
        self._had: dict[Path, dict[Point, float]] = {}
        # By level: what is kept for each point, had what it will, and what that is together of what they haven't had.
        self._levels: dict[Path, tuple[dict[Point, float], float]] = {}

    def add(self, path: Path, point: Point, had: float) -> None:
        """Notes that a point uses a bucket, of which it has had so much."""
        for prefix in ((), path):
            of_level = self._had.setdefault(prefix, {})
            of_level[point] = of_level.get(point, 0.0) + had

    def for_others(self, prefix: Path, point: Point, amount: float) -> float:
        """How much of a level's whole amount is kept for others than a point."""
        had = self._had.get(prefix, {})
        if len(had) < 2 or self._part <= 0:
            return 0.0
        if prefix not in self._levels:
            points = list(had)
            parts = {one: self._part * amount * part for one, part in zip(points, equal_parts(points), strict=True)}
            self._levels[prefix] = parts, sum(max(0.0, parts[one] - had[one]) for one in points)
        parts, together = self._levels[prefix]
        return max(0.0, together - max(0.0, parts.get(point, 0.0) - had.get(point, 0.0)))

    def give(self, path: Path, point: Point, amount: float) -> None:
        """Notes that a point was given more of a bucket."""
        for prefix in ((), path):
            had = self._had.get(prefix, {})
            before = had.get(point, 0.0)
            had[point] = before + amount
            if prefix in self._levels:
                parts, together = self._levels[prefix]
                part = parts.get(point, 0.0)
                self._levels[prefix] = parts, together + max(0.0, part - before - amount) - max(0.0, part - before)
