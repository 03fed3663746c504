"""What is where, and the frames of the warm tier: one SQLite file.

A row is either warm (it has its frame) or cold (it says which segment has it). SQLite keeps a rollback journal here,
not a write-ahead log, for the interpreter's own may have a known bug in the latter.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from meshwarden.examples.daena.error import Away

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS record (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    raw_bytes INTEGER NOT NULL,
    used_s REAL NOT NULL,
    frame BLOB,
    segment TEXT,
    place INTEGER,
    CHECK ((frame IS NULL) <> (segment IS NULL))
);
CREATE TABLE IF NOT EXISTS segment (name TEXT PRIMARY KEY, stored_bytes INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS idle ON record (used_s) WHERE frame IS NOT NULL;
CREATE INDEX IF NOT EXISTS held ON record (segment) WHERE segment IS NOT NULL;
CREATE INDEX IF NOT EXISTS newest ON record (tenant, kind, seq);
PRAGMA user_version = 1;
"""
_SELECT: Final = "SELECT id, tenant, kind, raw_bytes, used_s, frame, segment, place FROM record "
_SELECT_PLACES: Final = "SELECT id, tenant, kind, raw_bytes, used_s, NULL, segment, place FROM record "


@dataclass(frozen=True)
class Row:
    """Where a record is: in its frame, or in a segment from the byte `place` on."""

    id: bytes
    tenant: str
    kind: str
    raw_bytes: int
    used_s: float
    frame: bytes | None = None
    segment: str | None = None
    place: int | None = None


@dataclass(frozen=True)
class Holding:
    """What a tier holds."""

    records: int
    raw_bytes: int
    stored_bytes: int


class Shelf:
    """The file; for one thread at a time. Every method raises Away if the file can't be read or written."""

    def __init__(self, path: Path, max_pages: int | None = None) -> None:
        """Opens or makes the file at `path`; `max_pages` of 4 KiB bound it."""
        with _told():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=TRUNCATE")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            if max_pages is not None:
                self._db.execute(f"PRAGMA max_page_count={max_pages:d}")

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def find(self, record: bytes) -> Row | None:
        """The row of a record."""
        found = self._ask(_SELECT + "WHERE id = ?", record)
        return Row(*found[0]) if found else None

    def newest(self, tenant: str, kind: str, limit: int) -> list[Row]:
        """A tenant's newest rows, of one kind or of all, without their frames."""
        last = "ORDER BY seq DESC LIMIT ?"
        if kind:
            rows = self._ask(_SELECT_PLACES + "WHERE tenant = ? AND kind = ? " + last, tenant, kind, limit)
        else:
            rows = self._ask(_SELECT_PLACES + "WHERE tenant = ? " + last, tenant, limit)
        return [Row(*row) for row in rows]

    def add(self, row: Row) -> None:
        """Adds a warm row; the same record again gets the new frame."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO record (id, tenant, kind, raw_bytes, used_s, frame) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET frame = excluded.frame, segment = NULL, place = NULL, "
                "used_s = excluded.used_s",
                (row.id, row.tenant, row.kind, row.raw_bytes, row.used_s, row.frame),
            )

    def touch(self, used: Iterable[tuple[bytes, float]]) -> None:
        """Notes when records were last used: (id, seconds)."""
        with self._transaction():
            self._db.executemany("UPDATE record SET used_s = ? WHERE id = ?", [(at, record) for record, at in used])

    def idle(self, before_s: float | None, limit: int) -> list[Row]:
        """Warm rows, the longest idle first; with `before_s` those alone that were not used since."""
        until = float("inf") if before_s is None else before_s
        where = "WHERE frame IS NOT NULL AND used_s <= ? ORDER BY used_s LIMIT ?"
        return [Row(*row) for row in self._ask(_SELECT + where, until, limit)]

    def freeze(self, segment: str, stored_bytes: int, places: Iterable[tuple[bytes, int]]) -> None:
        """Makes rows cold: the segment has them from the bytes in `places` on: (id, place)."""
        with self._transaction():
            self._db.execute("INSERT INTO segment VALUES (?, ?)", (segment, stored_bytes))
            self._db.executemany(
                "UPDATE record SET frame = NULL, segment = ?, place = ? WHERE id = ?",
                [(segment, place, record) for record, place in places],
            )

    def thaw(self, record: bytes, frame: bytes, now_s: float) -> None:
        """Makes a cold row warm."""
        with self._transaction():
            self._db.execute(
                "UPDATE record SET frame = ?, segment = NULL, place = NULL, used_s = ? WHERE id = ?",
                (frame, now_s, record),
            )

    def segments(self) -> set[str]:
        """The segments that rows are in."""
        return {name for (name,) in self._ask("SELECT name FROM segment")}

    def forget_empty(self) -> list[str]:
        """Forgets the segments that no row is in any more, and returns their names."""
        with self._transaction():
            rows = self._db.execute(
                "DELETE FROM segment WHERE NOT EXISTS (SELECT 1 FROM record WHERE segment = name) RETURNING name"
            ).fetchall()
        return [name for (name,) in rows]

    def warm(self) -> Holding:
        """What the warm tier holds."""
        asked = "SELECT count(*), total(raw_bytes), total(length(frame)) FROM record WHERE frame IS NOT NULL"
        return self._holding(asked)

    def cold(self) -> Holding:
        """What the cold tier holds; of a segment counts all that it takes up, whoever has left it."""
        asked = (
            "SELECT count(*), total(raw_bytes), (SELECT total(stored_bytes) FROM segment) "
            "FROM record WHERE segment IS NOT NULL"
        )
        return self._holding(asked)

    def _holding(self, asked: str) -> Holding:
        ((records, raw, stored),) = self._ask(asked)
        return Holding(records, int(raw), int(stored))

    def _ask(self, words: str, *values: object) -> list[tuple[Any, ...]]:
        with _told():
            return self._db.execute(words, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise Away(f"the memory's file: {error}; see whether its disk is full") from None
