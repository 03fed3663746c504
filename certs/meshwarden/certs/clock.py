"""The one real clock. Only composition roots take it; everybody else is handed a `Clock`."""

from collections.abc import Callable
from datetime import UTC, datetime

# Aware, in UTC.
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Returns the present time, aware, in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - the one place where time comes from
