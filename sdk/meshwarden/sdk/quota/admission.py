"""What a call that was let in holds of its server's policies until it ends."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from meshwarden.sdk.backpressure.concurrency import Concurrency, Place
from meshwarden.sdk.quota import cost
from meshwarden.sdk.quota.limit import ALLOWED, Decision


class Engine(Protocol):
    """What one policy is held by, in amounts of its unit. Safe to share between threads; nothing in it blocks.

    `now_s` is in seconds of a clock that never goes back, and the same for all methods.
    """

    def take(self, tenant: str, method: str, amount: float, now_s: float, free: float | None = None) -> Decision:
        """Lets a call in that needs so much, and takes that; or not, and takes nothing.

        Args:
            tenant: the caller's.
            method: that it calls.
            amount: of the unit.
            now_s: the present.
            free: which part of what may be saved up must be left then, by its criticality; None: the method's own.
        """

    def give_back(self, tenant: str, method: str, amount: float, now_s: float) -> None:
        """Puts back what was taken at `now_s` for a call that another policy has refused, or that took less."""

    def charge(self, tenant: str, method: str, amount: float, now_s: float) -> float:
        """Takes more for a call than was taken, or puts back, if `amount` is negative; what there is may go below 0.

        Returns:
            For how many seconds the call should do nothing that costs more; 0 unless there is less than nothing.
        """

    def end(self, tenant: str, method: str, now_s: float) -> None:
        """A call that was let in has ended."""


class Taken:
    """What a call has taken of one policy's engine so far."""

    __slots__ = ("amount", "at_s", "engine")

    def __init__(self, engine: Engine, amount: float, at_s: float) -> None:
        self.engine, self.amount, self.at_s = engine, amount, at_s


class Admission:
    """One call's. Safe to share between threads; `end` may be told more than once, and the first time counts.

    Attributes:
        decision: whether the call may go on.
    """

    __slots__ = (
        "_cost",
        "_costs",
        "_ended",
        "_lock",
        "_method",
        "_monotonic_s",
        "_places",
        "_sizes",
        "_slots",
        "_tenant",
        "decision",
    )

    def __init__(
        self,
        tenant: str = "",
        method: str = "",
        monotonic_s: Callable[[], float] = lambda: 0.0,
        *,
        costs: Iterable[Taken] = (),
        sizes: Iterable[Taken] = (),
        slots: Sequence[Engine] = (),
        places: Sequence[tuple[Concurrency, Place]] = (),
        decision: Decision = ALLOWED,
    ) -> None:
        """What it has, by how that is counted.

        Args:
            tenant: the caller's.
            method: that it calls.
            monotonic_s: seconds of any clock that never goes back.
            costs: what it has taken where its cost is counted.
            sizes: what it has taken where the bytes of its messages are counted.
            slots: the engines that count it while it runs.
            places: those that it has at the server, where that finds by itself how many there are.
            decision: whether it may go on.
        """
        self._tenant, self._method, self._monotonic_s = tenant, method, monotonic_s
        self._costs, self._sizes, self._slots, self._places = tuple(costs), tuple(sizes), slots, places
        self._cost: int | None = None
        self._ended, self._lock = False, threading.Lock()
        self.decision = decision

    def cost(self, more: int) -> None:
        """It has cost so much more, by its handler's word; see `cost.report_cost`."""
        with self._lock:
            if self._ended:
                return
            self._cost = min((self._cost or 0) + more, cost.MAX_COST)
            for taken in self._costs:
                if self._cost > taken.amount:
                    self._settle(taken, self._cost)

    @property
    def weighs(self) -> bool:
        """Whether the bytes of its messages are counted."""
        return bool(self._sizes)

    def weigh(self, size_bytes: int) -> None:
        """A message of that size came or goes."""
        with self._lock:
            if self._ended:
                return
            for taken in self._sizes:
                taken.engine.charge(self._tenant, self._method, size_bytes - taken.amount, self._monotonic_s())
                taken.amount = 0

    def owed_s(self) -> float:
        """For how many seconds a stream should wait with its next message; ask again then."""
        now_s = self._monotonic_s()
        waits = [taken.engine.charge(self._tenant, self._method, 0, now_s) for taken in self._sizes]
        return max(waits, default=0.0)

    def answered(self) -> None:
        """A stream has had its first answer: it may stay for long and do little, so it has a place no more."""
        if self._places:
            self._leave(is_measured=False)

    def end(self, trailing: Iterable[tuple[str, str | bytes]] = (), *, is_measured: bool = False) -> None:
        """The call has ended, and its handler with it.

        Args:
            trailing: the metadata at the end of the answer.
            is_measured: whether how long it took says how busy the server is.
        """
        with self._lock:
            if self._ended:
                return
            self._ended = True
            if self._places:
                self._leave(is_measured)
            for engine in self._slots:
                engine.end(self._tenant, self._method, self._monotonic_s())
            if self._costs:  # last: a handler may have put anything into its metadata
                said = cost.find_reported(trailing)
                said = self._cost if said is None else said
                if said is not None:
                    for taken in self._costs:
                        self._settle(taken, said)

    def _leave(self, is_measured: bool) -> None:
        now_s = self._monotonic_s()
        for concurrency, place in self._places:
            concurrency.leave(place, now_s, is_measured)

    def _settle(self, taken: Taken, amount: float) -> None:
        more = amount - taken.amount
        if more < 0:
            taken.engine.give_back(self._tenant, self._method, -more, taken.at_s)
        else:
            taken.engine.charge(self._tenant, self._method, more, self._monotonic_s())
        taken.amount = amount


FREE: Final = Admission()
"""That of a call whose end means nothing to any policy."""
