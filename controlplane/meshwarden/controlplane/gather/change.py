"""Which trace each change of the store has: who knows a revision finds what became of it."""

from collections.abc import Iterator
from typing import Any, Final

import apsw
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from meshwarden.controlplane.gather.durable import Durable

REVISION: Final = "mesh.revision"
KEPT: Final = 100_000
"""The newest revisions that are remembered; spans are forgotten long before."""
_MAX_REVISION: Final = 2**63 - 1  # SQLite has no greater integers
_SCHEMA: Final = "CREATE TABLE IF NOT EXISTS trace_changes (revision INTEGER PRIMARY KEY, trace_id BLOB NOT NULL)"
_FORGET: Final = "DELETE FROM trace_changes WHERE revision <= (SELECT max(revision) FROM trace_changes) - ?"


class Changes:
    """The traces of changes. A part of `Durable`."""

    def __init__(self, durable: Durable) -> None:
        """Becomes a part of the file.

        Raises:
            apsw.Error: the file can't be written.
        """
        self._durable = durable
        self._waiting: dict[int, bytes] = {}
        durable.add(self)

    def add(self, spans: ResourceSpans) -> None:
        """Takes note of what spans of the control plane's own say, to be written by the next flush."""
        self._waiting.update(_said(spans))

    async def find(self, revision: int) -> bytes | None:
        """The trace of the change that made a revision, as far as it is written; None if none is known."""
        if revision > _MAX_REVISION:
            return None
        return await self._durable.read(lambda db: _find(db, revision))

    def create(self, db: apsw.Connection) -> None:
        """See `durable.Part`."""
        db.execute(_SCHEMA)

    def take(self) -> Any:
        """See `durable.Part`."""
        waiting, self._waiting = self._waiting, {}
        return waiting or None

    def write(self, db: apsw.Connection, waiting: Any) -> None:
        """See `durable.Part`."""
        db.executemany("REPLACE INTO trace_changes VALUES (?, ?)", waiting.items())
        db.execute(_FORGET, (KEPT,))

    def written(self, waiting: Any) -> None:
        """See `durable.Part`."""

    def give_back(self, waiting: Any) -> None:
        """See `durable.Part`."""
        self._waiting = {**waiting, **self._waiting}


def _said(spans: ResourceSpans) -> Iterator[tuple[int, bytes]]:
    for scope in spans.scope_spans:
        for span in scope.spans:
            for pair in span.attributes:
                if pair.key == REVISION and 0 < pair.value.int_value <= _MAX_REVISION:
                    yield pair.value.int_value, span.trace_id


def _find(db: apsw.Connection, revision: int) -> bytes | None:
    row: Any = db.execute("SELECT trace_id FROM trace_changes WHERE revision = ?", (revision,)).fetchone()
    return bytes(row[0]) if row is not None else None
