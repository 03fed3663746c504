"""How much an enforcement point wants of a bucket, estimated from what it reports. Pure: time is passed in."""

import math
from collections.abc import Sequence
from typing import Final

from meshwarden.controlplane.quota.claim import KEPT

_SELDOM: Final = 0.1
"""What a point that seldom calls wants, so that its next call isn't its first."""

HALF_LIFE_S: Final = 1.5
"""What was wanted so long ago counts half."""
SHORTEST_S: Final = 0.25
"""Reports that come closer together are counted together, unless they say that demand has risen."""
SURE: Final = 3.0
"""A rise by so many standard deviations of calls at random is one, and believed at once."""


class Demand:
    """What somebody wants of a bucket a second, admitted and refused together."""

    __slots__ = ("_since_s", "_wanted", "rate")

    def __init__(self, now_s: float) -> None:
        self.rate = 0.0
        self._wanted, self._since_s = 0.0, now_s

    @property
    def since_s(self) -> float:
        """Since when is counted what comes next."""
        return self._since_s

    def add(self, wanted: float, now_s: float, ceiling: float) -> bool:
        """Counts what was wanted since the last report; no more than a ceiling is ever believed.

        Returns:
            Whether it has risen, by more than chance would have it.
        """
        self._wanted += wanted
        passed_s = now_s - self._since_s
        expected = self.rate * passed_s
        rises = self._wanted > expected + SURE * math.sqrt(max(expected, 1.0)) + 1.0
        if rises:
            self.rate = min(ceiling, max(self.rate, self._wanted / max(passed_s, 2 * SHORTEST_S)))
        elif passed_s >= SHORTEST_S:
            kept = 0.5 ** (passed_s / HALF_LIFE_S)
            self.rate = min(ceiling, self.rate * kept + self._wanted / passed_s * (1 - kept))
        if passed_s >= SHORTEST_S:
            self._wanted, self._since_s = 0.0, now_s
        return rises

    def begin(self, now_s: float) -> None:
        """Counts from now on; what was wanted so far is taken to go on."""
        self._wanted, self._since_s = 0.0, now_s

    def peak(self, at_once: float, now_s: float, ceiling: float) -> None:
        """Notes how many of what is counted at once were wanted since the last report; no more than a ceiling."""
        passed_s, self._since_s = max(0.0, now_s - self._since_s), now_s
        wanted = min(ceiling, at_once)
        self.rate = max(wanted, wanted + (self.rate - wanted) * 0.5 ** (passed_s / HALF_LIFE_S))


def planned(rate: float) -> float:
    """What to set aside for such a demand of all points of a bucket: besides, half of what calls at random vary by.

    What isn't used of it others go without; the buckets hold as much again.

    Source: the spread of a Poisson process is the root of its mean.
    """
    return rate + 0.5 * math.sqrt(rate) + 0.25


def planned_at_once(wanted: float, points: int) -> float:
    """What to set aside of what is counted at once: a tenth more, and one at each point, for a next call to find."""
    return 1.1 * wanted + points


def portions(
    amount: float, demands: Sequence[float], parts: Sequence[float], away: Sequence[float] = ()
) -> list[float]:
    """What each point of a bucket gets of an amount.

    If that is too little for all, each gets what it wants up to half of its part, whatever the others say that they
    want, and the rest goes by demand. Else each gets what it wants, and of the rest by the root of that, which is what
    calls at random vary by. But for that half points of one bucket have no claim against each other: best is what
    refuses the fewest calls.

    Args:
        amount: what there is.
        demands: what each wants.
        parts: the part of one that each would have if all had the same, which comes to no more than one together.
        away: what those want that are away. They are left what they would get, of what nobody else wants.

    Source: the rule of the square root in staffing (Halfin and Whitt, "Heavy-Traffic Limits for Queues with Many
    Exponential Servers", 1981).
    """
    if len(demands) == 1 and not away:
        return [amount]
    claims = [demand + _SELDOM for demand in demands]
    wanted = sum(claims)
    if amount <= wanted:
        least = [min(claim, KEPT * amount * part) for claim, part in zip(claims, parts, strict=True)]
        kept = sum(least)
        more = (amount - kept) / (wanted - kept) if wanted > kept else 0.0
        return [floor + more * (claim - floor) for floor, claim in zip(least, claims, strict=True)]
    roots = [math.sqrt(claim) for claim in claims]
    amount, others = _beside(amount, wanted, away)
    more = (amount - wanted) / (sum(roots) + others) if roots else 0.0
    return [claim + more * root for claim, root in zip(claims, roots, strict=True)]


def _beside(amount: float, wanted: float, away: Sequence[float]) -> tuple[float, float]:
    """What is left of an amount beside what those want that are away, as far as nobody else does, and their roots."""
    claims = [demand + _SELDOM for demand in away]
    free = amount - planned(wanted)
    if not claims or free <= 0:
        return amount, 0.0
    return amount - min(sum(claims), free), sum(math.sqrt(claim) for claim in claims)
