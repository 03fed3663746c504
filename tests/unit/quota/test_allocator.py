"""The division of a rate, against an oracle that knows nothing of levels: linear programs."""

import math
import random
from collections.abc import Iterator

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from meshwarden.controlplane.quota.allocator import Part, divide, fill

WEIGHTS = st.sampled_from([0.5, 1.0, 1.0, 2.0, 3.0, 10.0])
AMOUNTS = st.one_of(st.just(0.0), st.integers(0, 40).map(float), st.floats(0.01, 1000.0))


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> Part:
    """A tree whose floors fit below its ceilings, as policies are checked to be."""
    weight, spare = draw(WEIGHTS), draw(st.one_of(st.just(math.inf), AMOUNTS))
    if depth == 0 or draw(st.booleans()):
        floor = draw(AMOUNTS)
        leaf = Part(weight=weight, floor=floor, ceiling=floor + spare, demand=draw(AMOUNTS))
        leaf.away = draw(st.one_of(st.just(0.0), AMOUNTS))
        return leaf
    parts = draw(st.lists(trees(depth - 1), min_size=1, max_size=3))
    floor = sum(part.floor for part in parts) + draw(AMOUNTS)
    return Part(parts, weight=weight, floor=floor, ceiling=floor + spare)


def walk(part: Part) -> Iterator[Part]:
    yield part
    for below in part.parts:
        yield from walk(below)


def about(values: list[float]) -> object:
    """Equal, but for what linear programs leave open."""
    return pytest.approx(values, rel=1e-4, abs=1e-3)


class Oracle:
    """Max-min fairness by linear programs over the leaves of one part: what its parts get, in order."""

    def __init__(self, part: Part) -> None:
        leaves = part.leaves()
        self._columns = {id(leaf): number for number, leaf in enumerate(leaves)}
        self._parts, self._width = part.parts, len(leaves)
        self._bounds = [(0.0, min(leaf.demand, leaf.ceiling)) for leaf in leaves]
        self._rows: list[numpy.ndarray] = []
        self._limits: list[float] = []
        for below in walk(part):
            if below is not part and below.ceiling < math.inf:
                self.at_most(self.sum_of(below), below.ceiling)

    def sum_of(self, part: Part) -> numpy.ndarray:
        row = numpy.zeros(self._width + 1)
        row[[self._columns[id(leaf)] for leaf in part.leaves()]] = 1.0
        return row

    def at_most(self, row: numpy.ndarray, limit: float) -> None:
        self._rows.append(row)
        self._limits.append(limit)

    def most(self, objective: numpy.ndarray) -> float:
        """The most that an objective can be."""
        answer = linprog(
            -objective,
            A_ub=numpy.array(self._rows) if self._rows else None,
            b_ub=self._limits or None,
            bounds=[*self._bounds, (0.0, None)],
            method="highs",
        )
        assert answer.status == 0, answer.message
        return float(-answer.fun)

    def guarantee(self) -> None:
        """Holds each part below to its floor, as far as it is wanted, from the leaves up."""
        for below in reversed([below for part in self._parts for below in walk(part)]):
            self.at_most(-self.sum_of(below), -min(below.floor, self.most(self.sum_of(below))) + 1e-9)

    def fair(self, amount: float) -> list[float]:
        """What each part gets of the amount: the least well off, for its weight, is as well off as can be."""
        self.at_most(sum(self.sum_of(part) for part in self._parts), amount)
        level = numpy.zeros(self._width + 1)
        level[-1] = 1.0
        fixed: dict[int, float] = {}
        while len(fixed) < len(self._parts):
            base = len(self._rows)
            for number, part in enumerate(self._parts):
                if number not in fixed:
                    self.at_most(level * part.weight - self.sum_of(part), 0.0)
            best = self.most(level)
            self._rows, self._limits = self._rows[:base], self._limits[:base]
            for number, part in enumerate(self._parts):
                if number not in fixed:
                    self.at_most(-self.sum_of(part), -best * part.weight + 1e-7)
            stuck = {
                number: most
                for number, part in enumerate(self._parts)
                if number not in fixed and (most := self.most(self.sum_of(part))) <= best * part.weight + 1e-5
            }
            self._rows, self._limits = self._rows[:base], self._limits[:base]
            assert stuck
            for number, most in stuck.items():
                self.at_most(-self.sum_of(self._parts[number]), -most + 1e-7)
                self.at_most(self.sum_of(self._parts[number]), most + 1e-7)
            fixed |= stuck
        return [fixed[number] for number in range(len(self._parts))]


@given(trees())
def test_the_division_is_the_one_that_linear_programs_find(root: Part) -> None:
    root.ceiling = min(root.ceiling, root.floor + 50)
    divide(root)
    for part in walk(root):
        if part.parts and part.rate <= part.demand + 1e-9:
            oracle = Oracle(part)
            oracle.guarantee()
            assert [below.rate for below in part.parts] == about(oracle.fair(part.rate))
    assert root.rate == root.ceiling


