"""A node, its enforcement points and the control plane with all parts as they are, in a time that a test drives.

They say to each other what they do over the wire, late by a step; streams break, agents and control planes start again
and points die at random. The policies say DENY: who hears nothing goes on with nothing.
"""

import random
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from meshwarden.agents.quota.point import Point as AgentPoint
from meshwarden.controlplane.quota.lease import Share
from meshwarden.controlplane.quota.leases import TTL_S
from meshwarden.controlplane.quota.leases import Leases as Allocator
from meshwarden.controlplane.quota.ledgers import Ledgers
from meshwarden.controlplane.quota.node import NodeStream, SayAgain
from meshwarden.controlplane.quota.policy import share_to_proto
from meshwarden.controlplane.quota.pool import LEAST_BURST
from meshwarden.controlplane.quota.spare import PART
from meshwarden.controlplane.quota.tree import Level, Point
from meshwarden.controlplane.quota.usage import Usages
from meshwarden.sdk.quota.bucket import STARTER
from meshwarden.sdk.quota.lease import Costs, Leases
from meshwarden.sdk.quota.slot import Slots
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.v1.node_service_pb2 import PolicyLimits
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

POLICY, RATE, STEP_S = "platform/orders", 100.0, 0.05
AT_ONCE = 20
TREE = Level(parts={"acme": Level(ceiling=RATE)})
SPEC = RatePolicySpec(
    limits=[RateLimit(tenant="acme", requests=int(RATE), burst=int(RATE))], when_away=RatePolicySpec.DENY
)
COST, RESERVE = 10, 2
COST_SPEC = RatePolicySpec(
    limits=[RateLimit(tenant="acme", cost=int(RATE), burst=int(RATE))], when_away=RatePolicySpec.DENY
)
SLOTS_TREE = Level(parts={"acme": Level(ceiling=AT_ONCE)}, unit="concurrent")
SLOTS_SPEC = RatePolicySpec(
    limits=[RateLimit(tenant="acme", concurrent=AT_ONCE, burst=AT_ONCE)], when_away=RatePolicySpec.DENY
)

KINDS: dict[str, tuple[type[Leases], RatePolicySpec]] = {
    "requests": (Leases, SPEC),
    "cost": (Costs, COST_SPEC),
    "concurrent": (Slots, SLOTS_SPEC),
}


