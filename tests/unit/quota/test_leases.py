"""The leases: that a rate is never in two hands, whatever becomes of messages, points and the allocator itself."""

import math
from collections import deque
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meshwarden.controlplane.quota import view
from meshwarden.controlplane.quota.absent import MAX_REMEMBERED, REMEMBERED_S
from meshwarden.controlplane.quota.lease import MAX_PENDING, Lease, Share, Usage
from meshwarden.controlplane.quota.leases import (
    MAX_LEASES,
    SILENT_S,
    TERM_S,
    TTL_S,
    Leases,
)
from meshwarden.controlplane.quota.pool import IDLE_S, LEAST_BURST
from meshwarden.controlplane.quota.tree import OTHERS, REST, Bucket, Level, Point
from meshwarden.controlplane.quota.usage import Usages
from meshwarden.sdk.quota.unit import CONCURRENT

POLICY = "platform/orders"
TREE = Level(
    ceiling=1000,
    parts={
        "acme": Level(weight=3, ceiling=600, parts={"/s.S/Create": Level(ceiling=50), REST: Level()}),
        "globex": Level(floor=100, ceiling=600),
        OTHERS: Level(ceiling=200),
    },
)
CREATE, READ = Bucket(POLICY, ("acme", "/s.S/Create")), Bucket(POLICY, ("acme", REST))
GLOBEX, OTHER = Bucket(POLICY, ("globex",)), Bucket(POLICY, ("initech",))
BUCKETS = [CREATE, READ, GLOBEX, OTHER]
ONE, TWO = Point("node-a", "orders#1"), Point("node-b", "orders#1")


def given(leases: Leases) -> dict[tuple[Point, Bucket], float]:
    return {(lease.point, lease.bucket): lease.given for lease in leases.find(POLICY)}


def settled(leases: Leases, now_s: float, usages: dict[Point, dict[Bucket, Usage]], rounds: int = 8) -> float:
    """Lets points that use so much in a second report and obey until the division is at rest."""
    number = 0
    for _ in range(rounds):
        for point, used in usages.items():
            leases.report(point, used, now_s, acknowledged=number)
        number, _ = leases.tick(now_s)
        now_s += 1.0
    return now_s


def test_a_point_gets_a_share_at_its_first_wish() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    leases.report(ONE, {GLOBEX: Usage(0, 1)}, 1.0)
    assert leases.presses
    _, shares = leases.tick(1.0)
    assert shares == {ONE: [Share(GLOBEX, 600.0, 600.0)]}


def test_shares_follow_demand() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    settled(leases, 0.0, {ONE: {GLOBEX: Usage(500, 300)}, TWO: {GLOBEX: Usage(50, 0)}})
    rates = given(leases)
    assert rates[ONE, GLOBEX] > 480
    assert rates[TWO, GLOBEX] >= 50, "less than half of an equal part"
    assert sum(rates.values()) <= 600


def test_above_half_of_an_equal_part_each_goes_as_short_as_the_other() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    settled(leases, 0.0, {ONE: {GLOBEX: Usage(500, 300)}, TWO: {GLOBEX: Usage(300, 0)}})
    rates = given(leases)
    # 150 for each, and of the other 300 as they want more than that; but for what is too little to say.
    assert rates[ONE, GLOBEX] == pytest.approx(375, rel=0.1)
    assert rates[TWO, GLOBEX] == pytest.approx(225, rel=0.1)
    assert sum(rates.values()) <= 600


def before_and_after(other: str, *, leaves: bool, pause_s: float) -> tuple[float, float]:
    """What a busy point was given, and what another of its node is at its first call, that comes when it has ended."""
    leases, old, new = Leases(0.0, learn=False), Point("node-a", "orders/1"), Point("node-a", other)
    leases.put(POLICY, TREE)
    now_s = settled(leases, 0.0, {old: {GLOBEX: Usage(300, 0)}, TWO: {GLOBEX: Usage(300, 300)}})
    had = given(leases)[old, GLOBEX]
    if leaves:
        leases.leave(old)
    now_s = settled(leases, now_s, {TWO: {GLOBEX: Usage(300, 300)}}, rounds=int(pause_s))
    leases.report(new, {GLOBEX: Usage(1, 0)}, now_s)
    now_s = settled(leases, now_s, {TWO: {GLOBEX: Usage(300, 300)}, new: {}}, rounds=4)
    return had, given(leases)[new, GLOBEX]


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("pause_s", [3.0, 6.0])
def test_who_takes_the_place_of_a_point_begins_with_what_that_wanted(leaves: bool, pause_s: float) -> None:
    had, has = before_and_after("orders/2", leaves=leaves, pause_s=pause_s)
    assert has == pytest.approx(had, rel=0.1)


