"""A front before a grpc.aio server: it ends TLS, or asks the kernel who is calling, and splices to a private socket.

grpcio can neither swap a server's certificate safely nor tell who is at the other end of a Unix socket (ADR 2). So the
gRPC server listens on one Unix socket in a directory that only we may enter, and this front is the way to it:

    front = Front(directory / "inner.sock")
    server.add_insecure_port(front.inner_target)
    port = await front.serve_tls("0.0.0.0", 8443, lambda: context_of_this_generation)

Each onward socket is bound to a random name before it connects, so the gRPC server sees that name as `context.peer()`,
and `find` turns it into the `Connection`. An RPC without one did not come through the front: refuse it.

The bytes of a connection are not looked at. What is bounded: handshakes under way and connections without an identity
(the oldest makes room, so they cannot keep others out), connections as a whole (whoever has the most makes room) and
per user, the time of a handshake and of the first byte.

Source: research on both servers is summed up in docs/adr/0002-tls-front.md.
"""

import asyncio
import itertools
import logging
import os
import secrets
import socket
import ssl
import weakref
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from meshwarden.sdk.mtls.acceptor import Acceptor
from meshwarden.sdk.mtls.connection import Connection, PeerUnknown, identify, presented_chain
from meshwarden.sdk.mtls.crowd import Crowd, Crowded
from meshwarden.sdk.mtls.listen import MAX_UNIX_PATH, tcp_listener, unix_listener
from meshwarden.sdk.mtls.splice import End
from meshwarden.sdk.mtls.tls import accept_tls

__all__ = ["Connection", "Front", "FrontLimits"]

# An address, and why what was shown there is no good.
OnRefused = Callable[[str, str], None]

_log = logging.getLogger(__name__)
_NAME_LENGTH = 24
# What the path of the directory of `inner_path` has at most: a socket of its own for each connection lies there.
MAX_INNER_BYTES = MAX_UNIX_PATH - 1 - _NAME_LENGTH


@dataclass(frozen=True)
class FrontLimits:
    """What one front takes on at most.

    Attributes:
        connections: accepted at one time, of all listeners; when they are, whoever has the most makes room.
        anonymous: of these without an identity, on TLS; the oldest is dropped to make room for one more.
        connections_per_uid: of one user on Unix sockets; root has no such bound.
        handshakes: under way at one time; the oldest is dropped to make room for one more.
        handshake_s: the time a TLS handshake may take.
        first_byte_s: the time from there to the first byte.
        flush_s: the time that what is still to be written gets when the other side has ended.
    """

    connections: int = 4096
    anonymous: int = 256
    connections_per_uid: int = 1024
    handshakes: int = 256
    handshake_s: float = 5.0
    first_byte_s: float = 10.0
    flush_s: float = 5.0


class _Live:
    """A connection and what it holds open."""

    __slots__ = ("connection", "gone", "inner", "name", "outer", "owner", "timer")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        # Among whose connections it counts, once it counts.
        self.owner: str | None = None
        self.gone = False
        self.name = ""
        self.outer: End | None = None
        self.inner: End | None = None
        self.timer: asyncio.TimerHandle | None = None


