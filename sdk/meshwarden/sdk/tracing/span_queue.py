"""Spans on their way out of the program: kept in bounded memory until they are taken, and counted where they are lost.

    keep ──▶ row ──pack──▶ batches ──send──▶ carrier

Two threads do what takes long, from the first span on: one packs what has ended, one sends. A batch is sent until it is
answered, always the same bytes under the same number, so who takes them can tell what comes again. Of spans that nobody
takes the oldest batches are lost at the bound, except for the one that may be taken already.

A child made by fork begins anew: what its parent has is the parent's.
"""

import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, Context, attach, set_value
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from meshwarden.sdk.tracing.call_span import CallSpan
from meshwarden.sdk.tracing.loss import MALFORMED, QUEUE_FULL, REFUSED, SHUTDOWN, TOO_LARGE
from meshwarden.sdk.tracing.numbered import Number, Numbers
from meshwarden.sdk.tracing.unsampled import UNSAMPLED

MAX_ROW: Final = 8192
"""How many spans wait to be packed; further ones are lost."""
MAX_BYTES: Final = 8 << 20
"""What packed spans may take."""
SHUTDOWN_S: Final = 5.0
"""How long a program waits at its end for its spans to be taken."""
_BATCH: Final = 512
# An agent takes a megabyte of one resource. It cuts what is long in a span, so a large one goes by itself, within what
# gRPC takes.
_MAX_BODY_BYTES: Final = 768 << 10
_MAX_ALONE_BYTES: Final = (4 << 20) - (64 << 10)
_PAUSE_S: Final = (0.1, 2.0)
_LAST_PAUSE_S: Final = 0.2
_log = logging.getLogger("meshwarden.sdk")

Lost = Callable[[str, int], None]
"""Is told why, in a word of `meshwarden.sdk.tracing.loss`, and how many spans are lost."""


class Refused(Exception):
    """A batch is not taken, now or later."""