@pytest.mark.parametrize(("other", "pause_s"), [("billing/2", 3.0), ("orders/2", REMEMBERED_S + 1)])
def test_who_comes_to_another_workload_or_long_after_begins_with_nothing(other: str, pause_s: float) -> None:
    had, has = before_and_after(other, leaves=True, pause_s=pause_s)
    assert has < had / 10


def back_after(away_s: float, wants: float, others: float) -> tuple[float, float, Leases]:
    """What a point was given that wants so much, and what it is told when it is back after some seconds.

    Another wants so much meanwhile.
    """
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    now_s = settled(leases, 0.0, {ONE: {GLOBEX: Usage(wants, 0)}, TWO: {GLOBEX: Usage(others, 0)}})
    had = given(leases)[ONE, GLOBEX]
    now_s = settled(leases, now_s, {TWO: {GLOBEX: Usage(others, 0)}}, rounds=int(away_s))
    # It has gone on with what it had, and tells so.
    leases.learn(ONE, {GLOBEX: had}, now_s)
    leases.report(ONE, {GLOBEX: Usage(wants * away_s, 0)}, now_s)
    _, shares = leases.tick(now_s)
    return had, next((share.rate for share in shares.get(ONE, [])), had), leases


@pytest.mark.parametrize("away_s", [2, 6, 20])
@pytest.mark.parametrize("others", [5, 300])
def test_what_nobody_wants_is_kept_for_a_point_that_is_away(away_s: float, others: float) -> None:
    had, has, _ = back_after(away_s, 5, others)
    assert has == pytest.approx(had, rel=0.1)
    assert has > 30


def test_what_others_want_is_not_kept_for_a_point_that_is_away() -> None:
    _, has, leases = back_after(6, 100, 700)
    assert has == 0
    assert leases.ignored.overdrawn == 1


def test_who_is_away_is_missed_no_longer_than_it_is_remembered() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    now_s = settled(leases, 0.0, {ONE: {GLOBEX: Usage(5, 0)}, TWO: {GLOBEX: Usage(5, 0)}})
    now_s = settled(leases, now_s, {TWO: {GLOBEX: Usage(5, 0)}}, rounds=5)
    assert given(leases)[TWO, GLOBEX] < 400
    (state,) = view.states(POLICY, TREE, leases, Usages(), lambda _: True, now_s, whole=True)
    assert state.reason.endswith("/s are wanted, and it has them; a part is kept for 1 point that is away")
    settled(leases, now_s, {TWO: {GLOBEX: Usage(5, 0)}}, rounds=int(REMEMBERED_S))
    assert given(leases) == {(TWO, GLOBEX): 600}
    assert leases.away(GLOBEX) == 0


def test_a_tenant_whose_only_point_is_away_finds_what_no_other_wants_of_the_total() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, replace(TREE, ceiling=600))
    now_s = settled(leases, 0.0, {ONE: {GLOBEX: Usage(50, 0)}, TWO: {READ: Usage(200, 0)}})
    had = given(leases)[ONE, GLOBEX]
    now_s = settled(leases, now_s, {TWO: {READ: Usage(200, 0)}}, rounds=6)
    assert (ONE, GLOBEX) not in given(leases)
    leases.learn(ONE, {GLOBEX: had}, now_s)
    leases.report(ONE, {GLOBEX: Usage(300, 0)}, now_s)
    _, shares = leases.tick(now_s)
    (share,) = shares[ONE]
    assert share.rate == pytest.approx(had, rel=0.1)
    assert share.rate > 50


def test_points_that_come_and_go_fill_no_memory() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    for number in range(2 * MAX_REMEMBERED):
        point = Point("node-a", f"orders-{number}/1")
        leases.report(point, {OTHER: Usage(1, 0)}, 0.0)
        leases.leave(point)
        assert len(leases._absent) <= MAX_REMEMBERED
    leases.tick(REMEMBERED_S + SILENT_S)
    assert len(leases._absent) == 0
    assert leases._absent._wanted == leases._absent._gone == leases._absent._of_node == {}


