"""Whole numbers of what can't be had in part: a divided tree rounded, and a rest handed out. Pure.

Source: Hamilton's method of largest remainders, level by level, so that every level keeps its ceiling.
"""

import math
from collections.abc import Sequence
from typing import Final

from meshwarden.controlplane.quota.allocator import Part

_ROUNDING: Final = 1e-6
_KEPT: Final = 0.25
"""A part keeps the one that it has beyond its whole share against others that have so little more claim to it."""


def round_down(root: Part) -> None:
    """Makes the rates of a divided tree whole; no level has more than it had, rounded down at the root.

    Where the ceilings are whole, none is exceeded. What `had` says of each part keeps ones from wandering among equals.
    """
    root.rate = float(math.floor(root.rate + _ROUNDING))
    _hand_down(root)


def apportion(room: int, wants: Sequence[int]) -> list[int]:
    """Hands out so many among those who want some: in proportion, whole, to none more than it wants."""
    together = sum(wants)
    if together <= room:
        return list(wants)
    if room <= 0:
        return [0] * len(wants)
    exact = [want * room / together for want in wants]
    return _largest(room, exact, [0.0] * len(wants))


def rounded(amount: int, exact: Sequence[float], had: Sequence[float]) -> list[float]:
    """Shares made whole, together no more than an amount; `had` says what each has, which keeps ones from wandering."""
    return [float(whole) for whole in _largest(amount, exact, had)]


def _hand_down(part: Part) -> None:
    if not part.parts:
        return
    whole = rounded(int(part.rate), [below.rate for below in part.parts], [below.had for below in part.parts])
    for below, rate in zip(part.parts, whole, strict=True):
        below.rate = rate
        _hand_down(below)


def _largest(amount: int, exact: Sequence[float], had: Sequence[float]) -> list[int]:
    """Each its exact share rounded down, and the rest to those whose remainders are largest."""
    found = [math.floor(rate + _ROUNDING) for rate in exact]
    claims = []
    for number, (rate, whole) in enumerate(zip(exact, found, strict=True)):
        if rate - whole > _ROUNDING:
            claims.append((whole - rate - (_KEPT if had[number] > whole else 0.0), number))
    claims.sort()
    for _, number in claims[: max(0, amount - sum(found))]:
        found[number] += 1
    return found
