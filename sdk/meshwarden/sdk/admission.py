"""What a call that was let in holds of its server's policies until it ends."""

import threading
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from meshwarden.sdk.limit import ALLOWED, Decision


class Engine(Protocol):
    """What one policy is held by, in amounts of its unit. Safe to share between threads; nothing in it blocks.

    `now_s` is in seconds of a clock that never goes back, and the same for all methods.
    """

    @property
    def settles(self) -> bool:
        """Whether a call means something to it after it was let in."""

    def take(self, tenant: str, method: str, amount: float, now_s: float) -> Decision:
        """Lets a call in that needs so much, and takes that; or not, and takes nothing."""

    def give_back(self, tenant: str, method: str, amount: float, now_s: float) -> None:
        """Puts back what was taken for a call that another policy has refused."""

    def charge(self, tenant: str, method: str, amount: float, now_s: float) -> float:
        """Takes more for a call than was taken, or puts back, if `amount` is negative; what there is may go below 0.

        Returns:
            For how many seconds the call should do nothing that costs more; 0 unless there is less than nothing.
        """

    def end(self, tenant: str, method: str, now_s: float) -> None:
        """A call that was let in has ended."""


class Admission:
    """One call's. `end` may be told more than once, and the first time counts.

    Attributes:
        decision: whether the call may go on.
    """

    __slots__ = ("_engines", "_method", "_monotonic_s", "_open", "_tenant", "decision")

    def __init__(
        self,
        engines: Iterable[Engine],
        tenant: str = "",
        method: str = "",
        monotonic_s: Callable[[], float] = lambda: 0.0,
        decision: Decision = ALLOWED,
    ) -> None:
        """`engines` are those to which the call's end means something."""
        self._engines, self._tenant, self._method, self._monotonic_s = tuple(engines), tenant, method, monotonic_s
        self._open = threading.Lock()
        self.decision = decision

    def end(self) -> None:
        """The call has ended, and its handler with it."""
        if not self._engines or not self._open.acquire(blocking=False):
            return
        now_s = self._monotonic_s()
        for engine in self._engines:
            engine.end(self._tenant, self._method, now_s)


FREE: Final = Admission(())
"""That of a call whose end means nothing to any policy."""
