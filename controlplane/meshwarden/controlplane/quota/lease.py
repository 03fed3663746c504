"""What one enforcement point has of one bucket, and may still believe that it has."""

from dataclasses import dataclass
from typing import Final

from meshwarden.controlplane.quota.demand import Demand
from meshwarden.controlplane.quota.tree import Bucket, Point

MAX_PENDING: Final = 64
"""How many words a point may leave unacknowledged and have told apart."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a point has done with a bucket since its last report, in the policy's unit.

    Attributes:
        allowed: what went on.
        denied: what was refused.
        in_use: where calls at once are counted, the most that there were.
        shadowed: what of `allowed` went on for the shadow's sake alone.
        spilled: what ran over because the bucket was full; None from a point that can't say, nor take such from others.
    """

    allowed: float
    denied: float
    in_use: int = 0
    shadowed: float = 0.0
    spilled: float | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What a point may use of a bucket: so much a second, and how much at once. Rate 0 takes the bucket from it.

    Attributes:
        more: what is put into the bucket, once.
    """

    bucket: Bucket
    rate: float
    burst: float
    more: float = 0.0


class Lease:
    """What one point has of one bucket.

    Attributes:
        given: the rate that it was last told.
        target: the rate that is meant for it.
        in_use: where calls at once are counted, how many may still run there, whatever it was told.
        is_idle: whether it wasn't used for so long that it is taken back.
    """

    __slots__ = (
        "_acknowledged",
        "_pending",
        "bucket",
        "demand",
        "given",
        "in_use",
        "is_idle",
        "point",
        "target",
        "used_s",
    )

    def __init__(self, point: Point, bucket: Bucket, held: float, now_s: float) -> None:
        self.point, self.bucket = point, bucket
        self.given = self._acknowledged = held
        self.target = self.in_use = 0.0
        self.demand, self.used_s = Demand(now_s), now_s
        self.is_idle = False
        # What was told since, and not acknowledged, one behind the other: number, rate, number, rate.
        self._pending: tuple[float, ...] = ()

    @property
    def held(self) -> float:
        """The most that the point may be using."""
        least = max(self._acknowledged, self.in_use)
        return max(least, *self._pending[1::2]) if self._pending else least

    def tell(self, number: int, rate: float) -> None:
        """Notes that the point is told another rate."""
        if len(self._pending) >= 2 * MAX_PENDING:  # of the oldest two it may believe the higher one
            _, oldest, upto, next_rate, *others = self._pending
            self._pending = (upto, max(oldest, next_rate), *others)
        self._pending += (number, rate)
        self.given = rate

    def acknowledge(self, number: int) -> None:
        """Notes that the point obeys what it was told up to a number."""
        while self._pending and self._pending[0] <= number:
            _, self._acknowledged, *left = self._pending
            self._pending = tuple(left)

    def say(self, held: float, *, believed: float) -> None:
        """Notes what the point itself says it holds, on a new stream: what was under way on the old one is lost.

        Args:
            held: what is counted as held.
            believed: what the point believes that it has; where that is more, it is told otherwise.
        """
        self._acknowledged = held
        self._pending = ()
        self.given = believed