def test_a_level_never_exceeds_its_ceiling_nor_the_policy_its_total() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    busy = dict.fromkeys(BUCKETS, Usage(0, 5000))
    settled(leases, 0.0, {ONE: busy, TWO: busy})
    rates = given(leases)
    of = {bucket: rates[ONE, bucket] + rates[TWO, bucket] for bucket in BUCKETS}
    assert of[CREATE] == pytest.approx(50, rel=0.05)
    assert of[OTHER] == pytest.approx(200, rel=0.05)
    # What is left of 1000 goes by weight, 3 to 1, up to acme's ceiling.
    assert of[CREATE] + of[READ] == pytest.approx(600, rel=0.05)
    assert of[GLOBEX] == pytest.approx(200, rel=0.05)


def test_no_more_may_come_at_once_than_every_level_says() -> None:
    tree = Level(
        ceiling=1000,
        burst_s=0.1,
        parts={
            "acme": Level(
                ceiling=600, burst_s=5, parts={"/s.S/Create": Level(ceiling=50, burst_s=9), REST: Level(ceiling=600)}
            ),
            "globex": Level(ceiling=600, burst_s=0.05),
        },
    )
    leases, told = Leases(0.0, learn=False), dict[tuple[Point, Bucket], float]()
    leases.put(POLICY, tree)
    for second in range(9):
        for point in (ONE, TWO):
            used = dict.fromkeys((CREATE, READ, GLOBEX), Usage(0, 500))
            leases.report(point, used, float(second), acknowledged=leases.number)
        for point, shares in leases.tick(float(second))[1].items():
            told |= {(point, share.bucket): share.burst for share in shares}
    assert sum(lease.given for lease in leases.find(POLICY)) == pytest.approx(1000)
    assert 0.9 * 75 <= sum(told.values()) <= 100
    assert told[ONE, GLOBEX] + told[TWO, GLOBEX] <= 30


@pytest.mark.parametrize(("points", "more"), [(2, 0.0), (20, 1.5), (60, 2.5)])
def test_a_point_may_save_up_a_few_calls_besides_half_of_its_part(points: int, more: float) -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, Level(parts={"globex": Level(ceiling=60)}))
    for number in range(points):
        leases.report(Point(f"node-{number}", "s#1"), {GLOBEX: Usage(0, 60)}, 0.0)
    _, shares = leases.tick(0.0)
    bursts = [share.burst for (share,) in shares.values()]
    assert bursts == pytest.approx([60 / points + more] * points)
    assert sum(bursts) <= 60 + LEAST_BURST * points


def test_an_increase_waits_for_the_acknowledgement_of_the_decrease() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    leases.report(ONE, {GLOBEX: Usage(600, 0)}, 0.0)
    number, _ = leases.tick(0.0)
    leases.report(ONE, {GLOBEX: Usage(600, 0)}, 1.0, acknowledged=number)
    leases.report(TWO, {GLOBEX: Usage(0, 600)}, 1.0)
    number, shares = leases.tick(1.0)
    assert shares[ONE][0].rate < 400
    assert TWO not in shares
    leases.report(ONE, {}, 1.1, acknowledged=number)
    assert leases.presses
    _, shares = leases.tick(1.1)
    assert shares[TWO][0].rate > 200


def test_many_who_hold_little_make_room_for_one_more() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    crowd = {Point("node-a", f"orders#{number}"): {OTHER: Usage(100, 0)} for number in range(200)}
    now_s, late = settled(leases, 0.0, crowd), Point("node-a", "orders#late")
    settled(leases, now_s, crowd | {late: {OTHER: Usage(0, 100)}})
    assert given(leases)[late, OTHER] == pytest.approx(200 / 201, rel=0.1)


def test_a_point_that_leaves_gives_back_at_once_and_one_that_is_silent_after_its_term() -> None:
    for leaves in (True, False):
        leases = Leases(0.0, learn=False)
        leases.put(POLICY, TREE)
        leases.report(ONE, {GLOBEX: Usage(600, 0)}, 0.0)
        leases.tick(0.0)
        leases.report(TWO, {GLOBEX: Usage(0, 600)}, 0.1)
        if leaves:
            leases.leave(ONE)
        _, shares = leases.tick(0.1)
        assert (TWO in shares) is leaves
        leases.report(TWO, {GLOBEX: Usage(0, 2000)}, TERM_S)
        _, shares = leases.tick(TERM_S)
        assert (TWO in shares) is not leaves
        assert given(leases) == {(TWO, GLOBEX): 600}


