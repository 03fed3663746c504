"""One session of a node: what its agent says, and what it is told."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import structlog

from meshwarden.controlplane.audit.port import AuditUnavailable
from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.publish.feed import Serves
from meshwarden.controlplane.publish.message import Message
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.question import Questions
from meshwarden.v1 import admin_service_pb2
from meshwarden.v1 import node_service_pb2 as v1

HEARTBEAT_PRECISION: Final = timedelta(seconds=2)

log = structlog.get_logger()


class Keeper(Protocol):
    """Who keeps a session among those of other nodes."""

    region: str

    def tell(self) -> None:
        """The node may have come further."""

    def take_trust(self, node: str, ack: v1.BundleAck) -> None:
        """Takes which roots the node trusts and uses."""

    def report(self, node: str, zone: str, report: v1.EndpointReport) -> None:
        """Takes the node's endpoints."""

    def ended(self, session: "Session") -> None:
        """The session has ended."""


class Session:
    """One session of a node."""

    def __init__(
        self,
        sessions: Keeper,
        node: str,
        publisher: Publisher,
        hello: v1.NodeHello,
        clock: Callable[[], datetime],
        serves: Serves,
    ) -> None:
        self.node = node
        self.feed = publisher.open(node, serves, Place(sessions.region, hello.zone))
        self.questions = Questions(self.feed.say)
        """What its agent is asked."""
        self.replaced = asyncio.Event()
        """Set when the node has opened a newer one."""
        self._sessions, self._publisher, self._zone, self._serves = sessions, publisher, hello.zone, serves
        self._endpoints: int | None = None
        self._clock, self._heard = clock, clock()
        self.state = admin_service_pb2.NodeState(
            node=node,
            connected=True,
            agent_version=hello.agent_version,
            zone=hello.zone,
            metrics_address=hello.metrics_address,
        )

    def take(self, message: v1.SyncRequest) -> None:
        """Takes a message of the agent, which is a sign of life as well."""
        self._heard = self._clock()
        kind = message.WhichOneof("message")
        if kind == "interest":
            self._replace(self.state.data_planes, message.interest.data_planes)
            self.feed.set_interest(message.interest.data_planes, message.interest.held)
            self._sessions.tell()
        elif kind == "ack":
            self.state.acked_revision = message.ack.revision
            self._replace(self.state.nacks, message.ack.nacks)
            self.state.pending_revision = message.ack.pending_revision
            self._replace(self.state.pending, message.ack.pending)
            self._sessions.tell()
            self._publisher.trails.acknowledged(self.node, message.ack.revision, message.ack.nacks)
        elif kind == "workloads":
            self._replace(self.state.workloads, message.workloads.workloads)
        elif kind == "health":
            self.state.health.CopyFrom(message.health)
        elif kind == "heartbeat" and message.heartbeat.HasField("now"):
            self._compare_clocks(message.heartbeat.now.ToDatetime(tzinfo=UTC))
        elif kind == "bundle_ack":
            self._sessions.take_trust(self.node, message.bundle_ack)
        elif kind == "deny_ack":
            self.state.denied_revision = message.deny_ack.revision
        elif kind == "data_plane_answer":
            self.questions.take(message.data_plane_answer)
        elif kind == "endpoints":
            self._endpoints = len(message.endpoints.endpoints)
            own = v1.EndpointReport(trace_parent=message.endpoints.trace_parent)
            own.endpoints.extend(item for item in message.endpoints.endpoints if self._serves(item.tenant))
            self._sessions.report(self.node, self._zone, own)

    async def may_tell(self, message: Message) -> bool:
        """Whether a message may go to the agent now: secrets not before that is on record."""
        if message.said is None or message.kind != "secrets" or self._publisher.secrets is None:
            return True
        try:
            await self._publisher.secrets.record(self.node, message.said.secrets)
        except AuditUnavailable as error:
            self.feed.untold(message.said.secrets)
            log.error("secrets.withheld", node=self.node, entry=message.said.secrets.entry, reason=str(error))
            return False
        return True

    def told(self, message: Message) -> None:
        """Takes note of a message that went to the agent."""
        if message.said is None:
            self._publisher.trails.pushed(self.node, message.revision)
        elif message.kind == "bundle":
            self._publisher.roots.told(self.node, message.said.bundle)

    def write_down(self) -> None:
        """Puts into `state` what changes too often to be kept there all the time."""
        self.state.last_seen.FromDatetime(self._heard)

    @property
    def goodbye(self) -> bool:
        """Whether the node has said that it has no endpoints."""
        return self._endpoints == 0

    def close(self) -> None:
        """The session has ended."""
        self.questions.close()
        self._publisher.close(self.feed)
        self._sessions.ended(self)

    def _compare_clocks(self, theirs: datetime) -> None:
        """Takes the node's clock; heartbeats tell it to the second, and what `hello` said is finer if it holds."""
        skew = theirs - self._heard
        if abs(skew - self.state.clock_skew.ToTimedelta()) > HEARTBEAT_PRECISION:
            self.state.clock_skew.FromTimedelta(skew)

    @staticmethod
    def _replace(field: object, items: object) -> None:
        del field[:]  # type: ignore[attr-defined]
        field.extend(items)  # type: ignore[attr-defined]
