"""A grpc.aio.Channel whose calls, of all four shapes, are counted and traced.

It stands around a channel's calls itself, not in grpc.aio's interceptors, each of which makes a task for every call.
"""

from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc

from meshwarden.sdk.backpressure.retried import RetriedCall
from meshwarden.sdk.backpressure.throttled import AioThrottled
from meshwarden.sdk.counted_method import CountedMethod, CountedMethods, Kinds
from meshwarden.sdk.outgoing import Outgoing, OutgoingCall

T = TypeVar("T")


class CountedAioChannel(CountedMethods, grpc.aio.Channel):
    """The calls of another channel, counted and traced."""

    def __init__(self, inner: grpc.aio.Channel, outgoing: Outgoing) -> None:
        super().__init__(inner, outgoing, Kinds(_UnaryUnary, _Retried, _UnaryStream, _StreamUnary, _StreamStream))

    async def __aenter__(self) -> "CountedAioChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """See grpc.aio.Channel."""
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc.aio.Channel."""
        state: grpc.ChannelConnectivity = self._inner.get_state(try_to_connect)
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See grpc.aio.Channel."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See grpc.aio.Channel."""
        await self._inner.channel_ready()


class _Method(CountedMethod):
    """A method of a channel. Its calls take what those of grpc.aio take, by place or by name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.UnaryUnaryMultiCallable."""
        if (refusal := self._refusal()) is not None:
            return AioThrottled(refusal)
        call, one = self._begin(self._inner, args, kwargs)
        call.add_done_callback(lambda done: _ended(one, done))
        return call


class _UnaryUnary(_Method, grpc.aio.UnaryUnaryMultiCallable):  # type: ignore[type-arg]  # no parameters when it runs
    pass


class _Retried(_UnaryUnary):
    """A method whose calls may be made again."""

    def __init__(self, inner: Any, outgoing: Outgoing, method: str) -> None:
        super().__init__(inner, outgoing, method)
        self._asked_for = _UnaryUnary(inner, outgoing, method, throttled=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.UnaryUnaryMultiCallable."""
        attempts = self._outgoing.retries.begin(kwargs.get("timeout"))

        def attempt(timeout_s: float | None) -> Any:
            make = self._asked_for if attempts.is_told else super(_Retried, self).__call__
            return make(*args, **{**kwargs, "timeout": timeout_s})

        return RetriedCall(attempt, attempts)


class _UnaryStream(_Method, grpc.aio.UnaryStreamMultiCallable):  # type: ignore[type-arg]
    pass


class _StreamUnary(_Method, grpc.aio.StreamUnaryMultiCallable):  # type: ignore[type-arg]
    pass


class _StreamStream(_Method, grpc.aio.StreamStreamMultiCallable):  # type: ignore[type-arg]
    pass


def _ended(one: OutgoingCall, call: Any) -> None:
    code = _settled(call.code())
    if code is grpc.StatusCode.OK:
        one.end(code, "", ())
    else:
        one.end(code, _settled(call.details()), tuple(_settled(call.trailing_metadata()) or ()))


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
