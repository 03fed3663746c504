"""One record as the warm tier keeps it: a header, and its canonical bytes compressed against a shared dictionary. Pure.

    "NBMF"  version  codec  raw length (32 bits, big-endian)  SHA-256  payload

Records are short and alike, so most of what deflate could save is in what they share. The dictionary is part of the
format: it never changes, another one is another codec.

Source: RFC 1950 §2.2 (FDICT), RFC 1951.
"""

import struct
import zlib
from importlib.resources import files
from typing import Final

from meshwarden.examples.daena.error import Corrupt
from meshwarden.examples.daena.memory.record import MAX_BYTES, id_of, verified

_HEADER: Final = struct.Struct(">4sBBI32s")
_MAGIC, _VERSION = b"NBMF", 1
_PLAIN, _DEFLATE_1 = 0, 1
_DICTIONARY_1: Final = files("meshwarden.examples.daena.memory").joinpath("dictionary_1.txt").read_bytes()


def encode(raw: bytes) -> bytes:
    """Returns the frame of canonical bytes."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, zdict=_DICTIONARY_1)
    squeezed = squeezer.compress(raw) + squeezer.flush()
    codec, payload = (_DEFLATE_1, squeezed) if len(squeezed) < len(raw) else (_PLAIN, raw)
    return _HEADER.pack(_MAGIC, _VERSION, codec, len(raw), id_of(raw)) + payload


def decode(frame: bytes, wanted: bytes) -> bytes:
    """Returns the canonical bytes of a frame, which must be those of the record `wanted`.

    Raises:
        Corrupt: they aren't, or it is no frame.
    """
    if len(frame) < _HEADER.size:
        raise _broken(wanted, "it ends in its header")
    magic, version, codec, size, claimed = _HEADER.unpack_from(frame)
    if magic != _MAGIC or version != _VERSION or size > MAX_BYTES:
        raise _broken(wanted, "its header is none")
    if claimed != wanted:
        raise _broken(wanted, "it is of another record")
    payload = frame[_HEADER.size :]
    if codec == _DEFLATE_1:
        payload = _inflate(payload, size, wanted)
    elif codec != _PLAIN:
        raise _broken(wanted, f"codec {codec} is not known")
    if len(payload) != size:
        raise _broken(wanted, f"it has {len(payload)} bytes and says {size}")
    return verified(payload, wanted, "warm")


def _inflate(payload: bytes, size: int, wanted: bytes) -> bytes:
    stretcher = zlib.decompressobj(zdict=_DICTIONARY_1)
    try:
        # One byte more than it may have: a bomb goes no further.
        found = stretcher.decompress(payload, size + 1)
    except zlib.error as error:
        raise _broken(wanted, str(error)) from None
    if not stretcher.eof or stretcher.unused_data:
        raise _broken(wanted, "the compressed bytes don't end where they should")
    return found


def _broken(wanted: bytes, why: str) -> Corrupt:
    return Corrupt(f"record {wanted.hex()}: its frame in the warm tier is broken: {why}; write it anew")
