"""All topics and their subscriptions, for any number of threads."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from meshwarden.examples.daena.bus.subscription import Delivery, Message, Subscription
from meshwarden.examples.daena.error import Full, Replaced, Unknown
from meshwarden.examples.daena.field import shown


@dataclass(frozen=True)
class Limits:
    """The bounds of a broker.

    Attributes:
        queue: messages that a subscription holds.
        window: messages that may be sent to it and not acknowledged at a time.
        acknowledge_s: after which a sent message comes again.
        subscriptions: of one tenant in one topic.
        streams: open at a time; each holds a thread.
        forget_s: after which a subscription without a stream is forgotten.
    """

    queue: int = 256
    window: int = 16
    acknowledge_s: float = 10.0
    subscriptions: int = 16
    streams: int = 24
    forget_s: float = 600.0


@dataclass(frozen=True)
class Key:
    """A subscription's name: its owner's tenant and SPIFFE ID, and what the owner calls it."""

    tenant: str
    owner: str
    name: str


@dataclass
class _Held:
    queue: Subscription
    stream: int
    left_s: float | None


@dataclass
class _Topic:
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    held: dict[Key, _Held] = field(default_factory=dict)


_WAIT_S: Final = 1.0


class Broker:
    """Topics, which are given, and subscriptions, which callers make."""

    def __init__(self, topics: Iterable[str], limits: Limits, monotonic_s: Callable[[], float]) -> None:
        self._limits = limits
        self._monotonic_s = monotonic_s
        self._topics = {topic: _Topic() for topic in topics}
        self._change = threading.Condition()
        self._streams = 0
        self._numbers = itertools.count(1)
        self._forgotten = 0
        self._is_closed = False

    def publish(self, topic: str, payload: bytes, publisher: str, traceparent: str) -> tuple[int, int]:
        """Gives a message to each subscription of a topic; returns its number and how many these are.

        Raises:
            Unknown: there is no such topic.
        """
        with self._change:
            found = self._find(topic)
            self._forget(found)
            message = Message(next(found.numbers), payload, publisher, traceparent)
            for held in found.held.values():
                held.queue.offer(message)
            self._change.notify_all()
            return message.id, len(found.held)

    def stream(self, topic: str, key: Key, is_open: Callable[[], bool]) -> Iterator[Delivery]:
        """Yields the messages of a subscription while `is_open` and the broker is; made if it isn't there.

        Raises:
            Unknown: there is no such topic.
            Full: there are too many subscriptions or streams.
            Replaced: a later stream of the subscription has taken over.
        """
        with self._change:
            held, number = self._open(self._find(topic), key)
        try:
            while (delivery := self._next(held, number, is_open)) is not None:
                yield delivery
        finally:
            with self._change:
                self._streams -= 1
                if held.stream == number:
                    held.queue.release()
                    held.stream, held.left_s = 0, self._monotonic_s()

    def acknowledge(self, topic: str, key: Key, numbers: Iterable[int]) -> int:
        """Lets messages go that were sent; returns how many.

        Raises:
            Unknown: there is no such topic or subscription.
        """
        with self._change:
            held = self._find(topic).held.get(key)
            if held is None:
                raise Unknown(f"subscription: {shown(key.name)}: you have none of this name in {topic}")
            let_go = sum(held.queue.acknowledge(number) for number in set(numbers))
            self._change.notify_all()
            return let_go

    def wake(self) -> None:
        """Has every stream look whether it is open still."""
        with self._change:
            self._change.notify_all()

    def close(self) -> None:
        """Ends the streams."""
        with self._change:
            self._is_closed = True
            self._change.notify_all()

    def queues(self) -> list[tuple[str, Key, int, int]]:
        """Of each subscription (topic, key, messages held, messages dropped)."""
        with self._change:
            return [
                (name, key, len(held.queue), held.queue.dropped)
                for name, topic in self._topics.items()
                for key, held in topic.held.items()
            ]

    @property
    def streams(self) -> int:
        """How many are open."""
        return self._streams

    @property
    def forgotten(self) -> int:
        """How many messages were dropped with subscriptions that were forgotten."""
        return self._forgotten

    def _find(self, topic: str) -> _Topic:
        found = self._topics.get(topic)
        if found is None:
            raise Unknown(f"topic: {shown(topic)}: give one of {', '.join(sorted(self._topics))}")
        return found

    def _open(self, topic: _Topic, key: Key) -> tuple[_Held, int]:
        if self._streams >= self._limits.streams:
            raise Full(f"{self._streams} streams are open, which is as many as there may be: try again later")
        held = topic.held.get(key)
        if held is None:
            self._forget(topic)
            if sum(other.tenant == key.tenant for other in topic.held) >= self._limits.subscriptions:
                raise Full(f"subscription: tenant {key.tenant} has {self._limits.subscriptions} here: use one of them")
            limits = self._limits
            held = _Held(Subscription(limits.queue, limits.window, limits.acknowledge_s), 0, None)
            topic.held[key] = held
        # What an earlier stream was sent comes again.
        held.queue.release()
        held.stream, held.left_s = next(self._numbers), None
        self._streams += 1
        self._change.notify_all()
        return held, held.stream

    def _next(self, held: _Held, number: int, is_open: Callable[[], bool]) -> Delivery | None:
        with self._change:
            while is_open() and not self._is_closed:
                if held.stream != number:
                    raise Replaced("another stream has taken over this subscription")
                now_s = self._monotonic_s()
                delivery = held.queue.take(now_s)
                if delivery is not None:
                    return delivery
                due_s = held.queue.due_s()
                self._change.wait(_WAIT_S if due_s is None else min(_WAIT_S, max(0.001, due_s - now_s)))
            return None

    def _forget(self, topic: _Topic) -> None:
        before_s = self._monotonic_s() - self._limits.forget_s
        for key, held in list(topic.held.items()):
            if held.left_s is not None and held.left_s <= before_s:
                self._forgotten += len(held.queue) + held.queue.dropped
                del topic.held[key]
