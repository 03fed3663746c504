"""An RPC's stream as server-sent events.

Each message is an event whose data is its JSON. One that has a cursor has it as its id, by which a client goes on after
it has lost the connection (`Last-Event-ID`). A stream that ends well ends with the event `end`, one that is ended with
the event `problem`. Where nothing happens there is a comment every 15 seconds, so that both sides see that they live.

Source: WHATWG HTML §9.2.
"""

import asyncio
from typing import Any, Final

import anyio
import grpc
from google.protobuf.message import Message

from meshwarden.controlplane.api.rest import encode
from meshwarden.controlplane.api.rest.http import CLOSED, GONE, Exchange
from meshwarden.controlplane.api.rest.problem import Aborted
from meshwarden.v1.console_service_pb2 import WatchMeshResponse

BEAT_S: Final = 15.0
# By then a call that is refused has been, and is told so by its HTTP status.
BEGIN_S: Final = 0.25
RETRY_MS: Final = 2000
_SHARED: Final = frozenset({WatchMeshResponse.DESCRIPTOR.full_name})
"""What is sent to many, and changed by nobody once it is."""
_HEADERS: Final = (("content-type", "text/event-stream"), CLOSED)


class EventStream:
    """Writes a stream to an exchange."""

    def __init__(self, exchange: Exchange, shared: encode.Shared) -> None:
        """Writes to `exchange`; `shared` has the JSON of what goes to others, too."""
        self._exchange, self._shared = exchange, shared
        self._is_quiet = True

    async def write(self, message: Message) -> None:
        """Sends a message as an event.

        Raises:
            Aborted: there is nobody to take it.
        """
        cursor: Any = getattr(message, "cursor", None)
        lines = []
        if cursor is not None and cursor.incarnation:
            lines.append(f"id: {cursor.incarnation}:{cursor.revision}\n".encode())
        try:
            await self._send(b"".join([*lines, b"data: ", self._to_json(message), b"\n\n"]))
        except GONE:
            raise Aborted(grpc.StatusCode.UNAVAILABLE, "the caller has gone, or reads too slowly") from None

    def _to_json(self, message: Message) -> bytes:
        is_shared = message.DESCRIPTOR.full_name in _SHARED
        return self._shared.to_json(message) if is_shared else encode.to_json(message)

    async def end(self, problem: bytes | None = None) -> None:
        """Ends the stream, well or by a problem."""
        kind = b"end" if problem is None else b"problem"
        await self._send(b"event: " + kind + b"\ndata: " + (problem or b"{}") + b"\n\n")
        await self._exchange.end()

    async def beat(self) -> None:
        """Begins the stream if nothing else does, and shows that it lives, until cancelled."""
        await asyncio.sleep(BEGIN_S)
        await self._begin()
        while True:
            self._is_quiet = True
            await asyncio.sleep(BEAT_S)
            if self._is_quiet:
                await self._send(b":\n\n")

    async def _begin(self) -> None:
        if not self._exchange.has_begun:
            await self._exchange.begin(_HEADERS)
            await self._exchange.send(f"retry: {RETRY_MS}\n\n".encode())

    async def _send(self, piece: bytes) -> None:
        await self._begin()
        self._is_quiet = False
        await self._exchange.send(piece)


async def until_left(exchange: Exchange, scope: anyio.CancelScope) -> None:
    """Ends a scope when the other side of an exchange has gone."""
    await exchange.left()
    scope.cancel()
