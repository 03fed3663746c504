"""Accepting sockets on the event loop, so that running out of file descriptors is survived."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

_log = logging.getLogger(__name__)
# Accepted before others get their turn, so that a crowd waits in the kernel's queue and not in handshakes half done.
_AT_ONCE = 8
_PAUSE_S = 0.2
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Hands every socket that `listener` accepts to `accepted`, non-blocking; owns the listener.

    `accepted` must not raise. When the process has no descriptor left, accepting pauses: the callers wait in the
    kernel's queue, and whoever is connected is served on.
    """

    def __init__(self, listener: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        self._listener = listener
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Stops accepting and closes the listener."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    _log.error("accepting pauses: %s", error.strerror)
                    self._loop.remove_reader(self._listener)
                    self._pause = self._loop.call_later(_PAUSE_S, self._resume)
                    return
                continue  # the caller left before it was accepted; the listener is well
            sock.setblocking(False)
            self._accepted(sock)
