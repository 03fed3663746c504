"""Packed bytes: zstd at its fastest ordinary level, which takes a fifth of the time of gzip for the same size."""

import sys
from typing import Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_LEVEL: Final = 1


def pack(content: bytes) -> bytes:
    """Packs it."""
    return zstd.compress(content, _LEVEL)


def unpack(packed: bytes) -> bytes:
    """What `pack` was given; only for what we have packed ourselves."""
    return zstd.decompress(packed)
