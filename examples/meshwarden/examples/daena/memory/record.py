"""A record and its canonical bytes, whose SHA-256 is its id. Pure.

The canonical bytes are JSON in UTF-8: names sorted by code point, no white space, nothing escaped that need not be.
Whoever has a record can work out its id.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from meshwarden.examples.daena.error import Corrupt, Invalid
from meshwarden.examples.daena.field import name, shown

MAX_FIELDS: Final = 32
MAX_BYTES: Final = 64 << 10
_FIELD: Final = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Record:
    """A record.

    Attributes:
        tenant: whose it is.
        author: the SPIFFE ID of who wrote it.
        kind: what it is.
        fields: its content.
    """

    tenant: str
    author: str
    kind: str
    fields: Mapping[str, str] = field(hash=False)


def canonical(record: Record) -> bytes:
    """Returns a record's canonical bytes.

    Raises:
        Invalid: it has too many fields, a bad name, or is larger than `MAX_BYTES`.
    """
    name("kind", record.kind)
    if not 1 <= len(record.fields) <= MAX_FIELDS:
        raise Invalid(f"fields: {len(record.fields)}; give 1 to {MAX_FIELDS}")
    for key in record.fields:
        if _FIELD.fullmatch(key) is None:
            raise Invalid(f"fields: {shown(key)}: a name is a small letter, then up to 63 of a-z, 0-9, _ and .")
    content = {
        "author": record.author,
        "fields": dict(record.fields),
        "kind": record.kind,
        "tenant": record.tenant,
    }
    raw = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    if len(raw) > MAX_BYTES:
        raise Invalid(f"fields: {len(raw)} bytes with their names; at most {MAX_BYTES} are taken")
    return raw


def parse(raw: bytes) -> Record:
    """Reads canonical bytes.

    Raises:
        Corrupt: they are none.
    """
    try:
        content = json.loads(raw)
        return Record(content["tenant"], content["author"], content["kind"], dict(content["fields"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Corrupt("the bytes are no record") from None


def id_of(raw: bytes) -> bytes:
    """Returns the id of canonical bytes: their SHA-256."""
    return hashlib.sha256(raw).digest()


def parse_id(text: str) -> bytes:
    """Reads an id as it is written.

    Raises:
        Invalid: it is none.
    """
    if _ID.fullmatch(text) is None:
        raise Invalid(f"id: {shown(text)}: give 64 small hexadecimal digits")
    return bytes.fromhex(text)


def verified(raw: bytes, wanted: bytes, where: str) -> bytes:
    """Returns bytes whose hash is `wanted`.

    Raises:
        Corrupt: it isn't.
    """
    if id_of(raw) != wanted:
        raise Corrupt(f"record {wanted.hex()}: its copy in the {where} tier has another hash; write it anew")
    return raw
