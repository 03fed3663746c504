"""Counts the bytes of a grpc.aio call's messages, and has its streams wait while there is something owed.

grpc reads and writes the messages of streams, in the handler's own task or one that it has made. So their sizes are
taken where they are serialised, of the call that is served there.
"""

import contextvars
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol


class Weighed(Protocol):
    """A call that is served."""

    @property
    def weighs(self) -> bool:
        """Whether the bytes of its messages are counted."""

    def weigh(self, message: Any) -> None:
        """Counts the bytes of a message."""

    async def hold(self) -> None:
        """Waits while there is something owed."""


_serving: contextvars.ContextVar[Weighed | None] = contextvars.ContextVar("meshwarden_sdk_weighed", default=None)


def slowed(call: Weighed, request_or_requests: Any, context: Any) -> tuple[Any, Any]:
    """What to hand to the handler in place of its request or requests, and of its context."""
    if not call.weighs:
        return request_or_requests, context
    _serving.set(call)
    if isinstance(request_or_requests, bytes):
        call.weigh(request_or_requests)
        return request_or_requests, Slowed(call, context)
    return _paced(call, request_or_requests), Slowed(call, context)


def weighing(convert: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    """A serializer or deserializer of a stream's messages that counts their bytes."""

    def converted(message: Any) -> Any:
        made = convert(message) if convert is not None else message
        call = _serving.get()
        if call is not None:
            call.weigh(message if isinstance(message, bytes) else made)
        return made

    return converted


async def _paced(call: Weighed, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield request
        await call.hold()


class Slowed:
    """A call's context, whose reads and writes wait while there is something owed."""

    def __init__(self, call: Weighed, context: Any) -> None:
        self._call, self._context = call, context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        """The next message, as of grpc."""
        await self._call.hold()
        return await self._context.read()

    async def write(self, message: Any) -> None:
        """Sends a message, as of grpc."""
        await self._call.hold()
        await self._context.write(message)
