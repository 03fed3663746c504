"""Two asyncio transports joined end to end: what one reads the other writes, and they end together."""

import asyncio
from collections.abc import Callable


class End(asyncio.Protocol):
    """One end of a splice.

    It reads nothing until it is joined, but for the first piece that its transport delivers: that wakes `on_first`.
    Flow control runs both ways: an end whose peer cannot keep up stops reading. The end of either is the end of both,
    for an HTTP/2 connection that is half closed serves nobody and was seen to leak.
    """

    def __init__(self, on_first: Callable[[], None], on_lost: Callable[[], None], flush_s: float) -> None:
        self.transport: asyncio.Transport | None = None
        self._on_first = on_first
        self._on_lost = on_lost
        self._flush_s = flush_s
        self._other: asyncio.Transport | None = None
        self._peer: End | None = None
        self._early: list[bytes] = []
        self._over = False
        self._is_lost = False
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def over(self) -> bool:
        """Whether this end has ended."""
        return self._over

    @property
    def has_early(self) -> bool:
        """Whether something was read before there was an end to pass it on to."""
        return bool(self._early)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's word that there is a transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # what asyncio hands to a stream protocol
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Passes data on, or keeps it if there is nobody to take it yet."""
        if self._other is not None:
            self._other.write(data)
            return
        self._early.append(data)
        if self.transport is not None:
            self.transport.pause_reading()
        if len(self._early) == 1:  # a transport may deliver once more although it was paused (seen with uvloop)
            self._on_first()

    def join(self, other: "End") -> None:
        """Connects this end to `other`, in both directions."""
        if self.transport is None or other.transport is None or self._over or other._over:
            self.abort()
            other.abort()
            return
        self._other, other._other = other.transport, self.transport
        self._peer, other._peer = other, self
        for end in (self, other):
            for data in end._early:
                end._other.write(data)  # type: ignore[union-attr]  # set just now
            end._early.clear()
            if end.transport is not None and not end.transport.is_reading():
                end.transport.resume_reading()

    def pause_writing(self) -> None:
        """This end's transport is full: whoever feeds it stops reading."""
        if self._other is not None and not self._other.is_closing():
            self._other.pause_reading()

    def resume_writing(self) -> None:
        """This end's transport has room again."""
        if self._other is not None and not self._other.is_closing():
            self._other.resume_reading()

    def eof_received(self) -> bool:
        """The peer will send no more; the transport closes itself."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """This end is gone, so the other one goes, with what it still has to write."""
        self._over = True
        self._is_lost = True
        self._early.clear()
        if self._deadline is not None:
            self._deadline.cancel()
        if self._other is not None and self._peer is not None and not self._peer.over:
            self._other.close()
            # A peer that reads nothing would keep the closing transport for ever.
            self._peer._deadline = asyncio.get_running_loop().call_later(self._flush_s, self._peer.abort)
        self._other = self._peer = None
        self._on_lost()

    def abort(self) -> None:
        """Ends it at once; what is unwritten is lost."""
        self._over = True
        if self.transport is not None and not self._is_lost:  # Python 3.11's TLS transport takes none once it is lost
            self.transport.abort()
