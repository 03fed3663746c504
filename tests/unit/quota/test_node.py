"""A node that was away for longer than a lease: what its points had is others', and they hear of that at once."""

import pytest

from meshwarden.controlplane.quota.leases import TERM_S, Leases
from meshwarden.controlplane.quota.ledgers import Ledgers
from meshwarden.controlplane.quota.node import NodeStream, SayAgain
from meshwarden.controlplane.quota.policy import share_to_proto
from meshwarden.controlplane.quota.tree import Level
from meshwarden.controlplane.quota.usage import Usages
from meshwarden.v1 import quota_service_pb2 as pb

POLICY, RATE = "platform/orders", 100.0
ACME = pb.Bucket(policy=POLICY, tenant="acme")


class World:
    """Two nodes with a point each, and who divides."""

    def __init__(self) -> None:
        self.clock_s, self.usages = 0.0, Usages()
        self.leases = Leases(0.0, learn=False)
        self.leases.put(POLICY, self.tree(POLICY))
        self.streams: dict[str, NodeStream] = {}
        self.sequence = 0

    def tree(self, policy: str) -> Level:
        return Level(parts={"acme": Level(ceiling=RATE)})

    def hosts(self, node: str, service: str) -> bool:
        return True

    def covers(self, policy: str, service: str, tenant: str) -> bool:
        return True

    def is_tenant(self, tenant: str) -> bool:
        return True

    def now_s(self) -> float:
        return self.clock_s

    def took(self) -> None:
        pass

    def divide(self) -> None:
        number, told = self.leases.tick(self.clock_s)
        for point, shares in told.items():
            message = pb.PointShares(point=point.name, shares=[share_to_proto(one, "requests") for one in shares])
            self.streams[point.node].say(pb.ShareResponse(sequence=number, points=[message]))

    def report(self, node: str, *, acknowledged: int = 0, begins: bool = False, held: float = 0.0) -> None:
        """A report of a point that refuses some calls, on a new stream of its node if it begins."""
        if begins:
            self.streams[node] = NodeStream(node, self, self.leases, Ledgers({}, lambda: 1))
        self.sequence += 1
        usage = pb.BucketUsage(bucket=ACME, allowed=50, denied=50)
        report = pb.PointReport(point="orders#1/1", acknowledged=acknowledged, begins=begins, usages=[usage])
        if held:
            report.held.add(bucket=ACME, rate=held)
        self.streams[node].take(pb.ShareRequest(sequence=self.sequence, points=[report]))

    def told(self, node: str) -> list[pb.ShareResponse]:
        stream = self.streams[node]
        out, stream._out = stream._out, []
        return out


@pytest.fixture
def world() -> World:
    """Both have a half."""
    made = World()
    for node in ("a", "b"):
        made.report(node, begins=True)
    for _ in range(8):
        made.divide()
        for node in ("a", "b"):
            made.report(node, acknowledged=made.leases.number)
            made.told(node)
    return made


def rates(world: World) -> dict[str, float]:
    return {lease.point.node: lease.held for lease in world.leases.find(POLICY)}


def test_who_was_away_is_answered_with_what_it_has_now(world: World) -> None:
    before = rates(world)["a"]
    assert before > 40
    for _ in range(8):
        world.clock_s += 1.0
        world.report("b", acknowledged=world.leases.number)
        world.divide()
    world.report("b", acknowledged=world.leases.number)
    assert rates(world) == {"b": pytest.approx(RATE)}
    assert world.clock_s > TERM_S
    with pytest.raises(SayAgain):
        world.report("a")
    world.told("b")
    world.report("a", begins=True, held=before)
    ((answer,), shares) = world.told("a"), rates(world)
    assert answer.answers == world.sequence
    assert [share.rate for points in answer.points for share in points.shares] == [pytest.approx(0.0)]
    assert shares["a"] + shares["b"] <= RATE * (1 + 1e-9)


def test_even_if_it_is_meant_to_have_just_that(world: World) -> None:
    before = rates(world)["a"]
    world.clock_s = 2 * TERM_S
    world.divide()
    assert rates(world) == {}
    world.report("a", begins=True, held=before)
    (answer,) = world.told("a")
    assert (answer.answers, len(answer.points)) == (world.sequence, 1)
    assert rates(world)["a"] == answer.points[0].shares[0].rate, "what it uses is counted"


def test_who_claims_no_more_than_it_holds_is_answered_at_once(world: World) -> None:
    world.report("a", begins=True, held=rates(world)["a"])
    (answer,) = world.told("a")
    assert (answer.answers, len(answer.points)) == (world.sequence, 0)
