"""Client interceptors of all four shapes of call, for grpc and for grpc.aio."""

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

import grpc

from meshwarden.sdk.outgoing import Outgoing, OutgoingCall
from meshwarden.sdk.trace import with_headers

T = TypeVar("T")


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


def _passed_on(name: str) -> Callable[..., Any]:
    def passed_on(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.inner, name)(*args, **kwargs)

    return passed_on


_METHODS = {name: _passed_on(name) for made in (grpc.Call, grpc.Future) for name in made.__abstractmethods__}
_Call: Any = type("_Call", (grpc.Call, grpc.Future), _METHODS)


class _Held(_Call):  # type: ignore[misc]  # made above, of what mypy knows
    """A call under way, in the hands of the program, which is cancelled when the program lets go of it.

    grpc's own calls do that: a stream that was broken off ends with its last reference. But a call whose end someone
    waits to hear of is referred to by itself, and goes on for ever.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def add_done_callback(self, fn: Callable[[Any], Any]) -> None:
        """See grpc.Future. Who waits for the end in this way needs no other reference."""
        self.inner.add_done_callback(lambda _: fn(self))

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self.inner)

    def __del__(self) -> None:
        self.inner.cancel()  # nothing happens if it is over


class CallInterceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Counts and traces the calls of a grpc.Channel."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing

    def _intercept(self, continuation: Callable[..., Any], details: Any, request_or_requests: Any) -> Any:
        one = self._outgoing.begin(details.method)
        sent = _Details(
            details.method,
            details.timeout,
            with_headers(details.metadata, one.headers),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
        try:
            call = continuation(sent, request_or_requests)
        except BaseException as error:
            one.end(grpc.StatusCode.INTERNAL, str(error), ())
            raise
        call.add_done_callback(lambda done: one.end(done.code(), done.details(), done.trailing_metadata() or ()))
        return call if call.done() else _Held(call)

    intercept_unary_unary: Any = _intercept
    intercept_unary_stream: Any = _intercept
    intercept_stream_unary: Any = _intercept
    intercept_stream_stream: Any = _intercept


class _AioInterceptor:
    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing

    async def _intercept(self, continuation: Callable[..., Any], details: Any, request_or_requests: Any) -> Any:
        one = self._outgoing.begin(_text(details.method))
        metadata = grpc.aio.Metadata(*with_headers(tuple(details.metadata or ()), one.headers))
        try:
            call = await continuation(details._replace(metadata=metadata), request_or_requests)
        except BaseException as error:
            one.end(grpc.StatusCode.CANCELLED, str(error), ())
            raise
        call.add_done_callback(lambda done: _aio_ended(one, done))
        return call


class AioUnaryUnary(_AioInterceptor, grpc.aio.UnaryUnaryClientInterceptor):
    """Counts and traces calls of one request and one response."""

    intercept_unary_unary: Any = _AioInterceptor._intercept


class AioUnaryStream(_AioInterceptor, grpc.aio.UnaryStreamClientInterceptor):
    """Counts and traces calls of one request and many responses."""

    intercept_unary_stream: Any = _AioInterceptor._intercept


class AioStreamUnary(_AioInterceptor, grpc.aio.StreamUnaryClientInterceptor):
    """Counts and traces calls of many requests and one response."""

    intercept_stream_unary: Any = _AioInterceptor._intercept


class AioStreamStream(_AioInterceptor, grpc.aio.StreamStreamClientInterceptor):
    """Counts and traces calls of many requests and responses."""

    intercept_stream_stream: Any = _AioInterceptor._intercept


def aio_interceptors(outgoing: Outgoing) -> list[grpc.aio.ClientInterceptor]:
    """One for each shape: grpc.aio files an interceptor under the first shape that it recognises."""
    return [made(outgoing) for made in (AioUnaryUnary, AioUnaryStream, AioStreamUnary, AioStreamStream)]


def _aio_ended(one: OutgoingCall, call: Any) -> None:
    one.end(_settled(call.code()), _settled(call.details()), tuple(_settled(call.trailing_metadata())))


def _settled(coroutine: Coroutine[Any, Any, T]) -> T:
    """Returns the result of a coroutine that has nothing to wait for: the call is over, its status is there."""
    try:
        coroutine.send(None)
    except StopIteration as returned:
        result: T = returned.value
        return result
    finally:
        coroutine.close()
    raise AssertionError("a finished call waits for nothing")


def _text(method: str | bytes) -> str:
    return method.decode() if isinstance(method, bytes) else method
