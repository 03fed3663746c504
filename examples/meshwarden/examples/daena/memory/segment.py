"""Many records in one file of the cold tier, compressed together: what one has said costs the next little.

    "NBMS"  version  raw length (32 bits, big-endian)  the records' canonical bytes, one after the other, in LZMA2

A segment is written once and never changed.
"""

import lzma
import os
import secrets
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from meshwarden.examples.daena.error import Corrupt

SUFFIX: Final = ".nbms"
MAX_RAW_BYTES: Final = 128 << 10
"""Of one segment: a cold read unpacks a whole one."""
_HEADER: Final = struct.Struct(">4sBI")
_MAGIC, _VERSION = b"NBMS", 1
# A preset's dictionary is 64 MiB, and ten times that to compress. No check of its own: the records are hashed.
_FILTERS: Final = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": MAX_RAW_BYTES}]


def write(directory: Path, raws: Sequence[bytes]) -> tuple[str, int]:
    """Writes a segment, which is there whole or not at all; returns its name and its size in bytes.

    Raises:
        OSError: it can't be written; nothing of it is left.
    """
    raw = b"".join(raws)
    content = _HEADER.pack(_MAGIC, _VERSION, len(raw)) + lzma.compress(raw, lzma.FORMAT_RAW, filters=_FILTERS)
    name = secrets.token_hex(8) + SUFFIX
    unfinished = directory / f"{name}.new"
    try:
        with unfinished.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(directory / name)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return name, len(content)


def read(path: Path) -> bytes:
    """Returns the records of a segment, one after the other.

    Raises:
        Corrupt: it is none, or it is gone.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Corrupt(f"segment {path.name}: {error.strerror}") from None
    if len(content) < _HEADER.size:
        raise Corrupt(f"segment {path.name}: it ends in its header")
    magic, version, size = _HEADER.unpack_from(content)
    if magic != _MAGIC or version != _VERSION or size > MAX_RAW_BYTES:
        raise Corrupt(f"segment {path.name}: its header is none")
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        raw = unpacker.decompress(content[_HEADER.size :], size + 1)
    except lzma.LZMAError as error:
        raise Corrupt(f"segment {path.name}: {error}") from None
    if len(raw) != size:
        raise Corrupt(f"segment {path.name}: it has {len(raw)} bytes and says {size}")
    return raw
