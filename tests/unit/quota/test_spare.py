"""What went unused and is given out once more: to whom, how much, and never twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.quota.lease import Lease
from meshwarden.controlplane.quota.leases import Leases, Usage
from meshwarden.controlplane.quota.spare import FORGOTTEN_S, LEAST, PART, Spares
from meshwarden.controlplane.quota.tree import Bucket, Level, Path, Point

POLICY, RATE = "platform/orders", 100.0
TREE = Level(ceiling=RATE, parts={"acme": Level(weight=3, ceiling=80), "globex": Level(ceiling=RATE)})
ACME, GLOBEX = Bucket(POLICY, ("acme",)), Bucket(POLICY, ("globex",))
ONE, TWO = Point("node-a", "orders#1"), Point("node-b", "orders#1")


def lease(bucket: Bucket, point: Point = ONE) -> Lease:
    return Lease(point, bucket, 10.0, 0.0)


def all_held(path: Path) -> float:
    return RATE


def half_held(path: Path) -> float:
    return RATE if not path else RATE / 2


def nothing_held(path: Path) -> float:
    return 0.0


def test_what_runs_over_at_one_point_is_given_to_another_that_has_refused() -> None:
    spares, idle, busy = Spares(), lease(ACME), lease(GLOBEX)
    spares.hear(busy, 0.0, 5.0)
    assert spares.hand_out(TREE, half_held, 0.0) == {}, "of what was before nothing is known"
    spares.hand_out(TREE, half_held, 1.0)
    spares.hand_out(TREE, half_held, 2.0)
    spares.hear(idle, 3.0, 0.0)
    assert spares.hand_out(TREE, half_held, 2.0) == {busy: pytest.approx(3.0)}
    assert spares.hand_out(TREE, half_held, 2.0) == {}, "once"


def test_it_is_divided_by_weight_and_to_nobody_more_than_was_refused() -> None:
    spares, leases = Spares(), [lease(ACME), lease(GLOBEX), lease(GLOBEX, TWO)]
    for one, refused in zip(leases, [20.0, 1.0, 3.0], strict=True):
        spares.hear(one, 0.0, refused)
    for now_s in (0.0, 1.0):
        spares.hand_out(TREE, nothing_held, now_s)
        for one, refused in zip(leases, [20.0, 1.0, 3.0], strict=True):
            spares.hear(one, 0.0, refused)
    found = spares.hand_out(TREE, nothing_held, 2.0)
    # Ten of the total, of which acme has three parts of four.
    assert [found[one] for one in leases] == pytest.approx([7.5, 0.625, 1.875])


def test_there_is_never_much_of_it() -> None:
    spares, busy = Spares(), lease(GLOBEX)
    for now_s in range(60):
        spares.hear(busy, 1000.0, 0.0)
        assert spares.hand_out(TREE, nothing_held, float(now_s)) == {}, "nobody lacks anything"
    spares.hear(busy, 1000.0, 500.0)
    found = spares.hand_out(TREE, nothing_held, 60.0)
    assert sum(found.values()) <= PART * RATE


def test_a_level_of_which_nobody_goes_short_is_forgotten() -> None:
    spares, busy = Spares(), lease(GLOBEX)
    spares.hear(busy, 0.0, 5.0)
    for now_s in (0.0, 1.0):
        spares.hand_out(TREE, all_held, now_s)
    spares.hear(busy, 50.0, 0.0)
    spares.hand_out(TREE, all_held, 1.5 + FORGOTTEN_S)
    assert not spares._levels
    spares.hear(busy, 0.0, 5.0)
    assert spares.hand_out(TREE, all_held, 3.0) == {}


def test_a_lease_that_is_gone_or_has_no_rate_gets_nothing() -> None:
    spares, gone, none = Spares(), lease(GLOBEX), Lease(TWO, GLOBEX, 0.0, 0.0)
    spares.hear(gone, 0.0, 5.0)
    spares.hear(none, 0.0, 5.0)
    spares.hand_out(TREE, nothing_held, 0.0)
    spares.forget(gone)
    assert spares.hand_out(TREE, nothing_held, 1.0) == {}


AMOUNTS = st.floats(0, 200)
STEPS = st.lists(
    st.tuples(st.sampled_from([0.05, 0.3, 1.0]), st.integers(0, 2), AMOUNTS, AMOUNTS, st.booleans()), max_size=60
)


@given(STEPS)
def test_no_more_than_went_unused_nor_than_a_part_of_the_rate(
    steps: list[tuple[float, int, float, float, bool]],
) -> None:
    spares, leases = Spares(), [lease(ACME), lease(GLOBEX), lease(GLOBEX, TWO)]
    now_s, unused, given = 0.0, 0.0, list[tuple[float, float]]()
    held = RATE
    for passed_s, which, spilled, refused, is_held in steps:
        now_s += passed_s
        unused += spilled + passed_s * (RATE - held)
        held = RATE if is_held else 40.0
        spares.hear(leases[which], spilled, refused)
        found = spares.hand_out(TREE, lambda path, held=held: held, now_s)  # type: ignore[misc]
        assert all(amount >= 0 for amount in found.values())
        given.append((now_s, sum(found.values())))
        assert sum(amount for _, amount in given) <= unused + 1e-6
    for start, (begun_s, _) in enumerate(given):
        for end_s, _ in given[start:]:
            within = sum(amount for moment, amount in given if begun_s <= moment <= end_s)
            assert within <= max(LEAST, PART * RATE) * 2 + PART * RATE * (end_s - begun_s) + 1e-6


def test_who_cannot_take_it_is_given_none_and_one_that_lies_gives_no_more_than_it_had() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, Level(ceiling=RATE, parts={"acme": Level(ceiling=RATE), "globex": Level(ceiling=RATE)}))
    number, put_in = 0, dict.fromkeys((ONE, TWO), 0.0)
    for step in range(200):
        now_s = step * 0.25
        leases.report(ONE, {ACME: Usage(1.0, 0.0, spilled=1e9)}, now_s, acknowledged=number)
        leases.report(TWO, {GLOBEX: Usage(25.0, 20.0, spilled=0.0)}, now_s, acknowledged=number)
        # An Envoy refuses as well, and says nothing of what ran over.
        leases.report(Point("node-c", "envoy#1"), {GLOBEX: Usage(1.0, 20.0)}, now_s, acknowledged=number)
        held = {one.point: one.held for one in leases.find(POLICY)}
        number, shares = leases.tick(now_s)
        for point, told in shares.items():
            for share in told:
                assert not share.more or (point, share.bucket) == (TWO, GLOBEX)
                put_in[TWO] += share.more
        assert step < 4 or put_in[TWO] <= (held[ONE] + RATE - sum(held.values()) + 1) * now_s + 10
    assert put_in[TWO] > 0
