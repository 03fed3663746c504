"""The way between a server's leases and its node agent: usage out, shares in, for as long as the server lives.

A report goes out each second, and sooner when a call was refused, a bucket was opened or a share was obeyed, but no
more often than every tenth of a second. A lease counts from the moment before the report was sent that it answers.
"""

import logging
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

import grpc

from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.lease import Leases
from meshwarden.v1 import quota_service_pb2

_EVERY_S: Final = 1.0
_LEAST_S: Final = 0.1
_BACKOFF_S: Final = (0.1, 2.0)
_GOODBYE_S: Final = 0.5
_LONGEST_TTL_S: Final = 60.0
_MAX_UNANSWERED: Final = 256
_log = logging.getLogger("meshwarden.sdk")


class ShareLink:
    """Keeps a stream to the agent, in a thread of its own, from `start` to `close`."""

    def __init__(self, link: AgentLink, monotonic_s: Callable[[], float], rng: random.Random | None = None) -> None:
        self._link, self._monotonic_s = link, monotonic_s
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries
        self._pressing, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._stream: _Stream | None = None
        self.leases: Final = Leases(self._pressing.set)
        """What the stream feeds."""

    def start(self) -> None:
        """Begins, if it hasn't."""
        if self._thread is None and not self._closing.is_set():
            self._thread = threading.Thread(target=self._run, name="meshwarden-share", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Says goodbye, if the agent listens: nothing is used any more."""
        self._closing.set()
        self._pressing.set()
        if self._thread is not None:
            self._thread.join(_GOODBYE_S)

    def _run(self) -> None:
        least_s, most_s = _BACKOFF_S
        pause_s, told = least_s, ""
        while not self._closing.is_set():
            stream = _Stream(self.leases, self._pressing, self._closing, self._monotonic_s)
            try:
                for response in self._link.share(stream.requests()):
                    pause_s, told = least_s, ""
                    stream.take(response)
            except grpc.RpcError as error:
                reason = str(error.details()) if isinstance(error, grpc.Call) else str(error)
                if reason != told and not self._closing.is_set():
                    _log.warning("no shares of limits from the node agent: %s", reason)
                told = reason
            except ValueError:  # the channel is closed
                return
            finally:
                stream.end()
            self._closing.wait(pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, most_s)


class _Stream:
    """One stream's reports and answers."""

    def __init__(
        self, leases: Leases, pressing: threading.Event, closing: threading.Event, monotonic_s: Callable[[], float]
    ) -> None:
        self._leases, self._pressing, self._closing, self._monotonic_s = leases, pressing, closing, monotonic_s
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._sent_s: OrderedDict[int, float] = OrderedDict()
        self._obeyed = 0
        self._told_s = float("-inf")

    def requests(self) -> Iterator[quota_service_pb2.ShareRequest]:
        """The reports, until the stream ends or the server does; grpc asks for them in a thread of its own."""
        sequence = 0
        while not self._ended.is_set():
            sequence += 1
            closing = self._closing.is_set()
            yield self._report(sequence, closing)
            if closing:
                return
            self._closing.wait(_LEAST_S)
            self._pressing.wait(_EVERY_S - _LEAST_S)
            self._pressing.clear()

    def take(self, response: quota_service_pb2.ShareResponse) -> None:
        """Obeys an answer."""
        now_s = self._monotonic_s()
        for point in response.points:
            self._leases.grant(point.shares, now_s)
        with self._lock:
            self._obeyed = response.sequence
            sent_s = self._sent_s.get(response.answers)
            while self._sent_s and next(iter(self._sent_s)) <= response.answers:
                self._sent_s.popitem(last=False)
        if response.points:
            self._pressing.set()  # what was taken from us is given to others when we say so
        if sent_s is not None:
            ttl_s = response.ttl.seconds + response.ttl.nanos / 1e9
            self._leases.prolong(sent_s + min(max(ttl_s, 0.0), _LONGEST_TTL_S), now_s)

    def end(self) -> None:
        """Ends the reports."""
        self._ended.set()
        self._pressing.set()

    def _report(self, sequence: int, closing: bool) -> quota_service_pb2.ShareRequest:
        now_s = self._monotonic_s()
        with self._lock:
            self._sent_s[sequence] = now_s
            if len(self._sent_s) > _MAX_UNANSWERED:
                self._sent_s.popitem(last=False)
            obeyed = self._obeyed
        # Usage in many small pieces would say little: what is only to be acknowledged goes without.
        usage = closing or self._leases.presses or now_s - self._told_s >= 0.9 * _EVERY_S
        if usage:
            self._told_s = now_s
        report = self._leases.report(now_s, usage=usage, full=sequence == 1)
        report.acknowledged, report.begins = obeyed, sequence == 1
        # By any name: the agent knows who calls.
        return quota_service_pb2.ShareRequest(sequence=sequence, points=[report], left=["self"] if closing else ())
