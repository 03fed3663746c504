"""Whole numbers of calls at once: no level above its ceiling, nobody further than one from the exact division."""

import math

from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.quota.allocator import Part, divide
from meshwarden.controlplane.quota.whole import apportion, round_down

LEAVES = st.builds(
    lambda demand, weight: Part(weight=weight, demand=demand), st.floats(0, 50), st.integers(1, 9).map(float)
)


@st.composite
def trees(draw: st.DrawFn) -> Part:
    """A total over tenants, some with methods, over points; ceilings and floors whole."""

    def level(parts: list[Part]) -> Part:
        ceiling = draw(st.integers(1, 40))
        return Part(parts, weight=draw(st.integers(1, 5)), ceiling=ceiling, floor=draw(st.integers(0, ceiling)))

    tenants = []
    for _ in range(draw(st.integers(1, 4))):
        methods = draw(st.integers(0, 3))
        if methods:
            below = [level(draw(st.lists(LEAVES, min_size=1, max_size=4))) for _ in range(methods)]
        else:
            below = draw(st.lists(LEAVES, min_size=1, max_size=5))
        tenants.append(level(below))
    return Part(tenants, ceiling=draw(st.sampled_from([math.inf, 1.0, 7.0, 30.0])))


def everything(part: Part) -> list[Part]:
    return [part, *(one for below in part.parts for one in everything(below))]


@given(trees())
def test_every_level_keeps_its_ceiling_and_is_next_to_the_exact_division(tree: Part) -> None:
    divide(tree)
    exact = {id(part): part.rate for part in everything(tree)}
    round_down(tree)
    for part in everything(tree):
        assert part.rate == int(part.rate) >= 0
        assert part.rate <= part.ceiling
        assert abs(part.rate - exact[id(part)]) < 1 + 1e-5
        if part.parts:
            assert sum(below.rate for below in part.parts) <= part.rate
    lost = sum(exact[id(leaf)] for leaf in tree.leaves()) - sum(leaf.rate for leaf in tree.leaves())
    # One at most; and one for each level that has more than its parts may take together.
    assert lost < 1 + 1e-5 + sum(
        sum(below.ceiling for below in part.parts) < part.ceiling for part in everything(tree) if part.parts
    )


def test_fewer_than_there_are_points_stay_where_they_are() -> None:
    def given_out(had: list[float]) -> list[float]:
        points = [Part(demand=3.0) for _ in range(5)]
        tree = Part([Part(points, ceiling=2)])
        divide(tree)
        for point, before in zip(points, had, strict=True):
            point.had = before
        round_down(tree)
        return [point.rate for point in points]

    first = given_out([0.0] * 5)
    assert sum(first) == 2
    assert given_out([0, 0, 1, 0, 1]) == [0, 0, 1, 0, 1]


@given(st.integers(-3, 100), st.lists(st.integers(0, 40), max_size=8))
def test_a_rest_is_handed_out_whole(room: int, wants: list[int]) -> None:
    given_out = apportion(room, wants)
    assert sum(given_out) == min(max(room, 0), sum(wants))
    assert all(0 <= one <= want for one, want in zip(given_out, wants, strict=True))
