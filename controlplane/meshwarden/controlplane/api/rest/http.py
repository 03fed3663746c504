"""HTTP/1.1 on connections that somebody else accepts: requests in, answers and event streams out.

    server = await asyncio.start_unix_server(Http(handle).serve, path)

Everything is bounded: a head to 16 KiB and ten seconds, a body in size by who reads it and in time, an answer by how
long its reader may take. Whatever goes wrong is told as application/problem+json.

Source: RFC 9112 (HTTP/1.1) by h11; WHATWG HTML §9.2 (server-sent events).
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any, Final

import h11
import structlog

from meshwarden.controlplane.api.rest import encode, problem
from meshwarden.controlplane.api.rest.problem import HttpRefused
from meshwarden.v1.problem_pb2 import Problem

IDLE_S: Final = 120.0
HEAD_S: Final = 10.0
BODY_S: Final = 30.0
SEND_S: Final = 30.0
HEAD_BYTES: Final = 16 << 10
_CHUNK_BYTES: Final = 64 << 10
# One who may show nothing in a frame, guess no type and keep nothing: it is for one caller, and for now. An answer that
# says otherwise of itself is a page's file.
SAFE: Final = (
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
)
CLOSED: Final = ("content-security-policy", "default-src 'none'; frame-ancestors 'none'")
"""The policy of whatever is no page."""
GONE: Final = (OSError, TimeoutError, h11.LocalProtocolError)
"""What is raised where the other side has gone, is silent or reads nothing: nothing to report."""
Handle = Callable[["Exchange"], Awaitable[None]]

log = structlog.get_logger()


class Exchange:
    """One request and its answer.

    Attributes:
        verb: the method, "GET".
        target: as it was sent, "/v1/status?tenant=acme".
        headers: by their names in lower case; of several of one name all values, with commas between them.
        peer: the name of the connection's other end, by which a front knows it.
        has_begun: whether anything was answered.
        also: headers of whatever is answered.
    """

    def __init__(
        self,
        connection: h11.Connection,
        request: h11.Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._connection, self._reader, self._writer = connection, reader, writer
        self.verb = request.method.decode("ascii")
        self.target = request.target.decode("ascii")
        self.headers: dict[str, str] = {}
        self._head_bytes = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        for name, value in request.headers:
            key, text = name.decode("ascii"), value.decode("latin-1")
            self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text
        self.peer = f"unix:{writer.get_extra_info('peername')}"
        self.has_begun = False
        self.also: tuple[tuple[str, str], ...] = ()
        self._has_body = "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"
        if not self._has_body:
            connection.next_event()  # its end, which h11 knows already

    def check(self) -> None:
        """Refuses a head that came whole, and so past what bounds one that comes piece by piece.

        Raises:
            HttpRefused: it is too large.
        """
        if self._head_bytes > HEAD_BYTES:
            text = f"the head has more than {HEAD_BYTES} bytes"
            raise HttpRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)

    async def body(self, most_bytes: int) -> bytes:
        """Reads the body.

        Raises:
            HttpRefused: it is too large.
            h11.RemoteProtocolError: it isn't whole.
            TimeoutError: it takes too long.
        """
        if not self._has_body:
            return b""
        said = self.headers.get("content-length", "0")
        if said.isdecimal() and int(said[:20]) > most_bytes:
            raise _too_large(most_bytes)
        found = bytearray()
        if self._connection.they_are_waiting_for_100_continue:
            self._send(h11.InformationalResponse(status_code=100, headers=[]))
        async with asyncio.timeout(BODY_S):
            while isinstance(event := await _event(self._connection, self._reader), h11.Data):
                found += event.data
                if len(found) > most_bytes:
                    raise _too_large(most_bytes)
        return bytes(found)

    async def answer(self, status: HTTPStatus, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Answers, at once and whole."""
        said = [*headers, ("content-length", str(len(body)))] if status is not HTTPStatus.NOT_MODIFIED else [*headers]
        self._head(status, said)
        if body and self.verb != "HEAD" and status is not HTTPStatus.NOT_MODIFIED:
            self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        await self._drain()

    async def refuse(self, told: Problem, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Answers with a problem."""
        body = encode.dump(problem.to_json(told))
        more = [("content-type", "application/problem+json"), CLOSED, *headers]
        await self.answer(HTTPStatus(told.status), body, more)

    async def begin(self, headers: Iterable[tuple[str, str]]) -> None:
        """Begins an answer that is sent piece by piece."""
        self._head(HTTPStatus.OK, headers)
        await self._drain()

    async def send(self, piece: bytes) -> None:
        """Sends a piece of it.

        Raises:
            OSError: the other side has gone.
            TimeoutError: it reads too slowly.
        """
        self._send(h11.Data(data=piece))
        await self._drain()

    async def end(self) -> None:
        """Ends it."""
        self._send(h11.EndOfMessage())
        await self._drain()

    async def left(self) -> None:
        """Returns when the other side has gone, or says more before it was answered: that is for no stream."""
        with contextlib.suppress(OSError):
            await self._reader.read(1)

    def _head(self, status: HTTPStatus, headers: Iterable[tuple[str, str]]) -> None:
        self.has_begun = True
        own = [*headers, *self.also]
        names = {name for name, _ in own}
        said = [*(one for one in SAFE if one[0] not in names), *own]
        if self._connection.their_state is not h11.DONE:
            said.append(("connection", "close"))  # what is left of the request would be read as the next one
        self._send(h11.Response(status_code=status.value, reason=status.phrase, headers=said))

    def _send(self, event: Any) -> None:
        self._writer.write(self._connection.send(event) or b"")

    async def _drain(self) -> None:
        async with asyncio.timeout(SEND_S):
            await self._writer.drain()


class Http:
    """Serves connections: `serve` is a callback of asyncio's servers."""

    def __init__(self, handle: Handle) -> None:
        """Has each request handled; `handle` answers it, or raises `HttpRefused`."""
        self._handle = handle
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection."""
        self._open.add(writer)
        try:
            with contextlib.suppress(*GONE):
                await self._serve(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    def close(self) -> None:
        """Ends all connections."""
        for writer in list(self._open):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        while True:
            try:
                event = await _head(connection, reader)
            except h11.RemoteProtocolError as error:
                await _refuse_bytes(connection, writer, error)
                return
            if not isinstance(event, h11.Request):
                return
            await self._exchange(Exchange(connection, event, reader, writer))
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _exchange(self, exchange: Exchange) -> None:
        try:
            exchange.check()
            await self._handle(exchange)
        except HttpRefused as refused:
            if not exchange.has_begun:
                await exchange.refuse(problem.of_request(refused), refused.headers)
        except h11.RemoteProtocolError as error:
            if not exchange.has_begun:
                await exchange.refuse(problem.of_request(HttpRefused(HTTPStatus.BAD_REQUEST, str(error))))
        except GONE:
            raise
        except Exception:
            number = secrets.token_hex(6)
            log.exception("http.failed", verb=exchange.verb, target=exchange.target[:200], id=number)
            if not exchange.has_begun:
                text = f"internal error {number}: the control plane's log has it under this id"
                told = Problem(status=500, code="INTERNAL", title="Internal error", detail=text)
                await exchange.refuse(told)


def _too_large(most_bytes: int) -> HttpRefused:
    return HttpRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {most_bytes} bytes")


async def _head(connection: h11.Connection, reader: asyncio.StreamReader) -> Any:
    """The next request's head; what else it may be is no request."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(IDLE_S) as deadline:
        has_begun = bool(connection.trailing_data[0])
        while (event := connection.next_event()) is h11.NEED_DATA:
            data = await reader.read(_CHUNK_BYTES)
            connection.receive_data(data)
            if data and not has_begun:
                has_begun = True
                deadline.reschedule(loop.time() + HEAD_S)
    return event


async def _event(connection: h11.Connection, reader: asyncio.StreamReader) -> Any:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(_CHUNK_BYTES))
    return event


async def _refuse_bytes(
    connection: h11.Connection, writer: asyncio.StreamWriter, error: h11.RemoteProtocolError
) -> None:
    """Answers bytes that are no request."""
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    refused = HttpRefused(HTTPStatus(error.error_status_hint), str(error))
    body = encode.dump(problem.to_json(problem.of_request(refused)))
    headers = [*SAFE, CLOSED, ("content-type", "application/problem+json"), ("connection", "close")]
    headers.append(("content-length", str(len(body))))
    response = h11.Response(status_code=refused.status.value, reason=refused.status.phrase, headers=headers)
    for event in (response, h11.Data(data=body), h11.EndOfMessage()):
        writer.write(connection.send(event) or b"")
    async with asyncio.timeout(SEND_S):
        await writer.drain()
