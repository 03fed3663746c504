"""Tells the other processes that share a store that something was committed: one datagram to a Unix socket of each.

A datagram may get lost (a full queue, a process just starting): it is a hint, and watchers poll slowly beside it.
inotify is no substitute: it fires before the commit is visible.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path


class Wake:
    """This process's place in a directory of sockets."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        # Names relative to the descriptor stay below the 108 bytes of a Unix address however deep the directory lies.
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.bind(self._address(self._name))

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls `callback` in the running loop whenever another process has committed."""

        def readable() -> None:
            with contextlib.suppress(BlockingIOError):
                while self._socket.recv(16):
                    pass
            callback()

        asyncio.get_running_loop().add_reader(self._socket.fileno(), readable)

    def notify(self) -> None:
        """Tells every other process, if it can; from any thread. Sockets whose process is gone are removed."""
        try:
            names = os.listdir(self._directory)
        except OSError:
            return  # it takes a descriptor, and there may be none
        for name in names:
            if name == self._name:
                continue
            try:
                self._socket.sendto(b"\n", self._address(name))
            except ConnectionRefusedError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._directory)
            except OSError:
                continue  # it has unread hints already, or has just gone, or is none of ours

    def close(self) -> None:
        """Leaves the directory; in the loop of `listen`."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._directory)
        os.close(self._directory)

    def _address(self, name: str) -> str:
        return f"/proc/self/fd/{self._directory}/{name}"
