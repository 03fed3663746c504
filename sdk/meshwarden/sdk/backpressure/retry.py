"""Whether, and when, a unary call is made again that its destination refused or could not take.

Retries are what turns a short overload into a long one, so they have a budget: each call of a channel brings a tenth of
a retry, of which at most `RESERVE` are saved up. In any time there are at most `RESERVE` and a tenth of its calls.

When to try again is the destination's to say, by `RetryInfo`, `grpc-retry-pushback-ms` or `retry-after`, and never
sooner; where it says nothing the wait doubles from one attempt to the next. A call is not made again past its deadline,
nor if it would wait for longer than `MOST_WAIT_S`, nor if the SDK itself has refused it.

Time and chance are passed in.

Source: Beyer and others, Site Reliability Engineering, ch. 21, "Deciding to Retry".
"""

import math
import threading
from collections.abc import Callable, Iterable
from typing import Final

import grpc

from meshwarden.sdk.backpressure import status_detail
from meshwarden.sdk.backpressure.throttle import is_refusal
from meshwarden.sdk.backpressure.throttled import THROTTLED

PART: Final = 0.1
RESERVE: Final = 10.0
MOST: Final = 5
MOST_WAIT_S: Final = 10.0
_FIRST_WAIT_S: Final = 0.1
_SPREAD: Final = 0.25
_WHOLE: Final = 1 - 1e-9
_PUSHBACK, _AFTER = "grpc-retry-pushback-ms", "retry-after"


class Budget:
    """The retries that a channel may make. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = RESERVE

    def call(self) -> None:
        """A call is made."""
        with self._lock:
            self._left = min(RESERVE, self._left + PART)

    def take(self) -> bool:
        """Whether one more retry may be made."""
        with self._lock:
            if self._left < _WHOLE:
                return False
            self._left -= 1
            return True


class Retries:
    """The retries of one channel."""

    def __init__(self, most: int, now_s: Callable[[], float], chance: Callable[[], float]) -> None:
        """Lets each call be made `most` times again, by a clock that never goes back.

        Raises:
            ValueError: `most` is not from 0 to `MOST`.
        """
        if not 0 <= most <= MOST:
            raise ValueError(f"retries={most}: give 0 to {MOST}")
        self.most, self.now_s, self.chance = most, now_s, chance
        self.budget = Budget()

    def begin(self, timeout_s: float | None) -> "Attempts":
        """A call begins that has `timeout_s` for all its attempts together; None: no end."""
        self.budget.call()
        return Attempts(self, None if timeout_s is None else self.now_s() + timeout_s)


class Attempts:
    """The attempts of one call.

    Attributes:
        is_told: whether it was the destination that said when the next one is to be made.
    """

    __slots__ = ("_ends_s", "_made", "_retries", "is_told")

    def __init__(self, retries: Retries, ends_s: float | None) -> None:
        self._retries, self._ends_s, self._made = retries, ends_s, 0
        self.is_told = False

    @property
    def left_s(self) -> float | None:
        """How many seconds are left to the call; None if it has no deadline."""
        return None if self._ends_s is None else max(0.0, self._ends_s - self._retries.now_s())

    def wait_s(self, code: grpc.StatusCode | None, trailing: Iterable[tuple[str, object]]) -> float | None:
        """After how many seconds the call, whose last attempt ended so, is to be made again; None: not at all."""
        retries, told = self._retries, tuple(trailing)
        is_later = code is grpc.StatusCode.UNAVAILABLE or is_refusal(code, told)
        if not is_later or THROTTLED in told or self._made >= retries.most:
            return None
        said_s, chance = told_s(told), retries.chance()
        if said_s is None:
            wait_s = _FIRST_WAIT_S * 2.0**self._made * (1 - chance / 2)
        else:
            # Those that were refused together shall not come again together.
            wait_s = said_s * (1 + _SPREAD * chance)
        if wait_s > MOST_WAIT_S or (self._ends_s is not None and retries.now_s() + wait_s >= self._ends_s):
            return None
        if not retries.budget.take():
            return None
        self._made, self.is_told = self._made + 1, said_s is not None
        return wait_s


def told_s(trailing: Iterable[tuple[str, object]]) -> float | None:
    """After how many seconds a caller may try again; None if it isn't told, infinity if it shall not."""
    said = dict(trailing)
    details = said.get(status_detail.KEY)
    found = status_detail.retry_delay_s(details) if isinstance(details, bytes) else None
    if found is not None:
        return found
    for key, unit_s in ((_PUSHBACK, 0.001), (_AFTER, 1.0)):
        text = str(said.get(key, ""))
        if text.isascii() and text.isdigit() and len(text) < 16:
            return int(text) * unit_s
        if key == _PUSHBACK and text:
            return math.inf  # gRFC A6: anything else says not to
    return None
