"""One file of a spool: a header, then records, each with checksums of its own.

    MWspool1  run_id(16)  first sequence(8)  crc32(4)
    MWr 0x01  header crc32(4)  body crc32(4)  …  ledger bytes  payload bytes

A record is found again behind a damaged one, by its magic and the checksum of its header. All integers are
little-endian. Another format has another magic in the file's header, and is left alone.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, NamedTuple, Self

_FILE: Final = struct.Struct("<8s16sQI")
_FILE_MAGIC: Final = b"MWspool1"
# magic, header crc, body crc, kind, sequence, mark, ledger bytes, payload bytes, entries, then items of each signal
_RECORD: Final = struct.Struct("<4sIIBQQIII4I")
_RECORD_MAGIC: Final = b"MWr\x01"
_SUMMED_FROM: Final = 8  # what the header's checksum is over begins behind it
HEADER_BYTES: Final = _FILE.size
RECORD_BYTES: Final = _RECORD.size
SUFFIX: Final = ".seg"
_KINDS: Final = frozenset({1, 2, 3})


class Unreadable(Exception):
    """A file is no segment that this agent reads."""


class Items(NamedTuple):
    """How many things of each signal a record holds."""

    call: int = 0
    span: int = 0
    point: int = 0
    log: int = 0

    def plus(self, other: "Items") -> "Items":
        """Both together."""
        return Items(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Kind(IntEnum):
    """What a record is there for."""

    DATA = 1
    GRAVE = 2  # all that was in its segment, and in those before it down to `mark`, was dropped
    REFUSAL = 3  # what came until `mark` was refused by the control plane


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Attributes:
        kind: what it is there for.
        sequence: its number in the chain; grows, with gaps.
        mark: a sequence, by its kind.
        ledger: serialised accounts that must go up even if the payload is dropped.
        payload: serialised telemetry.
        entries: how many entries of repeated fields the two hold.
        items: how many things of each signal the payload holds.
    """

    kind: Kind
    sequence: int
    mark: int
    ledger: bytes
    payload: bytes
    entries: int
    items: Items

    def encode(self) -> bytes:
        """The record as it lies in the file."""
        body_crc = zlib.crc32(self.payload, zlib.crc32(self.ledger))
        sizes = (len(self.ledger), len(self.payload), self.entries, *self.items)
        summed = _RECORD.pack(_RECORD_MAGIC, 0, body_crc, self.kind, self.sequence, self.mark, *sizes)[_SUMMED_FROM:]
        return b"".join((_RECORD_MAGIC, struct.pack("<I", zlib.crc32(summed)), summed, self.ledger, self.payload))


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that hold no record that can be read.

    Attributes:
        items: what was in it, as far as its header still says.
        is_known: whether it does.
        is_torn: whether it goes on until the end of the file, where a write may have been cut off.
    """

    items: Items
    is_known: bool
    is_torn: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Something in a segment, and where it ends."""

    start: int
    end: int
    found: Record | Damage


@dataclass(frozen=True)
class Header:
    """What a segment's first bytes say."""

    run_id: bytes
    first: int

    def encode(self) -> bytes:
        """The bytes."""
        body = _FILE.pack(_FILE_MAGIC, self.run_id, self.first, 0)[:-4]
        return body + struct.pack("<I", zlib.crc32(body))

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Reads `HEADER_BYTES` or more.

        Raises:
            Unreadable: they are none of ours.
        """
        magic, run_id, first, crc = _FILE.unpack_from(content)
        if magic != _FILE_MAGIC or zlib.crc32(content[: HEADER_BYTES - 4]) != crc:
            raise Unreadable("no header of this format")
        return cls(run_id, first)


def pieces(content: bytes, start: int, base: int = 0) -> Iterator[Piece]:
    """What there is in a segment's bytes from an offset on.

    Args:
        content: the bytes.
        start: where in them to begin: at a record.
        base: the offset of the bytes in the file, which the pieces' places count from.
    """
    at = start
    while at < len(content):
        record, end = _read(content, at)
        if record is not None:
            yield Piece(base + at, base + end, record)
        else:
            end, damage = _damage(content, at)
            yield Piece(base + at, base + end, damage)
        at = end


def _read(content: bytes, at: int) -> tuple[Record | None, int]:
    fields = _header(content, at)
    if fields is None:
        return None, at
    body_crc, kind, sequence, mark, ledger_bytes, payload_bytes, entries, *items = fields
    middle = at + RECORD_BYTES + ledger_bytes
    end = middle + payload_bytes
    body = content[at + RECORD_BYTES : end]
    if end > len(content) or zlib.crc32(body) != body_crc:
        return None, at
    return (
        Record(Kind(kind), sequence, mark, body[:ledger_bytes], body[ledger_bytes:], entries, Items(*items)),
        end,
    )


def _header(content: bytes, at: int) -> tuple[int, ...] | None:
    if len(content) - at < RECORD_BYTES or not content.startswith(_RECORD_MAGIC, at):
        return None
    _, header_crc, *fields = _RECORD.unpack_from(content, at)
    if zlib.crc32(content[at + _SUMMED_FROM : at + RECORD_BYTES]) != header_crc or fields[1] not in _KINDS:
        return None
    return tuple(fields)


def _damage(content: bytes, at: int) -> tuple[int, Damage]:
    """Where damage at `at` ends, and what it was."""
    fields = _header(content, at)
    if fields is not None:
        end = at + RECORD_BYTES + fields[4] + fields[5]
        if end <= len(content):
            return end, Damage(Items(*fields[7:]), is_known=True, is_torn=False)
    following = at
    while (following := content.find(_RECORD_MAGIC, following + 1)) >= 0:
        if _header(content, following) is not None:
            return following, Damage(Items(), is_known=False, is_torn=False)
    return len(content), Damage(Items(), is_known=False, is_torn=True)


def write_all(descriptor: int, content: bytes, at: int) -> None:
    """Writes all of it at an offset.

    Raises:
        OSError: the disk refuses; some of it may be there.
    """
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, at)
        at += written
        view = view[written:]


def path_of(directory: Path, first: int) -> Path:
    """The file of the segment that begins with a sequence."""
    return directory / f"{first:020d}{SUFFIX}"
