"""The ADS server: both variants of the protocol over grpc.aio.

    add_ads(server, source)

For each stream the source opens a `Client` that knows the snapshot of the moment. One writer per stream takes the
newest snapshot whenever the stream has room for a response, so a slow client holds up nobody and has at most one push
of a type pending; the snapshots between are skipped.

Errors: a `SnapshotSource` raises `StreamRefused` to end a stream with a status.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import anyio
import grpc
from google.protobuf.message import Message

from meshwarden.xds import api
from meshwarden.xds.delta import DeltaStream
from meshwarden.xds.refusal import Refusal
from meshwarden.xds.snapshot import Snapshot
from meshwarden.xds.sotw import SotwStream
from meshwarden.xds.stream import Bounds, Misuse, Push

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_LISTENER_GAP_S = 0.1


class StreamRefused(Exception):
    """A stream is not to be served.

    Attributes:
        status: the gRPC status to end it with.
        message: for the client.
    """

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Client(Protocol):
    """One stream's view of what it is to have."""

    def snapshot(self) -> Snapshot | None:
        """The snapshot of the moment; None while nothing is loaded, and then nothing is answered."""

    async def changed(self, after: Snapshot | None) -> Snapshot:
        """Waits until the snapshot is another one than `after`, and returns it."""

    def acked(self, type_url: str, version: str) -> None:
        """The client took a push of that version, all of it."""

    def refuses(self, refusals: Sequence[Refusal]) -> None:
        """What the client refuses at present, always all of it; of these resources it keeps what it had."""

    def settled(self, snapshot: Snapshot) -> None:
        """The client has answered to all that it asks for of `snapshot`, or there was nothing new in it for it."""

    async def admit(self) -> None:
        """Returns when the next request of the client may be read: one that costs too much is read slowly."""

    def charge(self) -> AbstractContextManager[object]:
        """What is done inside is done for this client."""

    def close(self) -> None:
        """The stream has ended."""


class SnapshotSource(Protocol):
    """Where the streams' snapshots come from."""

    async def open(self, context: Any, node: Message) -> Client:
        """The client of a new stream; `node` is what it says of itself (envoy.config.core.v3.Node): believe none of it.

        Raises:
            StreamRefused: if the caller is not to be served.
        """


class _Ads:
    def __init__(self, source: SnapshotSource, bounds: Bounds, listener_gap_s: float) -> None:
        self._source = source
        self._bounds = bounds
        self._listener_gap_s = listener_gap_s

    async def sotw(self, _: object, context: Any) -> None:
        """StreamAggregatedResources."""
        await self._serve(SotwStream(self._bounds), context)

    async def delta(self, _: object, context: Any) -> None:
        """DeltaAggregatedResources."""
        await self._serve(DeltaStream(self._bounds), context)

    async def _serve(self, machine: SotwStream | DeltaStream, context: Any) -> None:
        first = await context.read()
        if first is grpc.aio.EOF:
            return
        try:
            client = await self._source.open(context, first.node)
        except StreamRefused as refusal:
            await context.abort(refusal.status, refusal.message)
        try:
            await _Stream(machine, client, context, self._listener_gap_s).run(first)
        except Misuse as misuse:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(misuse))
        finally:
            client.close()


class _Stream:
    """One stream: a reader, a watcher of snapshots, and the writer that both wake."""

    def __init__(self, machine: SotwStream | DeltaStream, client: Client, context: Any, listener_gap_s: float) -> None:
        self._machine = machine
        self._client = client
        self._context = context
        self._gap_s = listener_gap_s
        self._listener_due = 0.0  # on the loop's clock
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._misuse: Misuse | None = None
        self._refusals: list[Refusal] = []

    async def run(self, first: Any) -> None:
        """Serves until the client ends the stream.

        Raises:
            Misuse: if it asks for more than it may.
        """
        with self._client.charge():
            self._take(first)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._until_end, self._watch, tasks)
            tasks.start_soon(self._until_end, self._write, tasks)
            await self._read()
            tasks.cancel_scope.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._misuse is not None:
            raise self._misuse

    async def _until_end(self, work: Callable[[], Coroutine[None, None, None]], tasks: anyio.abc.TaskGroup) -> None:
        try:
            await work()
        except grpc.aio.UsageError:  # the stream ended while we wrote
            tasks.cancel_scope.cancel()

    async def _read(self) -> None:
        while (message := await self._context.read()) is not grpc.aio.EOF:
            await self._client.admit()
            try:
                with self._client.charge():
                    self._take(message)
            except Misuse as misuse:  # raised after the group, which would wrap it
                self._misuse = misuse
                return

    def _take(self, message: Any) -> None:
        verdict = self._machine.request(message)
        self._wake.set()
        if verdict is not None and verdict.message is None:
            self._client.acked(verdict.type_url, verdict.version)
        self._tell_refusals()

    def _tell_refusals(self) -> None:
        refusals = self._machine.refusals()
        if refusals != self._refusals:
            self._refusals = refusals
            self._client.refuses(refusals)

    async def _watch(self) -> None:
        snapshot = self._client.snapshot()
        while True:
            snapshot = await self._client.changed(snapshot)
            self._wake.set()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (snapshot := self._client.snapshot()) is not None:
                with self._client.charge():
                    push = self._next(snapshot)
                if push is None:
                    break
                await self._context.write(push.payload)

    def _look_again(self) -> None:
        self._timer = None
        self._wake.set()

    def _next(self, snapshot: Snapshot) -> Push | None:
        """What to write now: only one response, for by the time it is written there may be a newer snapshot."""
        loop = asyncio.get_running_loop()
        wanted = self._machine.wanted(snapshot)
        held_back = api.LISTENER in wanted and loop.time() < self._listener_due
        if held_back:
            # Two Listeners in one breath break the handshakes between: wait, and let the others go first.
            if self._timer is None:
                self._timer = loop.call_at(self._listener_due, self._look_again)
            wanted.remove(api.LISTENER)
        push = self._machine.push(wanted[0], snapshot) if wanted else None
        self._tell_refusals()
        if push is None and not held_back and not self._machine.unanswered:
            self._client.settled(snapshot)
        if push is not None and push.type_url == api.LISTENER:
            self._listener_due = loop.time() + self._gap_s
        return push


def _identity(payload: bytes) -> bytes:
    return payload


def add_ads(
    server: grpc.aio.Server,
    source: SnapshotSource,
    bounds: Bounds | None = None,
    listener_gap_s: float = _LISTENER_GAP_S,
) -> None:
    """Adds the AggregatedDiscoveryService to `server`.

    Two Listener pushes to one stream are at least `listener_gap_s` apart: gRPC servers drop handshakes under way when
    their Listener changes.
    """
    ads = _Ads(source, bounds or Bounds(), listener_gap_s)
    requests = "envoy.service.discovery.v3."
    made: Any = grpc
    handlers = {
        "StreamAggregatedResources": made.stream_stream_rpc_method_handler(
            ads.sotw, api.message_class(requests + "DiscoveryRequest").FromString, _identity
        ),
        "DeltaAggregatedResources": made.stream_stream_rpc_method_handler(
            ads.delta, api.message_class(requests + "DeltaDiscoveryRequest").FromString, _identity
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
