"""The tiers. A record that is read moves up by one; one that is idle, or that its tier has no room for, moves down.

A record is durable in the warm tier before a write is answered, and hot beside that: what is hot is a copy. A tier that
can't be written keeps no record from being read: it stays where it is.
"""

import fcntl
import math
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshwarden.examples.daena.error import Away, Corrupt, Full, Unknown
from meshwarden.examples.daena.memory import frame, segment
from meshwarden.examples.daena.memory.hot import Hot
from meshwarden.examples.daena.memory.record import Record, canonical, id_of, parse, verified
from meshwarden.examples.daena.memory.shelf import Holding, Row, Shelf

HOT, WARM, COLD = "hot", "warm", "cold"
_BATCH: Final = 256


@dataclass(frozen=True)
class Limits:
    """How much each tier takes, and for how long without a read.

    Attributes:
        hot_bytes: of canonical bytes in memory.
        hot_s: after which an idle record is no longer hot.
        warm_bytes: of frames.
        warm_s: after which an idle record becomes cold.
        max_bytes: of frames and segments together; more is refused.
    """

    hot_bytes: int = 256 << 10
    hot_s: float = 30.0
    warm_bytes: int = 4 << 20
    warm_s: float = 300.0
    max_bytes: int = 256 << 20


@dataclass(frozen=True)
class Written:
    """What became of a write."""

    id: bytes
    raw_bytes: int
    stored_bytes: int
    known: bool


Moved = Callable[[str, str, int], None]
"""Is told of moves between tiers: (from, to, how many)."""


def _unmoved(source: str, target: str, count: int) -> None:
    """Nobody counts."""


