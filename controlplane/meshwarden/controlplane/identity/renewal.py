"""Waiting for the moment to renew."""

import asyncio
from datetime import datetime, timedelta

from meshwarden.certs.clock import Clock

# The clock is looked at this often: it may be set, and a suspended machine's event loop doesn't know how long it slept.
TICK = timedelta(seconds=30)


async def until_due(not_before: datetime, due: datetime, clock: Clock) -> None:
    """Waits until `due`, or until the clock was set back to before the certificate begins."""
    while not_before <= (now := clock()) < due:  # noqa: ASYNC110 - a clock tells nobody that it was set
        await asyncio.sleep(min(TICK, due - now).total_seconds())
