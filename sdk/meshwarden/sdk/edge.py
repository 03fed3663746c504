"""The edge of a grpc.aio server of ours: each message is looked at before its handler, and each error ends well.

Bytes that are no message are told as such: grpc.aio by itself says UNKNOWN, and logs a defect.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import grpc

# Its class takes no parameters when the program runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Take = Callable[[Any], Any]
End = Callable[[Any, Exception, str], Awaitable[None]]


class Malformed(Exception):
    """Bytes that are no message; where one is expected this stands in its place, until somebody takes it."""


def take_legible(message: Any) -> Any:
    """Returns a message.

    Raises:
        Malformed: it is none.
    """
    if isinstance(message, Malformed):
        raise message
    return message


async def refuse_malformed(context: Any, error: Exception, method: str) -> None:
    """Ends a call that was given no message as INVALID_ARGUMENT; whatever else has happened goes on."""
    for leaf in _leaves(error):  # in a group of others, where the handler reads in a task of its own
        if isinstance(leaf, Malformed):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(leaf))


class EdgeInterceptor(grpc.aio.ServerInterceptor):
    """Stands before every service of a server, or before those whose methods begin alike, whoever has written them.

    A handler reads its stream by the iterator that it is given; `context.read()` would pass by.
    """

    def __init__(self, take: Take = take_legible, end: End = refuse_malformed, prefix: str = "/") -> None:
        """Says what is done.

        Args:
            take: given each message, or `Malformed` in its place; returns what the handler gets, or raises.
            end: given the context, what was raised, and the method; ends the call, or returns to have it raised.
            prefix: how the methods begin: "/meshwarden.v1.".
        """
        self._take, self._end, self._prefix = take, end, prefix
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MaybeHandler:
        """Wraps the handler, once a method."""
        method: str = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None or not method.startswith(self._prefix):
                return handler
            self._wrapped[method] = self._wrap(handler, method)
        return self._wrapped[method]

    def _wrap(self, handler: Any, method: str) -> Handler:
        serve: Callable[..., Any] = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )
        generates = inspect.isasyncgenfunction(serve)

        async def served(request: Any, context: Any) -> Any:
            try:
                taken = self._each(request) if handler.request_streaming else self._take(request)
                if not generates:
                    return await serve(taken, context)
                async for answer in serve(taken, context):
                    await context.write(answer)
            except grpc.aio.AbortError:
                raise  # the handler has said how it ends
            except Exception as error:
                await self._end(context, error, method)
                raise

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        return make(served, _reader(handler.request_deserializer), handler.response_serializer)

    async def _each(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for message in messages:
            yield self._take(message)


def _reader(read: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if read is None:
        return None  # it takes bytes as they are

    def read_or_say_why(data: bytes) -> Any:
        try:
            return read(data)
        except Exception as error:  # protobuf raises several kinds; each means bytes that are no such message
            return Malformed(f"the message can't be read: {type(error).__name__}")

    return read_or_say_why


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
