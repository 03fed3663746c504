"""What is to go on to backends: on disk, in order, each tenant by itself, bounded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import apsw

from meshwarden.controlplane.gather.durable import transaction
from meshwarden.controlplane.gather.tally import DROPPED, Tally

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS outgoing (
  id INTEGER PRIMARY KEY AUTOINCREMENT, backend TEXT NOT NULL, signal TEXT NOT NULL, tenant TEXT NOT NULL,
  items INTEGER NOT NULL, size INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS outgoing_of ON outgoing (backend, signal, tenant, id)
"""
_SUM: Final = "SELECT backend, signal, tenant, sum(items), sum(size) FROM outgoing GROUP BY backend, signal, tenant"
_NEXT: Final = """
SELECT id, items, size, body FROM outgoing
WHERE backend = ? AND signal = ? AND tenant = ? AND id > ? AND id <= ? ORDER BY id LIMIT ?
"""
_OLDEST: Final = """
SELECT id, items, size FROM outgoing
WHERE backend = ? AND signal = ? AND tenant = ? AND id > ? ORDER BY id LIMIT ?
"""
_ADD: Final = "INSERT INTO outgoing (backend, signal, tenant, items, size, body) VALUES (?, ?, ?, ?, ?, ?)"
_SOME: Final = 64  # dropped at a time
_REASON: Final = "queue_full"
# What the disk did not take waits in memory; with as much of it nothing more is taken.
UNWRITTEN_BYTES: Final = 64 << 20


class Lane(NamedTuple):
    """Things of one tenant and kind on their way to one backend."""

    backend: str
    signal: str
    tenant: str


class Row(NamedTuple):
    """One serialised `ResourceSpans`, `ResourceMetrics` or `ResourceLogs`, and how many things are in it."""

    id: int
    items: int
    size: int
    body: bytes


@dataclass
class _Waiting:
    added: list[tuple[Lane, int, bytes]]
    done: list[tuple[Lane, Row]]


@dataclass
class _Load:
    items: int = 0
    size: int = 0


def stage_of(backend: str) -> str:
    """The name of a backend's stage in the tally."""
    return f"backend.{backend}"


