"""What points say of amounts for a period, what they have of them, and what they are told. Pure."""

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from meshwarden.controlplane.quota.demand import Demand
from meshwarden.controlplane.quota.tree import Path, Point

MAX_SERIES: Final = 64
MOST: Final = 1e15


@dataclass(slots=True)
class Account:
    """One bucket in the period.

    Attributes:
        granted: what was given of it, less what came back.
        used: what of that was used, as points say.
        series: what of that points used that still live, by their series, of `MAX_SERIES` at most: so that who goes on
            with what is written knows what was used meanwhile.
    """

    granted: float = 0.0
    used: float = 0.0
    series: dict[int, float] = field(default_factory=dict)


class Chunks(NamedTuple):
    """What a point says of its chunks of a bucket.

    Attributes:
        series: its own name for this count, another if it has forgotten what it had.
        turn: the ledger's for which it holds.
        amount: what it was given in all.
        left: what of that it may still use; below 0 if it had to use more than it had.
        returned: what of it it has given back, in all.
        wanted: what a call needs that it had to turn away.
    """

    series: int = 0
    turn: int = 0
    amount: float = 0.0
    left: float = 0.0
    returned: float = 0.0
    wanted: float = 0.0

    def is_sane(self) -> bool:
        """Whether that can be."""
        kept = 0 <= self.returned <= self.amount <= MOST and 0 <= self.wanted <= MOST
        return kept and -MOST <= self.left <= self.amount - self.returned


class Grant(NamedTuple):
    """What a point is told: all that it was given so far, and at which level nothing is left, if so ("" if not)."""

    point: Point
    path: Path
    series: int
    amount: float
    spent: str


@dataclass(slots=True, eq=False)
class Holding:
    """What one point has of one bucket.

    Attributes:
        given: in all, as far as we know: by us or, before we began, by whoever did.
        base: what of that is its own word only.
        said: how much of it the point knows of.
        used: what it has used.
        returned: what it has given back, in all.
        credited: what of that was taken back.
        wanted: what a call needs that it had to turn away.
        asks: whether it needs more.
        tell: whether there is something to say to it.
        spent: the level at which it was told that nothing is left.
        used_s: when it was heard last that it is used.
    """

    point: Point
    path: Path
    series: int
    demand: Demand
    given: float
    base: float
    said: float
    used: float
    returned: float
    wanted: float = 0.0
    credited: float = 0.0
    asks: bool = False
    tell: bool = False
    spent: str = ""
    used_s: float = -math.inf

    @property
    def out(self) -> float:
        """What it can still use, with what is under way to it."""
        return self.given - self.used - self.returned
