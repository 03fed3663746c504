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

BEAT_S: Final = 15.0
# By then a call that is refused has been, and is told so by its HTTP status.
BEGIN_S: Final = 0.25
RETRY_MS: Final = 2000
_HEADERS: Final = (("content-type", "text/event-stream"), CLOSED)


class EventStream:
    """Writes a stream to an exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
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
            await self._send(b"".join([*lines, b"data: ", encode.to_json(message), b"\n\n"]))
        except GONE:
            raise Aborted(grpc.StatusCode.UNAVAILABLE, "the caller has gone, or reads too slowly") from None

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
