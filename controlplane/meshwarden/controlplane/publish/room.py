"""How many bytes may be on their way to sessions at once.

Whatever is written to a stream is in memory until its client has read it, twice, since gRPC copies it. When a fleet
comes back at once each node is told its whole configuration; so what is large waits for room, first come first served.
Small messages need none.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

SIZE_BYTES: Final = 128 << 20
SMALL_BYTES: Final = 64 << 10
COPIES: Final = 2
"""Of a message that is being written: the bytes that were handed over, and gRPC's own."""


class Room:
    """A number of bytes that are shared."""

    def __init__(self, size_bytes: int = SIZE_BYTES, small_bytes: int = SMALL_BYTES) -> None:
        """All of it is free; messages up to `small_bytes` are not counted."""
        self._size_bytes, self._small_bytes = size_bytes, small_bytes
        self.free_bytes = size_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def is_small(self, size_bytes: int) -> bool:
        """Whether something needs no room."""
        return size_bytes <= self._small_bytes

    @asynccontextmanager
    async def hold(self, wanted_bytes: int) -> AsyncIterator[None]:
        """Waits for room and holds it for the length of the block; what is larger than all of it takes all of it."""
        if self.is_small(wanted_bytes):
            yield
            return
        held = min(wanted_bytes, self._size_bytes)
        await self._take(held)
        try:
            yield
        finally:
            self._give(held)

    async def _take(self, size: int) -> None:
        if not self._waiting and size <= self.free_bytes:
            self.free_bytes -= size
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if (size, turn) in self._waiting:
                self._waiting.remove((size, turn))
                self._give(0)  # who waits behind it may need less
            else:  # it had its room already
                self._give(size)
            raise

    def _give(self, size: int) -> None:
        self.free_bytes += size
        while self._waiting and self._waiting[0][0] <= self.free_bytes:
            wanted, turn = self._waiting.popleft()
            self.free_bytes -= wanted
            if turn.cancelled():  # its waiter is about to give this back
                continue
            turn.set_result(None)