@dataclass
class Server:
    """A server process: its leases, and its stream to the agent."""

    kinds: ClassVar[dict[str, tuple[type[Leases], RatePolicySpec]]] = KINDS

    name: str
    load: float
    unit: str = "requests"
    leases: Leases = field(init=False)
    agent: AgentPoint | None = None
    pressing: bool = False
    told_s: float = -9.0
    sequence: int = 0
    obeyed: int = 0
    next_s: float = 0.0
    sent_s: dict[int, float] = field(default_factory=dict)
    opened: int = 0
    # When each call that runs will end, and whether its slot may be somebody else's by now.
    running: list[tuple[float, bool]] = field(default_factory=list)
    # When what a call has cost will be known.
    unsettled: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """What it may use a second."""
        known = self.leases._tenants.get("acme")
        return known.rest.rate if known is not None else 0.0

    @property
    def owed(self) -> float:
        """What its calls were let in for and have not paid."""
        known = self.leases._tenants.get("acme")
        return len(self.unsettled) * (COST - RESERVE) + (max(0.0, -known.rest.left) if known is not None else 0.0)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Starts, or starts again with nothing."""
        engine, spec = self.kinds[self.unit]
        self.leases = engine(self.press)
        self.leases.update(PolicyLimits(policy=POLICY, spec=spec), 0.0)
        self.running, self.unsettled = [], []
        self.opened += 1
        self.cut()

    def press(self) -> None:
        self.pressing = True

    def cut(self) -> None:
        """Its stream breaks off."""
        self.agent, self.sequence, self.obeyed, self.sent_s = None, 0, 0, {}

    def report(self, now_s: float) -> None:
        """Says what it uses, if it is time."""
        if self.agent is None:
            self.agent = AgentPoint(self.name, "platform/orders", lambda: {POLICY})
        if now_s < self.next_s and not (self.pressing and now_s >= self.next_s - 0.9):
            return
        self.pressing, self.next_s = False, now_s + 1.0
        self.sequence += 1
        self.sent_s[self.sequence] = now_s
        usage = self.leases.presses or now_s - self.told_s >= 0.9
        self.told_s = now_s if usage else self.told_s
        report = self.leases.report(now_s, usage=usage, full=self.sequence == 1)
        report.acknowledged = self.obeyed
        self.agent.take(self.sequence, report, now_s)

    def obey(self, response: pb.ShareResponse, now_s: float) -> None:
        for point in response.points:
            self.leases.grant(point.shares, now_s)
            self.pressing = True
        self.obeyed = response.sequence
        if response.answers in self.sent_s:
            self.leases.prolong(self.sent_s[response.answers] + response.ttl.seconds, now_s)


class Mesh:
    """Servers of one node, their agent's stream, and the control plane."""

    whole, unit, node = TREE, "requests", "n1"
    server: ClassVar[type[Server]] = Server

    def __init__(self, loads: list[float], rng: random.Random) -> None:
        self.rng, self.now_s = rng, 0.0
        self.servers = [self.server(f"s{number}", load, self.unit) for number, load in enumerate(loads)]
        self.allocator = Allocator(0.0, learn=True)
        self.allocator.put(POLICY, self.whole)
        self._usages = Usages()
        self.stream: NodeStream | None = None
        self.number, self.sequence = 0, 0
        self.told: dict[int, list[tuple[Server, AgentPoint, int]]] = {}
        self.passed: list[float] = []
        self.refused: list[float] = []
        # Until when the agent and the control plane don't hear each other, and until when there is no agent.
        self.away_until_s = self.down_until_s = 0.0

    # -- what NodeStream asks

    @property
    def usages(self) -> Usages:
        return self._usages

    def tree(self, policy: str) -> Level | None:
        return self.whole

    def hosts(self, node: str, service: str) -> bool:
        return True

    def covers(self, policy: str, service: str, tenant: str) -> bool:
        return True

    def is_tenant(self, tenant: str) -> bool:
        return True

    def clock_s(self) -> float:
        return self.now_s

    def took(self) -> None:
        pass

    # -- what happens

    def step(self, number: int) -> None:
        self.now_s = now_s = number * STEP_S
        for server in self.servers:
            self.call(server, self._calls(server.load * STEP_S))
            if now_s >= self.down_until_s:
                server.report(now_s)
        if now_s < max(self.away_until_s, self.down_until_s):
            return
        self._agent()
        if number % 10 == 0 or self.allocator.presses:
            self.divide()
        self._down()
        self.check_now()

    def check_now(self) -> None:
        """By the points' own word no more is used in a second than there is, by those whose leases run."""
        used = [server.rate for server in self.servers if self.now_s < server.leases._ends_s]
        assert sum(used) <= self.whole.parts["acme"].ceiling * (1 + 1e-9), f"{used} at {self.now_s:.2f}"

    def divide(self) -> None:
        self.hand_down(*self.allocator.tick(self.now_s))

    def hand_down(self, told: int, shares: Mapping[Point, list[Share]]) -> None:
        """Tells the node what its points may use."""
        messages = [
            pb.PointShares(point=point.name, shares=[share_to_proto(share, self.unit) for share in given])
            for point, given in shares.items()
            if point.node == self.node
        ]
        if self.stream is not None and messages:
            self.stream.say(pb.ShareResponse(sequence=told, points=messages))

    def call(self, server: Server, times: int) -> None:
        """Calls a server."""
        for _ in range(times):
            let_in = server.leases.take("acme", "/x/Y", 1, self.now_s).allowed
            (self.passed if let_in else self.refused).append(self.now_s)

    def _agent(self) -> None:
        """The agent says what is new."""
        if self.stream is None:
            self.number, self.sequence, self.told = self.number + 1, 0, {}
            self.stream = NodeStream(self.node, _Limits(self), self.allocator, Ledgers({}, lambda: 1))
            for server in self.servers:
                if server.agent is not None:
                    server.agent.begin()
        self.sequence += 1
        request = pb.ShareRequest(sequence=self.sequence)
        for server in self.servers:
            if server.agent is not None and server.agent.news:
                sequence, report = server.agent.report(self.number)
                request.points.append(report)
                self.told.setdefault(self.sequence, []).append((server, server.agent, sequence))
        try:
            self.stream.take(request)
        except SayAgain:
            self.stream = None

    def _down(self) -> None:
        """What the control plane has said comes to the points."""
        if self.stream is None:
            return
        responses, self.stream._out = self.stream._out, []
        for response in responses:
            for sequence in [number for number in self.told if number <= response.answers]:
                for server, agent, number in self.told.pop(sequence):
                    if server.agent is agent:
                        agent.prolong(number, response.ttl)
            for shares in response.points:
                for server in self.servers:
                    if server.name == shares.point and server.agent is not None:
                        server.agent.grant(self.number, response.sequence, shares.shares, self.now_s)
        for server in self.servers:
            # Now and then one is slow to take what it is told.
            if server.agent is not None and server.agent._wake.is_set() and self.rng.random() < 0.7:
                server.obey(_next(server.agent), self.now_s)

    def _calls(self, mean: float) -> int:
        whole = int(mean)
        return whole + (self.rng.random() < mean - whole)

    # -- what goes wrong

    def cut_server(self, which: int) -> None:
        self.servers[which % len(self.servers)].cut()

    def kill_server(self, which: int) -> None:
        """Starts again under the name of another process; what the dead one had is not spent any more."""
        server = self.servers[which % len(self.servers)]
        server.name += "'"
        server.start()

    def restart_agent(self, _: int) -> None:
        self.stream = None
        for server in self.servers:
            server.cut()

    def hold_agent_back(self, which: int) -> None:
        """The agent ends, and starts again after some seconds."""
        self.restart_agent(which)
        self.down_until_s = self.now_s + which % 7

    def restart_control_plane(self, _: int) -> None:
        self.stream, self.allocator = None, Allocator(self.now_s, learn=True)
        self.allocator.put(POLICY, self.whole)

    def part(self, which: int) -> None:
        """The control plane and the node hear nothing of each other for some seconds."""
        self.away_until_s = self.now_s + which % 7

    def shift(self, which: int) -> None:
        """Load moves from one server to another."""
        first, second = self.servers[0], self.servers[which % len(self.servers)]
        first.load, second.load = second.load, first.load

    def surge(self, which: int) -> None:
        """One has much more to do."""
        self.servers[which % len(self.servers)].load = 80.0

    def extra(self) -> float:
        """What the bound has beside the rate: bursts, none below some calls, starters, and what ran over."""
        opened = sum(server.opened for server in self.servers)
        ran_over = PART * RATE * (1 + TTL_S)
        return RATE + LEAST_BURST * len(self.servers) + opened * (STARTER + 1) + ran_over

    def check(self) -> None:
        for width_s in (1.0, 3.0, 10.0, 1e9):
            for start in range(0, len(self.passed), 7):
                moment = self.passed[start]
                inside = bisect_right(self.passed, moment + width_s) - start
                span_s = min(width_s, self.passed[-1] - moment) + STEP_S
                assert inside <= RATE * span_s + self.extra(), f"{inside} in {span_s:.2f} s from {moment:.2f}"


