"""Which revision of the configuration each data plane has run, and since when."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Final

# Changes that are remembered of a data plane: what tells of older calls is late by more than we wait for.
MAX_CHANGES: Final = 64
MAX_PLANES: Final = 8192

RevisionAt = Callable[[int], int]
"""The revision that was in force at a moment, in nanoseconds since 1970."""


class InForce:
    """What data planes have taken without refusing any of it."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        """`clock` is the present, aware, and that of the data planes' machine."""
        self._clock = clock
        # {data plane: (since when, revision)}, in order
        self._changes: OrderedDict[str, list[tuple[int, int]]] = OrderedDict()

    def taken(self, data_plane: str, revision: int) -> None:
        """A data plane, "acme/web#1/envoy", runs a revision."""
        known = self._changes.setdefault(data_plane, [])
        if known and known[-1][1] == revision:
            return
        known.append((int(self._clock().timestamp() * 1e9), revision))
        del known[:-MAX_CHANGES]
        self._changes.move_to_end(data_plane)
        if len(self._changes) > MAX_PLANES:
            self._changes.popitem(last=False)

    def newest(self, data_plane: str) -> int:
        """The newest revision that a data plane has run; 0 if none is known."""
        known = self._changes.get(data_plane)
        return known[-1][1] if known else 0

    def of(self, data_plane: str) -> RevisionAt | None:
        """Tells what a data plane has run, of moments before what is known too; None if nothing is known of it."""
        known = self._changes.get(data_plane)
        if not known:
            return None

        def at(moment_ns: int) -> int:
            return known[max(0, bisect_right(known, moment_ns, key=lambda change: change[0]) - 1)][1]

        return at
