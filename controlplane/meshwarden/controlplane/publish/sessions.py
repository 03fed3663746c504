"""The sessions of nodes: who is connected, what each has, and what becomes of its endpoints when it leaves.

A node has one session; a newer one replaces the older. A node that reported that it has no endpoints has said goodbye.
Any other that leaves has a grace to come back in before its endpoints are marked unhealthy, and so have at the start of
a control plane all nodes that have endpoints.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Final

import anyio
import structlog
from anyio.abc import TaskStatus

from meshwarden.controlplane.identity.known import Known
from meshwarden.controlplane.identity.record import BanRecord, NodeRecord
from meshwarden.controlplane.identity.rotation import NodeTrust
from meshwarden.controlplane.publish.endpoints import Endpoints
from meshwarden.controlplane.publish.feed import Serves
from meshwarden.controlplane.publish.members import Members
from meshwarden.controlplane.publish.presence import Presence
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.question import Unanswered
from meshwarden.controlplane.publish.session import Session
from meshwarden.controlplane.publish.standing import Standings
from meshwarden.controlplane.publish.trail import followed
from meshwarden.controlplane.store.port import Store
from meshwarden.sdk.tracing import own_span
from meshwarden.v1 import admin_service_pb2
from meshwarden.v1 import node_service_pb2 as v1

GRACE_S: Final = 10.0
START_GRACE_S: Final = 30.0
# Of agents that come back: what a control plane takes beside all else that it does, about 3 ms of a processor each.
RETURNS_PER_S: Final = 333.0

log = structlog.get_logger()


class Sessions:
    """The sessions of all nodes."""

    def __init__(
        self,
        publisher: Publisher,
        store: Store,
        *,
        region: str,
        clock: Callable[[], datetime],
        grace_s: float = GRACE_S,
        start_grace_s: float = START_GRACE_S,
        owner: str = "",
    ) -> None:
        self._publisher, self._clock, self.region = publisher, clock, region
        self._grace_s, self._start_grace_s = grace_s, start_grace_s
        self._endpoints = Endpoints(publisher, store, region=region, clock=clock)
        self._open: dict[str, Session] = {}
        self._states: dict[str, admin_service_pb2.NodeState] = {}
        # {node: the fingerprints of roots that it trusts, and of those that its certificates lead to}
        self._trust: dict[str, tuple[frozenset[str], frozenset[str], frozenset[str]]] = {}
        self._members = Members(store)
        self._members.on_removed(self._left)
        self._presence = Presence(store, owner)
        self._presence.listen(self._moved)
        self._standings = Standings(store, owner, self._heard_of)
        self._standings.listen(self._wake)
        # There is one while somebody waits.
        self._news: asyncio.Event | None = None
        # Their records have ended while they had a session.
        self._removed: set[str] = set()
        self._waiting: dict[str, asyncio.TimerHandle] = {}

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Writes endpoints, and gives up nodes that do not come back, until it is cancelled.

        It has started once it knows who has joined.
        """
        async with anyio.create_task_group() as group:
            await group.start(self._members.run)
            await group.start(self._presence.run)
            await group.start(self._standings.run)
            task_status.started()
            await self._run()

    async def _run(self) -> None:
        await self._publisher.wait_loaded()
        for node in self._endpoints.nodes() - self._waiting.keys():
            self._await_return(node, self._start_grace_s)
        try:
            await self._endpoints.run()
        finally:
            for timer in self._waiting.values():
                timer.cancel()

    def open(self, node: str, hello: v1.NodeHello, serves: Serves = lambda _: True) -> Session:
        """Opens a session, which replaces the node's older one; `Session.close` ends it.

        Args:
            node: the node's name.
            hello: what it says of itself.
            serves: of which tenants it may have anything.
        """
        session = Session(self, node, self._publisher, hello, self._clock, serves)
        if hello.HasField("now"):
            session.state.clock_skew.FromTimedelta(hello.now.ToDatetime(tzinfo=UTC) - self._clock())
        self._removed.discard(node)
        older = self._open.get(node)
        if older is not None:
            older.replaced.set()
        self._open[node], self._states[node] = session, session.state
        self._presence.put(node, *self._trust.get(node, (None, frozenset())))
        if (timer := self._waiting.pop(node, None)) is not None:
            timer.cancel()
        self.tell()
        log.info("node.connected", node=node, agent_version=hello.agent_version, replaced=older is not None)
        return session

    def report(self, node: str, zone: str, report: v1.EndpointReport) -> None:
        """Takes a node's endpoints."""
        self._endpoints.report(node, zone, report)

    def ended(self, session: Session) -> None:
        """A session has ended; it means nothing if a newer one has replaced it."""
        if self._open.get(session.node) is not session:
            return
        del self._open[session.node]
        session.state.connected = False
        session.write_down()
        self._publisher.trails.left(session.node)
        self.tell()
        log.info("node.disconnected", node=session.node, goodbye=session.goodbye)
        if session.node in self._removed:
            self.forget(session.node)
        if session.node in self.bans:
            self._give_up(session.node)
        elif not session.goodbye:
            self._await_return(session.node, self._grace_s)

    @property
    def joined(self) -> Mapping[str, NodeRecord]:
        """The nodes that have joined: {name: record}."""
        return self._members.joined

    @property
    def known(self) -> Known:
        """What certificates hang on, as it is in memory."""
        entry = partial(self._publisher.mesh.find, "WorkloadEntry")
        return Known(lambda node: self._members.joined.get(node), entry)

    @property
    def bans(self) -> Mapping[str, BanRecord]:
        """The nodes that are banned: {name: record}."""
        return self._members.bans

    def on_removed(self, callback: Callable[[str], None]) -> None:
        """Calls back with a node whose record has ended, evicted or banned, so that its streams end."""
        self._members.on_removed(callback)

    @property
    def reconnect_spread_s(self) -> float:
        """Over how many seconds the nodes that have joined shall come back after they have lost us together."""
        return spread_s(len(self.joined))

    def forget(self, node: str) -> None:
        """Shows nothing more of a node that has no session."""
        if node not in self._open:
            self._states.pop(node, None)

    def states(self) -> list[admin_service_pb2.NodeState]:
        """How each node does that has joined, in the order of their names."""
        for session in self._open.values():
            session.write_down()
        # One that was not seen since the start is away, and nothing else is known of it.
        states = {node: admin_service_pb2.NodeState(node=node) for node in self.joined} | self._states
        for node, record in self.joined.items():
            states[node].join_time.FromDatetime(record.join_time)
            states[node].tenants[:] = record.tenants
            place = None if states[node].connected else self._presence.elsewhere(node)
            states[node].control_plane = place.holder if place is not None else ""
        return [states[node] for node in sorted(states)]

    def _heard_of(self) -> list[admin_service_pb2.NodeState]:
        """The nodes that have joined, with no more than each has said of itself."""
        for session in self._open.values():
            session.write_down()
        states = {node: admin_service_pb2.NodeState(node=node) for node in self.joined.keys() - self._states.keys()}
        return [*states.values(), *self._states.values()]

    def everywhere(self) -> list[admin_service_pb2.NodeState]:
        """How far each node has come that has joined, also of one that is at another control plane, or was last."""
        found = []
        for state in self.states():
            known = None if state.connected else self._standings.find(state.node)
            if known is not None and known.last_seen.ToNanoseconds() > state.last_seen.ToNanoseconds():
                place, state = state.control_plane, admin_service_pb2.NodeState()
                state.CopyFrom(known)
                state.connected, state.control_plane = False, place
            found.append(state)
        return found

    async def ask(self, node: str, data_plane: str) -> bytes:
        """Asks a node what a data plane of it has; returns the whole answer, as `DataPlaneAnswer` says.

        Raises:
            Unanswered: nobody answers; says why.
        """
        session = self._open.get(node)
        if session is not None:
            return await session.questions.ask(data_plane)
        place = self._presence.elsewhere(node)
        if place is not None:
            raise Unanswered(f"node {node} has its session at another control plane, {place.holder}: ask there")
        raise Unanswered(f"node {node} is not connected")

    @property
    def news(self) -> asyncio.Event:
        """Set once any node may have come further than at present."""
        if self._news is None:
            self._news = asyncio.Event()
        return self._news

    def tell(self) -> None:
        """A node of ours may have come further."""
        self._standings.touch()
        self._wake()

    def _wake(self) -> None:
        if self._news is not None:
            news, self._news = self._news, None
            news.set()

    def renew_all(self, reason: str) -> list[str]:
        """Asks all connected nodes for new certificates now; returns their names."""
        return self.renew(self._open, reason)

    def renew(self, nodes: Iterable[str], reason: str) -> list[str]:
        """Asks those of some nodes that are connected for new certificates now; returns their names.

        What becomes of it is followed below the present span, to some nodes of many.
        """
        sessions = {node: self._open[node] for node in nodes if node in self._open}
        parent, traced = own_span.present_parent(), set(followed(sessions))
        for node, session in sessions.items():
            order = v1.RenewNow(reason=reason, trace_parent=parent if node in traced else "")
            session.feed.say(v1.SyncResponse(renew_now=order))
        return sorted(sessions)

    def take_trust(self, node: str, ack: v1.BundleAck) -> None:
        """Takes which roots a node trusts and uses, and which JWT keys it knows."""
        self._trust[node] = trust = (_fingerprints(ack.trusted), _fingerprints(ack.used), frozenset(ack.jwt_keys))
        self._presence.put(node, *trust)

    def trust(self) -> list[NodeTrust]:
        """What each node that has joined has said of the roots."""
        found = []
        for state in self.states():
            trusted, used, keys = self._trust.get(state.node, (None, frozenset[str](), frozenset[str]()))
            seen = state.last_seen.ToDatetime(UTC) if state.HasField("last_seen") else None
            place = None if state.connected else self._presence.elsewhere(state.node)
            if place is not None:
                seen, trusted, used, keys = self._clock(), place.trusted, place.used, place.jwt_keys
            found.append(NodeTrust(state.node, state.connected or place is not None, seen, trusted, used, keys))
        return found

    def _moved(self, node: str) -> None:
        """A node has opened a newer session at another control plane of this store."""
        self._endpoints.forget(node)
        if (session := self._open.get(node)) is not None:
            session.replaced.set()
        elif node not in self._waiting:
            self._await_return(node, self._grace_s)

    def _left(self, node: str) -> None:
        """A node's record has ended, or it was banned; streams that it has end by themselves."""
        if node in self._open:
            self._removed.add(node)
            return
        self.forget(node)
        if node in self.bans and (timer := self._waiting.pop(node, None)) is not None:
            timer.cancel()
            self._give_up(node)

    def _await_return(self, node: str, grace_s: float) -> None:
        if node not in self._open:
            self._waiting[node] = asyncio.get_running_loop().call_later(grace_s, self._give_up, node)

    def _give_up(self, node: str) -> None:
        self._waiting.pop(node, None)
        if node not in self._open and self._presence.elsewhere(node) is not None:
            self._await_return(node, self._grace_s)  # not ours to give up, while whoever has it lives
        elif node not in self._open:
            log.warning("node.lost", node=node)
            self._endpoints.lost(node)


def spread_s(nodes: int) -> float:
    """Over how many seconds so many nodes shall come back: next to nothing for a few of them."""
    return nodes / RETURNS_PER_S


def _fingerprints(roots: Iterable[bytes]) -> frozenset[str]:
    return frozenset(root.hex() for root in roots)