@given(trees())
def test_nothing_is_given_twice_and_nothing_that_can_be_given_is_kept(root: Part) -> None:
    divide(root)
    for part in walk(root):
        assert 0 <= part.rate <= part.ceiling * (1 + 1e-9) + 1e-9
        if part.parts:
            given_out, room = sum(below.rate for below in part.parts), sum(below.ceiling for below in part.parts)
            assert given_out == pytest.approx(min(part.rate, room))
            assert given_out <= part.rate * (1 + 1e-9) + 1e-9


@given(trees())
def test_a_floor_is_kept_when_it_is_wanted(root: Part) -> None:
    divide(root)
    for part in walk(root):
        assert part.rate >= min(part.floor, part.demand) - 1e-6


@given(trees(), st.randoms(use_true_random=False))
def test_the_order_of_siblings_does_not_matter(root: Part, rng: random.Random) -> None:
    divide(root)
    before = {id(part): part.rate for part in walk(root)}
    for part in walk(root):
        shuffled = list(part.parts)
        rng.shuffle(shuffled)
        part.parts = shuffled
    divide(root)
    assert {id(part): part.rate for part in walk(root)} == pytest.approx(before, rel=1e-9, abs=1e-9)


@given(trees())
def test_who_is_away_is_kept_nothing_that_anybody_wants(root: Part) -> None:
    divide(root)
    with_them = [leaf.rate for leaf in root.leaves()]
    for leaf in root.leaves():
        leaf.away = 0.0
    divide(root)
    for leaf, rate in zip(root.leaves(), with_them, strict=True):
        assert rate >= min(leaf.rate, leaf.demand) - 1e-6


def test_who_is_away_is_kept_what_they_want_before_the_rest_is_handed_out() -> None:
    idle, gone, busy = Part(), Part(), Part(demand=10)
    gone.away = 4
    divide(Part([idle, gone, busy], ceiling=35))
    there = Part(demand=4)
    divide(Part([Part(), there, Part(demand=10)], ceiling=35))
    assert gone.rate == pytest.approx(there.rate)
    assert busy.rate > 10
    short = Part(demand=33)
    divide(Part([gone, short], ceiling=35))
    assert gone.rate == 2


def test_a_scarce_rate_goes_by_weight() -> None:
    heavy, light, modest = Part(weight=3, demand=100), Part(demand=100), Part(demand=5)
    divide(Part([heavy, light, modest], ceiling=45))
    assert [heavy.rate, light.rate, modest.rate] == [30, 10, 5]


def test_who_has_a_floor_gets_it_before_the_others() -> None:
    sure, crowd = Part(floor=20, demand=30), [Part(demand=100) for _ in range(9)]
    divide(Part([sure, *crowd], ceiling=38))
    assert sure.rate == 20
    assert [part.rate for part in crowd] == pytest.approx([2] * 9)


def test_an_unused_floor_is_lent() -> None:
    idle, busy = Part(floor=20), Part(demand=100)
    divide(Part([idle, busy], ceiling=20))
    assert [idle.rate, busy.rate] == [0, 20]


def test_what_nobody_wants_goes_half_by_demand_and_half_by_weight() -> None:
    idle, busy = Part(), Part(demand=10)
    divide(Part([idle, busy], ceiling=30))
    assert [idle.rate, busy.rate] == [5, 25]


def test_without_a_ceiling_above_each_gets_its_own_or_what_it_wants() -> None:
    bound, unbound = Part([Part(demand=3)], ceiling=20), Part([Part(demand=4), Part(demand=1)])
    root = Part([bound, unbound])
    divide(root)
    assert [bound.rate, unbound.rate, root.rate] == [20, 5, 25]
    assert [leaf.rate for leaf in root.leaves()] == [20, 4, 1]


@pytest.mark.parametrize("amount", [0.0, 5e-324, 1e-300, 1.0, 1e9, 1e15])
def test_vessels_of_any_size_are_filled(amount: float) -> None:
    light, heavy = 1e-3, 1e3
    got = fill(amount, [light, heavy, 1.0], [0.0, 0.0, 0.0], [math.inf, 1e12, 1.0])
    assert all(rate >= 0 for rate in got)
    assert sum(got) == pytest.approx(amount)


def test_ten_thousand_leaves_are_divided_fairly() -> None:
    rng = random.Random(4)
    tenants = [
        Part(
            [Part(demand=rng.lognormvariate(0, 2)) for _ in range(100)],
            weight=rng.choice([1.0, 2.0, 5.0]),
            ceiling=rng.uniform(50, 500),
        )
        for _ in range(100)
    ]
    root = Part(tenants, ceiling=5000)
    divide(root)
    assert root.rate == 5000
    assert sum(leaf.rate for leaf in root.leaves()) == pytest.approx(5000)
    # Whoever gets less than it wants is at the level of all the others who do.
    levels = {round(part.rate / part.weight, 6) for part in tenants if part.rate < part.demand - 1e-6}
    assert len(levels) == 1
