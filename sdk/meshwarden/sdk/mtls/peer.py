"""Who is calling, checked at every RPC and on streams as long as they last.

A gRPC server (and TLS itself) looks at a certificate once, when the connection is made. `PeerInterceptor` checks the
chain against the caller's own trust domain, its expiry and the bans per RPC, asks `admit` whether that peer may call
that method, and ends streams whose peer is no longer good, or that `admit` would not let in any more.

`PeerCheck` is the check alone, for servers of another kind.

Errors: `Refused` carries the gRPC status and the message that the caller gets.
"""

import asyncio
import contextlib
import contextvars
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import grpc

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.verify import PeerRefused, PeerVerifier, VerifiedPeer
from meshwarden.sdk.mtls.connection import Connection
from meshwarden.sdk.mtls.refusal import REFUSAL_KEY

# Its class takes no parameters when the program runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Admit = Callable[[VerifiedPeer | None, str], None]
OnRefused = Callable[[str, str, str], None]

_SWEEP_S = 0.25
_MAX_METHODS = 1024
_PAST = "calls are taken through the front only"
_peer: contextvars.ContextVar[VerifiedPeer | None] = contextvars.ContextVar("meshwarden_peer", default=None)
_connection: contextvars.ContextVar[Connection | None] = contextvars.ContextVar("meshwarden_connection", default=None)


class Doors(Protocol):
    """What knows the connections of calls: a `Front`, or several as one."""

    def find(self, peer: str) -> Connection | None:
        """The connection of a call, by its `context.peer()`; None if it came otherwise."""
        ...


class Refused(Exception):
    """A call is not to be served.

    Attributes:
        status: UNAUTHENTICATED (who are you) or PERMISSION_DENIED (you may not).
        message: for the caller: what was wrong and what to do; never a secret.
        code: one word for a program that acts upon it, in the trailing metadata `meshwarden-refusal`; may be empty.
    """

    def __init__(self, status: grpc.StatusCode, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code

    @property
    def trailing(self) -> tuple[tuple[str, str], ...]:
        """The trailing metadata that go with it."""
        return ((REFUSAL_KEY, self.code),) if self.code else ()


def current() -> VerifiedPeer | None:
    """Who is calling, inside a handler; None if the caller showed no certificate."""
    return _peer.get()


def current_connection() -> Connection | None:
    """The connection that the call came on, inside a handler and inside `admit`; None outside of a call."""
    return _connection.get()


def caller_text() -> str:
    """Who is calling and from where, for logs and audit, inside a handler and inside `admit`."""
    peer, connection = _peer.get(), _connection.get()
    remote = connection.remote if connection is not None else "-"
    return f"{peer.spiffe_id} ({remote})" if peer is not None else remote


def admit_all(peer: VerifiedPeer | None, method: str) -> None:
    """An `admit` that lets everybody in who is verified or anonymous; for a server whose handlers decide."""


class PeerCheck:
    """The check of one call, whatever kind of server it came to."""

    def __init__(self, verifier: PeerVerifier, admit: Admit, on_refused: OnRefused | None = None) -> None:
        """Puts a check together.

        Args:
            verifier: checks chains against bundles, expiry and bans.
            admit: called with the peer (None: no certificate) and the full method; raises `Refused` to deny. It is
                asked at each call, and four times a second while a stream lasts: it must be quick and count nothing.
            on_refused: called with the peer as text, the method and the reason, e.g. to write an audit event.
        """
        self._verifier = verifier
        self._admit = admit
        self._on_refused = on_refused

    def verify(self, chain_der: Sequence[bytes]) -> VerifiedPeer | None:
        """The peer that shows this chain (DER, leaf first); None for an empty chain.

        Raises:
            Refused: UNAUTHENTICATED, if the chain is not good now.
        """
        if not chain_der:
            return None
        try:
            return self._verifier.check(chain_der)
        except PeerRefused as refusal:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED, f"your certificate was refused: {refusal}") from refusal

    def check(self, connection: Connection, method: str) -> VerifiedPeer | None:
        """The peer of a call that may be served.

        Raises:
            Refused: if it may not; `on_refused` was told.
        """
        peer, remote = None, connection.remote
        try:
            peer = self.verify(connection.chain_der)
            _check_session(connection)
            self._admit(peer, method)
        except Refused as refusal:
            self.report(f"{peer.spiffe_id} ({remote})" if peer else remote, method, refusal.message)
            raise
        return peer

    def admit_again(self, connection: Connection, method: str) -> None:
        """Checks the peer of a call that goes on.

        Raises:
            Refused: it may not any more; nobody is told.
        """
        peer = self.verify(connection.chain_der)
        _check_session(connection)
        self._admit(peer, method)

    def report(self, peer_text: str, method: str, reason: str) -> None:
        """Tells `on_refused`."""
        if self._on_refused is not None:
            self._on_refused(peer_text, method, reason)


def _check_session(connection: Connection) -> None:
    """Refuses what shows a session that has ended.

    Raises:
        Refused: UNAUTHENTICATED, if it has.
    """
    if connection.session is not None and (reason := connection.session.over()):
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, reason)


@dataclass(eq=False)
class _Stream:
    """An open streaming call."""

    connection: Connection
    method: str
    task: "asyncio.Task[Any]"
    peer: VerifiedPeer | None
    refusal: Refused | None = None