class Front:
    """Accepts connections, knows who they are, and passes their bytes on to `inner_path`."""

    def __init__(
        self,
        inner_path: str | os.PathLike[str],
        limits: FrontLimits | None = None,
        on_refused: OnRefused | None = None,
    ) -> None:
        """Makes a front that listens nowhere yet.

        Args:
            inner_path: where the gRPC server listens; its directory must be ours alone (0700).
            limits: the defaults if None.
            on_refused: called with an address and the reason when a certificate fails a handshake: no call will tell.

        Raises:
            ValueError: if the path is too long for a Unix socket, or its directory is open to others.
        """
        self._inner = Path(inner_path).absolute()
        self._limits = limits or FrontLimits()
        self._on_refused = on_refused
        self._live: dict[int, _Live] = {}
        self._by_name: dict[str, _Live] = {}
        self._crowd: Crowd[_Live] = Crowd(self._limits.connections, self._limits.anonymous)
        self._ids = itertools.count(1)
        self._acceptors: list[Acceptor] = []
        self._paths: list[Path] = []
        # The front owns these: a finished one leaves, aclose ends and awaits the rest.
        self._tasks: set[asyncio.Task[None]] = set()
        # An end may still be writing what is left when its connection is forgotten.
        self._ends: weakref.WeakSet[End] = weakref.WeakSet()
        self._handshakes: dict[asyncio.Task[None], None] = {}
        if len(bytes(self._inner.parent)) > MAX_INNER_BYTES:
            raise ValueError(f"{self._inner.parent} is too long a path for Unix sockets")
        if self._inner.parent.stat().st_mode & 0o077:
            raise ValueError(f"{self._inner.parent} must be open to its owner alone (mode 0700)")

    @property
    def inner_target(self) -> str:
        """The address to hand to `grpc.aio.Server.add_insecure_port`."""
        return f"unix:{self._inner}"

    async def serve_tls(
        self,
        host: str,
        port: int,
        context: Callable[[], ssl.SSLContext],
        protocols: Collection[str | None] = ("h2",),
    ) -> int:
        """Listens for TLS; returns the port, which is chosen if 0 is given.

        Args:
            host: where.
            port: likewise.
            context: asked at every connection, so a new certificate is in use from the next handshake on.
            protocols: what a connection may have settled on (ALPN); None is none.
        """
        listener, local = await tcp_listener(host, port)
        self._acceptors.append(Acceptor(listener, lambda sock: self._tls_accepted(sock, local, context, protocols)))
        return int(listener.getsockname()[1])

    async def serve_unix(self, path: str | os.PathLike[str], mode: int = 0o666) -> None:
        """Listens on a Unix socket, with `mode` from its first moment on; a socket left there is replaced."""
        target = Path(os.path.abspath(path))  # a matter of text and getcwd, no disk
        listener = unix_listener(target, mode)
        self._paths.append(target)
        self._acceptors.append(Acceptor(listener, lambda sock: self._unix_accepted(sock, str(target))))

    def find(self, peer: str) -> Connection | None:
        """The connection of an RPC, by its `context.peer()`; None if it did not come through this front."""
        scheme, _, path = peer.partition(":")
        live = self._by_name.get(path.rpartition("/")[2]) if scheme == "unix" else None
        return live.connection if live is not None else None

    def own(self, peer: str, owner: str) -> None:
        """Counts a connection among an owner's from now on: who it is was proved otherwise than by a certificate.

        Args:
            peer: the call's `context.peer()`.
            owner: whose, as `Connection.owner` would have it.
        """
        live = self._by_name.get(peer.rpartition("/")[2])
        if live is not None and live.owner is not None:
            self._crowd.remove(live.owner, live)
            self._crowd.add(owner, live)
            live.owner = owner

    def connections(self) -> Collection[Connection]:
        """All connections of the moment."""
        return [live.connection for live in self._live.values()]

    def close(self, connection: Connection) -> None:
        """Ends a connection and every RPC on it at once, e.g. because its peer was banned."""
        live = self._live.get(connection.id)
        if live is not None:
            self._drop(live)

    async def aclose(self) -> None:
        """Stops listening and ends every connection."""
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._paths.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for live in list(self._live.values()):
            self._drop(live)
        for end in list(self._ends):
            end.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- accepting

    def _tls_accepted(
        self,
        sock: socket.socket,
        local: str,
        context: Callable[[], ssl.SSLContext],
        protocols: Collection[str | None],
    ) -> None:
        if len(self._handshakes) >= self._limits.handshakes:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()
        task = self._start(self._handshake(sock, local, context, protocols), sock)
        self._handshakes[task] = None
        task.add_done_callback(lambda done: self._handshakes.pop(done, None))

    async def _handshake(
        self,
        sock: socket.socket,
        local: str,
        context: Callable[[], ssl.SSLContext],
        protocols: Collection[str | None],
    ) -> None:
        try:
            remote = _text(sock.getpeername())
            tls_context = context()
        except BaseException:
            sock.close()
            raise
        live = _Live(Connection(next(self._ids), local, remote))
        end = self._end(live)
        limits = self._limits
        try:
            transport = await accept_tls(
                sock, end, tls_context, handshake_s=limits.handshake_s, shutdown_s=limits.flush_s
            )
        except ssl.SSLCertVerificationError as error:
            if self._on_refused is not None:
                self._on_refused(remote, error.verify_message)
            raise
        try:
            tls = transport.get_extra_info("ssl_object")
            if tls.selected_alpn_protocol() not in protocols:
                transport.abort()
                return
            live.connection = Connection(live.connection.id, local, remote, presented_chain(tls))
            self._count(live, live.connection.owner)
            self._admit(live, end)
        except Crowded:
            _log.warning("refused %s: too many connections", remote)
            transport.abort()
        except BaseException:
            transport.abort()  # nobody would own it
            raise

    def _unix_accepted(self, sock: socket.socket, local: str) -> None:
        try:
            process = identify(sock)
        except (PeerUnknown, OSError) as error:
            _log.warning("refused a caller on %s: %s", local, error)
            sock.close()
            return
        live = _Live(Connection.of_process(process, next(self._ids), local))
        owner = live.connection.owner
        try:
            if process.uid != 0 and self._crowd.count(owner) >= self._limits.connections_per_uid:
                raise Crowded
            self._count(live, owner)
        except Crowded:
            _log.warning("refused %s on %s: too many connections", live.connection.remote, local)
            os.close(process.pidfd)
            sock.close()
            return
        asyncio.get_running_loop().add_reader(process.pidfd, self._drop, live)
        self._start(self._adopt(sock, live), sock)

    def _count(self, live: _Live, owner: str) -> None:
        """Takes a connection among the live ones, in the place of another if need be.

        Raises:
            Crowded: there is no place for it.
        """
        loser = self._crowd.make_room(owner)
        if loser is not None:
            _log.info("%s makes room for %s", loser.connection.remote, live.connection.remote)
            self._drop(loser)
        live.owner = owner
        self._crowd.add(owner, live)
        self._live[live.connection.id] = live

    async def _adopt(self, sock: socket.socket, live: _Live) -> None:
        try:
            _, end = await asyncio.get_running_loop().connect_accepted_socket(lambda: self._end(live), sock)
        except BaseException:
            sock.close()
            self._forget(live)
            raise
        self._admit(live, end)

    def _end(self, live: _Live) -> End:
        end = End(lambda: self._first_byte(live), lambda: self._forget(live), self._limits.flush_s)
        self._ends.add(end)
        return end

    def _admit(self, live: _Live, end: End) -> None:
        live.outer = end
        if end.over or live.gone:  # it ended while asyncio took it over
            self._drop(live)
            return
        if end.has_early:
            self._first_byte(live)
        elif live.timer is None:
            loop = asyncio.get_running_loop()
            live.timer = loop.call_later(self._limits.first_byte_s, self._drop, live)

    # -- the way on

    def _first_byte(self, live: _Live) -> None:
        # Only who speaks costs the inner server a connection.
        if live.outer is None or live.name:
            return  # not admitted yet; _admit sees the early data
        if live.timer is not None:
            live.timer.cancel()
        live.name = secrets.token_hex(_NAME_LENGTH // 2)
        self._start(self._onward(live))

    async def _onward(self, live: _Live) -> None:
        sock: socket.socket | None = None
        try:
            sock = self._connect(live.name)
            self._by_name[live.name] = live
            _, end = await asyncio.get_running_loop().create_unix_connection(lambda: self._end(live), sock=sock)
        except OSError as error:
            _log.warning("no way on to the server for %s: %s", live.connection.remote, error)
            if sock is not None:
                sock.close()
            self._drop(live)
            return
        live.inner = end
        if live.gone or live.outer is None:  # it ended while we connected
            end.abort()
            return
        live.outer.join(end)

    def _connect(self, name: str) -> socket.socket:
        """A socket to the gRPC server that bears `name`; the name is gone from the disk when this returns."""
        path = self._inner.parent / name
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind(str(path))
            try:
                sock.connect(str(self._inner))  # at once, or EAGAIN if the server's queue is full
            finally:
                path.unlink()
        except BaseException:
            sock.close()
            raise
        return sock

    # -- the end

    def _drop(self, live: _Live) -> None:
        self._forget(live)
        for end in (live.outer, live.inner):
            if end is not None:
                end.abort()

    def _forget(self, live: _Live) -> None:
        live.gone = True
        if live.timer is not None:
            live.timer.cancel()
        self._by_name.pop(live.name, None)
        if live.owner is None:
            return
        self._crowd.remove(live.owner, live)
        live.owner = None
        del self._live[live.connection.id]
        if live.connection.pidfd is not None:
            asyncio.get_running_loop().remove_reader(live.connection.pidfd)
            os.close(live.connection.pidfd)

    def _start(self, work: Coroutine[object, object, None], sock: socket.socket | None = None) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        if sock is not None:
            # Work that is cancelled before its first step can't close what it was to take over.
            task.add_done_callback(lambda done: sock.close() if done.cancelled() else None)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, OSError | TimeoutError):  # ssl.SSLError is an OSError: a peer's fault, not ours
            _log.info("a connection was not taken: %s", error)
        elif error is not None:
            _log.error("a connection was not taken", exc_info=error)


def _text(address: tuple[str, int]) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
