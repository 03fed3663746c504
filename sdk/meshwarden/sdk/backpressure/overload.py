"""Keeps a server of grpc.aio from taking more calls than it can do with, and one caller from taking all there is.

Unary calls are let in by `meshwarden.sdk.backpressure.concurrency`, whose limit follows what the calls take. A stream
is let in always: it stays for as long as it likes, and what comes on it is bounded where it is read.

A call that isn't let in ends with UNAVAILABLE, before anything was done for it: another server may have room, and
whoever tries again may try at once elsewhere, or here when it is told to. RESOURCE_EXHAUSTED would say that the caller
has used up what is its own, which is the same at every server.

A server of grpc.aio takes one call out of gRPC's own queue each time that its event loop comes round. Handlers that
compute, and wait for nothing, so leave the calls behind them in that queue, where nobody sees how many they are, nor
what they matter. So before a call begins that matters least, the loop comes round until no other comes in: those that
matter more overtake it, and those that are too many are refused.

Source: gRFC A6, for `grpc-retry-pushback-ms`.
"""

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final, TypeAlias

import grpc

from meshwarden.sdk.backpressure.concurrency import Concurrency
from meshwarden.sdk.backpressure.criticality import Criticality

PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
RETRY_S: Final = 1
"""After how long a caller that wasn't let in is asked to try again."""
BUSY: Final = (("retry-after", str(RETRY_S)), (PUSHBACK_KEY, str(1000 * RETRY_S)))
"""The trailing metadata that says so."""
NEVER: Final = (PUSHBACK_KEY, "-1")
"""What says that there is no use in trying again."""
# Its class takes no parameters when the program runs.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
_MAX_METHODS: Final = 1024
# Between two calls that wait in gRPC's queue the loop comes round some four times.
_QUIET_ROUNDS: Final = 10
_MOST_ROUNDS: Final = 200
_OK: Final = grpc.StatusCode.OK


class OverloadInterceptor(grpc.aio.ServerInterceptor):
    """Put it behind those that check who calls. Handlers of unary calls must be coroutines; others are let be.

    Attributes:
        shed: {level: how many calls were not let in}.
    """

    def __init__(
        self,
        concurrency: Concurrency,
        caller: Callable[[Any], str],
        level: Callable[[str], Criticality],
        exempt: Collection[str] = (),
        on_shed: Callable[[str, Any], None] = lambda method, context: None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Puts it together.

        Args:
            concurrency: the places that there are.
            caller: among whose calls one counts, by its context.
            level: how much the calls of a method matter among those of one caller.
            exempt: methods, "/package.Service/Method", whose calls are let be: those that wait for others.
            on_shed: hears of each call that is not let in: its method and its context.
            monotonic_s: the clock of `concurrency`.
        """
        self.shed: Counter[Criticality] = Counter()
        self._exempt = frozenset(exempt)
        self._concurrency, self._caller, self._level, self._monotonic_s = concurrency, caller, level, monotonic_s
        self._on_shed = on_shed
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}
        self._came = 0
        self._turn = asyncio.Lock()

    @property
    def now(self) -> tuple[int, int]:
        """How many calls may be at the server, and how many are."""
        usage = self._concurrency.usage
        return usage.limit, usage.in_flight

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MaybeHandler:
        """The handler with a place for each of its calls."""
        self._came += 1
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or method in self._exempt or not inspect.iscoroutinefunction(handler.unary_unary):
            return handler
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = (handler, self._around(method, handler))
            if len(self._wrapped) < _MAX_METHODS:
                self._wrapped[method] = known
        return known[1]

    def _around(self, method: str, handler: Handler) -> Handler:
        inner: Any = handler.unary_unary
        places, level, clock, caller = self._concurrency, self._level(method), self._monotonic_s, self._caller
        on_shed = self._on_shed

        async def placed(request: Any, context: Any) -> Any:
            place = places.enter(caller(context), method, level, clock())
            if place is None:
                self.shed[level] += 1
                on_shed(method, context)
                message = f"this server has as many calls as it can do with: try again in {RETRY_S} s"
                await context.abort(grpc.StatusCode.UNAVAILABLE, message, BUSY)
                raise AssertionError("abort raises")
            is_measured = False
            try:
                if level is Criticality.SHEDDABLE:
                    await self._last()
                response = await inner(request, context)
                is_measured = (context.code() or _OK) is _OK
            finally:
                places.leave(place, clock(), is_measured)
            return response

        made: Any = grpc
        wrapped: Handler = made.unary_unary_rpc_method_handler(
            placed, handler.request_deserializer, handler.response_serializer
        )
        return wrapped

    async def _last(self) -> None:
        """Lets all others come in first."""
        async with self._turn:
            quiet = 0
            for _ in range(_MOST_ROUNDS):
                came = self._came
                await asyncio.sleep(0)
                quiet = quiet + 1 if self._came == came else 0
                if quiet == _QUIET_ROUNDS:
                    return


def by_name(levels: Mapping[str, Criticality], otherwise: Criticality) -> Callable[[str], Criticality]:
    """Returns a function that knows levels by the last part of a method's name."""
    return lambda method: levels.get(method.rpartition("/")[2], otherwise)
