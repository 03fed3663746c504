"""What the ledger knows of calls, added up for whoever holds them against policies.

A span of time is read hour by hour, the newest first: nothing of it is in memory but the sums, a reader that has gone
is noticed between two of them, and where there is too much the oldest is left out.
"""

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

from meshwarden.controlplane.gather.durable import Durable

STEP_S: Final = 3600
# Different sources, destinations and methods in a step, and so many of a minute.
MAX_ROWS: Final = 100_000
_SIDES: Final = "sum(iif(reporter = 1, count, 0)), sum(iif(reporter = 2, count, 0))"
_OF: Final = """
FROM ledger WHERE minute >= :start AND minute < :end
  AND (:tenant = '' OR tenant = :tenant OR (destination >= :tenant || '/' AND destination < :tenant || '0'))
"""
_SEEN: Final = f"""
SELECT source, destination, method, {_SIDES} {_OF} GROUP BY source, destination, method LIMIT :limit
"""
_BY_MINUTE: Final = f"""
SELECT minute, iif(destination_region = 'unknown', region, destination_region), source, destination, method, {_SIDES},
  max(sum(iif(reporter = 1 AND decision = 3, count, 0)), sum(iif(reporter = 2 AND decision = 3, count, 0)))
{_OF} AND destination IN (SELECT value FROM json_each(:destinations)) GROUP BY 1, 2, 3, 4, 5 LIMIT :limit
"""  # noqa: S608 - names of our own
# Of these nobody knows whether the service has answered at all.
_UNANSWERED: Final = (
    "'0', '401', '403', '503', 'CANCELLED', 'DEADLINE_EXCEEDED', 'PERMISSION_DENIED', 'UNAUTHENTICATED', 'UNAVAILABLE',"
    " 'UNIMPLEMENTED'"
)
_ANSWERED: Final = f"decision = 1 AND (reporter = 2 OR status NOT IN ({_UNANSWERED})) AND status <> 'UNIMPLEMENTED'"
_USES: Final = f"""
SELECT destination, source, method, sum(iif(reporter = 1 AND minute >= :start AND {_ANSWERED}, count, 0)),
  sum(iif(reporter = 2 AND minute >= :start AND {_ANSWERED}, count, 0)),
  max(sum(iif(reporter = 1 AND minute >= :start AND decision = 2, count, 0)),
      sum(iif(reporter = 2 AND minute >= :start AND decision = 2, count, 0))),
  max(iif({_ANSWERED}, minute, 0))
FROM ledger WHERE minute < :end AND destination IN (SELECT value FROM json_each(:destinations))
GROUP BY destination, source, method LIMIT :limit
"""  # noqa: S608 - names of our own
_CALLED: Final = """
SELECT DISTINCT destination FROM ledger WHERE minute >= :start AND minute < :end AND decision = 1
  AND (:tenant = '' OR (destination >= :tenant || '/' AND destination < :tenant || '0')) ORDER BY 1 LIMIT :limit
"""

Rows = Sequence[tuple[Any, ...]]


class SeenCalls:
    """Reads sums of the ledger; times are in seconds since 1970."""

    def __init__(self, durable: Durable) -> None:
        """Takes the file that the ledger is a part of."""
        self._durable = durable

    async def sums(self, start_s: int, end_s: int, tenant: str) -> AsyncIterator[Rows]:
        """Yields, step by step, (source, destination, method, calls by the source, calls by the destination).

        A step that has MAX_ROWS + 1 has more. Of a tenant those from or to it; empty for all.

        Raises:
            apsw.Error: the file can't be read.
        """
        for values in _steps(start_s, end_s, tenant):
            yield await self._read(_SEEN, values)

    async def minutes(self, start_s: int, end_s: int, tenant: str, destinations: Iterable[str]) -> AsyncIterator[Rows]:
        """Yields likewise (minute, region, source, destination, method, by the source, by the destination, limited).

        Raises:
            apsw.Error: the file can't be read.
        """
        for values in _steps(start_s, end_s, tenant):
            yield await self._read(_BY_MINUTE, {**values, "destinations": json.dumps(sorted(destinations))})

    async def uses(self, start_s: int, end_s: int, destinations: Iterable[str]) -> Rows:
        """Returns (service, source, method, answered by the source, by the service, denied, last answered) of services.

        Counts are from `start_s` on, and the last is of all that is kept.

        Raises:
            apsw.Error: the file can't be read.
        """
        named = json.dumps(sorted(destinations))
        return await self._read(_USES, {"start": start_s, "end": end_s, "destinations": named})

    async def first_s(self, start_s: int) -> int:
        """Returns the first minute of the ledger from a moment on; 0 if it has none.

        Raises:
            apsw.Error: the file can't be read.
        """
        query = "SELECT min(minute) FROM ledger WHERE minute >= ?"
        return int(await self._durable.read(lambda db: db.execute(query, (start_s,)).get) or 0)

    async def called(self, start_s: int, end_s: int, tenant: str, limit: int) -> list[str]:
        """Returns the services that were called, of a tenant or of all.

        Raises:
            apsw.Error: the file can't be read.
        """
        values = {"start": start_s, "end": end_s, "tenant": tenant, "limit": limit}
        return [str(row[0]) for row in await self._durable.read(lambda db: db.execute(_CALLED, values).fetchall())]

    async def _read(self, query: str, values: dict[str, Any]) -> Rows:
        bounded = {**values, "limit": MAX_ROWS + 1}
        rows: Rows = await self._durable.read(lambda db: db.execute(query, bounded).fetchall())
        return rows


def _steps(start_s: int, end_s: int, tenant: str) -> list[dict[str, Any]]:
    """The values of each step, the newest first."""
    starts = range(end_s - STEP_S, start_s - STEP_S, -STEP_S)
    return [{"start": max(start_s, at_s), "end": at_s + STEP_S, "tenant": tenant} for at_s in starts]
