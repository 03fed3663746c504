"""The leases of one policy, divided as its tree says."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

from meshwarden.controlplane.quota.allocator import Part, divide
from meshwarden.controlplane.quota.claim import equal_parts
from meshwarden.controlplane.quota.demand import planned, planned_at_once, portions
from meshwarden.controlplane.quota.lease import Lease, Share
from meshwarden.controlplane.quota.spare import Spares
from meshwarden.controlplane.quota.tree import REST, Level, Path, Point
from meshwarden.controlplane.quota.whole import apportion, round_down, rounded
from meshwarden.sdk.quota.unit import CONCURRENT

IDLE_S: Final = 30.0
"""A bucket that a point doesn't use for so long is taken from it."""
WORTH_SAYING: Final = 0.03
"""A share is said anew if it differs by more than this part of itself."""
LEAST_BURST: Final = 3.0
"""What a point may save up of a bucket besides half of its part of the burst, if it has no more by its part, and the
bucket's whole burst is no less: calls that come at random would else find nothing half of the time."""

_ROUNDING: Final = 1e-9
_NOBODY: Final[Mapping[Path, Mapping[Point, float]]] = {}

_Sharing: TypeAlias = "Callable[[float, Sequence[float]], list[float]]"
"""What each gets of so much room who wants so much more."""


class Pool:
    """One policy: its tree, and the leases of its buckets."""

    def __init__(self, tree: Level) -> None:
        self.tree = tree
        self._whole = tree.unit == CONCURRENT
        self._root = _Branch(tree)
        self._arranged = False
        self._missed: dict[_Branch, tuple[float, ...]] = {}
        self._missed_at: set[Path] = set()
        self.spares = Spares()
        """What of its rates went unused just now."""

    @property
    def leases(self) -> list[Lease]:
        """All leases."""
        return list(self._root.all())

    def add(self, lease: Lease) -> None:
        """Takes a lease in; its bucket is one of the tree's."""
        branch = self._root
        for name in lease.bucket.path:
            branch = branch.branch(name)
        branch.leases += (lease,)
        self._arranged = False

    def remove(self, lease: Lease) -> None:
        """Lets a lease go, and the levels that it was the last of."""
        self.spares.forget(lease)
        branch = self._root
        for name in lease.bucket.path:
            if name not in branch.branches:
                return
            branch = branch.branches[name]
        branch.leases = tuple(one for one in branch.leases if one is not lease)
        self._prune(lease.bucket.path)

    def change(self, tree: Level) -> list[Lease]:
        """Puts another tree in place; returns the leases whose buckets it doesn't have."""
        leases = self.leases
        self.tree, self._root, self._whole = tree, _Branch(tree), tree.unit == CONCURRENT
        self._missed, self._missed_at, self.spares = {}, set(), Spares()
        gone = []
        for lease in leases:
            if tree.find(lease.bucket.path) is None:
                gone.append(lease)
            else:
                self.add(lease)
        return gone

    def divide(
        self, now_s: float, gone: Mapping[Path, Mapping[Point, float]] = _NOBODY, *, learning: bool
    ) -> Iterator[tuple[Lease, float]]:
        """What each lease is to be, where that is worth saying; nothing else may be done before all is heard.

        What nobody wants is kept for points that are `gone`, as they wanted it of each bucket: by the time they are
        back nobody has to give it back to them first.

        While what is held is being learned nobody gets more, and as long as it fits nobody less, but who believes that
        it has more than it holds.
        """
        self._miss(gone)
        if not self._arranged:
            self._root.arrange()
            self._arranged = True
        for lease in self._root.all():
            lease.is_idle = now_s - lease.used_s > IDLE_S
        self._root.ask(self._missed, whole=self._whole)
        divide(self._root)
        if self._whole:
            round_down(self._root)
        self._root.aim(self._missed, whole=self._whole)
        self._root.count()
        if learning and self._root.fits:
            yield from ((lease, lease.held) for lease in self._root.all() if lease.given > lease.held)
            return
        # Where somebody goes short, the others' least is not too little to be given back.
        short = self._root.settle(0.0 if learning else self._root.more, _in_whole if self._whole else _in_proportion)
        for lease in self._root.all():
            rate, given = lease.target, lease.given
            # Who believes that it has more than it holds is told in any case.
            moves = abs(rate - given) > WORTH_SAYING * given or given > lease.held
            if moves or (rate < given and (short or rate == 0)):
                yield lease, rate

    def hand_out(self, now_s: float) -> dict[Lease, float]:
        """What leases get, once, of what went unused just now."""
        return self.spares.hand_out(self.tree, self._held, now_s) if not self._whole else {}

    def returned(self) -> list[Lease]:
        """Leases of which nothing is left: the point has acknowledged that it has none."""
        return [lease for lease in self._root.all() if lease.is_idle and lease.held == 0]

    def excess(self) -> dict[tuple[str, ...], float]:
        """How many more calls run than each level may have, where calls at once are counted and there are some."""
        found: dict[tuple[str, ...], float] = {}
        if self._whole and not self.tree.shadow:
            self._root.running((), found)
        return found

    def share(self, lease: Lease, rate: float, more: float = 0.0) -> Share:
        """What a point is told."""
        levels = list(self.tree.along(lease.bucket.path))
        # Of every level no more may come at once than it says: together its parts have no more than its rate.
        burst = rate * min(level.burst_s for level in levels)
        if not self._whole and rate > 0:
            least = min(LEAST_BURST + burst / 2, *(level.ceiling * level.burst_s for level in levels))
            burst = max(burst, least)
        return Share(lease.bucket, rate, burst, more)

    def _miss(self, gone: Mapping[Path, Mapping[Point, float]]) -> None:
        """Takes note of who is gone."""
        if not gone and not self._missed:
            return
        before, self._missed_at = self._missed_at, {path for path in gone if self.tree.find(path) is not None}
        self._missed = {}
        for path in self._missed_at:
            branch = self._root
            for name in path:
                self._arranged &= name in branch.branches
                branch = branch.branch(name)
            self._missed[branch] = tuple(gone[path].values())
        for path in before - self._missed_at:
            self._prune(path)

    def _prune(self, path: Path) -> None:
        """Lets the levels of a path go of which there is nothing any more."""
        above, branch = [], self._root
        for name in path:
            if name not in branch.branches:
                return
            above.append((branch, name))
            branch = branch.branches[name]
        for parent, name in reversed(above):
            if branch.leases or branch.branches or branch in self._missed:
                break
            del parent.branches[name]
            branch = parent
        self._arranged = False

    def _held(self, path: Path) -> float:
        branch = self._root
        for name in path:
            branch = branch.branch(name)
        return sum(lease.held for lease in branch.all())