def test_a_restarted_allocator_learns_before_it_gives() -> None:
    leases = Leases(100.0, learn=True)
    leases.put(POLICY, TREE)
    leases.learn(ONE, {GLOBEX: 500.0}, 100.1)
    leases.report(ONE, {GLOBEX: Usage(500, 0)}, 100.1)
    leases.report(TWO, {GLOBEX: Usage(0, 500)}, 100.1)
    _, shares = leases.tick(100.1)
    assert TWO not in shares
    assert given(leases)[ONE, GLOBEX] <= 500
    number, _ = leases.tick(102.0)
    for point in (ONE, TWO):
        leases.report(point, {GLOBEX: Usage(0, 500)}, 100.0 + TERM_S, acknowledged=number)
    settled(leases, 100.0 + TERM_S, {point: {GLOBEX: Usage(200, 300)} for point in (ONE, TWO)})
    assert given(leases) == pytest.approx({(ONE, GLOBEX): 300, (TWO, GLOBEX): 300}, rel=0.05)


def test_a_restarted_allocator_moves_nothing_before_it_knows_who_wants_how_much() -> None:
    before = Leases(0.0, learn=False)
    before.put(POLICY, TREE)
    three = Point("node-b", "orders#2")
    used = {ONE: {GLOBEX: Usage(400, 200)}, TWO: {GLOBEX: Usage(90, 45)}, three: {OTHER: Usage(150, 75)}}
    now_s = settled(before, 0.0, used)
    held = given(before)
    leases = Leases(now_s, learn=True)
    leases.put(POLICY, TREE)
    # They come one after the other, each with all that they used while nobody listened.
    for number, point in enumerate(used):
        bucket = next(iter(used[point]))
        leases.learn(point, {bucket: held[point, bucket]}, now_s + 0.1 * number)
        leases.report(point, {bucket: Usage(50, 6_000)}, now_s + 0.1 * number)
        assert leases.tick(now_s + 0.1 * number)[1] == {}
    settled(leases, now_s + 1.1, used, rounds=4)
    assert given(leases) == pytest.approx(held, rel=0.1)


def test_what_does_not_fit_is_taken_back_at_once_by_a_restarted_allocator_too() -> None:
    leases = Leases(0.0, learn=True)
    leases.put(POLICY, TREE)
    for point in (ONE, TWO):
        leases.learn(point, {GLOBEX: 500.0}, 0.1)
    leases.tick(0.1)
    assert sum(given(leases).values()) <= 600


def test_what_is_said_to_be_held_is_believed_only_while_learning_and_up_to_the_ceiling() -> None:
    learning, sure = Leases(0.0, learn=True), Leases(0.0, learn=False)
    for leases in (learning, sure):
        leases.put(POLICY, TREE)
        leases.learn(ONE, {GLOBEX: 1e9}, 0.1)
        assert leases.ignored.overdrawn == 1
    assert [lease.held for lease in learning.find(POLICY)] == [600]
    assert [lease.held for lease in sure.find(POLICY)] == [0]


def test_what_a_new_stream_does_not_hold_is_free_and_what_was_under_way_on_the_old_one_is_lost() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    leases.report(ONE, {GLOBEX: Usage(300, 0), OTHER: Usage(50, 0)}, 0.0)
    leases.tick(0.0)
    leases.learn(ONE, {GLOBEX: 40.0}, 0.1)
    assert {lease.bucket: lease.held for lease in leases.find(POLICY)} == {GLOBEX: 40, OTHER: 0}


@pytest.mark.parametrize("count", [math.nan, math.inf, -math.inf, -1.0, 2.0**63, 1e300])
def test_garbage_is_counted_and_moves_nobody_s_share(count: float) -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    now_s = settled(leases, 0.0, {ONE: {GLOBEX: Usage(300, 0)}})
    before = given(leases)
    leases.report(TWO, {GLOBEX: Usage(count, 0), CREATE: Usage(0, count)}, now_s)
    leases.report(TWO, {OTHER: Usage(0, 0, spilled=count)}, now_s)
    leases.learn(TWO, {READ: count}, now_s)
    leases.report(ONE, {GLOBEX: Usage(300, 0)}, now_s)
    leases.tick(now_s)
    assert leases.ignored.garbage == 4
    assert given(leases) == pytest.approx(before, rel=0.05)


