"""Bytes that are no message end their call as INVALID_ARGUMENT; grpc.aio by itself says UNKNOWN, and logs a defect."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc


class _Malformed(Exception):
    """Stands where a message that can't be read would."""


class MalformedInterceptor(grpc.aio.ServerInterceptor):
    """Stands before every service of the agent's socket, whoever has written it."""

    def __init__(self) -> None:
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler, once a method."""
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            self._wrapped[method] = _wrap(handler)
        return self._wrapped[method]


def _wrap(handler: Any) -> "grpc.RpcMethodHandler[Any, Any]":
    serve: Callable[..., Any] = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    generates = inspect.isasyncgenfunction(serve)

    async def served(request: Any, context: Any) -> Any:
        met: list[_Malformed] = []
        if isinstance(request, _Malformed):
            await _refuse(context, request)
        messages = _legible(request, met) if handler.request_streaming else request
        try:
            if not generates:
                return await serve(messages, context)
            async for answer in serve(messages, context):
                await context.write(answer)
        except Exception:  # also in a group of others, where the handler reads in a task of its own
            if met:
                await _refuse(context, met[0])
            raise

    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(served, _reader(handler.request_deserializer), handler.response_serializer)


def _reader(read: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if read is None:
        return None  # it takes bytes as they are

    def read_or_say_why(data: bytes) -> Any:
        try:
            return read(data)
        except Exception as error:  # protobuf raises several kinds; each means bytes that are no such message
            return _Malformed(f"the message can't be read: {type(error).__name__}")

    return read_or_say_why


async def _legible(messages: AsyncIterator[Any], met: list[_Malformed]) -> AsyncIterator[Any]:
    async for message in messages:
        if isinstance(message, _Malformed):
            met.append(message)
            raise message
        yield message


async def _refuse(context: Any, malformed: _Malformed) -> None:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(malformed))
