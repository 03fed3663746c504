"""A grpc.Channel whose calls, of all four shapes, are counted and traced.

It stands around a channel's calls itself, not in grpc's pipeline of interceptors, which takes as much of the CPU as all
that is done here.
"""

import time
from collections.abc import Callable
from typing import Any

import grpc

from meshwarden.sdk.backpressure import criticality
from meshwarden.sdk.backpressure.retried import answer, timeout_of, with_timeout
from meshwarden.sdk.backpressure.throttled import Throttled
from meshwarden.sdk.counted_method import CountedMethod, CountedMethods, Kinds
from meshwarden.sdk.outgoing import Outgoing, along
from meshwarden.sdk.tracing.trace import METADATA_PLACE, add_headers


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


class CountedChannel(CountedMethods, grpc.Channel):
    """The calls of another channel, counted and traced."""

    def __init__(self, inner: grpc.Channel, outgoing: Outgoing) -> None:
        super().__init__(inner, outgoing, Kinds(_UnaryUnary, _Retried, _UnaryStream, _StreamUnary, _StreamStream))

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        """See grpc.Channel."""
        self._inner.subscribe(callback, try_to_connect=try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """See grpc.Channel."""
        self._inner.unsubscribe(callback)

    def close(self) -> None:
        """See grpc.Channel."""
        self._inner.close()

    def __enter__(self) -> "CountedChannel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Method(CountedMethod):
    """A method of a channel. Its calls take what those of grpc take, by place or by name."""

    def _under_way(self, make: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Begins a call, whose end is heard of later."""
        if (refusal := self._refusal()) is not None:
            return Throttled(refusal)
        call, one = self._begin(make, args, kwargs)
        call.add_done_callback(lambda done: one.end(done.code(), done.details(), done.trailing_metadata() or ()))
        return call if call.done() else _Held(call)


class _Answered(_Method):
    """A method with one response."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.UnaryUnaryMultiCallable. Nobody else hears of the end of the call, so it is told once."""
        outgoing, method = self._outgoing, self._method
        if self._throttle.on and (refusal := outgoing.refusal(method)) is not None:
            raise Throttled(refusal)
        span = outgoing.tracer.client(method, outgoing.name)
        headers = span.headers if criticality.current() is None else along(span)
        if len(args) > METADATA_PLACE or "metadata" in kwargs:
            args = add_headers(args, kwargs, headers)
        elif headers:
            kwargs["metadata"] = headers
        begun_s = time.perf_counter()
        try:
            answer = self._inner(*args, **kwargs)
        except BaseException as error:
            outgoing.failed(method, span, begun_s, error)
            raise
        outgoing.answered(method, span, begun_s)
        return answer

    def with_call(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.UnaryUnaryMultiCallable."""
        return type(self)(self._inner.with_call, self._outgoing, self._method)(*args, **kwargs)

    def future(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.UnaryUnaryMultiCallable."""
        return self._under_way(self._inner.future, args, kwargs)


class _Streamed(_Method):
    """A method with a stream of responses."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.UnaryStreamMultiCallable."""
        return self._under_way(self._inner, args, kwargs)


class _UnaryUnary(_Answered, grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]  # no parameters when it runs
    pass


class _Retried(_UnaryUnary):
    """A method whose calls may be made again, but for those in the hands of the program."""

    def __init__(self, inner: Any, outgoing: Outgoing, method: str) -> None:
        super().__init__(inner, outgoing, method)
        self._asked_for = _UnaryUnary(inner, outgoing, method, throttled=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.UnaryUnaryMultiCallable."""
        attempts = self._outgoing.retries.begin(timeout_of(args, kwargs))

        def attempt(timeout_s: float | None) -> Any:
            placed, named = with_timeout(args, kwargs, timeout_s)
            make = self._asked_for if attempts.is_told else super(_Retried, self).__call__
            return make(*placed, **named)

        return answer(attempt, attempts)


class _UnaryStream(_Streamed, grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    pass


class _StreamUnary(_Answered, grpc.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    pass


class _StreamStream(_Streamed, grpc.StreamStreamMultiCallable):  # type: ignore[type-arg]
    pass
