"""How far each chain of each agent's spool has come in, so that nothing counts twice."""

from collections import OrderedDict
from typing import Any, Final

import apsw

# A node has a chain for each tenant whose workloads it runs. One that makes up more forgets its own alone.
CHAINS_PER_NODE: Final = 1024
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS marks (
  node TEXT NOT NULL, chain TEXT NOT NULL, mark INTEGER NOT NULL, used INTEGER NOT NULL, PRIMARY KEY (node, chain)
) WITHOUT ROWID
"""
_KEEP: Final = (
    "INSERT INTO marks VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET mark = excluded.mark, used = excluded.used"
)
_MAX_MARK: Final = 2**63 - 1  # SQLite has no greater integers


class Marks:
    """The number of the last record of each chain that was taken. A part of `Durable`."""

    def __init__(self) -> None:
        self._of_node: dict[str, OrderedDict[str, int]] = {}
        self._waiting: dict[tuple[str, str], int | None] = {}
        self._used = 0

    def get(self, node: str, chain: str) -> int:
        """The mark of a chain; 0 for one that is new."""
        chains = self._of_node.get(node)
        return 0 if chains is None else chains.get(chain, 0)

    def first(self, node: str, chain: str, first: int, last: int) -> bool:
        """Whether records `first` to `last` come for the first time; then they are marked."""
        if not self.get(node, chain) < first <= last <= _MAX_MARK:
            return False
        chains = self._of_node.setdefault(node, OrderedDict())
        chains[chain] = last
        chains.move_to_end(chain)
        self._waiting[node, chain] = last
        while len(chains) > CHAINS_PER_NODE:
            self._waiting[node, chains.popitem(last=False)[0]] = None
        return True

    def create(self, db: apsw.Connection) -> None:
        """See `Part`."""
        db.execute(_SCHEMA)
        for node, chain, mark, used in db.execute("SELECT node, chain, mark, used FROM marks ORDER BY used"):
            self._of_node.setdefault(node, OrderedDict())[chain] = mark
            self._used = used

    def take(self) -> Any:
        """See `Part`."""
        waiting, self._waiting = self._waiting, {}
        return waiting or None

    def write(self, db: apsw.Connection, waiting: Any) -> None:
        """See `Part`."""
        self._used += 1
        gone = [key for key, mark in waiting.items() if mark is None]
        db.executemany("DELETE FROM marks WHERE node = ? AND chain = ?", gone)
        db.executemany(_KEEP, ((*key, mark, self._used) for key, mark in waiting.items() if mark is not None))

    def written(self, waiting: Any) -> None:
        """See `Part`."""

    def give_back(self, waiting: Any) -> None:
        """See `Part`."""
        self._waiting = {**waiting, **self._waiting}
