"""Questions to an Envoy's admin interface, over its Unix socket.

The socket lies in a directory of the workload's user, so who answers may be anybody: all that is read is bounded.

Source: RFC 9112 §7.1 (chunked transfer coding).
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

_STATUS: Final = re.compile(rb"\d{3}")
_CHUNK: Final = re.compile(rb"[0-9a-fA-F]{1,7}")
_MAX_STATISTICS_BYTES: Final = 8 * 1024 * 1024
_MAX_DUMP_BYTES: Final = 16 * 1024 * 1024
_MAX_HEADERS: Final = 64
_DUMP_S: Final = 8.0


async def is_ready(socket_path: Path) -> bool:
    """Whether Envoy is live: its clusters and listeners have what they need. False while nobody answers."""
    try:
        async with _asked(socket_path, "/ready") as (status, _):
            return status == 200
    except OSError:
        return False


async def drain(socket_path: Path) -> None:
    """Tells callers to go elsewhere, and closes the listeners when they had time to.

    Raises:
        OSError: if Envoy does not answer.
    """
    async with _asked(socket_path, "/drain_listeners?graceful", "POST"):
        return


async def config_dump(socket_path: Path) -> bytes:
    """Returns all configuration that Envoy has, as JSON.

    Raises:
        OSError: if Envoy does not answer, or says too much.
    """
    async with _asked(socket_path, "/config_dump?include_eds", timeout_s=_DUMP_S) as (status, reader):
        return await _content(socket_path, status, reader, _MAX_DUMP_BYTES)


async def statistics(socket_path: Path) -> bytes:
    """Returns Envoy's statistics in Prometheus' text format.

    Raises:
        OSError: if Envoy does not answer, or says too much.
    """
    async with _asked(socket_path, "/stats/prometheus?usedonly") as (status, reader):
        return await _content(socket_path, status, reader, _MAX_STATISTICS_BYTES)


async def _content(socket_path: Path, status: int, reader: asyncio.StreamReader, most_bytes: int) -> bytes:
    if status != 200:
        raise OSError(f"{socket_path} answered {status}")
    try:
        return await _body(reader, most_bytes)
    except (ValueError, asyncio.IncompleteReadError) as error:
        raise OSError(f"{socket_path} answered nothing of use: {error}") from None


@contextlib.asynccontextmanager
async def _asked(
    socket_path: Path, target: str, method: str = "GET", timeout_s: float = 2.0
) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
    """One request; yields the HTTP status, and where the headers follow. All of it within `timeout_s`.

    Raises:
        OSError: if nobody listens there or the answer is no HTTP; `TimeoutError`, one of these, if it takes too long.
    """
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_unix_connection(socket_path)
        try:
            writer.write(
                f"{method} {target} HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
            )
            await writer.drain()
            try:
                words = (await reader.readline()).split()
            except ValueError:  # a line without an end
                words = []
            if len(words) < 2 or not words[0].startswith(b"HTTP/") or not _STATUS.fullmatch(words[1]):
                raise OSError(f"{socket_path} answered no HTTP")
            yield int(words[1]), reader
        finally:
            writer.close()


async def _body(reader: asyncio.StreamReader, most_bytes: int) -> bytes:
    """Reads headers and body.

    Raises:
        ValueError: they are malformed, or more than we take.
        asyncio.IncompleteReadError: they end too early.
    """
    headers: dict[bytes, bytes] = {}
    while (line := (await reader.readline()).strip()) and len(headers) < _MAX_HEADERS:
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    if headers.get(b"transfer-encoding", b"").lower() != b"chunked":
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or int(length) > most_bytes:
            raise ValueError(f"a body of {length[:20]!r} bytes")
        return await reader.readexactly(int(length))
    chunks: list[bytes] = []
    size = 0
    while True:
        head = (await reader.readline()).split(b";")[0].strip()
        if not _CHUNK.fullmatch(head):
            raise ValueError(f"a chunk of {head[:20]!r} bytes")
        length_bytes = int(head, 16)
        size += length_bytes
        if size > most_bytes:
            raise ValueError(f"more than {most_bytes} bytes")
        if not length_bytes:
            return b"".join(chunks)
        chunks.append(await reader.readexactly(length_bytes))
        await reader.readexactly(2)
