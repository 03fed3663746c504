"""What the program has lost of its telemetry before the node agent had it, counted until the agent knows."""

import logging
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Final

from meshwarden.v1.report_pb2 import Drop

CALL: Final = "call"
SPAN: Final = "span"
SIGNALS: Final = frozenset({CALL, SPAN})
QUEUE_FULL: Final = "queue_full"
"""There was no room for it while the agent was away or slow."""
TOO_LARGE: Final = "too_large"
"""The agent takes nothing as large."""
MALFORMED: Final = "malformed"
"""It can't be written as OTLP has it."""
REFUSED: Final = "refused"
"""The agent does not want it, now or later."""
SHUTDOWN: Final = "shutdown"
"""The program has ended before the agent took it."""
REASONS: Final = frozenset({QUEUE_FULL, TOO_LARGE, MALFORMED, REFUSED, SHUTDOWN})
_log = logging.getLogger("meshwarden.sdk")


class Losses:
    """Counts by signal and reason. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._untold: Counter[tuple[str, str]] = Counter()
        self._total = self._said = 0

    @property
    def total(self) -> int:
        """All, since the start."""
        return self._total

    def add(self, signal: str, reason: str, count: int) -> None:
        """Counts what was lost, and says so in the log, ever more seldom; signal and reason are those of `Drop`."""
        if count <= 0:
            return
        with self._lock:
            self._untold[signal, reason] += count
            self._total += count
            total, is_said = self._total, self._total < 2 * self._said + 1
            if not is_said:
                self._said = total
        if not is_said:
            _log.warning("%d calls and spans are lost since the start, the last for %s", total, reason)

    def take(self) -> list[Drop]:
        """Returns what the agent does not know yet, and takes it for told."""
        with self._lock:
            untold, self._untold = self._untold, Counter()
        return [Drop(signal=signal, reason=reason, count=count) for (signal, reason), count in untold.items()]

    def put_back(self, drops: Iterable[Drop]) -> None:
        """Takes back what the agent was not told after all."""
        with self._lock:
            for drop in drops:
                self._untold[drop.signal, drop.reason] += drop.count