class Queue:
    """The lanes to all backends. A part of `Durable`."""

    def __init__(self, tally: Tally, bounds: dict[str, int]) -> None:
        """Starts empty.

        Args:
            tally: counts what is dropped.
            bounds: `{backend: bytes}`; beyond, the tenant that has most of a backend's loses its oldest. What waits for
                a backend that is not among them any more is forgotten.
        """
        self._tally, self._bounds = tally, bounds
        self._waiting = _Waiting([], [])
        self._stuck_bytes = 0
        self._load: dict[Lane, _Load] = {}
        self._held: dict[Lane, int] = {}

    def put(self, lane: Lane, items: int, body: bytes) -> None:
        """Takes something, to be written by the next flush."""
        self._tally.received(stage_of(lane.backend), lane.signal, lane.tenant, items)
        if self._stuck_bytes:
            self._stuck_bytes += len(body)
            if self._stuck_bytes > UNWRITTEN_BYTES:
                self._tally.drop(stage_of(lane.backend), lane.signal, "disk_full", lane.tenant, items)
                return
        self._waiting.added.append((lane, items, body))

    def hold(self, lane: Lane, until: int) -> None:
        """Says that the rows of a lane up to this one are under way: what is sent is not dropped as well."""
        self._held[lane] = max(until, self._held.get(lane, 0))

    def done(self, lane: Lane, rows: Iterable[Row]) -> None:
        """Lets go of rows, by the next flush."""
        self._waiting.done.extend((lane, row) for row in rows)

    def lanes(self, backend: str) -> Sequence[Lane]:
        """The lanes that have something written for a backend."""
        return [lane for lane, load in list(self._load.items()) if lane.backend == backend and load.items]

    def load(self, backend: str) -> tuple[int, int]:
        """How much waits for a backend: (things, bytes)."""
        loads = [load for lane, load in list(self._load.items()) if lane.backend == backend]
        return sum(load.items for load in loads), sum(load.size for load in loads)

    @staticmethod
    def read(db: apsw.Connection, lane: Lane, after: int, until: int, most: int, most_bytes: int) -> list[Row]:
        """The oldest rows of a lane behind `after` and up to `until`: `most`, of together about `most_bytes`."""
        found: list[Row] = []
        size = 0
        for row in db.execute(_NEXT, (*lane, after, until, most)):
            size += row[2]
            if found and size > most_bytes:
                break
            found.append(Row._make(row))
        return found

    def create(self, db: apsw.Connection) -> None:
        """See `Part`."""
        db.execute(_SCHEMA)
        sums: list[Any] = db.execute(_SUM).fetchall()
        for backend, signal, tenant, items, size in sums:
            lane = Lane(str(backend), str(signal), str(tenant))
            if backend in self._bounds:
                self._load[lane] = _Load(int(items), int(size))
            else:
                db.execute("DELETE FROM outgoing WHERE backend = ? AND signal = ? AND tenant = ?", lane)
                self._tally.drop(stage_of(lane.backend), lane.signal, "removed", lane.tenant, int(items))

    def take(self) -> Any:
        """See `Part`."""
        waiting, self._waiting = self._waiting, _Waiting([], [])
        return waiting if waiting.added or waiting.done else None

    def write(self, db: apsw.Connection, waiting: Any) -> None:
        """See `Part`."""
        db.executemany(_ADD, ((*lane, items, len(body), body) for lane, items, body in waiting.added))
        db.executemany("DELETE FROM outgoing WHERE id = ?", ((row.id,) for _, row in waiting.done))

    def written(self, waiting: Any) -> None:
        """See `Part`."""
        self._stuck_bytes = 0
        for lane, items, body in waiting.added:
            self._grow(lane, items, len(body))
        for lane, row in waiting.done:
            self._grow(lane, -row.items, -row.size)

    def give_back(self, waiting: Any) -> None:
        """See `Part`."""
        self._waiting.added[:0] = waiting.added
        self._waiting.done[:0] = waiting.done
        self._stuck_bytes = sum(len(body) for _, _, body in self._waiting.added)

    # -- bounds

    def is_over(self) -> bool:
        """Whether more waits for a backend than may."""
        return any(self.load(backend)[1] > most for backend, most in self._bounds.items())

    def trim(self, db: apsw.Connection) -> dict[Lane, list[Row]]:
        """Drops and counts the oldest of whoever has most, on a thread: what went, for `trimmed`."""
        gone: dict[Lane, list[Row]] = {}
        with transaction(db):
            for backend, most in self._bounds.items():
                sizes = {lane: self._load[lane].size for lane in self.lanes(backend)}
                while sizes and sum(sizes.values()) > most:
                    lane = max(sizes, key=lambda lane: sizes[lane])
                    oldest = db.execute(_OLDEST, (*lane, self._held.get(lane, 0), _SOME))
                    rows = [Row._make((*row, b"")) for row in oldest]
                    if not rows:  # all of it is under way
                        del sizes[lane]
                        continue
                    db.executemany("DELETE FROM outgoing WHERE id = ?", ((row.id,) for row in rows))
                    sizes[lane] -= sum(row.size for row in rows)
                    gone.setdefault(lane, []).extend(rows)
            for lane, rows in gone.items():
                items = sum(row.items for row in rows)
                self._tally.write(db, {(DROPPED, stage_of(lane.backend), lane.signal, lane.tenant, _REASON): items})
        return gone

    def trimmed(self, gone: dict[Lane, list[Row]]) -> None:
        """Takes note of what `trim` has dropped."""
        for lane, rows in gone.items():
            items = sum(row.items for row in rows)
            self._grow(lane, -items, -sum(row.size for row in rows))
            self._tally.written_already((DROPPED, stage_of(lane.backend), lane.signal, lane.tenant, _REASON), items)

    def _grow(self, lane: Lane, items: int, size: int) -> None:
        load = self._load.setdefault(lane, _Load())
        load.items += items
        load.size += size
        if load.items <= 0 and load.size <= 0:
            del self._load[lane]
