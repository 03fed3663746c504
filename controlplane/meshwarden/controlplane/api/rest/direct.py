"""Calls that come without gRPC: the same handlers behind the same interceptors, with a context of our own.

An interceptor is asked once a method what stands around its handler; from then on a call is a call of a function.
"""

import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias

import grpc
from google.protobuf.message import Message

from meshwarden.controlplane.api.rest.problem import Aborted

# Its class takes no parameters when the program runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Write = Callable[[Message], Awaitable[None]]
DETAIL_BYTES: Final = 1 << 20


class Registry:
    """Takes the place of a gRPC server where servicers are added; `handlers` is {method: handler}."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        """Takes none: each service's methods come by name as well."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Takes the methods of a service."""
        self.handlers.update({f"/{service}/{name}": handler for name, handler in handlers.items()})


class Metadatum(NamedTuple):
    """One of a call's metadata."""

    key: str
    value: str


class _Details(NamedTuple):
    method: str
    invocation_metadata: tuple[Metadatum, ...] = ()


class DirectContext:
    """What handlers and interceptors use of a `grpc.aio.ServicerContext`.

    Attributes:
        detail_bytes: how much room there is for the details of a status.
        headers: what else an answer by HTTP says, which is for handlers to add.
        cookie: what the caller shows for a session; empty for nothing.
    """

    detail_bytes = DETAIL_BYTES

    def __init__(self, peer: str, metadata: Iterable[tuple[str, str]], write: Write | None = None) -> None:
        """A call from `peer`, by which the front knows its connection; a stream goes to `write`."""
        self._peer, self._write = peer, write
        self._metadata = tuple(Metadatum(key, value) for key, value in metadata)
        self._code: grpc.StatusCode | None = None
        self.headers: list[tuple[str, str]] = []
        self.cookie = ""

    def peer(self) -> str:
        """Where the call comes from, as the front knows it."""
        return self._peer

    def invocation_metadata(self) -> tuple[Metadatum, ...]:
        """The caller's metadata."""
        return self._metadata

    def code(self) -> grpc.StatusCode | None:
        """How the call ends; None for well, as far as is known."""
        return self._code

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        """Ends the call.

        Raises:
            Aborted: always.
        """
        self._code = code
        raise Aborted(code, details, trailing_metadata)

    async def write(self, message: Message) -> None:
        """Sends one message of a stream."""
        if self._write is None:
            raise TypeError("a unary call writes nothing")
        await self._write(message)


class Calls:
    """All methods, each behind the interceptors."""

    def __init__(self, wrapped: Mapping[str, Handler]) -> None:
        self._wrapped = wrapped

    @classmethod
    async def behind(
        cls, handlers: Mapping[str, Handler], interceptors: Sequence[grpc.aio.ServerInterceptor]
    ) -> "Calls":
        """Puts interceptors before handlers, the first one outermost, as a gRPC server does."""
        return cls({method: await _wrap(method, handler, interceptors) for method, handler in handlers.items()})

    async def unary(self, method: str, request: Any, context: DirectContext) -> Message:
        """Makes a call; returns its answer.

        Raises:
            Aborted: it has ended otherwise.
        """
        handler: Any = self._wrapped[method]
        answer: Message = await handler.unary_unary(request, context)
        return answer

    async def stream(self, method: str, request: Any, context: DirectContext) -> None:
        """Makes a call that answers by a stream, which goes to where the context says.

        Raises:
            Aborted: it has ended otherwise than well.
        """
        handler: Any = self._wrapped[method]
        await handler.unary_stream(request, context)


async def _wrap(method: str, handler: Handler, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> Handler:
    async def innermost(_: object) -> Handler:
        return handler

    continuation: Any = innermost
    for interceptor in reversed(interceptors):
        continuation = functools.partial(interceptor.intercept_service, continuation)
    wrapped: Handler = await continuation(_Details(method))
    return wrapped
