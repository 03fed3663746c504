"""How much of an agent's or a control plane's time each caller may take, so that a flood costs its sender alone.

Bytes and spans say little of what a message costs to read; so what is rationed is processor time itself.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_MAX_KEPT = 1024
_LOOK_S = 0.05


@dataclass(frozen=True)
class Share:
    """A part of one processor in the long run, and how many seconds may come at once."""

    part: float
    burst_s: float


class Allowance:
    """A bucket of processor seconds for each caller. A message is let in while there is any left of it."""

    def __init__(
        self,
        share: Share,
        now_s: Callable[[], float] = time.monotonic,
        used_s: Callable[[], float] = time.thread_time,
    ) -> None:
        """Starts with full buckets.

        Args:
            share: what each caller gets.
            now_s: any clock that never goes back.
            used_s: processor time of this thread.
        """
        self._share, self._now_s, self._used_s = share, now_s, used_s
        # {caller: (seconds spent of its bucket, when)}
        self._spent: dict[str, tuple[float, float]] = {}

    def has(self, caller: str) -> bool:
        """Whether there is any left."""
        return self._spent_s(caller) < self._share.burst_s

    async def wait(self, caller: str) -> None:
        """Waits until there is some left: who is read no sooner is held back by its own stream."""
        while not self.has(caller):  # noqa: ASYNC110 - it comes back with time, which tells nobody
            await asyncio.sleep(_LOOK_S)

    @contextlib.contextmanager
    def spend(self, caller: str) -> Iterator[Callable[[], float]]:
        """Charges a caller for what is done inside; yields what tells how much that is so far, in seconds."""
        begun_s = self._used_s()
        try:
            yield lambda: self._used_s() - begun_s
        finally:
            spent_s = self._spent_s(caller) + self._used_s() - begun_s
            if len(self._spent) >= _MAX_KEPT:
                self._spent = {name: spent for name, spent in self._spent.items() if self._spent_s(name) > 0}
            self._spent[caller] = (spent_s, self._now_s())

    def _spent_s(self, caller: str) -> float:
        spent_s, at_s = self._spent.get(caller, (0.0, 0.0))
        return max(0.0, spent_s - (self._now_s() - at_s) * self._share.part)