class PeerInterceptor(grpc.aio.ServerInterceptor):
    """Lets a grpc.aio server behind a `Front` serve only verified and admitted peers.

    Handlers must be async (coroutines or async generators); inside them `current()` names the peer.
    """

    def __init__(
        self, front: Doors, verifier: PeerVerifier, admit: Admit = admit_all, on_refused: OnRefused | None = None
    ) -> None:
        """Puts the check of `PeerCheck` before a server; the connection of a call is looked up in `front`."""
        self._front = front
        self._check = PeerCheck(verifier, admit, on_refused)
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}
        self._streams: dict[int, _Stream] = {}
        self._ids = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MaybeHandler:
        """The handler with the check before it."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # no such method
        method: str = handler_call_details.method
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = (handler, self._wrap(handler, method))
            if len(self._wrapped) < _MAX_METHODS:  # a generic handler may serve whatever callers make up
                self._wrapped[method] = known
        return known[1]

    def admit(self, peer: str, method: str) -> VerifiedPeer | None:
        """Checks who makes a call before it is made: whose request has yet to be read.

        Args:
            peer: what `context.peer()` will be.
            method: the full method.

        Raises:
            Refused: the caller may not; `on_refused` was told.
        """
        connection = self._front.find(peer)
        if connection is None:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, _PAST)
        return self._check.check(connection, method)

    def sweep(self) -> None:
        """Checks the peers of all open streams and ends those that are refused; runs by itself every 250 ms.

        Call it after a ban for an effect at once, or when `admit` refuses what it has let in.
        """
        # Who is refused is not remembered by the verifier, so it is here, for all streams of a connection. Not by its
        # number: each front counts its own from 1.
        refused: dict[tuple[Connection, str], Refused] = {}
        again = self._check.admit_again
        for stream in self._streams.values():
            refusal = refused.get((stream.connection, stream.method)) if refused else None
            if refusal is None:
                try:
                    again(stream.connection, stream.method)
                    continue
                except Refused as error:
                    refusal = refused[stream.connection, stream.method] = error
            stream.refusal = refusal
            stream.task.cancel()

    def end(self, refuse: Callable[[SpiffeId], Refused | None]) -> None:
        """Ends the open streams of those whom `refuse` refuses: they are told why."""
        for stream in self._streams.values():
            refusal = refuse(stream.peer.spiffe_id) if stream.peer is not None else None
            if refusal is not None:
                stream.refusal = refusal
                stream.task.cancel()

    def _wrap(self, handler: Handler, method: str) -> Handler:
        made: Any = grpc  # the constructors' types know sync handlers only
        inner: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        if handler.response_streaming:
            checked: Any = self._streaming(inner, method)
            make = made.stream_stream_rpc_method_handler
            make = make if handler.request_streaming else made.unary_stream_rpc_method_handler
        elif handler.request_streaming:
            checked, make = self._gathering(inner, method), made.stream_unary_rpc_method_handler
        else:
            checked, make = self._unary(inner, method), made.unary_unary_rpc_method_handler
        wrapped: Handler = make(checked, handler.request_deserializer, handler.response_serializer)
        return wrapped

    def _unary(self, inner: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
        async def checked(request: Any, context: Any) -> Any:
            await self._enter(context, method)
            return await inner(request, context)

        return checked

    def _gathering(self, inner: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
        async def checked(requests: Any, context: Any) -> Any:
            connection = await self._enter(context, method)
            async with self._watched(connection, context, method):
                return await inner(requests, context)

        return checked

    def _streaming(self, inner: Callable[..., Any], method: str) -> Callable[..., Awaitable[None]]:
        async def checked(request_or_requests: Any, context: Any) -> None:
            connection = await self._enter(context, method)
            async with self._watched(connection, context, method):
                answer = inner(request_or_requests, context)
                if isinstance(answer, Awaitable):  # a handler that writes by itself
                    await answer
                    return
                async with contextlib.aclosing(answer) as messages:
                    async for message in messages:
                        await context.write(message)

        return checked

    async def _enter(self, context: Any, method: str) -> Connection:
        """Checks the caller and sets the context variables, or aborts the call."""
        connection = self._front.find(context.peer())
        if connection is None:
            self._check.report(context.peer(), method, _PAST)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, _PAST)
            raise AssertionError("abort raises")
        _connection.set(connection)  # each call has a task, and so a context, of its own
        try:
            _peer.set(self._check.check(connection, method))
        except Refused as refusal:
            await context.abort(refusal.status, refusal.message, refusal.trailing)
        return connection

    @contextlib.asynccontextmanager
    async def _watched(self, connection: Connection, context: Any, method: str) -> AsyncIterator[None]:
        """Keeps a stream among those that are swept; a stream that the sweep ends tells its caller why."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a handler runs in a task
        stream = _Stream(connection, method, task, _peer.get())
        number = next(self._ids)
        self._streams[number] = stream
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SWEEP_S, self._tick)
        try:
            yield
        except asyncio.CancelledError:
            if stream.refusal is None:
                raise
            task.uncancel()
            self._check.report(caller_text(), method, stream.refusal.message)
            refusal = stream.refusal
            await context.abort(refusal.status, refusal.message, refusal.trailing)
        finally:
            del self._streams[number]

    def _tick(self) -> None:
        self._timer = None
        if self._streams:
            self._timer = asyncio.get_running_loop().call_later(_SWEEP_S, self._tick)
            self.sweep()
