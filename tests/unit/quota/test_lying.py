"""Points that lie about what they want and have used: how much the others of a bucket still have."""

from typing import Any

import pytest
from tests.unit.quota.period_world import NOON_S, POLICY, Server, World

from meshwarden.controlplane.quota import period_view
from meshwarden.controlplane.quota.claim import Kept, equal_parts
from meshwarden.controlplane.quota.lease import Usage
from meshwarden.controlplane.quota.leases import Leases
from meshwarden.controlplane.quota.tree import Bucket, Level, Point

DAY: dict[str, Any] = {"service": "orders", "period": "DAY", "total": {"requests": 1200}}


class Liar(Server):
    """A server that always has nothing left, and needs more than there is."""

    def report(self, now_s: float, *, last: bool = False) -> None:
        super().report(now_s, last=last)
        assert self.agent is not None
        if not (report := self.chunks.report(now_s, full=True)).usages:
            return
        (usage,) = report.usages
        usage.denied = 10**9
        usage.chunks.left, usage.chunks.wanted, usage.chunks.asks = 0.0, 1e15, True
        self.sequence += 1
        self.sent_s[self.sequence] = now_s
        self.agent.take(self.sequence, report, now_s)


def lied_to(liars: int, wall_s: float = NOON_S) -> tuple[World, list[Server]]:
    """A day in which honest servers call five times a second, from their first call on beside liars."""
    world = World(DAY, servers=2)
    world.wall_s = wall_s
    world.plan()
    honest = list(world.servers)
    for number in range(liars):
        liar = Liar(f"z{number}", lambda: next(world._numbers), world._sent)
        world.servers.append(liar)
    for server in world.servers:
        world.call(server, "acme")
    for _ in range(60):
        world.round()
        world.wait(1)
        for server in honest:
            for _ in range(5):
                world.call(server, "acme")
        for server in world.servers[2:]:
            world.call(server, "acme")
    return world, honest


def had(world: World, server: Server) -> float:
    ledger = world.ledgers.find(POLICY)
    assert ledger is not None
    return sum(one.given for one in ledger.holdings.values() if one.point.name == server.name)


def test_a_point_that_lies_leaves_the_others_half_of_an_equal_part() -> None:
    world, honest = lied_to(1)
    # At noon half of the day is left: a third of 1200, the half of it, and of that the half.
    assert all(had(world, server) >= 99 for server in honest)
    assert had(world, world.servers[2]) > 300, "it has had more than any other"
    assert world.ledgers.held_back > 0


def test_what_is_kept_comes_free_as_the_day_goes_on() -> None:
    world, _ = lied_to(1)
    world.wait(12 * 3600 - 300)
    for _ in range(30):
        for server in world.servers:
            world.call(server, "acme")
        world.round()
        world.wait(1)
    assert sum(had(world, server) for server in world.servers) >= 1190, "nothing is left over"


def test_what_is_kept_for_others_is_said() -> None:
    world = World(DAY, servers=2)
    world.servers.append(Liar("z", lambda: next(world._numbers), world._sent))
    for _ in range(5):
        for server in world.servers:
            world.call(server, "acme")
        world.round()
        world.wait(1)
    (state,) = period_view.states(POLICY, world.ledgers, world.usages, lambda _: True, world.now_s, whole=True)
    assert "of it to points that have had little" in state.reason


def test_points_that_one_workload_makes_up_have_one_part_together() -> None:
    points = [Point("a", "x/1"), Point("a", "y/1"), *(Point("a", f"y/{number}") for number in range(2, 65))]
    parts = equal_parts(points)
    assert parts[0] == 0.5
    assert sum(parts) == pytest.approx(1)
    other = equal_parts([Point("b", "x/1"), *points])
    assert (other[0], other[1]) == (0.5, 0.25)


def test_nothing_is_kept_for_who_is_alone_or_had_its_part() -> None:
    kept = Kept(0.5)
    one, two = Point("a", "x/1"), Point("b", "x/1")
    kept.add(("acme",), one, 10.0)
    assert kept.for_others(("acme",), one, 100.0) == 0
    kept.add(("acme",), two, 5.0)
    assert kept.for_others(("acme",), one, 100.0) == 20
    assert kept.for_others((), one, 200.0) == 45
    kept.give(("acme",), two, 15.0)
    assert kept.for_others(("acme",), one, 100.0) == 5
    assert kept.for_others(("acme",), two, 100.0) == 15
    kept.give(("acme",), two, 50.0)
    assert kept.for_others(("acme",), one, 100.0) == 0


RATES = Level(parts={"acme": Level(ceiling=600)})
ACME = Bucket("platform/orders", ("acme",))


@pytest.mark.parametrize("liars", [1, 64])
@pytest.mark.parametrize(("wanted", "least"), [(100.0, 100.0), (600.0, 150.0)])
def test_claims_of_a_rate_leave_an_honest_point_half_of_an_equal_part(liars: int, wanted: float, least: float) -> None:
    leases, now_s, number = Leases(0.0, learn=False), 0.0, 0
    leases.put("platform/orders", RATES)
    honest = Point("node-a", "orders/1")
    for _ in range(12):
        leases.report(honest, {ACME: Usage(0, wanted)}, now_s, acknowledged=number)
        for lie in range(liars):
            leases.report(Point("node-a", f"bad/{lie}"), {ACME: Usage(1e9, 1e9)}, now_s, acknowledged=number)
        number, _ = leases.tick(now_s)
        now_s += 1.0
    shares = {lease.point: lease.given for lease in leases.find("platform/orders")}
    assert shares[honest] >= least * 0.96
    assert sum(shares.values()) <= 600 * (1 + 1e-9)
