"""Whose turn it is: work of several tenants waits in a queue each, and the queues take turns.

One tenant may change something a thousand times a second, or something that a thousand nodes are to be told of. Its
queue holds each node once, however often there is news for it, and is served for as long as its share lasts before the
next tenant's is. So another tenant's change waits for one share of each that has work, not for all of their work.

Source: M. Shreedhar and G. Varghese, Efficient Fair Queueing Using Deficit Round Robin, 1995; what a piece of work
costs is known only afterwards here, so a share may be overdrawn, and the debt is taken off the shares to come.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, Protocol, TypeVar

SHARE_S: Final = 0.002
"""How long a tenant's changes are told before it is another tenant's turn."""
WIDTH: Final = 16
"""How many may have their turn and have not taken it yet."""
# What telling a node costs beside what is measured: its message is written after the turn.
_WRITE_S: Final = 60e-6

T = TypeVar("T", bound=Hashable)


class Queues(Generic[T]):
    """Things that wait, each for one tenant or for several."""

    def __init__(self, share: float) -> None:
        """`share` is what a tenant may cost before it is another one's turn, in any unit."""
        self._share = share
        self._waiting: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()
        self._left: dict[str, float] = {}
        self._tenants: dict[T, set[str]] = {}

    def __len__(self) -> int:
        return len(self._tenants)

    def put(self, item: T, tenants: Collection[str]) -> None:
        """Has something wait for these tenants too."""
        known = self._tenants.setdefault(item, set())
        for tenant in tenants:
            if tenant in known:
                continue
            known.add(tenant)
            if tenant not in self._waiting:
                self._waiting[tenant], self._left[tenant] = OrderedDict(), self._share
            self._waiting[tenant][item] = None

    def remove(self, item: T) -> None:
        """It waits no more, if it did."""
        for tenant in self._tenants.pop(item, ()):
            self._waiting[tenant].pop(item, None)
            if not self._waiting[tenant]:
                del self._waiting[tenant], self._left[tenant]

    def pop(self) -> tuple[str, T] | None:
        """Whose turn it is, and what has waited longest for it; None if nothing waits."""
        while self._waiting:
            tenant = next(iter(self._waiting))
            if len(self._waiting) == 1:  # nobody else is there to owe anything to
                self._left[tenant] = max(self._left[tenant], self._share)
            if self._left[tenant] > 0:
                item = next(iter(self._waiting[tenant]))
                self.remove(item)
                return tenant, item
            self._left[tenant] += self._share
            self._waiting.move_to_end(tenant)
        return None

    def charge(self, tenant: str, cost: float) -> None:
        """Takes note of what something has cost. Who has nothing else waiting owes nothing."""
        if tenant in self._left:
            self._left[tenant] = max(self._left[tenant] - cost, -100 * self._share)


class Taker(Hashable, Protocol):
    """Who waits for a turn."""

    def your_turn(self) -> None:
        """It may go on."""


class Turns:
    """Lets who has something to say have their turns, a few at a time. Who is slow to read does not wait here."""

    def __init__(
        self,
        share_s: float = SHARE_S,
        width: int = WIDTH,
        write_s: float = _WRITE_S,
        used_s: Callable[[], float] = time.thread_time,
    ) -> None:
        """Starts empty.

        Args:
            share_s: what a tenant may cost before it is another one's turn.
            width: how many may have their turn at once.
            write_s: what each costs at least.
            used_s: processor time of this thread.
        """
        self._queues: Queues[Taker] = Queues(share_s)
        self._width, self._write_s, self._used_s = width, write_s, used_s
        self._at_it: dict[Taker, str] = {}
        self._is_due = False

    def __len__(self) -> int:
        return len(self._queues) + len(self._at_it)

    def ask(self, taker: Taker, tenants: Collection[str]) -> None:
        """Waits for a turn, for changes of these tenants; it comes when all have asked who are told of a change now."""
        if taker in self._at_it:
            return
        self._queues.put(taker, tenants)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def withdraw(self, taker: Taker) -> None:
        """Waits no more, and gives up the turn."""
        self._queues.remove(taker)
        if self._at_it.pop(taker, None) is not None:
            self._go_on()

    @contextmanager
    def take(self, taker: Taker) -> Iterator[None]:
        """Takes the turn that came: what is done inside is charged to the tenant whose it was."""
        begun_s = self._used_s()
        try:
            yield
        finally:
            tenant = self._at_it.pop(taker, None)
            if tenant is not None:
                self._queues.charge(tenant, self._used_s() - begun_s)
            self._go_on()

    def _go_on(self) -> None:
        self._is_due = False
        while len(self._at_it) < self._width and (found := self._queues.pop()) is not None:
            tenant, taker = found
            self._at_it[taker] = tenant
            self._queues.charge(tenant, self._write_s)
            taker.your_turn()
