"""Which traces regions keep for a reason, told from one to the other while it matters.

A reason is known where its span comes in. Of a trace that crosses regions the others have the rest, and are to keep
that as well. What is told and heard is bounded and lasts for a minute: longer than a trace waits to be decided on.
Nothing of it is on disk.
"""

import itertools
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from meshwarden.controlplane.gather.trace.part import TRACE_ID_BYTES

LASTS_S: Final = 60.0
MAX_TOLD: Final = 16_384
MAX_HEARD: Final = 65_536
PAGE: Final = 4096
"""How many traces one answer tells of."""


class Told(NamedTuple):
    """Some of what is told: up to which number, of which process, and the ids."""

    epoch: str
    sequence: int
    trace_ids: tuple[bytes, ...]


class Word:
    """What one region tells, and what it has heard."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`monotonic` is a clock that never goes back, in seconds."""
        self._monotonic, self._epoch, self._last = monotonic, uuid.uuid4().hex, 0
        self._told: deque[tuple[int, float, bytes]] = deque(maxlen=MAX_TOLD)
        self._heard: OrderedDict[bytes, float] = OrderedDict()

    def tell(self, trace_id: bytes) -> None:
        """This region keeps a trace."""
        self._last += 1
        self._told.append((self._last, self._monotonic(), trace_id))

    def told(self, epoch: str, after: int) -> Told:
        """What is to be told to one who knows all up to a number of an epoch."""
        oldest_s = self._monotonic() - LASTS_S
        while self._told and self._told[0][1] < oldest_s:
            self._told.popleft()
        known = after if epoch == self._epoch else 0
        new = tuple(itertools.islice((item for item in self._told if item[0] > known), PAGE))
        return Told(self._epoch, new[-1][0] if new else self._last, tuple(item[2] for item in new))

    def hear(self, trace_id: bytes) -> None:
        """Another region keeps a trace."""
        now_s = self._monotonic()
        self._heard[trace_id] = now_s
        self._heard.move_to_end(trace_id)
        while len(self._heard) > MAX_HEARD or next(iter(self._heard.values())) < now_s - LASTS_S:
            self._heard.popitem(last=False)

    def has_heard(self, trace_id: bytes) -> bool:
        """Whether another region has said of late that it keeps a trace."""
        if not self._heard:
            return False
        heard_s = self._heard.get(trace_id)
        return heard_s is not None and heard_s >= self._monotonic() - LASTS_S


def ids_of(packed: bytes) -> list[bytes]:
    """Trace ids that lie one behind the other.

    Raises:
        ValueError: they don't, or are more than a page.
    """
    if len(packed) % TRACE_ID_BYTES or len(packed) > PAGE * TRACE_ID_BYTES:
        raise ValueError(f"{len(packed)} bytes of trace ids")
    return [packed[at : at + TRACE_ID_BYTES] for at in range(0, len(packed), TRACE_ID_BYTES)]
