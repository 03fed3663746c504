"""A mesh that counts by period, of all its parts as they are, with a store, time and faults that a test drives."""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import json_format

from meshwarden.agents.quota.point import Point as AgentPoint
from meshwarden.controlplane.policy import rate
from meshwarden.controlplane.policy.neutral import Name as PolicyName
from meshwarden.controlplane.quota import book
from meshwarden.controlplane.quota.leases import Leases
from meshwarden.controlplane.quota.ledgers import Book, Ledgers, Name
from meshwarden.controlplane.quota.node import NodeStream, SayAgain
from meshwarden.controlplane.quota.policy import grant_to_proto, terms_of, tree_of
from meshwarden.controlplane.quota.tree import Level
from meshwarden.controlplane.quota.usage import Usages
from meshwarden.controlplane.store import port
from meshwarden.sdk.quota.chunk import Chunks
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.v1.node_service_pb2 import PolicyLimits
from meshwarden.v1.resources_pb2 import RatePolicySpec

POLICY, SERVICE, METHOD = "platform/orders", "platform/orders", "/x/Y"
NOON_S = 1_790_164_800.0  # 23 September 2026, 12:00 UTC
SPEC = {"service": "orders", "period": "DAY", "total": {"requests": 100}}


class Server:
    """A server process."""

    def __init__(self, name: str, series: Callable[[], int], spec: RatePolicySpec) -> None:
        self.name, self.chunks = name, Chunks(lambda: None, series)
        self.chunks.update(PolicyLimits(policy=POLICY, spec=spec), 0.0)
        self.agent: AgentPoint | None = None
        self.sequence, self.sent_s, self.base_s = 0, dict[int, float](), 0.0

    def cut(self) -> None:
        """Its stream to the agent breaks off."""
        self.agent, self.sequence, self.sent_s = None, 0, {}

    def call(self, tenant: str, method: str, now_s: float, amount: float = 1) -> tuple[int, bool]:
        """Whether a call is let in, and in which turn."""
        decision = self.chunks.take(tenant, method, amount, now_s)
        if decision.coming is not None:  # nobody waits here
            decision = decision.coming.refuse()
        bucket = self.chunks._tenants[tenant].bucket(method)
        assert bucket is not None
        return bucket.turn, decision.allowed

    def report(self, now_s: float, *, last: bool = False) -> None:
        """Tells the agent what there is to say."""
        if self.agent is None:
            self.agent = AgentPoint(self.name, SERVICE, lambda: {POLICY})
        self.sequence += 1
        self.sent_s[self.sequence] = now_s
        if last:
            self.chunks.close()
        self.agent.take(self.sequence, self.chunks.report(now_s, full=self.sequence == 1), now_s)

    def hear(self, now_s: float, *, lost: bool = False) -> None:
        """Hears what the agent has to say, if it has anything."""
        if self.agent is None or not self.agent._wake.is_set():
            return
        response = _next(self.agent)
        if lost:
            self.cut()
            return
        if (sent_s := self.sent_s.get(response.answers)) is not None:
            self.base_s = sent_s
            self.chunks.prolong(sent_s + response.ttl.seconds, now_s)
        for point in response.points:
            self.chunks.grant(point.shares, self.base_s, now_s)


