"""How long an agent waits before it tries the control plane again, so that many come back apart."""

import random
from typing import Final

_FIRST_S: Final = 0.2
# Of what is leased for seconds a node has nothing while it waits; who refuses a connection has no work with it.
_SHORT_S: Final = 2.0
_LONG_S: Final = 30.0
_PATIENCE_S: Final = 60.0


class Backoff:
    """Full jitter below a bound that doubles: to 2 s, and to 30 s for who has been without for a minute."""

    def __init__(self, rng: random.Random) -> None:
        """Starts as after a success."""
        self._rng = rng
        self.reset()

    def reset(self) -> None:
        """It has succeeded."""
        self._bound_s, self._waited_s = _FIRST_S, 0.0

    def next_s(self) -> float:
        """How long to wait after another failure, in seconds."""
        pause_s = self._rng.uniform(0, self._bound_s)
        self._waited_s += pause_s
        self._bound_s = min(self._bound_s * 2, _LONG_S if self._waited_s >= _PATIENCE_S else _SHORT_S)
        return pause_s
