"""What is left of a policy's amounts in one period, and who was given what of it. Pure: time is passed in, in seconds.

An amount is given in chunks. It is charged to every level of the policy's tree when it is planned, and the point is
told of it only when that is written: so whatever gets lost after that, a message, a point or this process, nothing is
given twice. What points were told is a sum that only grows, so that a word that comes twice, or late, mints nothing.

What nobody can say any more that he has is lost: it stays charged until the period ends.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Final

from meshwarden.controlplane.quota.claim import KEPT, Kept
from meshwarden.controlplane.quota.demand import Demand
from meshwarden.controlplane.quota.holding import MAX_SERIES, MOST, Account, Chunks, Grant, Holding
from meshwarden.controlplane.quota.tree import OTHERS, REST, Level, Path, Point

AHEAD_S: Final = 2.0
"""A chunk is what a point uses in so many seconds, "2 s of demand", unless that is too much of what is left."""
LEAST_S: Final = 1.0
"""But not less than what it uses in so many, while every point could have that."""
MOST_OF_REST: Final = 0.01
LIVES_S: Final = 5.0
"""A point that was not heard of for so long counts as lost until it is."""
USED_S: Final = 60.0
"""For a point that has used nothing for so long nothing is kept."""


class Ledger:
    """One policy's accounts of one period."""

    def __init__(self, tree: Level, turn: int, accounts: Mapping[Path, Account] = {}) -> None:
        """Begins with what was written of it.

        Args:
            tree: the policy's, in amounts for the period.
            turn: names this count; never one that points may hold already for something else.
            accounts: by path; they are its own from then on.
        """
        self.tree, self.turn = tree, turn
        self.accounts: dict[Path, Account] = dict(accounts)
        self.holdings: dict[tuple[str, int, Path], Holding] = {}
        self.dirty: set[Path] = set()
        """The accounts out of which something was given, or into which something came back, since they were written."""
        self.aged: set[Path] = set()
        """The accounts of whose use there is news."""
        # {point: {path: its series}}
        self._series: dict[Point, dict[Path, int]] = {}
        self._sharers: dict[Path, int] = {}
        self.of_node: dict[str, int] = {}
        """How many holdings each node's points have."""
        self._heard_s: dict[Point, float] = {}
        self._planned: dict[Holding, None] = {}
        self.kept: dict[Path, float] = {}
        """What of a bucket was kept for others when a point asked for more, by the last time that one did."""
        self.held_back = 0
        """How often a point was given less for that."""
        self._granted: dict[Path, float] = {}
        self._reserved: dict[Path, float] = {}
        self.change(tree)

    def change(self, tree: Level) -> None:
        """Puts another tree in force; what was spent stays spent."""
        self.tree = tree
        before, self.accounts = self.accounts, {}
        for path, account in before.items():
            here = leaf_of(tree, path) or path
            known = self.accounts.setdefault(here, account)
            if known is not account:
                known.granted += account.granted
                known.used += account.used
                known.series.update(account.series)
            if here != path:
                self.dirty |= {here, path}
        held = list(self.holdings.values())
        self._forget_holdings()
        for holding in held:
            place = leaf_of(tree, holding.path)
            if place is not None and _named(place) == _named(holding.path):
                holding.path, holding.spent = place, ""
                self._keep(holding)
        self._granted, self._reserved = {}, {}
        for prefix, level in _levels(tree):
            self._reserved[prefix] = sum(part.floor for part in level.parts.values())
        for path, account in self.accounts.items():
            self._add(path, account.granted)

    def hear(self, point: Point, now_s: float) -> None:
        """Notes that a point lives, if it has something."""
        if point in self._series:
            self._heard_s[point] = now_s

    def report(self, point: Point, path: Path, said: Chunks, calls: float, now_s: float, *, again: bool) -> bool:
        """Takes what a point says of a bucket of the tree's.

        Args:
            point: who says it.
            path: of the bucket.
            said: what it has, sane.
            calls: what it wanted since it last said so, in the policy's unit.
            now_s: the present.
            again: whether it may have missed what it was told.

        Returns:
            Whether it should be given more soon.
        """
        if said.turn != self.turn:
            said = Chunks(said.series, wanted=said.wanted)
        holding = self.holdings.get((point.node, said.series, path))
        if holding is None:
            given, used = said.amount, said.amount - said.left - said.returned
            demand = Demand(now_s - LEAST_S)
            if said.amount:  # who knows since when, while nobody listened
                calls = 0.0
            holding = Holding(point, path, said.series, demand, given, given, given, used, said.returned)
            account = self.accounts.get(path)
            if account is not None and said.series in account.series:
                self._use(path, account, said.series, used, account.series[said.series])
        else:
            self._say(holding, said)
        if holding.point != point:
            self._part(holding)
        holding.point = point
        self._keep(holding)
        self._heard_s[point] = now_s
        ceiling = self.tree.least_ceiling(path)
        holding.demand.add(calls, now_s, min(ceiling, MOST))
        holding.wanted = said.wanted
        if calls or said.wanted:
            holding.used_s = now_s
        # What was lost on the way is said again: it is given already.
        holding.tell |= holding.given > holding.said and (again or said.wanted > 0)
        holding.asks = self._lacks(holding) >= 1
        return holding.tell or (holding.asks and not (holding.spent and self.room(path)[0] < 1))

    def end(self, point: Point, path: Path, said: Chunks) -> None:
        """Takes a point's last word of a bucket: what it gives back, and what it was not told of yet, comes back."""
        holding = self.holdings.get((point.node, said.series, path))
        if holding is None:
            return
        if said.turn != self.turn:  # of this turn it was told nothing
            said = Chunks(said.series)
        self._say(holding, said)
        self._credit(holding, holding.given - holding.said)
        self._drop(holding)
        self._part(holding)

    def leave(self, point: Point) -> None:
        """Notes that a point has ended: what it had is lost."""
        self._heard_s.pop(point, None)
        for path, series in self._series.pop(point, {}).items():
            holding = self.holdings.get((point.node, series, path))
            if holding is not None and holding.point == point:
                self._drop(holding)

    def plan(self, now_s: float, passed: float) -> None:
        """Charges what points ask for, as far as there is room; `grants` tells them when it is written.

        Args:
            now_s: the present.
            passed: the part of the period that is over: what is kept for others comes free with it.
        """
        asking = [holding for holding in self.holdings.values() if holding.asks]
        kept = self._kept(now_s, passed) if asking else Kept(0.0)
        # Who has had least comes first, so that the last of an amount is shared.
        for holding in sorted(asking, key=lambda one: (one.given, one.path, one.point)):
            holding.asks = False
            amount = math.floor(self._may_have(holding, kept))
            if amount >= 1:
                kept.give(holding.path, holding.point, amount)
                self._charge(holding.path, amount)
                holding.given += amount
                holding.tell = True
                self._remember(self.accounts[holding.path], holding)
            room, level = self.room(holding.path)
            spent = level if room < 1 else ""
            if spent != holding.spent:
                holding.spent, holding.tell = spent, True
        for holding in self.holdings.values():
            if holding.tell:
                self._planned[holding] = None
                holding.tell = False

    def _kept(self, now_s: float, passed: float) -> Kept:
        """What is kept for each point that has used something lately."""
        kept = Kept(KEPT * max(0.0, 1.0 - passed))
        for one in self.holdings.values():
            if now_s - one.used_s < USED_S and self.lives(one, now_s):
                kept.add(one.path, one.point, one.given - one.returned)
        return kept

    def _may_have(self, holding: Holding, kept: Kept) -> float:
        """What a point is given: what it lacks, but for what isn't there or is kept for others."""
        path, point = holding.path, holding.point
        room, _ = self.room(path)
        wants = min(self._lacks(holding), room)
        mine = room - kept.for_others(path, point, self._granted.get(path, 0.0) + room)
        if self.tree.ceiling < math.inf:
            left = self.tree.ceiling - self._granted.get((), 0.0)
            mine = min(mine, left - kept.for_others((), point, self.tree.ceiling))
        self.kept[path] = max(0.0, room - mine)
        if mine < wants:
            self.held_back += 1
        return max(0.0, min(wants, mine))

    def grants(self) -> list[Grant]:
        """What is to be said now that all that was planned is written."""
        planned, self._planned = self._planned, {}
        return [
            Grant(one.point, one.path, one.series, one.given, one.spent)
            for one in planned
            if self.holdings.get((one.point.node, one.series, one.path)) is one
        ]

    def room(self, path: Path) -> tuple[float, str]:
        """How much a bucket can still be given, and whose limit says so: "total", "tenant", "service" or "method"."""
        level, prefix, whose = self.tree, path[:0], "total"
        least, where = math.inf, whose
        for name in path:
            child, part = (*prefix, name), level.part(name)
            reserved = self._reserved.get(prefix, 0.0) - self._unfilled(child, part)
            left = level.ceiling - self._granted.get(prefix, 0.0) - reserved
            if left < least:
                least, where = left, whose
            if name != REST:
                whose = "tenant" if not prefix else "service" if level.by_service else "method"
            level, prefix = part, child
        left = level.ceiling - self._granted.get(prefix, 0.0)
        return max(0.0, min(least, left)), whose if left < least else where

    def lives(self, holding: Holding, now_s: float) -> bool:
        """Whether a point was heard of lately."""
        return now_s - self._heard_s.get(holding.point, -math.inf) < LIVES_S

    def is_known(self, point: Point, said: Chunks, path: Path) -> bool:
        """Whether a bucket's count at a point has a place already."""
        return (point.node, said.series, path) in self.holdings

    def _keep(self, holding: Holding) -> None:
        """Notes a holding in the place of any other that its point had of the bucket."""
        key = (holding.point.node, holding.series, holding.path)
        mine = self._series.setdefault(holding.point, {})
        before = mine.get(holding.path)
        if before is not None and before != holding.series:
            other = self.holdings.get((holding.point.node, before, holding.path))
            if other is not None and other.point == holding.point:
                self._drop(other)
        mine[holding.path] = holding.series
        if key not in self.holdings:
            self._sharers[holding.path] = self._sharers.get(holding.path, 0) + 1
            self.of_node[holding.point.node] = self.of_node.get(holding.point.node, 0) + 1
        self.holdings[key] = holding

    def _part(self, holding: Holding) -> None:
        """Forgets that a point had a holding, and the point, if that was all."""
        mine = self._series.get(holding.point, {})
        if mine.get(holding.path) == holding.series:
            del mine[holding.path]
            if not mine:
                del self._series[holding.point]
                self._heard_s.pop(holding.point, None)

    def _drop(self, holding: Holding) -> None:
        del self.holdings[holding.point.node, holding.series, holding.path]
        self._sharers[holding.path] -= 1
        if holding.path in self.accounts:
            self.accounts[holding.path].series.pop(holding.series, None)
        self.of_node[holding.point.node] -= 1

    def _forget_holdings(self) -> None:
        self.holdings, self._series, self._sharers, self.of_node = {}, {}, {}, {}

    def _say(self, holding: Holding, said: Chunks) -> None:
        """Takes what a point that we know says of what it has."""
        if said.amount > holding.given:  # given by whoever came before us
            holding.base += said.amount - holding.given
            holding.given = said.amount
        holding.said = max(holding.said, said.amount)
        used = max(0.0, min(said.amount - said.left - said.returned, MOST))
        account = self.accounts.get(holding.path)
        if account is not None and used != holding.used:
            self._use(holding.path, account, holding.series, used, holding.used)
        holding.used = used
        if said.returned > holding.returned:
            self._credit(holding, said.returned - holding.returned)
            holding.returned = said.returned

    def _use(self, path: Path, account: Account, series: int, used: float, before: float) -> None:
        """Counts what a point has used since it used so much."""
        account.used = max(0.0, min(account.used + used - before, MOST))
        if series in account.series:
            account.series[series] = used
        self.aged.add(path)

    def _remember(self, account: Account, holding: Holding) -> None:
        """Has what a point has used written with its account, if there is room."""
        if len(account.series) < MAX_SERIES:
            account.series.setdefault(holding.series, holding.used)

    def _credit(self, holding: Holding, amount: float) -> None:
        """Takes back what we have given ourselves: for the rest there is only the point's word."""
        amount = min(amount, holding.given - holding.base - holding.credited)
        if amount > 0:
            holding.credited += amount
            self._charge(holding.path, -amount)

    def _lacks(self, holding: Holding) -> float:
        """What a point is to be given, if there is room; 0 while it has half of a chunk."""
        rate, out = holding.demand.rate, holding.out
        if out >= holding.wanted and 2 * out >= max(1.0, rate * AHEAD_S):
            return 0.0  # however much there is
        room, _ = self.room(holding.path)
        least = min(rate * LEAST_S, room / (2 * self._sharers[holding.path]))
        chunk = max(1.0, min(rate * AHEAD_S, max(room * MOST_OF_REST, least)))
        if out >= holding.wanted and 2 * out >= chunk:
            return 0.0
        return max(math.ceil(chunk), math.ceil(holding.wanted)) - out

    def _charge(self, path: Path, amount: float) -> None:
        self.accounts.setdefault(path, Account()).granted += amount
        self._add(path, amount)
        self.dirty.add(path)

    def _add(self, path: Path, amount: float) -> None:
        """Counts an amount at each level of a path, and against the floors that are kept free for it."""
        level: Level | None = self.tree
        for end in range(len(path) + 1):
            prefix = path[:end]
            if end and level is not None:
                name = path[end - 1]
                level = level.part(name) if name in level.parts or OTHERS in level.parts else None
            before = self._unfilled(prefix, level)
            self._granted[prefix] = self._granted.get(prefix, 0.0) + amount
            if end:
                parent = path[: end - 1]
                self._reserved[parent] = self._reserved.get(parent, 0.0) + self._unfilled(prefix, level) - before

    def _unfilled(self, prefix: Path, level: Level | None) -> float:
        """What of a level's floor it has not had yet."""
        return max(0.0, level.floor - self._granted.get(prefix, 0.0)) if level is not None else 0.0


def _named(path: Path) -> Path:
    """A path as messages name it: what is left of a tenant that is divided is the tenant's."""
    return _named(path[:-1]) if path and path[-1] == REST else path


def leaf_of(tree: Level, path: Path) -> Path | None:
    """The bucket of a tree that a path's amounts belong to; None if it has none for it."""
    level, found = tree, []
    for name in path:
        if not level.parts:
            break
        if name not in level.parts and OTHERS not in level.parts:
            name = REST
        if name not in level.parts and OTHERS not in level.parts:
            return None
        found.append(name)
        level = level.part(name)
    while level.parts:
        if REST not in level.parts:
            return None
        found.append(REST)
        level = level.parts[REST]
    return tuple(found)


def _levels(tree: Level, prefix: Path = ()) -> Iterator[tuple[Path, Level]]:
    yield prefix, tree
    yield from itertools.chain.from_iterable(_levels(part, (*prefix, name)) for name, part in tree.parts.items())
