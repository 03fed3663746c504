"""The hot tier: canonical bytes in memory, the least recently used first. Pure."""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass
class Kept:
    """A record in memory, and when it was last used."""

    raw: bytes
    used_s: float


class Hot:
    """Records in memory, at most so many bytes of them."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, record: bytes) -> bool:
        return record in self._kept

    def find(self, record: bytes, now_s: float) -> bytes | None:
        """A record's canonical bytes, used now."""
        kept = self._kept.get(record)
        if kept is None:
            return None
        kept.used_s = now_s
        self._kept.move_to_end(record)
        return kept.raw

    def put(self, record: bytes, raw: bytes, now_s: float) -> list[tuple[bytes, float]]:
        """Takes a record; returns those that had to go for it: (id, when it was last used)."""
        self.drop(record)
        self._kept[record] = Kept(raw, now_s)
        self.size_bytes += len(raw)
        gone = []
        while self.size_bytes > self._max_bytes:
            gone.append(self._oldest())
        return gone

    def expire(self, before_s: float) -> list[tuple[bytes, float]]:
        """Lets go what was not used since; returns it: (id, when it was last used)."""
        gone = []
        while self._kept and next(iter(self._kept.values())).used_s <= before_s:
            gone.append(self._oldest())
        return gone

    def drop(self, record: bytes) -> None:
        """Lets one record go, if it is here."""
        kept = self._kept.pop(record, None)
        if kept is not None:
            self.size_bytes -= len(kept.raw)

    def clear(self) -> list[tuple[bytes, float]]:
        """Lets all go; returns it: (id, when it was last used)."""
        return [self._oldest() for _ in range(len(self._kept))]

    def _oldest(self) -> tuple[bytes, float]:
        record, kept = self._kept.popitem(last=False)
        self.size_bytes -= len(kept.raw)
        return record, kept.used_s
