"""How long an agent waits before it tries the control plane again, so that many come back apart."""

import random
from datetime import timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration

_FIRST_S: Final = 0.2
# Of what is leased for seconds a node has nothing while it waits; who refuses a connection has no work with it.
_SHORT_S: Final = 1.0
_LONG_S: Final = 30.0
_PATIENCE_S: Final = 60.0
_MAX_ASKED_S: Final = 300.0


class Backoff:
    """Full jitter below a bound that doubles to 1 s, and is never below what the fleet's return shall take.

    An agent that was not told of its fleet yet takes it for a large one after a minute without its control plane.
    """

    def __init__(self, rng: random.Random) -> None:
        """Starts as after a success; nothing is known of the fleet."""
        self._rng = rng
        self._spread_s: float | None = None
        self.reset()

    def reset(self) -> None:
        """It has succeeded."""
        self._bound_s, self._waited_s = _FIRST_S, 0.0

    def spread_over(self, spread_s: float) -> None:
        """Takes over how many seconds the fleet shall come back; more than the longest pause is not believed."""
        self._spread_s = min(max(spread_s, 0.0), _LONG_S)

    def next_s(self) -> float:
        """How long to wait after a loss or another failure, in seconds."""
        pause_s = self._rng.uniform(0, max(self._bound_s, self._spread_s or 0.0))
        self._waited_s += pause_s
        is_long = self._spread_s is None and self._waited_s >= _PATIENCE_S
        self._bound_s = min(self._bound_s * 2, _LONG_S if is_long else _SHORT_S)
        return pause_s


def asked_for(retry_after: Duration, rng: random.Random) -> timedelta:
    """How long to wait if the control plane says so, at most 5 min and a quarter; many that it tells the same apart."""
    wait_s = retry_after.seconds + retry_after.nanos * 1e-9
    return timedelta(seconds=min(max(wait_s, 0.0), _MAX_ASKED_S) * rng.uniform(1.0, 1.25))
