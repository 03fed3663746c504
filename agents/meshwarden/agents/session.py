"""One session with the control plane: a Sync stream, read until it ends."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import anyio
import grpc

from meshwarden.agents.channel import Generation
from meshwarden.sdk.mtls.refusal import refusal_of
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import node_service_pb2_grpc as node_grpc

_HEARTBEAT_S: Final = 10.0
Held = Callable[[], Awaitable[Mapping[str, bytes]]]
"""What the node holds of its configuration: `{scope: digest}`."""


@dataclass(frozen=True)
class Downstream:
    """Who takes what comes down.

    Attributes:
        entries: the entries that name this node.
        bundle: what to trust.
        trust: what else to trust.
        config: configuration for data planes.
        renew: renew all certificates now.
        welcomed: a session was opened with the node's certificate of this serial.
        denied: whom to refuse.
        secrets: the secrets of an entry.
        asked: what a data plane has.
    """

    entries: Callable[[node_pb.EntrySet], None]
    bundle: Callable[[node_pb.Bundle], None]
    trust: Callable[[node_pb.TrustBundles], None]
    config: Callable[[node_pb.ConfigUpdate], None]
    renew: Callable[[node_pb.RenewNow], None]
    welcomed: Callable[[str], None]
    denied: Callable[[node_pb.DenyList], None]
    secrets: Callable[[node_pb.EntrySecrets], None]
    asked: Callable[[node_pb.DataPlaneQuestion], None]


class Session:
    """One Sync stream: reads until it ends, writes the newest of each kind of message."""

    def __init__(
        self,
        generation: Generation,
        downstream: Downstream,
        hello: node_pb.SyncRequest,
        clock: Callable[[], datetime],
        held: Held,
    ) -> None:
        self._generation, self._downstream, self._hello, self._clock = generation, downstream, hello, clock
        self._held: Held | None = held
        self._pending: dict[str, node_pb.SyncRequest] = {}
        self._work = asyncio.Event()
        self._progress = asyncio.Event()
        self._heartbeat_s = _HEARTBEAT_S
        self._scope = anyio.CancelScope()
        self._leaving = False
        self.over = asyncio.Event()
        self.welcomed = False
        self.spread_s = 0.0
        """Over how many seconds agents shall come back from a loss, as the control plane has said."""
        self.error = ""
        self.refusal = ""

    def say(self, name: str, message: node_pb.SyncRequest) -> None:
        """Sends a message; one of the same name that still waits is replaced, since each is a whole set."""
        self._pending[name] = message
        self._work.set()

    def leave(self) -> None:
        """Lets the session end by itself: we say nothing more and take nothing more."""
        self._leaving = True
        self._work.set()

    def abort(self) -> None:
        """Ends the session at once."""
        self._scope.cancel()

    async def welcomed_or_over(self) -> None:
        """Returns when the control plane has welcomed us, or when the session has ended."""
        await self._progress.wait()

    async def run(self) -> None:
        """Runs until either side ends it; what ends it stands in `error`."""
        try:
            with self._scope:
                await self._use()
        except asyncio.CancelledError:
            # A cancelled call of grpc.aio raises one of its own making, which our scope does not know as its own; let
            # out, it would end all that runs beside us.
            if not self._scope.cancel_called:
                raise
        finally:
            self.over.set()
            self._progress.set()

    async def _use(self) -> None:
        try:
            async with self._generation.use() as channel:
                await self._stream(channel)
        except* grpc.aio.AioRpcError as group:
            error = group.exceptions[0]
            self.error = str(error)
            if isinstance(error, grpc.aio.AioRpcError):
                self.error, self.refusal = str(error.details()), refusal_of(error.trailing_metadata())

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        call = node_grpc.NodeServiceStub(channel).Sync()
        try:
            await call.write(self._hello)
            async with anyio.create_task_group() as group:
                group.start_soon(self._write, call)
                async for message in call:
                    # State comes whole on the session that follows; an order comes once.
                    if not self._leaving or message.HasField("renew_now"):
                        self._take(message)
                group.cancel_scope.cancel()
            # The iteration ends without a word on errors after a half-close; the status says which it was.
            if await call.code() is not grpc.StatusCode.OK:
                self.error, self.refusal = str(await call.details()), refusal_of(await call.trailing_metadata())
        finally:
            call.cancel()

    async def _write(self, call: "grpc.aio.StreamStreamCall[node_pb.SyncRequest, node_pb.SyncResponse]") -> None:
        loop = asyncio.get_running_loop()
        beat_s = loop.time()
        # A write to a call that has just ended fails in one of these ways; why it ended is the reader's to see.
        with contextlib.suppress(asyncio.InvalidStateError, grpc.RpcError):
            while not self._leaving:
                self._work.clear()
                while self._pending and self.welcomed:
                    message = self._pending.pop(next(iter(self._pending)))
                    await call.write(await self._complete(message))
                # Also where there is always something else to say: it tells our clock.
                if loop.time() - beat_s >= self._heartbeat_s:
                    beat_s = loop.time()
                    await call.write(node_pb.SyncRequest(heartbeat=self._heartbeat()))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(beat_s + self._heartbeat_s):
                        await self._work.wait()
            await call.done_writing()

    async def _complete(self, message: node_pb.SyncRequest) -> node_pb.SyncRequest:
        """The session's first interest says what is held, too.

        Nothing of that changes by then: an older session is left, and in this one none comes before the interest.
        """
        if self._held is None or not message.HasField("interest"):
            return message
        held, self._held = self._held, None
        complete = node_pb.SyncRequest()
        complete.CopyFrom(message)
        complete.interest.held.update(await held())
        return complete

    def _heartbeat(self) -> node_pb.Heartbeat:
        # To the second: so a thousand agents' heartbeats are alike, and are checked once.
        heartbeat = node_pb.Heartbeat()
        heartbeat.now.FromSeconds(int(self._clock().timestamp()))
        return heartbeat

    def _take(self, message: node_pb.SyncResponse) -> None:
        kind = message.WhichOneof("message")
        if kind == "welcome":
            interval_s = message.welcome.heartbeat_interval.ToTimedelta().total_seconds()
            self._heartbeat_s = interval_s if 0.1 <= interval_s <= 300 else _HEARTBEAT_S
            spread = message.welcome.reconnect_spread
            self.spread_s = spread.seconds + spread.nanos * 1e-9
            self.welcomed = True
            self._progress.set()
            self._work.set()
        elif kind == "entries":
            self._downstream.entries(message.entries)
        elif kind == "bundle":
            self._downstream.bundle(message.bundle)
        elif kind == "trust_bundles":
            self._downstream.trust(message.trust_bundles)
        elif kind == "config":
            self._downstream.config(message.config)
        elif kind == "deny_list":
            self._downstream.denied(message.deny_list)
        elif kind == "renew_now":
            self._downstream.renew(message.renew_now)
        elif kind == "secrets":
            self._downstream.secrets(message.secrets)
        elif kind == "data_plane_question":
            self._downstream.asked(message.data_plane_question)
