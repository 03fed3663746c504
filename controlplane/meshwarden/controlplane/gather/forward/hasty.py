"""HTTP whose requests are over by a deadline, whatever the other side does.

The timeout of `requests` is for each look at the connection: who answers byte by byte is waited for as long as they
like. Here the connection is cut off.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_of_thread = threading.local()


class Watch:
    """The connections that one request has used so far."""

    def __init__(self) -> None:
        self.is_cut = False
        self._lock = threading.Lock()
        self._used: list[socket.socket] = []

    def use(self, connection: socket.socket) -> None:
        """Has a connection cut off with the others.

        Raises:
            TimeoutError: they are.
        """
        with self._lock:
            if self.is_cut:
                raise TimeoutError("took too long")
            self._used.append(connection)

    def cut(self) -> None:
        """Ends them, as their other side could."""
        with self._lock:
            self.is_cut = True
            for connection in self._used:
                with contextlib.suppress(OSError):  # it has ended by itself
                    # That of TLS would take its state from under the thread that reads.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def end(self) -> None:
        """The request is over: another may have its connections."""
        with self._lock:
            self._used.clear()


class _Watched:
    sock: socket.socket | None

    def request(self, *args: Any, **kwargs: Any) -> None:
        """See http.client."""
        made: Any = super()
        if self.sock is None:
            made.connect()
        watch: Watch | None = getattr(_of_thread, "watch", None)
        if watch is not None and self.sock is not None:
            watch.use(self.sock)
        made.request(*args, **kwargs)


class _Plain(_Watched, HTTPConnection):
    pass


class _Secure(_Watched, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


def session() -> requests.Session:
    """Makes a session whose requests `within` ends."""
    made = requests.Session()
    adapter = HTTPAdapter()
    adapter.poolmanager.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
    for scheme in ("http://", "https://"):
        made.mount(scheme, adapter)
    return made


@contextlib.contextmanager
def within(deadline_s: float) -> Iterator[Watch]:
    """Cuts off the requests that this thread makes inside by such a session, after so many seconds."""
    watch = Watch()
    timer = threading.Timer(deadline_s, watch.cut)
    timer.daemon = True
    timer.start()
    _of_thread.watch = watch
    try:
        yield watch
    finally:
        _of_thread.watch = None
        timer.cancel()
        watch.end()
