"""One subscription's queue: at least once, acknowledged, bounded. Pure: `now_s` is passed in.

A message is queued, then sent, then acknowledged. What was sent and is not acknowledged in time comes again, as does
what a stream was sent that has ended. Where there is no room the oldest message that waits is dropped, and counted.
"""

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

MAX_ATTEMPTS: Final = 8


@dataclass(frozen=True)
class Message:
    """A message of a topic."""

    id: int
    payload: bytes
    publisher: str
    traceparent: str


@dataclass(frozen=True)
class Delivery:
    """A message as it is sent: for which time, and how many were dropped so far."""

    message: Message
    attempt: int
    dropped: int


@dataclass
class _Sent:
    message: Message
    attempt: int
    due_s: float


class Subscription:
    """The queue.

    Attributes:
        dropped: messages that had to go, for want of room or since nobody acknowledged them.
    """

    def __init__(self, size: int, window: int, acknowledge_s: float) -> None:
        """Makes an empty queue.

        Args:
            size: how many messages it holds, sent ones included.
            window: how many may be sent and not acknowledged at a time.
            acknowledge_s: after which a sent message comes again.
        """
        self._size = size
        self._window = window
        self._acknowledge_s = acknowledge_s
        self._waiting: list[tuple[int, int]] = []  # heap of (id, attempts so far)
        self._messages: dict[int, Message] = {}
        self._sent: OrderedDict[int, _Sent] = OrderedDict()  # the one due first is first
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent)

    def offer(self, message: Message) -> None:
        """Takes a new message; there may be another to drop for it, or itself."""
        if len(self) >= self._size:
            self.dropped += 1
            if not self._waiting:
                return
            self._messages.pop(heapq.heappop(self._waiting)[0])
        self._wait(message, 0)

    def take(self, now_s: float) -> Delivery | None:
        """Returns what is to be sent now, the oldest first; None if there is nothing."""
        self._expire(now_s)
        if not self._waiting or len(self._sent) >= self._window:
            return None
        number, attempts = heapq.heappop(self._waiting)
        message = self._messages.pop(number)
        self._sent[number] = _Sent(message, attempts + 1, now_s + self._acknowledge_s)
        return Delivery(message, attempts + 1, self.dropped)

    def acknowledge(self, number: int) -> bool:
        """Lets a message go that was sent; False if it was not, or is gone already."""
        if self._sent.pop(number, None) is not None:
            return True
        # It was late: it waits to be sent again, which it need not be.
        for at, (waiting, attempts) in enumerate(self._waiting):
            if waiting == number and attempts:
                del self._waiting[at]
                heapq.heapify(self._waiting)
                del self._messages[number]
                return True
        return False

    def release(self) -> None:
        """The stream has ended: what it was sent comes again."""
        for sent in self._sent.values():
            self._again(sent)
        self._sent.clear()

    def due_s(self) -> float | None:
        """When a message comes again at the earliest; None if none was sent."""
        return next(iter(self._sent.values())).due_s if self._sent else None

    def _expire(self, now_s: float) -> None:
        while self._sent and next(iter(self._sent.values())).due_s <= now_s:
            self._again(self._sent.popitem(last=False)[1])

    def _again(self, sent: _Sent) -> None:
        if sent.attempt >= MAX_ATTEMPTS:
            self.dropped += 1
        else:
            self._wait(sent.message, sent.attempt)

    def _wait(self, message: Message, attempts: int) -> None:
        self._messages[message.id] = message
        heapq.heappush(self._waiting, (message.id, attempts))
