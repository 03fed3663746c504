"""What one tenant's programs have reported and the control plane has not taken yet, on disk.

Records are appended to segments, one file each, and read in order, a batch at a time. The cursor holds how far the
control plane has taken them and where the batch under way ends: what is sent again after a crash is the same batch.
What is dropped leaves a grave in its place: its segment is overwritten by one record that holds the accounts of what
was there, so that dropping needs no room and cannot be counted twice.

A record outlives the process from `append` on. A machine that loses its power may lose the last seconds. Each start
leaves a gap in the numbers, and the first batch of a start outlives the power: no number is given twice.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from meshwarden.agents.telemetry import account
from meshwarden.agents.telemetry.cursor import Cursor
from meshwarden.agents.telemetry.pack import unpacked_bytes
from meshwarden.agents.telemetry.segment import (
    HEADER_BYTES,
    SUFFIX,
    Damage,
    Header,
    Items,
    Kind,
    Piece,
    Record,
    Unreadable,
    path_of,
    pieces,
    write_all,
)

_log = structlog.get_logger()
_ASIDE: Final = ".aside"
_KEPT_BYTES: Final = 64 << 10  # a segment of which all is taken is used on up to here
_EPOCH_BITS: Final = 32


@dataclass
class _Segment:
    """A file of the chain; `last` is the number of its last record, 0 if it has none."""

    first: int
    last: int
    size: int
    is_grave: bool = False


@dataclass(frozen=True)
class Batch:
    """What goes up together.

    Attributes:
        run_id: of the chain, in hexadecimal.
        first: the number of its first record.
        last: the number of its last.
        ledger: the accounts in it, added up.
        payload: the rest of it; both are parts of one serialised `ExportRequest`.
        items: how many things of each signal that is.
    """

    run_id: str
    first: int
    last: int
    ledger: bytes
    payload: bytes
    items: Items


@dataclass(frozen=True)
class BatchLimits:
    """How large a batch is at most when it is unpacked, unless its first record alone is larger."""

    size_bytes: int = 3 << 20
    entries: int = 8192


class Chain:
    """One tenant's records. Not safe to share between threads or processes."""

    def __init__(self, directory: Path, tenant: str, new_id: bytes, segment_bytes: int) -> None:
        """Takes up what an earlier run has left.

        Args:
            directory: the chain's own; made 0700 if it isn't there.
            tenant: whose it is, for accounts.
            new_id: 16 bytes, the id of the chain if it is a new one.
            segment_bytes: after which a segment is followed by the next.

        Raises:
            OSError: the disk refuses.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory, self._tenant, self._segment_bytes = directory, tenant, segment_bytes
        self._cursor = Cursor(directory / "cursor", tenant, new_id)
        self._segments: list[_Segment] = []
        self._size = 0
        self._active: int | None = None
        self._at = (0, HEADER_BYTES)  # where the next batch begins: a segment's first number, an offset
        self._batch: Batch | None = None
        self._lost = account.Drops()
        self._recover()
        newest = max([self._cursor.committed, self._cursor.pending, *(segment.last for segment in self._segments)])
        self._epoch_begin = self._next = (newest >> _EPOCH_BITS) + 1 << _EPOCH_BITS
        self._own_up()

    @property
    def size_bytes(self) -> int:
        """What it takes on disk."""
        return self._size

    @property
    def newest(self) -> int:
        """The number of the last record."""
        return self._next - 1

    def append(
        self, ledger: bytes, payload: bytes, entries: int, items: Items, kind: Kind = Kind.DATA, mark: int = 0
    ) -> None:
        """Adds a record, which outlives this process once this returns.

        Args:
            ledger: serialised accounts.
            payload: serialised telemetry.
            entries: how many entries of repeated fields there are in the payload.
            items: what of each signal is in the payload.
            kind: what the record is there for.
            mark: a sequence, by the kind.

        Raises:
            OSError: the disk refuses; nothing is added.
        """
        content = Record(kind, self._next, mark, ledger, payload, entries, items).encode()
        if self._active is not None and self._segments[-1].size >= self._segment_bytes:
            self._leave()
        if self._active is None:
            self._begin()
        assert self._active is not None  # noqa: S101 - `_begin` raises if it cannot
        segment = self._segments[-1]
        try:
            write_all(self._active, content, segment.size)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._active, segment.size)
            raise
        segment.size += len(content)
        self._size += len(content)
        segment.last = self._next
        self._next += 1

    def batch(self, limits: BatchLimits) -> Batch | None:
        """The next batch, or again the one that is under way; None if there is nothing to send.

        Raises:
            OSError: a segment cannot be read.
        """
        if self._batch is None:
            self._batch = self._read_batch(limits)
            if self._batch is not None and (before := self._cursor.pending) != self._batch.last:
                self._cursor.pending = self._batch.last
                self._cursor.save(durable=before < self._epoch_begin <= self._batch.last)
        return self._batch

    def commit(self, until: int) -> None:
        """Lets go of all records up to a number: the control plane has them."""
        if self._batch is None or self._batch.last != until:
            self._at = (0, HEADER_BYTES)
        self._cursor.committed = self._cursor.pending = max(self._cursor.committed, until)
        self._batch = None
        self._cursor.save()
        self._clear()

    def refuse(self, batch: Batch, reason: str) -> None:
        """Gives a batch up, which the control plane will never take; its accounts go up with a later one.

        Raises:
            OSError: the disk refuses; the batch stays.
        """
        ledger = account.merge([batch.ledger], account.lost(batch.items, reason, self._tenant))
        self.append(ledger, b"", 0, Items(), Kind.REFUSAL, batch.last)
        self.commit(batch.last)

    def bury(self, reason: str) -> bool:
        """Drops the oldest segment that is not under way; whether there was one.

        Raises:
            OSError: the disk refuses.
        """
        for index, segment in enumerate(self._segments):
            if segment.is_grave or not segment.last or self._is_under_way(segment):
                continue
            before = self._segments[index - 1] if index else None
            if before is not None and (not before.is_grave or self._is_under_way(before)):
                before = None
            if segment is self._segments[-1]:
                self._leave()
            self._dig(segment, before, reason)
            return True
        return False

    def renew(self, run_id: bytes) -> None:
        """Makes it another chain, whose records nobody has seen yet."""
        self._cursor.run_id = run_id
        self._batch, self._at = None, (0, HEADER_BYTES)
        self._cursor.pending = self._cursor.committed
        self._cursor.save()

    def close(self) -> None:
        """Lets go of the files."""
        self._leave()
        self._cursor.close()

    def _is_under_way(self, segment: _Segment) -> bool:
        committed, pending = self._cursor.committed, self._cursor.pending
        return segment.first <= pending and committed < min(segment.last, pending)

    # -- writing

    def _begin(self) -> None:
        path = path_of(self._directory, self._next)
        content = Header(self._cursor.run_id, self._next).encode()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            write_all(descriptor, content, 0)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        self._active = descriptor
        self._segments.append(_Segment(self._next, 0, len(content)))
        self._size += len(content)

    def _leave(self) -> None:
        if self._active is not None:
            os.close(self._active)
            self._active = None

    def _clear(self) -> None:
        """Removes the segments of which all is taken."""
        while self._segments:
            segment = self._segments[0]
            is_active = len(self._segments) == 1 and self._active is not None
            if segment.last > self._cursor.committed or (is_active and segment.size < _KEPT_BYTES):
                return
            if is_active:
                self._leave()
            self._remove(segment)

    def _remove(self, segment: _Segment) -> None:
        path_of(self._directory, segment.first).unlink(missing_ok=True)
        self._segments.remove(segment)
        self._size -= segment.size

    def _dig(self, segment: _Segment, before: _Segment | None, reason: str) -> None:
        """Puts a grave in a segment's place, for what is in it and in the grave before."""
        items, drops, ledgers, first = Items(), account.Drops(), [], segment.first
        for found in self._found(before):
            ledgers.append(found.ledger)
            first = min(first, found.mark)
        for piece in self._pieces(segment, HEADER_BYTES):
            if isinstance(piece.found, Damage):
                drops += account.damaged(piece.found, self._tenant)
            elif piece.found.sequence > self._cursor.committed:
                items = items.plus(piece.found.items)
                ledgers.append(piece.found.ledger)
            else:
                drops.clear()  # it went up with the records that are taken
        ledger = account.merge(ledgers, drops + account.lost(items, reason, self._tenant))
        grave = Record(Kind.GRAVE, segment.last, first, ledger, b"", 0, Items()).encode()
        path = path_of(self._directory, segment.first)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            write_all(descriptor, grave, HEADER_BYTES)
            os.ftruncate(descriptor, HEADER_BYTES + len(grave))
        finally:
            os.close(descriptor)
        self._size += HEADER_BYTES + len(grave) - segment.size
        segment.size, segment.is_grave = HEADER_BYTES + len(grave), True
        self._at = (0, HEADER_BYTES)
        if before is not None:
            self._remove(before)

    def _found(self, grave: _Segment | None) -> Iterator[Record]:
        """The grave's record, unless it went up already."""
        for piece in self._pieces(grave, HEADER_BYTES) if grave is not None else ():
            if isinstance(piece.found, Record) and piece.found.sequence > self._cursor.committed:
                yield piece.found

    # -- reading

    def _read_batch(self, limits: BatchLimits) -> Batch | None:
        until = self._cursor.pending if self._cursor.pending > self._cursor.committed else None
        taken: list[Record] = []
        drops, damage, size, entries = account.Drops(), account.Drops(), 0, 0
        for segment, piece in self._unread():
            found = piece.found
            if isinstance(found, Damage):
                damage += account.damaged(found, self._tenant)
                continue
            if found.sequence <= self._cursor.committed:
                damage.clear()  # it went up with the records that are taken
                continue
            size += unpacked_bytes(found.payload) + len(found.ledger)
            entries += found.entries
            over = size > limits.size_bytes or entries > limits.entries
            if taken and (found.sequence > until if until is not None else over):
                break
            taken.append(found)
            if damage:
                drops, damage = drops + damage, account.Drops()
            self._at = (segment.first, piece.end)
        if not taken:
            return None
        items = Items()
        for record in taken:
            items = items.plus(record.items)
        ledger = account.merge((record.ledger for record in taken), drops)
        payload = b"".join(record.payload for record in taken)
        return Batch(self._cursor.run_id.hex(), taken[0].sequence, taken[-1].sequence, ledger, payload, items)

    def _unread(self) -> Iterator[tuple[_Segment, Piece]]:
        first, offset = self._at
        for segment in list(self._segments):
            if segment.first >= first and segment.last > self._cursor.committed:
                for piece in self._pieces(segment, offset if segment.first == first else HEADER_BYTES):
                    yield segment, piece

    def _pieces(self, segment: _Segment, start: int) -> Iterator[Piece]:
        with open(path_of(self._directory, segment.first), "rb") as file:
            file.seek(start)
            content = file.read(segment.size - start)
        return pieces(content, 0, start)

    # -- what an earlier run has left

    def _recover(self) -> None:
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            try:
                content = path.read_bytes()
                if len(content) < HEADER_BYTES:  # it was being begun when its writer ended
                    path.unlink()
                    continue
                header = Header.decode(content)
                if path != path_of(self._directory, header.first):
                    raise Unreadable("named after another")
            except (Unreadable, OSError) as error:
                _log.warning("spool segment set aside", tenant=self._tenant, segment=path.name, reason=str(error))
                path.rename(path.with_name(path.name + _ASIDE))
                self._lost[account.SPOOL, "record", "corrupt", self._tenant] += 1
                continue
            if self._cursor.is_new:
                self._cursor.run_id = header.run_id
            self._take_up(path, header, content)
        self._clear()

    def _own_up(self) -> None:
        """Accounts for what recovery found to be lost."""
        if self._lost:
            self.append(account.encode(self._lost), b"", 0, Items())
            self._lost.clear()

    def _take_up(self, path: Path, header: Header, content: bytes) -> None:
        segment, damage = _Segment(header.first, 0, HEADER_BYTES), account.Drops()
        for piece in pieces(content, HEADER_BYTES):
            if isinstance(piece.found, Damage):
                if piece.found.is_torn:
                    break  # its write was cut off, so nobody was told that we have it
                damage += account.damaged(piece.found, self._tenant)
            else:
                segment.last = piece.found.sequence
                if piece.found.kind is Kind.REFUSAL:
                    self._cursor.committed = max(self._cursor.committed, piece.found.mark)
                    self._cursor.pending = max(self._cursor.committed, self._cursor.pending)
                segment.is_grave = piece.found.kind is Kind.GRAVE
            segment.size = piece.end
            if segment.is_grave:
                break
        if segment.size < len(content):
            os.truncate(path, segment.size)
        if segment.is_grave:
            self._remove_buried(content)
        if segment.last:
            self._segments.append(segment)
            self._size += segment.size
        else:
            self._lost += damage
            path.unlink()

    def _remove_buried(self, content: bytes) -> None:
        """Removes the segments whose accounts a grave holds."""
        grave = next(pieces(content, HEADER_BYTES)).found
        while self._segments and isinstance(grave, Record) and self._segments[-1].first >= grave.mark:
            self._remove(self._segments[-1])
