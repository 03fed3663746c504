"""NodeService: the control plane's side of a node agent.

Who calls is known by its certificate alone; no message names its node.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from importlib.metadata import version as version_of
from typing import Any, Final, TypeAlias

import anyio
import grpc
import grpc.aio
from anyio.abc import TaskGroup
from opentelemetry import trace

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.bundle import Bundle
from meshwarden.controlplane.api.errors import InvalidRequest
from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.controlplane.publish.message import Message
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.room import COPIES, Room
from meshwarden.controlplane.publish.roots import Roots
from meshwarden.controlplane.publish.session import Session
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.publish.trust import Trust
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1 import node_service_pb2_grpc

SYNC: Final = "/meshwarden.v1.NodeService/Sync"
HEARTBEAT_S: Final = 5.0
# Of the entries that certificates are signed for a span names so many.
ENTRIES_NAMED: Final = 32
UNREAD_S: Final = 60.0
"""A session that leaves what is written to it unread for so long has ended: what waits for it is in memory."""
HEARTBEATS_MISSED: Final = 3
"""A session in which nothing is heard for so many intervals has ended."""
_LATE_S: Final = 0.5
"""Who wakes later than this was held up, and has heard nobody meanwhile."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def add_to(server: grpc.aio.Server, servicer: node_service_pb2_grpc.NodeServiceServicer) -> None:
    """Has a server answer node agents; what sessions write are bytes, and are not serialised again for each of them."""
    made: Any = grpc  # the constructors' types know sync handlers only
    sync = made.stream_stream_rpc_method_handler(servicer.Sync, v1.SyncRequest.FromString, None)
    service, method = SYNC[1:].split("/")
    node_service_pb2_grpc.add_NodeServiceServicer_to_server(servicer, server)
    # Of several that are registered for a method the last serves.
    server.add_registered_method_handlers(service, {method: sync})


class NodeServicer(node_service_pb2_grpc.NodeServiceServicer):
    """Answers node agents."""

    def __init__(
        self,
        identity: NodeIdentity,
        publisher: Publisher,
        sessions: Sessions,
        authority: Authority,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        trust: Trust | None = None,
    ) -> None:
        self._identity, self._publisher, self._sessions = identity, publisher, sessions
        self._authority, self._heartbeat_s, self._trust = authority, heartbeat_s, trust or Trust()
        self._streams: set[_Stream] = set()
        self._room = Room()

    async def tell_bundle(self, _: object) -> None:
        """The roots have changed: tells all nodes that are here."""
        for stream in tuple(self._streams):
            await stream.tell_bundle()

    async def Attest(self, request: v1.AttestRequest, context: Context) -> v1.AttestResponse:
        connection = peer.current_connection()
        address, number = (connection.remote, str(connection.id)) if connection is not None else (context.peer(), "")
        answer = await self._identity.attest(request, address, number)
        trace.get_current_span().set_attribute("mesh.node", answer.node)
        return answer

    async def Renew(self, request: v1.RenewRequest, context: Context) -> v1.RenewResponse:
        return await self._identity.renew(peer.current(), request.csr)

    async def SignWorkload(self, request: v1.SignWorkloadRequest, context: Context) -> v1.SignWorkloadResponse:
        entries = [f"{item.tenant}/{item.entry}" for item in request.requests[:ENTRIES_NAMED]]
        trace.get_current_span().set_attribute("mesh.entries", entries)
        return await self._identity.sign_workloads(peer.current(), request.requests)

    async def SignJwt(self, request: v1.SignJwtRequest, context: Context) -> v1.SignJwtResponse:
        trace.get_current_span().set_attribute("mesh.entries", [f"{request.tenant}/{request.entry}"])
        return await self._identity.sign_jwt(peer.current(), request)

    async def Sync(  # type: ignore[override]  # it writes by itself, which the stubs don't know
        self, request_iterator: AsyncIterator[v1.SyncRequest], context: Context
    ) -> None:
        node = await self._identity.record(peer.current(), SYNC)
        hello = await _hello(request_iterator)
        await self._publisher.wait_loaded()
        session = self._sessions.open(node.node, hello, node.serves)
        try:
            welcome = v1.Welcome(server_version=version_of("meshwarden"))
            welcome.heartbeat_interval.FromNanoseconds(int(self._heartbeat_s * 1e9))
            welcome.reconnect_spread.FromNanoseconds(int(self._sessions.reconnect_spread_s * 1e9))
            with contextlib.suppress(grpc.aio.UsageError):  # it has left already, which its requests tell as well
                await context.write(v1.SyncResponse(welcome=welcome).SerializeToString())
            stream = _Stream(session, self._authority, self._publisher.roots, self._room, context, self._heartbeat_s)
            self._streams.add(stream)
            try:
                with self._trust.following(session.feed.say):
                    fault = await stream.run(request_iterator)
            finally:
                self._streams.discard(stream)
        finally:
            session.close()
        with contextlib.suppress(grpc.aio.UsageError):  # it has gone, and hears no reason
            if fault:
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, fault)
            if session.replaced.is_set():
                await context.abort(grpc.StatusCode.ABORTED, "a newer session of this node has replaced this one")


