"""Questions to an Envoy's admin interface, over its Unix socket."""

import asyncio
from pathlib import Path
from typing import Final

_MAX_ANSWER: Final = 4 * 1024 * 1024


async def ask(socket_path: Path, target: str, method: str = "GET", timeout_s: float = 2.0) -> tuple[int, bytes]:
    """One request; returns the HTTP status and the body.

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
            answer = bytearray()
            while chunk := await reader.read(65536):
                answer += chunk
                if len(answer) > _MAX_ANSWER:
                    raise OSError(f"{socket_path} answered more than {_MAX_ANSWER} bytes")
        finally:
            writer.close()
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise OSError(f"{socket_path} answered no HTTP")
    return int(words[1]), _whole(body) if b"transfer-encoding: chunked" in head.lower() else body


def _whole(chunked: bytes) -> bytes:
    """A chunked body in one piece. Source: RFC 9112 §7.1."""
    whole = bytearray()
    while chunked:
        size, _, chunked = chunked.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        whole += chunked[:length]
        chunked = chunked[length + 2 :]
    return bytes(whole)


async def is_ready(socket_path: Path) -> bool:
    """Whether Envoy is live: its clusters and listeners have what they need. False while nobody answers."""
    try:
        status, _ = await ask(socket_path, "/ready")
    except OSError:
        return False
    return status == 200


async def drain(socket_path: Path) -> None:
    """Tells callers to go elsewhere, and closes the listeners when they had time to.

    Raises:
        OSError: if Envoy does not answer.
    """
    await ask(socket_path, "/drain_listeners?graceful", "POST")
