"""The leases of one policy, divided as its tree says."""

import math
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from meshwarden.controlplane.quota.allocator import Part, divide
from meshwarden.controlplane.quota.lease import Lease, Share
from meshwarden.controlplane.quota.tree import Level, Point
from meshwarden.controlplane.quota.whole import apportion, round_down
from meshwarden.sdk.unit import CONCURRENT

REPORT_S: Final = 1.0
"""How often points report what they use."""
IDLE_S: Final = 30.0
"""A bucket that a point doesn't use for so long is taken from it."""
WORTH_SAYING: Final = 0.03
"""A share is said anew if it differs by more than this part of itself."""


_Sharing: TypeAlias = "Callable[[float, Sequence[float]], list[float]]"
"""What each gets of so much room who wants so much more."""


class Pool:
    """One policy: its tree, and the leases of its buckets."""

    def __init__(self, tree: Level) -> None:
        self.tree = tree
        self._whole = tree.unit == CONCURRENT
        self.leases: dict[Lease, None] = {}
        self._root = _Branch(tree)
        self._arranged = False

    def add(self, lease: Lease) -> None:
        """Takes a lease in; its bucket is one of the tree's."""
        branch = self._root
        for name in lease.bucket.path:
            if name not in branch.branches:
                branch.branches[name] = _Branch(branch.level.part(name))
            branch = branch.branches[name]
        branch.leases[lease.point] = lease
        self.leases[lease] = None
        self._arranged = False

    def remove(self, lease: Lease) -> None:
        """Lets a lease go, and the levels that it was the last of."""
        if lease not in self.leases:
            return
        del self.leases[lease]
        above, branch = [], self._root
        for name in lease.bucket.path:
            above.append((branch, name))
            branch = branch.branches[name]
        del branch.leases[lease.point]
        for parent, name in reversed(above):
            if branch.leases or branch.branches:
                break
            del parent.branches[name]
            branch = parent
        self._arranged = False

    def change(self, tree: Level) -> list[Lease]:
        """Puts another tree in place; returns the leases whose buckets it doesn't have."""
        leases, self.leases = self.leases, {}
        self.tree, self._root, self._whole = tree, _Branch(tree), tree.unit == CONCURRENT
        gone = []
        for lease in leases:
            if tree.find(lease.bucket.path) is None:
                gone.append(lease)
            else:
                self.add(lease)
        return gone

    def divide(self, now_s: float, *, learning: bool) -> list[tuple[Lease, float]]:
        """What each lease is to be, where that is worth saying."""
        if not self._arranged:
            self._root.arrange()
            self._arranged = True
        for lease in self.leases:
            idle = now_s - lease.used_s > IDLE_S
            lease.part.ceiling = 0.0 if idle else math.inf
            lease.part.demand = lease.demand.planned_at_once() if self._whole else lease.demand.planned(REPORT_S)
        divide(self._root.part)
        if self._whole:
            self._root.remember()
            round_down(self._root.part)
        for lease in self.leases:
            lease.target = lease.part.rate
        self._root.count()
        rates: dict[Lease, float] = {}
        self._root.settle(0.0 if learning else self._root.more, rates, _in_whole if self._whole else _in_proportion)
        # Where somebody goes short, the others' least is not too little to be given back.
        short = any(rate < lease.target * (1 - WORTH_SAYING) for lease, rate in rates.items())
        return [
            (lease, rate)
            for lease, rate in rates.items()
            if (rate < lease.given and (short or rate == 0)) or abs(rate - lease.given) > WORTH_SAYING * lease.given
        ]

    def returned(self) -> list[Lease]:
        """Leases of which nothing is left: the point has acknowledged that it has none."""
        return [lease for lease in self.leases if lease.part.ceiling == 0 and lease.held == 0]

    def share(self, lease: Lease, rate: float) -> Share:
        """What a point is told."""
        *_, level = self.tree.along(lease.bucket.path)
        return Share(lease.bucket, rate, rate * level.burst_s)


class _Branch:
    """A level with the leases below it."""

    __slots__ = ("branches", "held", "leases", "level", "more", "part")

    def __init__(self, level: Level) -> None:
        self.level = level
        self.branches: dict[str, _Branch] = {}
        self.leases: dict[Point, Lease] = {}
        self.part = Part()
        self.held = self.more = 0.0

    def arrange(self) -> Part:
        """Makes the tree that is divided."""
        branches = tuple(branch.arrange() for branch in self.branches.values())
        parts = branches + tuple(lease.part for lease in self.leases.values())
        level = self.level
        self.part = Part(parts, weight=level.weight, floor=level.floor, ceiling=level.ceiling)
        return self.part

    def count(self) -> None:
        """Adds up from the leases what is held, and how much more is meant and has room."""
        self.held = self.more = 0.0
        for branch in self.branches.values():
            branch.count()
            self.held += branch.held
            self.more += branch.more
        for lease in self.leases.values():
            held = lease.held
            self.held += held
            self.more += max(0.0, lease.target - held)
        self.more = max(0.0, min(self.more, self.level.ceiling - self.held))

    def settle(self, room: float, rates: dict[Lease, float], share: _Sharing) -> None:
        """Says what each lease is to be: lower at once; higher by what there is room for, as it lacks."""
        branches, leases = list(self.branches.values()), list(self.leases.values())
        lacking = [branch.more for branch in branches] + [max(0.0, lease.target - lease.held) for lease in leases]
        given = share(room, lacking)
        for branch, more in zip(branches, given, strict=False):
            branch.settle(more, rates, share)
        for lease, more in zip(leases, given[len(branches) :], strict=True):
            held = lease.held
            rates[lease] = lease.target if lease.target <= held else held + more

    def remember(self) -> float:
        """Has each part know what it has."""
        had = sum(branch.remember() for branch in self.branches.values())
        for lease in self.leases.values():
            lease.part.had = lease.given
            had += lease.given
        self.part.had = had
        return had


def _in_proportion(room: float, wants: Sequence[float]) -> list[float]:
    wanted = sum(wants)
    part = min(1.0, room / wanted) if wanted > 0 else 0.0
    return [want * part for want in wants]


def _in_whole(room: float, wants: Sequence[float]) -> list[float]:
    return [float(one) for one in apportion(int(room), [int(want) for want in wants])]