class _Stream:
    """A session's stream once it is opened."""

    def __init__(
        self, session: Session, authority: Authority, roots: Roots, room: Room, context: Context, heartbeat_s: float
    ) -> None:
        self._room = room
        self._stuck_s = math.inf  # when what is being written should have been read, on the loop's clock
        self._session, self._authority, self._roots, self._context = session, authority, roots, context
        self._timeout_s = heartbeat_s * HEARTBEATS_MISSED
        self._heard_s = asyncio.get_running_loop().time()
        self._bundle: Bundle | None = None
        self._fault = ""

    async def run(self, requests: AsyncIterator[v1.SyncRequest]) -> str:
        """Serves until the node leaves, opens a newer session, or fails at something; returns what that is."""
        await self.tell_bundle()
        async with anyio.create_task_group() as group:
            group.start_soon(self._write, group)
            group.start_soon(self._listen_for_silence, group)
            group.start_soon(self._end_when_replaced, group)
            async for request in requests:
                await self._take(request)
            group.cancel_scope.cancel()
        return self._fault

    async def _take(self, request: v1.SyncRequest) -> None:
        if request.HasField("hello"):
            raise InvalidRequest([FieldFault("hello", "the session is open already")])
        self._heard_s = asyncio.get_running_loop().time()
        self._session.take(request)
        await self.tell_bundle()

    async def tell_bundle(self) -> None:
        """Tells the roots if they are others than last time; seen at each sign of life, too."""
        bundle = await self._authority.bundle()
        if bundle is not self._bundle:
            self._bundle = bundle
            message = self._roots.message(self._session.node, bundle, self._authority.description)
            self._session.feed.say(v1.SyncResponse(bundle=message))

    async def _write(self, group: TaskGroup) -> None:
        try:
            while True:
                for message in await self._session.feed.next():
                    if await self._session.may_tell(message):
                        if self._room.is_small(message.size_bytes):
                            await self._put(message)
                        else:  # put together when there is room for it, and not before
                            async with self._room.hold(COPIES * message.size_bytes):
                                await self._put(message)
                        self._session.told(message)
                del message  # it names what others may have no more: that is not held until there is news
        except grpc.aio.UsageError:  # the stream ended while we wrote
            group.cancel_scope.cancel()

    async def _put(self, message: Message) -> None:
        self._stuck_s = asyncio.get_running_loop().time() + UNREAD_S
        await self._context.write(message.body())
        self._stuck_s = math.inf

    async def _listen_for_silence(self, group: TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        patient_until_s = 0.0
        while (due_s := max(min(self._heard_s + self._timeout_s, self._stuck_s), patient_until_s)) > loop.time():
            await anyio.sleep(due_s - loop.time())
            if loop.time() > due_s + _LATE_S:
                # It is us who were held up: what nodes have said meanwhile lies unread.
                patient_until_s = loop.time() + self._timeout_s
        if self._stuck_s <= loop.time():
            self._fault = f"what was written {UNREAD_S:g} s ago is still unread: read what comes"
        else:
            self._fault = f"nothing was heard for {self._timeout_s:g} s: send a heartbeat each interval"
        group.cancel_scope.cancel()

    async def _end_when_replaced(self, group: TaskGroup) -> None:
        await self._session.replaced.wait()
        group.cancel_scope.cancel()


async def _hello(requests: AsyncIterator[v1.SyncRequest]) -> v1.NodeHello:
    async for first in requests:
        if first.HasField("hello"):
            return first.hello
        break
    raise InvalidRequest([FieldFault("hello", "the first message of a session must be hello")])
