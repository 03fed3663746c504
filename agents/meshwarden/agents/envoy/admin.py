"""Questions to an Envoy's admin interface, over its Unix socket."""

import asyncio
import re
from pathlib import Path
from typing import Final

_STATUS: Final = re.compile(rb"\d{3}")


async def is_ready(socket_path: Path) -> bool:
    """Whether Envoy is live: its clusters and listeners have what they need. False while nobody answers."""
    try:
        return await _ask(socket_path, "/ready") == 200
    except OSError:
        return False


async def drain(socket_path: Path) -> None:
    """Tells callers to go elsewhere, and closes the listeners when they had time to.

    Raises:
        OSError: if Envoy does not answer.
    """
    await _ask(socket_path, "/drain_listeners?graceful", "POST")


async def _ask(socket_path: Path, target: str, method: str = "GET", timeout_s: float = 2.0) -> int:
    """One request; returns the HTTP status.

    The socket lies in a directory of the workload's user, so who answers may be anybody: no more than one line is read.

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
            words = (await reader.readline()).split()
        except ValueError:  # a line without an end
            words = []
        finally:
            writer.close()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not _STATUS.fullmatch(words[1]):
        raise OSError(f"{socket_path} answered no HTTP")
    return int(words[1])