def test_absurd_demand_is_believed_up_to_the_ceiling_alone() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    settled(leases, 0.0, {ONE: {GLOBEX: Usage(0, 1e14)}, TWO: {READ: Usage(400, 0)}})
    assert given(leases)[TWO, READ] > 400


def test_what_was_called_while_nobody_divided_is_no_demand() -> None:
    """Since when a point has counted isn't known: an Envoy for five seconds, and others refused all meanwhile."""
    leases = Leases(10.0, learn=True)
    leases.put(POLICY, TREE)
    for point in (ONE, TWO):
        leases.learn(point, {GLOBEX: 40.0}, 10.0)
    number, _ = leases.tick(10.0 + TTL_S)
    for now_s, usages in ((13.5, {GLOBEX: Usage(0, 0)}), (14.0, {GLOBEX: Usage(100, 300)})):
        for point in (ONE, TWO):
            leases.report(point, usages, now_s, acknowledged=number)
    assert {lease.demand.rate for lease in leases.find(POLICY)} == {40.0}
    leases.report(ONE, {GLOBEX: Usage(60, 40)}, 15.0, acknowledged=number)
    assert next(lease.demand.rate for lease in leases.find(POLICY) if lease.point == ONE) == 100.0


@pytest.mark.parametrize("path", [(), ("acme",), ("acme", "/other"), ("acme", REST, "x"), (OTHERS,), (REST,)])
def test_buckets_that_no_policy_has_are_counted(path: tuple[str, ...]) -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    leases.report(ONE, {Bucket(POLICY, path): Usage(1, 0), Bucket("no/such", ("acme",)): Usage(1, 0)}, 0.0)
    assert leases.ignored.unknown == (1 if path == (OTHERS,) else 2)


def test_a_node_can_t_fill_our_memory() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    leases.report(ONE, {Bucket(POLICY, (f"t{number}",)): Usage(1, 0) for number in range(MAX_LEASES + 5)}, 0.0)
    leases.report(TWO, {OTHER: Usage(1, 0)}, 0.0)
    assert leases.ignored.too_many == 5
    assert len(leases.find(POLICY)) == MAX_LEASES + 1


def test_a_bucket_that_is_not_used_is_taken_back_and_forgotten() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    now_s = settled(leases, 0.0, {ONE: {GLOBEX: Usage(10, 0)}})
    now_s = settled(leases, now_s, {ONE: {GLOBEX: Usage(0, 0)}}, rounds=int(IDLE_S) + 2)
    leases.tick(now_s)
    assert leases.find(POLICY) == []


def test_another_tree_takes_hold_without_forgetting_who_holds_what() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    busy = {GLOBEX: Usage(600, 0), OTHER: Usage(200, 0)}
    now_s = settled(leases, 0.0, {ONE: busy})
    leases.put(POLICY, Level(parts={"globex": Level(ceiling=90)}))
    assert [(lease.bucket, lease.held) for lease in leases.find(POLICY)] == [(GLOBEX, pytest.approx(600, rel=0.05))]
    _, shares = leases.tick(now_s)
    assert shares[ONE] == [Share(GLOBEX, 90, 90)]
    leases.put(POLICY, None)
    assert leases.find(POLICY) == []
    leases.tick(now_s)


def test_a_policy_that_is_made_again_gives_nothing_twice_and_all_to_whoever_is_there() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    now_s = settled(leases, 0.0, {ONE: {GLOBEX: Usage(600, 0)}})
    leases.put(POLICY, None)
    leases.put(POLICY, TREE)
    assert given(leases) == {(ONE, GLOBEX): 0}, "it is told anew"
    leases.report(TWO, {GLOBEX: Usage(0, 600)}, now_s)
    number, told = leases.tick(now_s)
    assert sum(share.rate for share in told.get(TWO, [])) == 0
    assert [share.bucket for share in told[ONE]] == [GLOBEX]
    leases.report(ONE, {GLOBEX: Usage(300, 0)}, now_s, acknowledged=number)
    _, told = leases.tick(now_s)
    assert told[TWO][0].rate > 0
    leases.put(POLICY, None)
    leases.leave(ONE)
    leases.put(POLICY, TREE)
    assert [lease.point for lease in leases.find(POLICY)] == [TWO]


