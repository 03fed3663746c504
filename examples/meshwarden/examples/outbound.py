"""HTTP through the Envoy beside the program: its Unix socket, and the name of the service as the host."""

import http.client
import os
import socket
from collections.abc import Mapping
from typing import NamedTuple

OUTBOUND_VARIABLE = "MESHWARDEN_OUTBOUND"
MAX_BODY = 1 << 20


class Answer(NamedTuple):
    """What came back, and whether the connection had to be made anew for it."""

    status: int
    body: bytes
    reconnected: bool


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("mesh", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(self.timeout)
            made.connect(self._path)
        except OSError:
            made.close()
            raise
        self.sock = made


class Outbound:
    """One connection, kept open from call to call. For one thread at a time."""

    def __init__(self, path: str | None = None, timeout_s: float = 5.0) -> None:
        """`path` of the Envoy's socket; by default the environment says it.

        Raises:
            KeyError: it doesn't: the entry has no Envoy.
        """
        self._connection = _UnixConnection(path or os.environ[OUTBOUND_VARIABLE], timeout_s)

    def get(self, host: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Asks `http://host/path`.

        Raises:
            OSError: no connection, or one that broke or timed out.
            http.client.HTTPException: the answer is no HTTP.
        """
        kept = self._connection.sock is not None
        try:
            return self._ask(host, path, headers or {}, reconnected=False)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            self.close()
            # A kept connection may close just as it is used; GET may be repeated then (RFC 9110 §9.2.2).
            if not kept:
                raise
            return self._ask(host, path, headers or {}, reconnected=True)

    def close(self) -> None:
        """Closes the connection; the next call makes another."""
        self._connection.close()

    def _ask(self, host: str, path: str, headers: Mapping[str, str], reconnected: bool) -> Answer:
        try:
            self._connection.request("GET", path, headers={"Host": host, **headers})
            response = self._connection.getresponse()
            return Answer(response.status, response.read(MAX_BODY), reconnected)
        except (OSError, http.client.HTTPException):
            self.close()
            raise
