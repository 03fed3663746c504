"""Who holds how many connections, and who makes room when there are too many. Pure."""

from collections.abc import Collection
from typing import Generic, TypeVar

ANONYMOUS = ""
T = TypeVar("T")


class Crowded(Exception):
    """There is no place for one more of this owner."""


class Crowd(Generic[T]):
    """What is held, by owner. Owners are equal: nobody is kept out by others who hold more.

    Whoever proves nothing is of one owner, `ANONYMOUS`, with few places of its own; there the oldest makes room.
    """

    def __init__(self, places: int, anonymous: int) -> None:
        """Makes an empty crowd of so many places at most, so many of them for the anonymous."""
        self._places = places
        self._anonymous = anonymous
        self._size = 0
        # {owner: what it holds, the oldest first}
        self._held: dict[str, dict[T, None]] = {}

    def count(self, owner: str) -> int:
        """Says how many an owner holds."""
        return len(self._held.get(owner, ()))

    def owners(self) -> Collection[str]:
        """Returns those who hold something."""
        return self._held.keys()

    def make_room(self, owner: str) -> T | None:
        """Returns what is to be given up so that an owner may hold one more; None if nothing.

        Raises:
            Crowded: nobody else holds more than this owner would.
        """
        if owner == ANONYMOUS and self.count(owner) >= self._anonymous:
            return next(iter(self._held[owner]))
        if self._size < self._places:
            return None
        heaviest = max(self._held, key=self.count)
        if self.count(heaviest) <= self.count(owner) + 1:
            raise Crowded
        return next(iter(self._held[heaviest]))

    def add(self, owner: str, item: T) -> None:
        """Holds an item for an owner."""
        self._held.setdefault(owner, {})[item] = None
        self._size += 1

    def remove(self, owner: str, item: T) -> None:
        """Lets an item go that is held."""
        held = self._held[owner]
        del held[item]
        self._size -= 1
        if not held:
            del self._held[owner]