class World:
    """Servers of one node, their agent's stream, the control plane and its store."""

    def __init__(self, spec: Mapping[str, Any] = SPEC, servers: int = 3) -> None:
        self.now_s, self.wall_s = 100.0, NOON_S
        self._numbers = itertools.count(1)
        self.store: dict[str, bytes] = {}
        self.spec, self.servers = spec, list[Server]()
        self.usages, self.ended = Usages(), list[pb.PointReport]()
        # {turn: its ledger}, {ledger: {(tenant, method): calls}}
        self.turns: dict[int, Name] = {}
        self.admitted: defaultdict[Name, Counter[tuple[str, str]]] = defaultdict(Counter)
        self.stream: NodeStream | None = None
        self.streams, self.sequence, self.base_s = 0, 0, 0.0
        self.told: dict[int, tuple[float, list[tuple[AgentPoint, int]]]] = {}
        self.start_control_plane()
        for _ in range(servers):
            self.start_server()

    def start_control_plane(self) -> None:
        """It starts, or starts again with what is written."""
        books: dict[Name, Book] = {}
        for key in sorted(self.store):
            book._read(port.Record(key, self.store[key], 1), books)
        self.ledgers = Ledgers(books, lambda: next(self._numbers))
        self.stream = None
        self.apply(self.spec)
        self.plan()

    def apply(self, spec: Mapping[str, Any] | None) -> None:
        """Puts a policy in force in the control plane and at servers; none deletes it."""
        if spec is None:
            self.ledgers.drop(POLICY)
            return
        self.spec, parsed = spec, json_format.ParseDict(dict(spec), RatePolicySpec())
        limits = rate.of_spec(PolicyName("platform", "orders"), parsed)
        self._tree, terms = tree_of(limits, "eu"), terms_of(limits)
        self._sent = rate.to_spec(limits, PolicyName("platform", "orders"))
        assert terms is not None
        self.ledgers.put(POLICY, terms, self._tree)
        for server in self.servers:
            server.chunks.update(PolicyLimits(policy=POLICY, spec=self._sent), self.now_s)

    def start_server(self) -> None:
        self.servers.append(Server(f"s{next(self._numbers)}", lambda: next(self._numbers), self._sent))

    def call(self, server: Server, tenant: str, method: str = METHOD) -> bool:
        """One call; whether it was let in."""
        turn, allowed = server.call(tenant, method, self.now_s)
        if allowed:
            self.admitted[self.turns[turn]][tenant, method] += 1
        return allowed

    def up(self, *, lost: bool = False) -> None:
        """The agent tells the control plane what is new."""
        if self.stream is None:
            self.streams, self.sequence, self.told = self.streams + 1, 0, {}
            self.stream = NodeStream("n1", _Limits(self), Leases(self.now_s, learn=False), self.ledgers)
            for server in self.servers:
                if server.agent is not None:
                    server.agent.begin()
        self.sequence += 1
        request, told = pb.ShareRequest(sequence=self.sequence, last=self.ended), list[tuple[AgentPoint, int]]()
        for server in self.servers:
            if server.agent is not None and server.agent.news:
                number, report = server.agent.report(self.streams)
                request.points.append(report)
                told.append((server.agent, number))
        self.told[self.sequence] = self.now_s, told
        if lost:
            self.stream = None
            return
        try:
            self.stream.take(request)
        except SayAgain:
            self.stream = None

    def plan(self) -> None:
        """The control plane charges what is asked for."""
        self._writes = self.ledgers.plan(self.now_s, self.wall_s)
        for name, written in self.ledgers._books.items():
            self.turns[written.turn] = name

    def write(self) -> None:
        """And writes it."""
        for op in map(book._op, self._writes):
            if isinstance(op, port.Put):
                self.store[op.key] = op.value
            elif isinstance(op, port.Delete):
                self.store.pop(op.key, None)

    def tell(self) -> None:
        """And says it."""
        for policy, turn, grant in self.ledgers.written():
            period = self.ledgers.period(policy)
            assert period is not None
            if self.stream is not None:
                until_s = period.end_s - self.wall_s + self.now_s - self.stream.heard_s
                shares = pb.PointShares(
                    point=grant.point.name, shares=[grant_to_proto(policy, self._tree.unit, turn, grant, until_s)]
                )
                self.stream.say(pb.ShareResponse(points=[shares]))

    def down(self, *, lost: bool = False) -> None:
        """What it has said comes to the agent."""
        if self.stream is None:
            return
        responses, self.stream._out = self.stream._out, []
        if lost:
            self.stream = None
            return
        for response in responses:
            for sequence in [number for number in self.told if number <= response.answers]:
                self.base_s, told = self.told.pop(sequence)
                for agent, number in told:
                    agent.prolong(number, response.ttl)
                self.ended = []
            for shares in response.points:
                for server in self.servers:
                    if server.name == shares.point and server.agent is not None:
                        server.agent.grant(self.streams, response.sequence, shares.shares, self.base_s)

    def leave(self, server: Server) -> None:
        """A server ends in good order."""
        server.report(self.now_s, last=True)
        assert server.agent is not None
        self.ended.append(server.agent.report(self.streams)[1])
        self.servers.remove(server)

    def round(self) -> None:
        """All of it once, without a fault."""
        for server in self.servers:
            server.report(self.now_s)
        self.up()
        if self.stream is None:
            self.up()
        self.plan()
        self.write()
        self.tell()
        self.down()
        for server in self.servers:
            server.hear(self.now_s)

    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now_s += seconds
        self.wall_s += seconds

    @property
    def records(self) -> dict[str, Any]:
        return {key: json.loads(value) for key, value in self.store.items()}


class _Limits:
    """The mesh, as a node's stream sees it."""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def usages(self) -> Usages:
        return self._world.usages

    def tree(self, policy: str) -> Level | None:
        return self._world._tree

    def hosts(self, node: str, service: str) -> bool:
        return True

    def covers(self, policy: str, service: str, tenant: str) -> bool:
        return True

    def is_tenant(self, tenant: str) -> bool:
        return True

    def now_s(self) -> float:
        return self._world.now_s

    def took(self) -> None:
        pass

    def divide(self) -> None:
        pass


def _next(point: AgentPoint) -> pb.ShareResponse:
    """What `next` returns, where it need not wait."""
    try:
        point.next().send(None)
    except StopIteration as done:
        response: pb.ShareResponse = done.value
        return response
    raise AssertionError("there was nothing to tell")
