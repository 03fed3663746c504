"""When a certificate is renewed."""

import random
from datetime import datetime

HALF_LIFE = 0.5
# So that certificates issued together aren't renewed together.
JITTER = 0.1


def renew_at(not_before: datetime, not_after: datetime, rng: random.Random) -> datetime:
    """Returns the moment to renew: half of the life, give or take a tenth of that half.

    A caller that fails retries well before `not_after`: nearly half of the life is left.
    """
    life = not_after - not_before
    return not_before + life * HALF_LIFE * rng.uniform(1 - JITTER, 1 + JITTER)
