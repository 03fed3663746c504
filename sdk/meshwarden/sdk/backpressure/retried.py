"""Unary calls that are made again: `answer` for channels with threads, and for grpc.aio `RetriedCall`."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, TypeAlias

import grpc

from meshwarden.sdk.backpressure.retry import Attempts

Make: TypeAlias = "Callable[[float | None], Any]"
"""Makes an attempt that has so many seconds; None: no end."""
_TIMEOUT: Final = "timeout"
_TIMEOUT_PLACE: Final = 1


def timeout_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float | None:
    """The timeout that a call was given, by place or by name."""
    found: float | None = args[_TIMEOUT_PLACE] if len(args) > _TIMEOUT_PLACE else kwargs.get(_TIMEOUT)
    return found


def with_timeout(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], timeout_s: float | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with another timeout."""
    if len(args) > _TIMEOUT_PLACE:
        return (*args[:_TIMEOUT_PLACE], timeout_s, *args[_TIMEOUT_PLACE + 1 :]), dict(kwargs)
    return args, {**kwargs, _TIMEOUT: timeout_s}


def answer(make: Make, attempts: Attempts) -> Any:
    """The answer to a call, at whichever attempt it comes.

    Raises:
        grpc.RpcError: that of the last attempt.
    """
    while True:
        try:
            return make(attempts.left_s)
        except grpc.RpcError as error:
            told: Any = error
            wait_s = attempts.wait_s(told.code(), told.trailing_metadata() or ())
            if wait_s is None:
                raise
        threading.Event().wait(wait_s)


class RetriedCall(grpc.aio.UnaryUnaryCall):  # type: ignore[type-arg]  # no parameters when it runs
    """A call of grpc.aio whose attempts are one to who waits for it: its end is that of the last."""

    def __init__(self, make: Make, attempts: Attempts) -> None:
        """Makes the first attempt."""
        self._make, self._attempts = make, attempts
        self._call = make(attempts.left_s)
        # Nothing is lost of it: whoever waits for the call waits for it, and a failed call is a result of it.
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while (code := await self._call.code()) is not grpc.StatusCode.OK:
            wait_s = self._attempts.wait_s(code, tuple(await self._call.trailing_metadata() or ()))
            if wait_s is None:
                return
            await asyncio.sleep(wait_s)
            with contextlib.suppress(grpc.aio.UsageError):  # the channel was closed meanwhile: the last attempt counts
                self._call = self._make(self._attempts.left_s)
                continue
            return

    async def _ended(self) -> Any:
        """The last attempt, when it has ended."""
        await asyncio.wait({self._task})
        return self._call

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            yield from self._task.__await__()
        except asyncio.CancelledError:
            self.cancel()
            raise
        return (yield from self._call.__await__())

    async def code(self) -> grpc.StatusCode:
        """See grpc.aio.Call."""
        code: grpc.StatusCode = await (await self._ended()).code()
        return code

    async def details(self) -> str:
        """See grpc.aio.Call."""
        details: str = await (await self._ended()).details()
        return details

    async def initial_metadata(self) -> Any:
        """See grpc.aio.Call."""
        return await (await self._ended()).initial_metadata()

    async def trailing_metadata(self) -> Any:
        """See grpc.aio.Call."""
        return await (await self._ended()).trailing_metadata()

    async def wait_for_connection(self) -> None:
        """See grpc.aio.Call."""
        await (await self._ended()).wait_for_connection()

    def cancel(self) -> bool:
        """See grpc.aio.RpcContext."""
        return bool(self._task.cancel() | self._call.cancel())

    def cancelled(self) -> bool:
        """See grpc.aio.RpcContext."""
        return self._task.cancelled() or bool(self._call.cancelled())

    def done(self) -> bool:
        """See grpc.aio.RpcContext."""
        return self._task.done()

    def time_remaining(self) -> float | None:
        """See grpc.aio.RpcContext."""
        return self._attempts.left_s

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """See grpc.aio.RpcContext."""
        self._task.add_done_callback(lambda _: callback(self))
