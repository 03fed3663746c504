"""Dividing a rate over a tree: weighted max-min fairness, level by level. Pure: no clock, no I/O.

Max-min fair is a division in which nobody can get more without taking from somebody who has, for its weight, no more.
At each level what is wanted is given first; what nobody wants is handed out as well, half by demand and half by weight,
so that an idle part can begin at once and a busy one has room to grow.

Source: Bertsekas and Gallager, "Data Networks" §6.5.2 (max-min fair flow control), with weights, floors and ceilings.
"""

import math
from collections.abc import Sequence
from typing import Final

INFINITE: Final = math.inf


class Part:
    """A part of a tree of rates, in calls a second; a leaf has no parts.

    Attributes:
        weight: its claim beside its siblings when there is too little, above 0.
        floor: what it gets whenever it is wanted, however much its siblings want.
        ceiling: what it never exceeds.
        demand: what it wants; `divide` sets it for what has parts.
        parts: what it is divided into.
        away: what those want besides who are away: it takes nothing from who is there, and what nobody wants is kept
            for them as if it were wanted. `divide` sets it for what has parts.
        rate: what it gets, set by `divide`.
        had: what it had before; where whole numbers are divided, it tips the scales.
    """

    __slots__ = ("_floor", "away", "ceiling", "demand", "floor", "had", "parts", "rate", "weight")

    def __init__(
        self,
        parts: Sequence["Part"] = (),
        *,
        weight: float = 1.0,
        floor: float = 0.0,
        ceiling: float = INFINITE,
        demand: float = 0.0,
    ) -> None:
        self.parts, self.weight, self.floor, self.ceiling, self.demand = parts, weight, floor, ceiling, demand
        self.rate = self.had = self.away = 0.0
        # What it must get: its own floor and its parts', as far as they are wanted.
        self._floor = 0.0

    def leaves(self) -> list["Part"]:
        """The leaves, in order."""
        return [leaf for part in self.parts for leaf in part.leaves()] if self.parts else [self]


def divide(root: Part) -> None:
    """Gives each part of a tree its rate.

    The parts of a part get no more than it has, and what can be given is given, up to the ceilings; a leaf below no
    ceiling gets what it wants. Linear but for a sort of each level's parts.
    """
    _ask(root)
    root.rate = root.ceiling
    _give(root)


def _ask(part: Part) -> None:
    """Sets what a part wants, and what of it is guaranteed, from its leaves up."""
    if part.parts:
        wanted = away = floor = 0.0
        for below in part.parts:
            _ask(below)
            wanted += below.demand
            away += below.away
            floor += below._floor
        part.demand, part.away = min(wanted, part.ceiling), away
        part._floor = min(part.ceiling, max(floor, min(part.floor, part.demand)))
    else:
        part.demand = min(part.demand, part.ceiling)
        part._floor = min(part.floor, part.demand)


def _give(part: Part) -> None:
    """Divides what a part has among its parts, from the top down."""
    parts = part.parts
    if part.rate == INFINITE:
        for below in parts:
            below.rate = below.ceiling
            _give(below)
        part.rate = sum(below.rate for below in parts) if parts else part.demand
        return
    if not parts:
        return
    demands = [below.demand for below in parts]
    wanted = sum(demands)
    if part.rate <= wanted:
        rates = fill(part.rate, [below.weight for below in parts], [below._floor for below in parts], demands)
    else:
        rates = _with_spare(part.rate - wanted, parts)
    for below, rate in zip(parts, rates, strict=True):
        below.rate = rate
        _give(below)


def _with_spare(spare: float, parts: Sequence[Part]) -> list[float]:
    """What each gets where all get what they want and something is left: what is wanted by the away first."""
    away, weights = sum(below.away for below in parts), sum(below.weight for below in parts)
    part = min(1.0, spare / away) if away > 0 else 0.0
    kept = [min(below.ceiling - below.demand, part * below.away) for below in parts]
    wanted = sum(below.demand for below in parts) + away
    claims = [below.weight / weights + ((below.demand + below.away) / wanted if wanted > 0 else 0.0) for below in parts]
    room = [below.ceiling - below.demand - keeps for below, keeps in zip(parts, kept, strict=True)]
    more = fill(spare - sum(kept), claims, [0.0] * len(parts), room)
    return [below.demand + keeps + extra for below, keeps, extra in zip(parts, kept, more, strict=True)]


def fill(amount: float, weights: Sequence[float], floors: Sequence[float], ceilings: Sequence[float]) -> list[float]:
    """Fills vessels to one level: each gets level * weight, but no less than its floor and no more than its ceiling.

    Args:
        amount: what there is.
        weights: above 0.
        floors: 0 or more, none above its ceiling. If they exceed the amount together, each gets a like part of its own.
        ceilings: may be infinite.

    Returns:
        What each gets: together the amount, or all ceilings if they are less.
    """
    least = sum(floors)
    if least >= amount:
        return [floor * amount / least for floor in floors] if least > 0 else [0.0] * len(floors)
    if sum(ceilings) <= amount:
        return list(ceilings)
    level = _level(amount - least, weights, floors, ceilings)
    return [
        min(max(level * weight, floor), ceiling)
        for weight, floor, ceiling in zip(weights, floors, ceilings, strict=True)
    ]


def _level(more: float, weights: Sequence[float], floors: Sequence[float], ceilings: Sequence[float]) -> float:
    """The level at which vessels hold `more` than their floors: walks up over where one begins to fill, or is full."""
    steps = []
    for weight, floor, ceiling in zip(weights, floors, ceilings, strict=True):
        if floor < ceiling:
            steps.append((floor / weight, weight))
            steps.append((ceiling / weight, -weight))
    steps.sort()
    level, rising, filling = 0.0, 0.0, 0
    for at, change in steps:
        if filling and rising * (at - level) >= more:
            break
        more -= rising * (at - level) if filling else 0.0
        filling += 1 if change > 0 else -1
        level, rising = at, rising + change if filling else 0.0
    return level + more / rising