def test_what_was_held_of_a_policy_is_forgotten() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    now_s = settled(leases, 0.0, {ONE: {GLOBEX: Usage(600, 0)}})
    leases.put(POLICY, None)
    for _ in range(31):
        now_s += 1
        leases.report(ONE, {}, now_s)
        leases.tick(now_s)
    leases.put(POLICY, TREE)
    assert leases.find(POLICY) == []


@dataclass
class Server:
    """A point as it should be: it obeys, and stops when its lease is over."""

    held: dict[Bucket, float] = field(default_factory=dict)
    until_s: float = -math.inf
    obeyed: int = 0
    up: deque[tuple[float, dict[Bucket, float] | None, int, float, dict[Bucket, float]]] = field(default_factory=deque)
    down: deque[tuple[float, int, list[Share]]] = field(default_factory=deque)
    fresh: bool = True
    """Whether its next report is the first of a stream."""
    known: bool = False
    """Whether the allocator has heard that; what it said before is let go, as agents do it."""
    reported_s: float = 0.0
    """When the report that the allocator heard last was sent."""
    came: dict[Bucket, float] = field(default_factory=dict)
    """What its buckets were filled with since it said last that they ran over."""


class Mesh(RuleBasedStateMachine):
    """Points, an allocator, and streams between them that are slow, break and begin anew."""

    @initialize()
    def begin(self) -> None:
        self.now_s = 0.0
        self.leases = Leases(0.0, learn=False)
        self.leases.put(POLICY, TREE)
        self.servers = {Point(f"node-{number}", "s"): Server() for number in range(3)}
        # Of each bucket, what its rate has brought at all points and not run over, and what was put in besides.
        self.brought, self.put_in = dict.fromkeys(BUCKETS, 0.0), dict.fromkeys(BUCKETS, 0.0)

    points = st.integers(0, 2).map(lambda number: Point(f"node-{number}", "s"))

    @rule(point=points, bucket=st.sampled_from(BUCKETS), calls=st.sampled_from([0, 1, 100, 10_000]))
    def wants(self, point: Point, bucket: Bucket, calls: int) -> None:
        server = self.servers[point]
        server.held.setdefault(bucket, 0.0)
        self._send(server, float(calls))

    @rule(point=points, bucket=st.sampled_from(BUCKETS))
    def asks_and_is_answered(self, point: Point, bucket: Bucket) -> None:
        self.wants(point, bucket, 10_000)
        while self.servers[point].up:
            self.is_heard(point)
        self.divides()
        while self.servers[point].down:
            self.is_told(point)

    @rule(point=points, spills=st.booleans())
    def reports(self, point: Point, spills: bool) -> None:
        self._send(self.servers[point], 0.0 if spills else 50.0, spills=spills)

    def _send(self, server: Server, calls: float, *, spills: bool = False) -> None:
        if self.now_s >= server.until_s:
            server.held = dict.fromkeys(server.held, 0.0)
        spilled = {}
        if spills:  # all that has come since its last report, and it was full
            spilled, server.came = server.came, {}
            for bucket, amount in spilled.items():
                self.brought[bucket] -= amount
        server.up.append((self.now_s, dict(server.held) if server.fresh else None, server.obeyed, calls, spilled))
        server.fresh = False

    @rule(point=points)
    def is_heard(self, point: Point) -> None:
        server = self.servers[point]
        if server.up:
            server.reported_s, held, obeyed, calls, spilled = server.up.popleft()
            if held is not None:
                server.known = True
                self.leases.learn(point, held, self.now_s)
            usages = {bucket: Usage(0, calls, spilled=spilled.get(bucket, 0.0)) for bucket in server.held}
            self.leases.report(point, usages, self.now_s, acknowledged=obeyed)

    @rule()
    def divides(self) -> None:
        number, shares = self.leases.tick(self.now_s)
        for share in (share for given in shares.values() for share in given):
            self.put_in[share.bucket] += share.more
        for point, server in self.servers.items():
            if server.known:
                server.down.append((server.reported_s, number, shares.get(point, [])))

    @rule(point=points)
    def is_told(self, point: Point) -> None:
        server = self.servers[point]
        if server.down:
            sent_s, number, shares = server.down.popleft()
            if self.now_s >= server.until_s:
                server.held = dict.fromkeys(server.held, 0.0)
            server.until_s = max(server.until_s, sent_s + TTL_S)
            server.obeyed = number
            server.held |= {share.bucket: share.rate for share in shares}

    @rule(point=points)
    def breaks(self, point: Point) -> None:
        server = self.servers[point]
        server.up.clear()
        server.down.clear()
        server.fresh, server.known, server.obeyed = True, False, 0

    @rule(point=points)
    def dies(self, point: Point) -> None:
        self.servers[point] = Server()
        self.leases.leave(point)

    @precondition(lambda self: self.now_s > 0)
    @rule()
    def restarts(self) -> None:
        self.leases = Leases(self.now_s, learn=True)
        self.leases.put(POLICY, TREE)
        for point in self.servers:
            self.breaks(point)

    @rule()
    def is_made_again(self) -> None:
        """The policy is deleted and applied once more, of which no point has heard yet."""
        self.leases.put(POLICY, None)
        self.leases.put(POLICY, TREE)

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.0, 2.9, 3.1]))
    def passes(self, seconds: float) -> None:
        for server in self.servers.values():
            for bucket, rate in server.held.items():
                came = rate * max(0.0, min(self.now_s + seconds, server.until_s) - self.now_s)
                server.came[bucket] = server.came.get(bucket, 0.0) + came
                self.brought[bucket] += came
        self.now_s += seconds

    @invariant()
    def nothing_is_given_twice(self) -> None:
        """What came and did not run over, with what was put in besides, is no more than the rates bring."""
        if not hasattr(self, "servers"):
            return
        had = {bucket: self.brought[bucket] + self.put_in[bucket] for bucket in BUCKETS}
        for came, ceiling in [
            (had[CREATE], 50),
            (had[CREATE] + had[READ], 600),
            (had[GLOBEX], 600),
            (had[OTHER], 200),
            (sum(had.values()), 1000),
        ]:
            assert came <= ceiling * self.now_s * (1 + 1e-9) + 1e-6

    @invariant()
    def is_conserved(self) -> None:
        used = dict.fromkeys(BUCKETS, 0.0)
        for server in getattr(self, "servers", {}).values():
            if self.now_s < server.until_s:
                for bucket, rate in server.held.items():
                    used[bucket] += rate
        acme = used[CREATE] + used[READ]
        for total, ceiling in [
            (used[CREATE], 50),
            (acme, 600),
            (used[GLOBEX], 600),
            (used[OTHER], 200),
            (sum(used.values()), 1000),
        ]:
            assert total <= ceiling * (1 + 1e-9)