class Away(Exception):
    """A batch is to be sent again, after `retry_s` if that is known: it was not taken, or nobody knows."""

    def __init__(self, message: str, retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class Carrier(Protocol):
    """Brings spans to whoever takes them."""

    def pack_calls(self, calls: Sequence[CallSpan], resource: Resource, scope: InstrumentationScope, /) -> bytes:
        """Writes one or more spans of calls, so that what `pack` has written may follow."""

    def pack(self, spans: Sequence[ReadableSpan], /) -> bytes:
        """Writes spans as they are sent."""

    def send(self, body: bytes, number: Number, /) -> None:
        """Sends them; returns once they are taken.

        Raises:
            Refused, Away: they are not.
        """

    def close(self) -> None:
        """Ends what is under way."""

    def renew(self) -> None:
        """Begins anew, in a child made by fork."""


class _Batch(NamedTuple):
    number: Number
    body: bytes
    spans: int


class SpanQueue(SpanProcessor):
    """The queue. Safe to share between threads."""

    def __init__(
        self,
        carrier: Carrier,
        lost: Lost,
        pack: Callable[[Sequence[Any]], bytes] | None = None,
        delay_s: float = 1.0,
        max_row: int = MAX_ROW,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Makes an empty one.

        Args:
            carrier: takes the spans away.
            lost: is told of those that are lost, on any thread.
            pack: writes what `keep` takes as it is sent; None: the carrier does.
            delay_s: how long spans may wait for others to go with.
            max_row: how many may wait to be packed.
            max_bytes: what packed ones may take.
        """
        self._carrier, self._lost, self._write = carrier, lost, pack or carrier.pack
        self._delay_s, self._max_row, self._max_bytes = delay_s, max_row, max_bytes
        self._begin()
        begin = weakref.WeakMethod(self._begin_in_child)
        os.register_at_fork(after_in_child=lambda: (found := begin()) and found())

    def _begin(self) -> None:
        self._row: deque[Any] = deque()  # appended to without a lock
        self._wanted, self._closing = threading.Event(), threading.Event()
        self._starting, self._packing = threading.Lock(), threading.Lock()
        self._threads: tuple[threading.Thread, ...] = ()
        self._changed = threading.Condition()  # of what follows
        self._batches: deque[_Batch] = deque()
        self._size_bytes = self._packed = self._settled = 0
        self._is_all_packed = self._is_over = self._is_away = False
        self._numbers = Numbers()

    def _begin_in_child(self) -> None:
        self._begin()
        self._carrier.renew()

    # -- the program's threads

    def keep(self, span: Any) -> None:
        """Takes a span that has ended."""
        row = self._row
        if len(row) >= self._max_row or self._closing.is_set():
            self._lost(SHUTDOWN if self._closing.is_set() else QUEUE_FULL, 1)
            return
        row.append(span)
        if len(row) >= _BATCH and not self._wanted.is_set():
            self._wanted.set()
        if not self._threads:
            self._start()

    def on_end(self, span: ReadableSpan) -> None:
        """See `SpanProcessor`."""
        if span.context is not None and (span.context.trace_flags.sampled or UNSAMPLED in (span.attributes or ())):
            self.keep(span)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """See `SpanProcessor`."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Waits until what has ended is gone, taken or lost; whether it is."""
        self._pack()
        with self._changed:
            wanted = self._packed
            return self._changed.wait_for(lambda: self._settled >= wanted, timeout_millis / 1000)

    def shutdown(self) -> None:
        """Sends what is left, for `SHUTDOWN_S` at most; what is not taken by then is lost."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wanted.set()
        with self._changed:
            self._changed.notify_all()
        end_s = time.monotonic() + SHUTDOWN_S
        with self._starting:  # a call that ends now may be starting them
            threads = self._threads
        for thread in threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._carrier.close()
        for thread in threads:
            thread.join(1.0)
        left = len(self._row) + sum(batch.spans for batch in self._batches)
        if left:
            self._lost(SHUTDOWN, left)

    def _start(self) -> None:
        with self._starting:
            if not self._threads:
                jobs = {"meshwarden-pack": self._pack_steadily, "meshwarden-send": self._send_steadily}
                threads = tuple(threading.Thread(target=job, name=name, daemon=True) for name, job in jobs.items())
                self._threads = threads
                for thread in threads:
                    thread.start()

    # -- packing

    def _pack_steadily(self) -> None:
        while not self._closing.is_set():
            self._wanted.wait(self._delay_s)
            self._wanted.clear()
            self._pack()
        self._pack()
        with self._changed:
            self._is_all_packed = True
            self._changed.notify_all()

    def _pack(self) -> None:
        with self._packing:  # so that numbers are in the order of batches
            while self._row:
                self._pack_some([self._row.popleft() for _ in range(min(len(self._row), _BATCH))])

    def _pack_some(self, spans: Sequence[Any]) -> None:
        try:
            body: bytes | None = self._write(spans)
        except Exception:
            if len(spans) == 1:
                _log.exception("a span can't be written")
            body = None
        if body is not None and len(body) <= (_MAX_BODY_BYTES if len(spans) > 1 else _MAX_ALONE_BYTES):
            self._append(body, len(spans))
        elif len(spans) > 1:
            middle = len(spans) // 2
            self._pack_some(spans[:middle])
            self._pack_some(spans[middle:])
        else:
            self._lost(MALFORMED if body is None else TOO_LARGE, 1)

    def _append(self, body: bytes, count: int) -> None:
        lost = 0
        with self._changed:
            self._batches.append(_Batch(self._numbers.next(), body, count))
            self._size_bytes += len(body)
            self._packed += count
            while self._size_bytes > self._max_bytes and len(self._batches) > 2:
                lost += self._batches[1].spans  # the first may be taken already
                self._size_bytes -= len(self._batches[1].body)
                del self._batches[1]
            self._settled += lost
            self._changed.notify_all()
        if lost:
            self._lost(QUEUE_FULL, lost)

    # -- sending

    def _send_steadily(self) -> None:
        # Nobody wants spans of how spans are sent.
        attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        least_s, most_s = _PAUSE_S
        pause_s = least_s
        while (batch := self._next()) is not None:
            try:
                self._carrier.send(batch.body, batch.number)
            except Away as away:
                self._say_away(str(away))
                self._pause(max(pause_s, away.retry_s))
                pause_s = min(pause_s * 2, most_s)
                continue
            except Refused as refused:
                _log.warning("spans were not taken: %s", refused)
                self._lost(REFUSED, batch.spans)
            self._is_away, pause_s = False, least_s
            with self._changed:
                self._batches.popleft()
                self._size_bytes -= len(batch.body)
                self._settled += batch.spans
                self._changed.notify_all()

    def _next(self) -> _Batch | None:
        """Waits for the batch that is to be sent; None if no more are."""
        with self._changed:
            self._changed.wait_for(lambda: self._batches or self._is_over or self._is_all_packed)
            return self._batches[0] if self._batches and not self._is_over else None

    def _pause(self, pause_s: float) -> None:
        """Waits; at the program's end not for long."""
        with self._changed:
            if not self._closing.is_set():
                self._changed.wait_for(self._closing.is_set, pause_s)
            else:
                self._changed.wait_for(lambda: self._is_over, min(pause_s, _LAST_PAUSE_S))

    def _say_away(self, why: str) -> None:
        if not self._is_away and not self._is_over:
            _log.warning("spans wait until they are taken: %s", why)
        self._is_away = True