_NONE: Final[dict[str, "_Branch"]] = {}
_Missed: TypeAlias = "Mapping[_Branch, Sequence[float]]"
"""What those want of each bucket that are gone."""


class _Branch(Part):
    """A level with the leases below it. There is one for each tenant that calls, so it is small."""

    __slots__ = ("branches", "equal_parts", "fits", "leases", "level", "more")

    def __init__(self, level: Level) -> None:
        super().__init__(weight=level.weight, floor=level.floor, ceiling=level.ceiling)
        self.level = level
        # A bucket has leases, any other level branches; what has none shares the one that is empty.
        self.branches: dict[str, _Branch] = _NONE
        self.leases: tuple[Lease, ...] = ()
        # Of its leases, once they are asked for.
        self.equal_parts: tuple[float, ...] = ()
        self.more, self.fits = 0.0, True

    def branch(self, name: str) -> "_Branch":
        """The level below it of that name, made if there is none."""
        if self.branches is _NONE:
            self.branches = {}
        if name not in self.branches:
            self.branches[name] = _Branch(self.level.part(name))
        return self.branches[name]

    def all(self) -> Iterator[Lease]:
        """The leases below it."""
        yield from self.leases
        for branch in self.branches.values():
            yield from branch.all()

    def arrange(self) -> None:
        """Makes its branches what it is divided into."""
        self.parts, self.equal_parts = tuple(self.branches.values()), ()
        for branch in self.branches.values():
            branch.arrange()

    def ask(self, missed: "_Missed", *, whole: bool) -> float:
        """Says what its points want; returns what they have."""
        had = sum(branch.ask(missed, whole=whole) for branch in self.branches.values())
        had += sum(lease.given for lease in self.leases)
        if whole:
            self.had = had
        rates = [lease.demand.rate for lease in self.leases if not lease.is_idle]
        self.away = sum(missed.get(self, ())) if missed else 0.0
        self.demand = 0.0
        if rates:
            wanted = sum(rates)
            self.demand = planned_at_once(wanted, len(rates)) if whole else planned(wanted)
        self.ceiling = 0.0 if self.leases and not rates and not self.away else self.level.ceiling
        return had

    def aim(self, missed: "_Missed", *, whole: bool) -> None:
        """Says what each lease is meant to have of what its bucket gets."""
        for branch in self.branches.values():
            branch.aim(missed, whole=whole)
        used = [lease for lease in self.leases if not lease.is_idle]
        demands = [lease.demand.rate for lease in used]
        away = missed.get(self, ()) if missed else ()
        rates = portions(self.rate, demands, self._parts_of(used, sum(demands)), away)
        if whole:
            amount = sum(rates) + _ROUNDING if away else self.rate
            rates = rounded(int(amount), rates, [lease.given for lease in used])
        for lease in self.leases:
            lease.target = 0.0
        for lease, rate in zip(used, rates, strict=True):
            lease.target = rate

    def _parts_of(self, used: Sequence[Lease], wanted: float) -> Sequence[float]:
        """The equal parts of those that use their leases; they matter where it may not be enough for all."""
        if len(used) < 2 or self.rate > wanted + len(used):
            return [1.0] * len(used)
        if not self.equal_parts:
            self.equal_parts = tuple(equal_parts([lease.point for lease in self.leases]))
        return [part for lease, part in zip(self.leases, self.equal_parts, strict=True) if not lease.is_idle]

    def count(self) -> float:
        """Says how much more is meant for its leases and has room, and if what they hold fits; returns that."""
        held, more, self.fits = 0.0, 0.0, True
        for branch in self.branches.values():
            held += branch.count()
            more += branch.more
            self.fits &= branch.fits
        for lease in self.leases:
            held += lease.held
            more += max(0.0, lease.target - lease.held)
        self.more = max(0.0, min(more, self.level.ceiling - held))
        self.fits &= held <= self.level.ceiling * (1 + _ROUNDING)
        return held

    def running(self, path: tuple[str, ...], excess: dict[tuple[str, ...], float]) -> float:
        """How many calls run; notes at which levels that is more than may."""
        together = sum(lease.in_use for lease in self.leases)
        together += sum(branch.running((*path, name), excess) for name, branch in self.branches.items())
        if together > self.level.ceiling and path[-1:] != (REST,):
            excess[path] = together - self.level.ceiling
        return together

    def settle(self, room: float, share: _Sharing) -> bool:
        """Lets each lease aim no higher than by what there is room for, as it lacks; whether one goes short by that."""
        leases, short = self.leases, False
        lacking = [branch.more for branch in self.branches.values()]
        lacking += [max(0.0, lease.target - lease.held) for lease in leases]
        given = share(room, lacking)
        for branch, more in zip(self.branches.values(), given, strict=False):
            short |= branch.settle(more, share)
        for lease, more in zip(leases, given[len(self.branches) :], strict=True):
            # What gets all that it lacks keeps the number that it has, for its level has the same: there are many.
            if more < lease.target - (held := lease.held):
                rate = held + more
                short |= rate < lease.target * (1 - WORTH_SAYING)
                lease.target = rate
        return short


def _in_proportion(room: float, wants: Sequence[float]) -> list[float]:
    wanted = sum(wants)
    part = min(1.0, room / wanted) if wanted > 0 else 0.0
    return [want * part for want in wants]


def _in_whole(room: float, wants: Sequence[float]) -> list[float]:
    return [float(one) for one in apportion(int(room), [int(want) for want in wants])]
