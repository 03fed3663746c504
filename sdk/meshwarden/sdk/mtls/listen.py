"""Sockets that listen, for a front: TCP, and Unix sockets that have their mode from their first moment on."""

import asyncio
import os
import socket
import tempfile
from pathlib import Path

MAX_UNIX_PATH = 107  # sizeof(sun_path) - 1; unix(7)
_BACKLOG = 4096  # who comes with a crowd waits there; the kernel bounds it, too


async def tcp_listener(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that listens there, and its address as text; of port 0 a port is chosen."""
    loop = asyncio.get_running_loop()
    flags = socket.AI_PASSIVE
    family, _, _, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags))[0]
    listener = socket.create_server(address[:2], family=socket.AddressFamily(family), backlog=_BACKLOG)
    name = listener.getsockname()
    return listener, f"[{name[0]}]:{name[1]}" if family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def unix_listener(target: Path, mode: int) -> socket.socket:
    """A socket that listens at an absolute path; one that was left there is replaced.

    Raises:
        ValueError: the path is too long.
        OSError: it can't be made.
    """
    if len(bytes(target)) > MAX_UNIX_PATH:
        raise ValueError(f"{target} is too long a path for a Unix socket")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as scratch:
            # Bound through its directory's descriptor, so that the longer path of the scratch place does not count.
            directory = os.open(scratch, os.O_PATH | os.O_DIRECTORY)
            try:
                listener.bind(f"/proc/self/fd/{directory}/s")
            finally:
                os.close(directory)
            os.chmod(f"{scratch}/s", mode)
            listener.listen(1024)
            os.replace(f"{scratch}/s", target)
    except BaseException:
        listener.close()
        raise
    return listener
