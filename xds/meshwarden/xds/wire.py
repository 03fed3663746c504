"""Protobuf's wire form of the few fields that responses are assembled from.

A response is the concatenation of its fields, so resources that are serialised once can be shared by every response
that carries them: no message object is built, and no byte of a resource is copied but into the response.

Source: https://protobuf.dev/programming-guides/encoding
"""

import hashlib
from collections.abc import Iterable

_LENGTH_DELIMITED = 2


def varint(value: int) -> bytes:
    """A non-negative integer, seven bits a byte, least significant first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def lead(number: int, size_bytes: int) -> bytes:
    """What goes before the bytes of field `number`, which holds text, bytes or a message; field numbers to 15."""
    return bytes([number << 3 | _LENGTH_DELIMITED]) + varint(size_bytes)


def delimited(number: int, body: bytes) -> bytes:
    """The field `number` holding text, bytes or a message; field numbers to 15."""
    return lead(number, len(body)) + body


def digest_of(parts: Iterable[bytes]) -> bytes:
    """SHA-256 of some parts, each after its length, so that no others have the same."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()
