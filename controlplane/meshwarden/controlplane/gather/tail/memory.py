"""What was decided of traces: of the last 65,536 at least, and up to twice as many, on disk with the rest.

They come in two generations. When the newer one is full it becomes the older, and what was the older is forgotten.
"""

from collections.abc import Mapping
from typing import Any, Final

import apsw

TRACES: Final = 1 << 16
"""How many traces a generation has."""
_ID_BYTES: Final = 16
# Those of a flush are one row: a row each would take longer than all else.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS tail_decisions (
  id INTEGER PRIMARY KEY, generation INTEGER NOT NULL, is_kept INTEGER NOT NULL, trace_ids BLOB NOT NULL
)
"""
_READ: Final = "SELECT generation, is_kept, trace_ids FROM tail_decisions ORDER BY id"
_PUT: Final = "INSERT INTO tail_decisions (generation, is_kept, trace_ids) VALUES (?, ?, ?)"

Decided = Mapping[bytes, tuple[bool, int]]
"""`{trace id: (whether it is kept as a whole, generation)}`; what is not is decided on by chance."""


class TailMemory:
    """The decisions."""

    def __init__(self, traces: int = TRACES) -> None:
        """`traces` is how many a generation has."""
        self._traces = traces
        self._new: dict[bytes, bool] = {}
        self._old: dict[bytes, bool] = {}
        self.generation = 1
        """The number of the newer generation."""
        self._waiting: dict[bytes, tuple[bool, int]] = {}
        self._forgotten = 0

    @property
    def is_full(self) -> bool:
        """Whether it is time to `turn`."""
        return len(self._new) >= self._traces

    def find(self, trace_id: bytes) -> bool | None:
        """Whether a trace is kept as a whole; None if nothing was decided, or it is forgotten."""
        found = self._new.get(trace_id)
        return self._old.get(trace_id) if found is None else found

    def is_new(self, trace_id: bytes) -> bool:
        """Whether a decision is of the newer generation."""
        return trace_id in self._new

    def put(self, trace_id: bytes, is_kept: bool) -> None:
        """Remembers a decision."""
        self._new[trace_id] = is_kept
        self._waiting[trace_id] = (is_kept, self.generation)

    def turn(self) -> None:
        """Forgets the older generation and begins a newer one."""
        self._old, self._new = self._new, {}
        self.generation += 1

    # -- on disk

    def create(self, db: apsw.Connection) -> None:
        """Makes the table, if it isn't there, and reads it."""
        db.execute(_SCHEMA)
        rows: list[Any] = db.execute(_READ).fetchall()
        self.generation = max((generation for generation, _, _ in rows), default=self.generation)
        for generation, is_kept, trace_ids in rows:
            decisions = self._new if generation == self.generation else self._old
            for at in range(0, len(trace_ids), _ID_BYTES):
                decisions[trace_ids[at : at + _ID_BYTES]] = bool(is_kept)

    def take(self) -> Decided:
        """Removes and returns what is to be written."""
        waiting, self._waiting = self._waiting, {}
        return waiting

    def give_back(self, waiting: Decided) -> None:
        """Takes it back, but for what is forgotten by now."""
        both = {**waiting, **self._waiting}
        self._waiting = {key: known for key, known in both.items() if known[1] >= self.generation - 1}

    def write(self, db: apsw.Connection, waiting: Decided) -> None:
        """Writes decisions, and forgets those of generations before the last two."""
        rows: dict[tuple[int, bool], list[bytes]] = {}
        for trace_id, (is_kept, generation) in waiting.items():
            rows.setdefault((generation, is_kept), []).append(trace_id)
        if rows:
            db.executemany(_PUT, ((*of, b"".join(trace_ids)) for of, trace_ids in rows.items()))
            oldest = max(generation for generation, _ in rows) - 1
            if oldest > self._forgotten:  # all rows are looked at, so not each time
                db.execute("DELETE FROM tail_decisions WHERE generation < ?", (oldest,))
                self._forgotten = oldest
