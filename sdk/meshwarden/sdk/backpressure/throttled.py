"""Calls that the SDK has refused itself, in the form of grpc's own that have ended; for grpc.aio `AioThrottled`.

Both end with RESOURCE_EXHAUSTED; trailing metadata has `mesh-decision: throttled` and `retry-after`.
"""

from collections.abc import AsyncIterator, Callable, Generator
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import grpc

CODE: Final = grpc.StatusCode.RESOURCE_EXHAUSTED
THROTTLED: Final = ("mesh-decision", "throttled")
TRAILING: Final = (THROTTLED, ("retry-after", "1"))


class Throttled(grpc.RpcError, grpc.Call, grpc.Future):  # type: ignore[type-arg]  # no parameters when it runs
    """A call of any shape, and the error that it ends with."""

    def __init__(self, message: str) -> None:
        """`message` says who has refused it, and why."""
        super().__init__(message)
        self._message = message

    def code(self) -> grpc.StatusCode:
        """See grpc.Call."""
        return CODE

    def details(self) -> str:
        """See grpc.Call."""
        return self._message

    def debug_error_string(self) -> str:
        """See grpc.Call."""
        return self._message

    def initial_metadata(self) -> tuple[()]:
        """See grpc.Call."""
        return ()

    def trailing_metadata(self) -> Any:
        """See grpc.Call."""
        return TRAILING

    def is_active(self) -> bool:
        """See grpc.RpcContext."""
        return False

    def time_remaining(self) -> Any:
        """See grpc.RpcContext."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """See grpc.RpcContext."""
        return False

    def cancel(self) -> bool:
        """See grpc.Future."""
        return False

    def cancelled(self) -> bool:
        """See grpc.Future."""
        return False

    def running(self) -> bool:
        """See grpc.Future."""
        return False

    def done(self) -> bool:
        """See grpc.Future."""
        return True

    def result(self, timeout: float | None = None) -> NoReturn:
        """See grpc.Future."""
        raise self

    def exception(self, timeout: float | None = None) -> Self:
        """See grpc.Future."""
        return self

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        """See grpc.Future."""
        return self.__traceback__

    def add_done_callback(self, fn: Callable[[Any], Any]) -> None:
        """See grpc.Future."""
        fn(self)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> NoReturn:
        raise self


_Unary: Any = type("_Unary", (grpc.aio.UnaryUnaryCall, grpc.aio.StreamUnaryCall), {})


class AioThrottled(_Unary, grpc.aio.UnaryStreamCall, grpc.aio.StreamStreamCall):  # type: ignore[misc, type-arg]
    """A call of grpc.aio, of any shape. Each use of it raises its error."""

    def __init__(self, message: str) -> None:
        """`message` says who has refused it, and why."""
        self._message = message

    def _error(self) -> grpc.aio.AioRpcError:
        return grpc.aio.AioRpcError(CODE, grpc.aio.Metadata(), grpc.aio.Metadata(*TRAILING), self._message)

    async def code(self) -> grpc.StatusCode:
        """See grpc.aio.Call."""
        return CODE

    async def details(self) -> str:
        """See grpc.aio.Call."""
        return self._message

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """See grpc.aio.Call."""
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """See grpc.aio.Call."""
        return grpc.aio.Metadata(*TRAILING)

    async def wait_for_connection(self) -> NoReturn:
        """See grpc.aio.Call."""
        raise self._error()

    def cancel(self) -> bool:
        """See grpc.aio.RpcContext."""
        return False

    def cancelled(self) -> bool:
        """See grpc.aio.RpcContext."""
        return False

    def done(self) -> bool:
        """See grpc.aio.RpcContext."""
        return True

    def time_remaining(self) -> None:
        """See grpc.aio.RpcContext."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """See grpc.aio.RpcContext."""
        callback(self)

    def __await__(self) -> Generator[None, None, Any]:
        raise self._error()
        yield

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._responses()

    async def _responses(self) -> AsyncIterator[Any]:
        raise self._error()
        yield

    async def read(self) -> NoReturn:
        """See grpc.aio.StreamStreamCall."""
        raise self._error()

    async def write(self, request: Any) -> NoReturn:
        """See grpc.aio.StreamStreamCall."""
        raise self._error()

    async def done_writing(self) -> None:
        """See grpc.aio.StreamStreamCall."""