class Crowd(Mesh):
    """The same with a limit on calls at once, some of which run for long."""

    whole, unit = SLOTS_TREE, "concurrent"

    def check_now(self) -> None:
        """Slots that are taken by calls that run are in two hands until those have ended: see `step`."""

    def step(self, number: int) -> None:
        """One step; then whether more run than may."""
        super().step(number)
        known = {point.name for point in self.allocator._points}
        for server in self.servers:
            # Calls of a point whose lease has run out go on, and nobody counts on them any more.
            if server.name not in known and not self.allocator.learns(self.now_s):
                server.running = [(end_s, True) for end_s, _ in server.running]
        running = sum(not lapsed for server in self.servers for _, lapsed in server.running)
        # One is what a bucket is opened with.
        assert running <= AT_ONCE + len(self.servers), f"{running} run at {self.now_s:.2f}"

    def call(self, server: Server, times: int) -> None:
        """Calls that are over end, and others begin."""
        for call in [call for call in server.running if call[0] <= self.now_s]:
            server.running.remove(call)
            server.leases.end("acme", "/x/Y", self.now_s)
        for _ in range(times):
            if server.leases.take("acme", "/x/Y", 1, self.now_s).allowed:
                self.passed.append(self.now_s)
                server.running.append((self.now_s + self.rng.choice([0.1, 1.0, 20.0]), False))


class Costly(Mesh):
    """The same with a limit on costs: a call reserves a fifth of what it costs, which is known half a second later."""

    whole, unit = replace(TREE, unit="cost"), "cost"
    most_owed = lost = 0.0

    def call(self, server: Server, times: int) -> None:
        """Calls are let in for what they reserve, and settled."""
        while server.unsettled and server.unsettled[0] <= self.now_s:
            server.unsettled.pop(0)
            server.leases.charge("acme", "/x/Y", COST - RESERVE, self.now_s)
        for _ in range(times):
            if server.leases.take("acme", "/x/Y", RESERVE, self.now_s).allowed:
                self.passed += [self.now_s] * COST
                server.unsettled.append(self.now_s + 0.5)

    def step(self, number: int) -> None:
        """One step; then how much is owed."""
        super().step(number)
        self.most_owed = max(self.most_owed, sum(server.owed for server in self.servers))

    def kill_server(self, which: int) -> None:
        """What it owes is lost with it."""
        self.lost += self.servers[which % len(self.servers)].owed
        super().kill_server(which)

    def extra(self) -> float:
        """What it has for calls, and what was owed, a call beyond a full bucket among it."""
        return super().extra() + self.most_owed + self.lost + sum(server.opened for server in self.servers) * RESERVE


class _Limits:
    """The mesh, as a node's stream sees it."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.tree, self.hosts, self.is_tenant, self.took = mesh.tree, mesh.hosts, mesh.is_tenant, mesh.took
        self.covers, self.divide = mesh.covers, mesh.divide
        self.now_s = mesh.clock_s

    @property
    def usages(self) -> Usages:
        return self._mesh.usages


def _next(point: AgentPoint) -> pb.ShareResponse:
    """What `next` returns, where it need not wait."""
    waiting = point.next()
    try:
        waiting.send(None)
    except StopIteration as done:
        response: pb.ShareResponse = done.value
        return response
    raise AssertionError("there was nothing to tell")
