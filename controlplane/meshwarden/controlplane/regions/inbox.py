"""Pages of other regions on their way into the file, each with how far its region is known then, in one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import apsw

from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.gather.graph.ledger import Ledger
from meshwarden.controlplane.gather.graph.remote import Remote

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS regions (
  region TEXT PRIMARY KEY, incarnation TEXT NOT NULL, sequence INTEGER NOT NULL, heard_s REAL
) WITHOUT ROWID
"""
# That a region has nothing new is worth a write this often.
_HEARD_S: Final = 10.0


class Cursor(NamedTuple):
    """How far a region is known.

    Attributes:
        incarnation: of its file; empty before its first word.
        sequence: the number of the last change that we have.
        heard: when it last had no more to tell; None for never.
    """

    incarnation: str = ""
    sequence: int = 0
    heard: datetime | None = None


@dataclass
class _Page:
    region: str
    cursor: Cursor
    calls: Sequence[Call]
    new: list[Call] = field(default_factory=list)


class Inbox:
    """What is known of other regions, and how far. A part of `Durable`."""

    def __init__(self, ledger: Ledger, remote: Remote) -> None:
        self._ledger, self._remote = ledger, remote
        self._waiting: list[_Page] = []
        self._cursors: dict[str, Cursor] = {}
        self._written: dict[str, datetime] = {}

    def cursor(self, region: str) -> Cursor:
        """How far a region is known, on disk."""
        return self._cursors.get(region, Cursor())

    def put(self, region: str, incarnation: str, sequence: int, calls: Sequence[Call]) -> None:
        """Takes a page, to be written by the next flush; if that fails it is to be pulled again."""
        cursor = Cursor(incarnation, sequence, self.cursor(region).heard)
        self._waiting.append(_Page(region, cursor, calls))

    def caught_up(self, region: str, at: datetime) -> None:
        """Takes note that nothing that a region had counted at a time is missing."""
        self._cursors[region] = cursor = self.cursor(region)._replace(heard=at)
        self._remote.heard(region)
        written = self._written.get(region)
        if written is None or abs((at - written).total_seconds()) >= _HEARD_S:
            self._written[region] = at
            self._waiting.append(_Page(region, cursor, ()))

    def create(self, db: apsw.Connection) -> None:
        """See `Part`."""
        db.execute(_SCHEMA)
        for region, incarnation, sequence, heard_s in db.execute("SELECT * FROM regions"):
            heard = None if heard_s is None else datetime.fromtimestamp(heard_s, UTC)
            self._cursors[region] = Cursor(incarnation, sequence, heard)

    def take(self) -> Any:
        """See `Part`."""
        waiting, self._waiting = self._waiting, []
        return waiting or None

    def write(self, db: apsw.Connection, waiting: Any) -> None:
        """See `Part`."""
        for page in waiting:
            incarnation, sequence, heard = page.cursor
            page.new = self._ledger.replace(db, page.region, incarnation, page.calls)
            heard_s = None if heard is None else heard.timestamp()
            db.execute(
                "INSERT OR REPLACE INTO regions VALUES (?, ?, ?, ?)", (page.region, incarnation, sequence, heard_s)
            )

    def written(self, waiting: Any) -> None:
        """See `Part`."""
        for page in waiting:
            heard = self.cursor(page.region).heard or page.cursor.heard
            self._cursors[page.region] = page.cursor._replace(heard=heard)
            if page.new:
                self._remote.add(page.region, page.new)

    def give_back(self, waiting: Any) -> None:
        """See `Part`. What is not kept is pulled again, from where the file stands; so a full disk costs no memory."""