TestMesh = Mesh.TestCase
TestMesh.settings = settings(max_examples=150, stateful_step_count=60)


SLOTS = Level(
    ceiling=10,
    parts={"acme": Level(ceiling=8), "globex": Level(ceiling=8, floor=2), OTHERS: Level()},
    unit="concurrent",
)
ACME = Bucket(POLICY, ("acme",))


def at_once(*, learn: bool = False, shadow: bool = False) -> Leases:
    leases = Leases(0.0, learn=learn)
    leases.put(POLICY, replace(SLOTS, shadow=shadow))
    return leases


def test_calls_at_once_are_shared_in_whole_and_all_of_them() -> None:
    leases = at_once()
    settled(leases, 0.0, {ONE: {ACME: Usage(9, 90, 3), GLOBEX: Usage(9, 90, 2)}, TWO: {ACME: Usage(9, 50, 3)}})
    rates = given(leases)
    assert all(rate == int(rate) for rate in rates.values())
    assert sum(rates.values()) == 10
    assert rates[ONE, ACME] + rates[TWO, ACME] == 5


def test_what_runs_is_held_until_it_has_ended_whatever_was_taken_away() -> None:
    leases = at_once()
    now_s = settled(leases, 0.0, {ONE: {ACME: Usage(1, 9, 8)}})
    assert given(leases) == {(ONE, ACME): 8}
    leases.report(TWO, {ACME: Usage(0, 50)}, now_s)
    number, told = leases.tick(now_s)
    (less,) = told[ONE]
    assert less.rate == 4
    for running in (8, 7):
        leases.report(ONE, {ACME: Usage(0, 9, running)}, now_s, acknowledged=number)
        _, told = leases.tick(now_s)
        assert [lease.held for lease in leases.find(POLICY) if lease.point == ONE] == [running]
        assert sum(given(leases).values()) <= 8 + (8 - running)
    leases.report(ONE, {ACME: Usage(0, 0, 2)}, now_s, acknowledged=number)
    assert leases.presses, "slots are free"
    leases.report(TWO, {ACME: Usage(0, 50)}, now_s)
    leases.tick(now_s)
    assert sum(given(leases).values()) == 8


