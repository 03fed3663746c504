"""The one real clock. Only composition roots take it; everybody else is handed a `Clock`."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

# Aware, in UTC.
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Returns the present time, aware, in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - the one place where time comes from


def seconds_of(clock: Clock) -> Callable[[], float]:
    """The same clock in seconds since 1970, for what asks it at each call: the real one makes no `datetime` then."""
    return time.time if clock is utc_now else lambda: clock().timestamp()  # noqa: TID251 - as above
