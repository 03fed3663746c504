"""Pages for scrapers: a small HTTP/1.1 server that answers GET and nothing else.

    async with serve_pages("127.0.0.1", 9100, find) as port:
        ...

`find` takes a path and returns the page's function, or None. A page is given the request's `Accept` header and returns
its content type and body. Requests are bounded in size, time and number.

On loopback, in the clear, a request must name the server by an address of that: a web page that has its own name lead
here (DNS rebinding) is told nothing. `serve_public_pages` is for everybody, over TLS.

Source: RFC 9112 (HTTP/1.1) §3, §9.3; RFC 9110 §8.4.1.3 (gzip).
"""

import asyncio
import contextlib
import gzip
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

Page = Callable[[str], Awaitable[tuple[str, bytes]]]
"""Takes an `Accept` header; returns the content type and the body. OSError: what it is about can't be reached."""
Find = Callable[[str], Page | None]
_MAX_HEAD: Final = 16 * 1024
_IDLE_S: Final = 120.0
_PUBLIC_S: Final = 10.0
_ACCEPT_RETRY_S: Final = 0.1
_MAX_CONNECTIONS: Final = 64
_COMPRESS_FROM: Final = 1024


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, text: str = "") -> None:
        super().__init__(text or status.phrase)
        self.status = status


@contextlib.asynccontextmanager
async def serve_pages(host: str, port: int, find: Find) -> AsyncIterator[int]:
    """Serves pages on loopback while the context lasts; yields the port.

    Raises:
        OSError: the address can't be listened on.
    """
    open_now: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(open_now) >= _MAX_CONNECTIONS:
            writer.close()
            return
        open_now.add(writer)
        try:
            # A scraper that has gone is nothing to report.
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                while await _answer(reader, writer, find):
                    pass
        finally:
            open_now.discard(writer)
            writer.close()

    server = await asyncio.start_server(connected, host, port, limit=_MAX_HEAD)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in list(open_now):
            writer.close()


@contextlib.asynccontextmanager
async def serve_public_pages(host: str, port: int, find: Find, tls: ssl.SSLContext) -> AsyncIterator[int]:
    """Serves pages to everybody, over TLS, while the context lasts; yields the port.

    A connection is for one request and lasts ten seconds. When all places are taken, the oldest makes room, be it that
    it hasn't even shaken hands.

    Raises:
        OSError: the address can't be listened on.
    """
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        listener.setblocking(False)
        # The oldest first.
        open_now: dict[asyncio.Future[None], None] = {}

        async def accept() -> None:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                except OSError:  # out of descriptors, or the caller has gone
                    await asyncio.sleep(_ACCEPT_RETRY_S)
                    continue
                while len(open_now) >= _MAX_CONNECTIONS:
                    oldest = next(iter(open_now))
                    del open_now[oldest]
                    oldest.cancel()
                task = asyncio.ensure_future(_answer_one(connection, find, tls))
                open_now[task] = None
                task.add_done_callback(lambda done: open_now.pop(done, None))

        accepting = asyncio.ensure_future(accept())
        try:
            yield listener.getsockname()[1]
        finally:
            for task in (accepting, *open_now):
                task.cancel()


async def _answer_one(connection: socket.socket, find: Find, tls: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(_MAX_HEAD)
    writer: asyncio.StreamWriter | None = None
    # Who shakes no hands, leaves or takes too long is nothing to report: everybody may call.
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
        try:
            async with asyncio.timeout(_PUBLIC_S):
                protocol = asyncio.StreamReaderProtocol(reader)
                transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=tls)
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                await _answer(reader, writer, find, public=True)
                writer.close()
                await writer.wait_closed()
        finally:
            if writer is not None:
                writer.transport.abort()
            connection.close()


def wants_openmetrics(accept: str) -> bool:
    """Whether an `Accept` header names OpenMetrics, which carries exemplars."""
    return any(part.partition(";")[0].strip() == "application/openmetrics-text" for part in accept.split(","))


def url_of(host: str, port: int, path: str) -> str:
    """Where a page is."""
    return f"http://[{host}]:{port}{path}" if ":" in host else f"http://{host}:{port}{path}"


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, find: Find, public: bool = False) -> bool:
    """Answers one request; whether the connection goes on."""
    try:
        async with asyncio.timeout(_IDLE_S):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        await _write(writer, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "text/plain", b"too long\n", {})
        return False
    headers: dict[str, str] = {}
    try:
        target, headers = _parse(head)
        if not public and not _is_loopback(headers.get("host", "")):
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, "ask for an address of loopback: this is for local scrapers")
        if public:
            headers["connection"] = "close"
        page = find(target)
        if page is None:
            raise _Refused(HTTPStatus.NOT_FOUND)
        content_type, body = await page(headers.get("accept", ""))
    except _Refused as refused:
        await _write(writer, refused.status, "text/plain", f"{refused}\n".encode(), headers)
        return refused.status is HTTPStatus.NOT_FOUND
    except OSError as error:
        await _write(writer, HTTPStatus.BAD_GATEWAY, "text/plain", f"{error}\n".encode(), headers)
        return True
    await _write(writer, HTTPStatus.OK, content_type, body, headers)
    return headers.get("connection", "").lower() != "close"


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    """Reads a request: its path, decoded and without the query, and its headers.

    Raises:
        _Refused: it is malformed, no GET, or has a body.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0") or not words[1].startswith("/"):
        raise _Refused(HTTPStatus.BAD_REQUEST)
    headers: dict[str, str] = {}
    for line in filter(None, lines):
        name, colon, value = line.partition(":")
        if not colon or name != name.strip():
            raise _Refused(HTTPStatus.BAD_REQUEST)
        headers[name.lower()] = value.strip()
    if words[0] != "GET":
        raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED)
    # A body would be read as the next request.
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise _Refused(HTTPStatus.BAD_REQUEST)
    if words[2] == "HTTP/1.0":
        headers.setdefault("connection", "close")
    return unquote(words[1].partition("?")[0]), headers


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


async def _write(
    writer: asyncio.StreamWriter, status: HTTPStatus, content_type: str, body: bytes, headers: dict[str, str]
) -> None:
    said = [f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Type: {content_type}", "Vary: Accept-Encoding"]
    if len(body) >= _COMPRESS_FROM and "gzip" in headers.get("accept-encoding", ""):
        body = await asyncio.to_thread(gzip.compress, body, 1)
        said.append("Content-Encoding: gzip")
    said.append(f"Content-Length: {len(body)}")
    if headers.get("connection") == "close":
        said.append("Connection: close")
    writer.write("\r\n".join([*said, "", ""]).encode("latin-1") + body)
    async with asyncio.timeout(_IDLE_S):
        await writer.drain()
