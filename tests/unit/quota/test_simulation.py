"""Ten thousand leaves over time: what is divided stays divided while load moves, words are lost, and things break."""

import random
from collections import defaultdict, deque
from dataclasses import dataclass, field

import pytest

from meshwarden.controlplane.quota.lease import Share, Usage
from meshwarden.controlplane.quota.leases import TTL_S, Leases
from meshwarden.controlplane.quota.tree import Bucket, Level, Point

pytestmark = pytest.mark.timeout(300)

POLICY, TOTAL, STEP_S = "platform/orders", 5000.0, 0.5
TENANTS, POINTS = 20, 500
WEIGHTS = [1.0, 2.0, 5.0]
TREE = Level(
    ceiling=TOTAL,
    parts={
        f"t{number}": Level(weight=WEIGHTS[number % 3], floor=20.0 * (number % 2), ceiling=400.0 + 40 * number)
        for number in range(TENANTS)
    },
)
BUCKETS = [Bucket(POLICY, (tenant,)) for tenant in TREE.parts]


@dataclass
class Server:
    """A point that obeys, and refuses all when its lease has run out."""

    point: Point
    demand: list[float]
    rates: dict[Bucket, float] = field(default_factory=dict)
    until_s: float = -9.0
    obeyed: int = 0
    told: deque[tuple[int, float, list[Share]]] = field(default_factory=deque)
    heard_s: float = -9.0
    begins: bool = True

    def cut(self) -> None:
        """Its stream breaks off, with what was under way."""
        self.told.clear()
        self.begins, self.obeyed = True, 0

    def obey(self, now_s: float) -> None:
        """Takes the next that it was told."""
        number, answered_s, shares = self.told.popleft()
        if now_s >= self.until_s:
            self.rates = {}
        self.obeyed, self.until_s = number, max(self.until_s, answered_s + TTL_S)
        self.rates |= {share.bucket: share.rate for share in shares}


class World:
    """The points and whoever divides."""

    def __init__(self, seed: int) -> None:
        self.rng, self.now_s = random.Random(seed), 0.0
        self.servers = [Server(Point(f"n{number}", "s"), self._demand()) for number in range(POINTS)]
        self.leases = Leases(0.0, learn=False)
        self.leases.put(POLICY, TREE)

    def _demand(self) -> list[float]:
        return [self.rng.lognormvariate(-1, 1.5) for _ in BUCKETS]

    def step(self, number: int, lost: float) -> None:
        """Half of the points report, and are answered, of which a part is late; then nobody may have too much."""
        self.now_s += STEP_S
        for server in self.servers[number % 2 :: 2]:
            if self.rng.random() >= lost:
                self._report(server)
        told, shares = self.leases.tick(self.now_s)
        for server in self.servers:
            if not server.begins:
                server.told.append((told, server.heard_s, shares.get(server.point, [])))
            while server.told and self.rng.random() >= lost:
                server.obey(self.now_s)
        self.check()

    def _report(self, server: Server) -> None:
        if self.now_s >= server.until_s:
            server.rates = {}
        if server.begins:
            server.begins = False
            self.leases.learn(server.point, dict(server.rates), self.now_s)
        server.heard_s = self.now_s
        usages = {bucket: Usage(0, wanted) for bucket, wanted in zip(BUCKETS, server.demand, strict=True)}
        self.leases.report(server.point, usages, self.now_s, acknowledged=server.obeyed)

    def check(self) -> None:
        """By the points' own word no level has more than its ceiling."""
        used: defaultdict[Bucket, float] = defaultdict(float)
        for server in self.servers:
            if self.now_s < server.until_s:
                for bucket, rate in server.rates.items():
                    used[bucket] += rate
        for bucket, rate in used.items():
            assert rate <= TREE.parts[bucket.path[0]].ceiling * (1 + 1e-9), f"{bucket.path} at {self.now_s}"
        assert sum(used.values()) <= TOTAL * (1 + 1e-9), f"at {self.now_s}"

    def rates(self) -> dict[str, float]:
        """What each tenant has, by the points' word."""
        return {bucket.path[0]: sum(server.rates.get(bucket, 0.0) for server in self.servers) for bucket in BUCKETS}


def test_ten_thousand_leaves_are_conserved_at_every_instant_and_end_fair() -> None:
    world = World(4)
    for number in range(22):
        if number == 5:  # the load moves
            for server in world.servers:
                server.demand = world._demand()
        if number == 8:  # whoever divides starts again
            world.leases = Leases(world.now_s, learn=True)
            world.leases.put(POLICY, TREE)
            for server in world.servers:
                server.cut()
        if number < 12:  # streams break, and points end and begin
            for server in world.rng.sample(world.servers, 20):
                server.cut()
            for server in world.rng.sample(world.servers, 10):
                world.leases.leave(server.point)
                server.cut()
                server.rates, server.until_s = {}, -9.0
        world.step(number, lost=0.2 if number < 12 else 0.0)
    rates = world.rates()
    assert sum(rates.values()) >= 0.97 * TOTAL
    wanted = {
        bucket.path[0]: sum(server.demand[place] for server in world.servers) for place, bucket in enumerate(BUCKETS)
    }
    short = {
        tenant: rates[tenant] / level.weight
        for tenant, level in TREE.parts.items()
        if rates[tenant] < 0.9 * min(wanted[tenant], level.ceiling) and rates[tenant] > 1.1 * level.floor
    }
    # Whoever goes short is, for its weight, as well off as all others who do.
    assert len(short) > 2
    assert max(short.values()) <= 1.1 * min(short.values())
    assert sum(len(server.rates) for server in world.servers) > 9_000
