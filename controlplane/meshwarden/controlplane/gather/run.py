"""Which batches of which agents' runs have come in, so that none counts twice."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

# Batches may overtake each other on the way; one that is this far behind the newest is taken for a repetition.
WINDOW: Final = 1024
# Runs remembered for each node, which has one for each tenant that it hosts; the least recently heard of goes first.
RUNS_PER_NODE: Final = 1024


class Run:
    """Which batches of a run have come in: of one tenant's reports on one node, until that node forgets them."""

    def __init__(self, newest: int = 0, seen: int = 0) -> None:
        """Bit n of `seen` tells of batch newest − n."""
        self._newest = newest
        self._seen = seen

    @classmethod
    def parse(cls, text: str) -> "Run":
        """Reads what `str` of a run says."""
        newest, _, seen = text.partition(":")
        return cls(int(newest, 16), int(seen, 16))

    def __str__(self) -> str:
        return f"{self._newest:x}:{self._seen:x}"

    def first(self, sequence: int) -> bool:
        """Whether this batch comes for the first time; remembers it."""
        if sequence > self._newest:
            # A jump beyond the window leaves nothing to remember; shifting by it would fill the memory.
            jump = sequence - self._newest
            self._seen = (self._seen << jump | 1) & ((1 << WINDOW) - 1) if jump < WINDOW else 1
            self._newest = sequence
            return True
        behind = self._newest - sequence
        if behind >= WINDOW or self._seen >> behind & 1:
            return False
        self._seen |= 1 << behind
        return True


class Runs:
    """The last few runs of each node."""

    def __init__(self, kept: Iterable[tuple[str, str, str]] = ()) -> None:
        """Goes on with runs kept as (node, run id, run), those used last coming last."""
        self._of_node: dict[str, OrderedDict[str, Run]] = {}
        for node, run_id, text in kept:
            self._of_node.setdefault(node, OrderedDict())[run_id] = Run.parse(text)

    def first(self, node: str, run_id: str, sequence: int) -> bool:
        """Whether this batch comes for the first time; remembers it."""
        return self._of_node.setdefault(node, OrderedDict()).setdefault(run_id, Run()).first(sequence)

    def heard(self, node: str, run_id: str) -> dict[str, str]:
        """Notes that a run was heard of; returns what is to be kept of the node's: {run id: run}, "" if no more."""
        runs = self._of_node[node]
        runs.move_to_end(run_id)
        changed = {run_id: str(runs[run_id])}
        while len(runs) > RUNS_PER_NODE:
            changed[runs.popitem(last=False)[0]] = ""
        return changed