class Store:
    """Records of all tenants in a directory, in three tiers. For any number of threads."""

    def __init__(
        self,
        directory: Path,
        limits: Limits,
        clock_s: Callable[[], float],
        moved: Moved = _unmoved,
        max_pages: int | None = None,
    ) -> None:
        """Opens the directory, or makes it.

        Args:
            directory: for this store alone, which holds it.
            limits: of the tiers.
            clock_s: the present, in seconds since the epoch.
            moved: is told of moves between tiers.
            max_pages: bounds the file of the warm tier, in pages of 4 KiB.

        Raises:
            Away: it can't be opened, or another store has it.
        """
        self._limits = limits
        self._clock_s = clock_s
        self._moved = moved
        self._segments = directory / "cold"
        for made in (directory, self._segments):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._held = _hold(directory)
        self._shelf = Shelf(directory / "warm.sqlite", max_pages)
        self._hot = Hot(limits.hot_bytes)
        self._broken: set[bytes] = set()
        self._lock = threading.Lock()
        self._remove_orphans()
        self._stored_bytes = self._count_stored()

    def write(self, record: Record) -> Written:
        """Keeps a record; the same content is kept once, and heals a copy that is corrupt.

        Raises:
            Invalid: the record is too large, or has bad names.
            Full: there is no room.
            Away: it can't be written.
        """
        raw = canonical(record)
        wanted, packed, now_s = id_of(raw), frame.encode(raw), self._clock_s()
        with self._lock:
            row = self._shelf.find(wanted)
            known = row is not None and self._is_sound(row)
            if not known:
                if self._stored_bytes + len(packed) > self._limits.max_bytes:
                    raise Full(f"memory: its {self._limits.max_bytes} bytes are taken")
                self._shelf.add(Row(wanted, record.tenant, record.kind, len(raw), now_s, packed))
                self._stored_bytes += len(packed)
                self._broken.discard(wanted)
            self._cool(self._hot.put(wanted, raw, now_s))
        return Written(wanted, len(raw), len(packed), known)

    def read(self, tenant: str, wanted: bytes) -> tuple[Record, str]:
        """Returns a record of a tenant, verified, and the tier that it was read from; it moves up by one.

        Raises:
            Unknown: the tenant has no such record.
            Corrupt: what is there is not what was written.
            Away: it can't be read.
        """
        now_s = self._clock_s()
        with self._lock:
            row = self._shelf.find(wanted)
            if row is None or row.tenant != tenant:
                raise Unknown(f"id: there is no record {wanted.hex()} of tenant {tenant}")
            raw = self._hot.find(wanted, now_s)
            if raw is not None:
                return parse(verified(raw, wanted, HOT)), HOT
            raw = self._raw(row)
            self._rise(row, raw, now_s)
            return parse(raw), WARM if row.frame is not None else COLD

    def newest(self, tenant: str, kind: str, limit: int) -> list[tuple[Row, str]]:
        """A tenant's newest records, of one kind or of all, and their tiers.

        Raises:
            Away: they can't be read.
        """
        with self._lock:
            return [(row, self._tier(row)) for row in self._shelf.newest(tenant, kind, limit)]

    def sweep(self) -> None:
        """Moves down what is idle, and what a tier has no room for.

        Raises:
            Away: it can't be written; nothing is lost.
        """
        now_s = self._clock_s()
        with self._lock:
            self._cool(self._hot.expire(now_s - self._limits.hot_s))
        while self._freeze_some(now_s):
            pass
        with self._lock:
            for name in self._shelf.forget_empty():
                (self._segments / name).unlink(missing_ok=True)
            self._stored_bytes = self._count_stored()

    def holdings(self) -> dict[str, Holding]:
        """What each tier holds: {tier: holding}. What is hot is warm or cold as well."""
        with self._lock:
            hot = Holding(len(self._hot), self._hot.size_bytes, self._hot.size_bytes)
            return {HOT: hot, WARM: self._shelf.warm(), COLD: self._shelf.cold()}

    def close(self) -> None:
        """Notes what was used last, and closes the files."""
        with self._lock:
            try:
                self._shelf.touch(self._hot.clear())
            finally:
                self._shelf.close()
                os.close(self._held)

    def _tier(self, row: Row) -> str:
        if row.id in self._hot:
            return HOT
        return WARM if row.segment is None else COLD

    def _raw(self, row: Row) -> bytes:
        if row.frame is not None:
            return frame.decode(row.frame, row.id)
        place = row.place or 0
        whole = segment.read(self._segments / str(row.segment))
        return verified(whole[place : place + row.raw_bytes], row.id, COLD)

    def _is_sound(self, row: Row) -> bool:
        try:
            self._raw(row)
        except Corrupt:
            return False
        return True

    def _rise(self, row: Row, raw: bytes, now_s: float) -> None:
        if row.frame is not None:
            self._moved(WARM, HOT, 1)
            self._cool(self._hot.put(row.id, raw, now_s))
            return
        try:
            self._shelf.thaw(row.id, frame.encode(raw), now_s)
        except Away:  # no room to rise to; where it is it can be read
            return
        self._moved(COLD, WARM, 1)

    def _cool(self, gone: Iterable[tuple[bytes, float]]) -> None:
        """Notes in the warm tier when records that are no longer hot were used last."""
        used = list(gone)
        if not used:
            return
        self._moved(HOT, WARM, len(used))
        try:
            self._shelf.touch(used)
        except Away:  # they will be cold the sooner, no more
            return

    def _freeze_some(self, now_s: float) -> bool:
        """Moves one segment's worth of warm rows down, if there is reason to; readers wait for one alone."""
        with self._lock:
            # Those that stay may be the first ones.
            limit = _BATCH + len(self._hot) + len(self._broken)
            if self._freeze(self._shelf.idle(now_s - self._limits.warm_s, limit)):
                return True
            excess = self._shelf.warm().stored_bytes - self._limits.warm_bytes
            # Room is made for more than is there: a segment is worth its while if it is full.
            enough_bytes = excess + self._limits.warm_bytes // 4
            return excess > 0 and self._freeze(self._shelf.idle(None, limit), enough_bytes)

    def _freeze(self, rows: Iterable[Row], enough_bytes: float = math.inf) -> bool:
        """Moves warm rows into one segment, until their frames took `enough_bytes`; False if there was nothing to move.

        What is hot stays.
        """
        raws, places, size_bytes, freed_bytes = list[bytes](), list[tuple[bytes, int]](), 0, 0
        for row in rows:
            if row.id in self._hot or row.id in self._broken:
                continue
            if size_bytes + row.raw_bytes > segment.MAX_RAW_BYTES or freed_bytes >= enough_bytes:
                break
            try:
                raw = self._raw(row)
            except Corrupt:  # it stays, for whoever reads it to be told
                self._broken.add(row.id)
                continue
            places.append((row.id, size_bytes))
            raws.append(raw)
            size_bytes += len(raw)
            freed_bytes += len(row.frame or b"")
        if not raws:
            return False
        try:
            name, stored_bytes = segment.write(self._segments, raws)
        except OSError as error:
            raise Away(f"the memory's cold tier: {error.strerror}; see whether its disk is full") from None
        try:
            self._shelf.freeze(name, stored_bytes, places)
        except Away:
            (self._segments / name).unlink()
            raise
        self._moved(WARM, COLD, len(raws))
        return True

    def _remove_orphans(self) -> None:
        """Removes files that were written, or left, just before the process ended."""
        known = self._shelf.segments()
        for path in self._segments.iterdir():
            if path.name not in known:
                path.unlink()

    def _count_stored(self) -> int:
        return self._shelf.warm().stored_bytes + self._shelf.cold().stored_bytes


def _hold(directory: Path) -> int:
    """Takes a directory for this process; returns the descriptor that holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Away(f"{directory}: another memory has it; give each a directory of its own") from None
    return descriptor
