"""An audit log that counts what it stores, for whoever wants numbers of it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from meshwarden.controlplane.audit.port import AuditLog, AuditUnavailable


class CountedAuditLog(AuditLog):
    """Hands events on to another log, and counts those that it took: {(event, tenant): number}.

    The tenant is that of the event's field `tenant`, empty where it has none.
    """

    def __init__(self, inner: AuditLog) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.fault = ""
        """Why the last event that someone waited for was not stored; empty if it was."""
        self._inner = inner

    async def record(self, event: str, **fields: object) -> None:
        """See `AuditLog`."""
        with self._watched():
            await self._inner.record(event, **fields)
        self._count(event, fields)

    async def record_all(self, event: str, rows: Sequence[Mapping[str, object]]) -> None:
        """See `AuditLog`."""
        with self._watched():
            await self._inner.record_all(event, rows)
        for row in rows:
            self._count(event, row)

    def note(self, event: str, **fields: object) -> None:
        """See `AuditLog`; what is past the rate of notes counts as well. A refused caller chooses no label."""
        self._inner.note(event, **fields)
        self.counts[event, ""] += 1

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except AuditUnavailable as error:
            self.fault = str(error)
            raise
        self.fault = ""

    def _count(self, event: str, fields: Mapping[str, object]) -> None:
        self.counts[event, str(fields.get("tenant") or "")] += 1
