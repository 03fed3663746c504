"""What channels whose calls are counted have in common, those of grpc and of grpc.aio: their methods, of all shapes."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import grpc

from meshwarden.sdk.backpressure.throttle import Throttle
from meshwarden.sdk.outgoing import Outgoing, OutgoingCall
from meshwarden.sdk.tracing.trace import add_headers

_NEVER: Final = Throttle(0.0)
"""Holds no call back: it hears of none."""


class CountedMethod:
    """A method of a channel, around one of another channel's."""

    def __init__(self, inner: Any, outgoing: Outgoing, method: str, *, throttled: bool = True) -> None:
        self._inner = inner
        self._outgoing = outgoing
        self._method = method
        self._throttle = outgoing.throttle(method) if throttled else _NEVER

    def _refusal(self) -> str | None:
        """Why a call isn't made; None if it is to be made."""
        return self._outgoing.refusal(self._method) if self._throttle.on else None

    def _begin(
        self, make: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, OutgoingCall]:
        """Begins a call, whose end is heard of later, and of which what is returned second is to be told then."""
        one = self._outgoing.begin(self._method)
        args = add_headers(args, kwargs, one.headers)
        try:
            return make(*args, **kwargs), one
        except BaseException as error:
            one.end(grpc.StatusCode.INTERNAL, str(error), ())
            raise


class Kinds(NamedTuple):
    """The classes of a channel's methods, by their shape; `retried` is of those whose calls may be made again."""

    unary_unary: type[CountedMethod]
    retried: type[CountedMethod]
    unary_stream: type[CountedMethod]
    stream_unary: type[CountedMethod]
    stream_stream: type[CountedMethod]


class CountedMethods:
    """The part of a channel that makes its methods; see grpc.Channel for each."""

    def __init__(self, inner: Any, outgoing: Outgoing, kinds: Kinds) -> None:
        self._inner = inner
        self._outgoing = outgoing
        self._kinds = kinds

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See above."""
        kind = self._kinds.retried if self._outgoing.retries.most else self._kinds.unary_unary
        return kind(self._inner.unary_unary(method, *args, **kwargs), self._outgoing, method)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See above."""
        return self._kinds.unary_stream(self._inner.unary_stream(method, *args, **kwargs), self._outgoing, method)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See above."""
        return self._kinds.stream_unary(self._inner.stream_unary(method, *args, **kwargs), self._outgoing, method)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See above."""
        return self._kinds.stream_stream(self._inner.stream_stream(method, *args, **kwargs), self._outgoing, method)