@pytest.mark.parametrize("absurd", [9, 10**9, 2**63])
def test_a_point_that_exaggerates_what_runs_keeps_nobody_from_getting_more(absurd: int) -> None:
    leases = at_once()
    leases.report(ONE, {ACME: Usage(0, 1, absurd)}, 0.0)
    (lease,) = leases.find(POLICY)
    assert lease.held <= 1, "a bucket is opened with one"
    assert leases.ignored.overdrawn == 1
    now_s = settled(leases, 0.0, {ONE: {ACME: Usage(1, 0, absurd)}, TWO: {GLOBEX: Usage(5, 99, 5)}}, rounds=20)
    assert all(lease.held <= 8 for lease in leases.find(POLICY))
    assert given(leases)[TWO, GLOBEX] >= 4
    leases.leave(ONE)
    settled(leases, now_s, {TWO: {GLOBEX: Usage(5, 99, 5)}})
    assert given(leases)[TWO, GLOBEX] == 8


def test_what_runs_of_a_policy_that_counts_something_else_means_nothing() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    leases.report(ONE, {GLOBEX: Usage(1, 1, 10**9)}, 0.0)
    assert [lease.held for lease in leases.find(POLICY)] == [0.0]


def test_who_begins_anew_learns_what_runs() -> None:
    leases = at_once(learn=True)
    leases.learn(ONE, {ACME: 3.0}, 0.0)
    leases.report(ONE, {ACME: Usage(0, 0, 6)}, 0.0)
    leases.report(TWO, {ACME: Usage(0, 9)}, TERM_S - 1)
    leases.report(ONE, {ACME: Usage(0, 0, 6)}, TERM_S - 1)
    leases.tick(TERM_S)
    held = {lease.point: lease.held for lease in leases.find(POLICY)}
    assert held[ONE] == 6
    assert held[TWO] <= 2


def test_another_unit_begins_with_nothing() -> None:
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, TREE)
    settled(leases, 0.0, {ONE: {GLOBEX: Usage(500, 300)}})
    assert given(leases)[ONE, GLOBEX] > 400
    leases.put(POLICY, SLOTS)
    assert given(leases) == {}


def test_a_point_that_acknowledges_nothing_fills_no_memory_and_keeps_what_it_may_believe() -> None:
    lease = Lease(ONE, GLOBEX, 0.0, 0.0)
    for number in range(1, 1001):
        lease.tell(number, 90.0 if number == 500 else 1.0)
        assert len(lease._pending) <= 2 * MAX_PENDING
    assert lease.held == 90
    lease.acknowledge(499)
    assert lease.held == 90
    lease.acknowledge(1000)
    assert lease.held == lease.given == 1


def test_why_slots_are_short_is_said_in_slots() -> None:
    methods = {"/s.S/Create": Level(ceiling=2), REST: Level(ceiling=2)}
    tree = Level(ceiling=9, parts={"acme": Level(ceiling=2, parts=methods)}, unit=CONCURRENT)
    leases = Leases(0.0, learn=False)
    leases.put(POLICY, tree)
    leases.report(ONE, {CREATE: Usage(2, 9, 2), READ: Usage(2, 9, 2)}, 1.0)
    leases.tick(1.0)
    states = view.states(POLICY, tree, leases, Usages(), lambda tenant: True, 1.0, whole=True)
    assert any("the tenant's limit of 2 at once is short" in state.reason for state in states), states
    assert not any("/s" in state.reason for state in states)


def test_what_shadow_mode_lets_run_is_no_lie_and_keeps_nobody_from_getting_more() -> None:
    leases = at_once(shadow=True)
    leases.report(ONE, {ACME: Usage(20, 0, 20)}, 0.0)
    (lease,) = leases.find(POLICY)
    assert lease.held <= 1
    assert leases.ignored.overdrawn == 0
