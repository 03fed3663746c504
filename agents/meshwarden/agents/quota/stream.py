"""A program's stream: its reports are taken, and it is told its shares, until either ends."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager

import anyio
import grpc

from meshwarden.agents.quota.point import Point
from meshwarden.agents.quota.points import Points
from meshwarden.v1 import quota_service_pb2 as pb


class Ended(Exception):
    """The stream is ended by us; `code` says why in gRPC's terms."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


async def converse(
    points: Points,
    point: Point,
    requests: AsyncIterator[pb.ShareRequest],
    write: Callable[[pb.ShareResponse], Awaitable[None]],
    allow: Callable[[], AbstractContextManager[None]],
) -> None:
    """Serves a point until its program says goodbye or the stream ends.

    Args:
        points: whose point it is.
        point: the point, which is closed at the end.
        requests: what the program says.
        write: tells it something.
        allow: goes around the work for each message, and raises `Ended` where there shall be no more.

    Raises:
        Ended: by `allow`.
    """
    has_left, refusal = False, None
    try:
        async with anyio.create_task_group() as group:

            async def tell() -> None:
                try:
                    while True:
                        await write(await point.next())
                except grpc.aio.BaseError:  # the stream ended while we wrote
                    group.cancel_scope.cancel()

            group.start_soon(tell)
            async for request in requests:
                try:
                    with allow():
                        has_left = bool(request.left)
                        for report in request.points[:1]:
                            points.take(point, request.sequence, report)
                except Ended as ended:
                    refusal = ended
                if has_left or refusal is not None:
                    break
            group.cancel_scope.cancel()
    finally:
        points.close(point, has_left=has_left)
    if refusal is not None:
        raise refusal
