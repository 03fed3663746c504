"""What points wanted that were heard of a while ago: who takes the place of one begins with that. Pure.

Of one that is gone the rate is anybody's who wants it. What nobody wants is kept for it meanwhile (`Pool.divide`), so
that it has as much as it had when it is back, or the next in its place, and waits for nobody to give that back.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from meshwarden.controlplane.quota.tree import Bucket, Path, Point

REMEMBERED_S: Final = 60.0
"""So long after it was heard of it is known what a point wanted."""
MAX_REMEMBERED: Final = 4096
"""Buckets of points, of one node."""


class _Wanted:
    """What one point wanted of one bucket, until when that is known, and whether the point is gone."""

    __slots__ = ("is_gone", "rate", "until_s")

    def __init__(self, rate: float, until_s: float, *, is_gone: bool) -> None:
        self.rate, self.until_s, self.is_gone = rate, until_s, is_gone


class Absent:
    """What is remembered of points, by node."""

    def __init__(self) -> None:
        # {(node, workload, bucket): {name of the point: what it wanted}}
        self._wanted: dict[tuple[str, str, Bucket], dict[str, _Wanted]] = {}
        self._of_node: defaultdict[str, int] = defaultdict(int)
        # {policy: {path: {point: what it wanted}}}, of those that are gone
        self._gone: dict[str, dict[Path, dict[Point, float]]] = {}

    def __len__(self) -> int:
        return sum(self._of_node.values())

    def remember(self, point: Point, bucket: Bucket, rate: float, heard_s: float, *, is_gone: bool) -> None:
        """Notes what a point wanted of a bucket when it was heard of last, if its node has room for that."""
        key = point.node, _workload(point), bucket
        known = self._wanted.get(key, {})
        if point.name not in known:
            if self._of_node[point.node] >= MAX_REMEMBERED:
                return
            self._of_node[point.node] += 1
        self._wanted[key] = known
        known[point.name] = _Wanted(rate, heard_s + REMEMBERED_S, is_gone=is_gone)
        if is_gone:
            self._gone.setdefault(bucket.policy, {}).setdefault(bucket.path, {})[point] = rate

    def take(self, point: Point, bucket: Bucket, now_s: float) -> float:
        """What is wanted of a bucket by a point that takes its own place again, or another's of its workload."""
        key = point.node, _workload(point), bucket
        known = self._wanted.get(key)
        if not known:
            return 0.0
        name = point.name if point.name in known else next(iter(known))
        wanted = known[name]
        self._forget(key, name)
        return wanted.rate if now_s < wanted.until_s else 0.0

    def look(self, now_s: float) -> None:
        """Forgets what was wanted long ago."""
        late = [(key, name) for key, known in self._wanted.items() for name in known if known[name].until_s <= now_s]
        for key, name in late:
            self._forget(key, name)

    def gone(self, policy: str) -> Mapping[Path, Mapping[Point, float]]:
        """What is wanted of each bucket of a policy by points that are gone."""
        return self._gone.get(policy, {})

    def _forget(self, key: tuple[str, str, Bucket], name: str) -> None:
        node, _, bucket = key
        del self._wanted[key][name]
        if not self._wanted[key]:
            del self._wanted[key]
        self._of_node[node] -= 1
        if not self._of_node[node]:
            del self._of_node[node]
        of_policy = self._gone.get(bucket.policy, {})
        of_bucket = of_policy.get(bucket.path, {})
        of_bucket.pop(Point(node, name), None)
        if not of_bucket:
            of_policy.pop(bucket.path, None)
        if not of_policy:
            self._gone.pop(bucket.policy, None)


def _workload(point: Point) -> str:
    """Whose point it is: an agent names points by workload and process."""
    return point.name.rpartition("/")[0] or point.name
