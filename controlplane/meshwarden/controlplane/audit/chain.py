"""The chain: each line holds the hash of the one before it and of itself. Pure.

    {"seq": 2, "time": "…", "event": "node.attest", "fields": {…}, "prev": "<hash of 1>", "hash": "<hash of this>"}

Whoever changes, removes or inserts a line must rewrite all that follow. That the newest lines were cut off can't be
seen in the file alone: ship the log, or note its last hash elsewhere.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from meshwarden.controlplane.audit.port import AuditBroken

MAX_TEXT = 4096
MAX_LINE_BYTES = 8 << 20
MAX_ITEMS = 1000
MAX_DEPTH = 4
GENESIS = "0" * 64


@dataclass(frozen=True)
class Link:
    """Where a chain ends."""

    seq: int = 0
    hash: str = GENESIS


def append(link: Link, time: datetime, event: str, fields: Mapping[str, object]) -> tuple[Link, bytes]:
    """Returns the next link and its line; the fields are bounded already."""
    body = {
        "seq": link.seq + 1,
        "time": time.isoformat(timespec="milliseconds"),
        "event": event,
        "fields": fields,
        "prev": link.hash,
    }
    digest = _digest(body)
    return Link(link.seq + 1, digest), _line(body, digest)


def verify(lines: Iterable[bytes]) -> Link:
    """Returns where a chain ends.

    Args:
        lines: each with its newline.

    Raises:
        AuditBroken: a line isn't what was written; the message says which.
    """
    link = Link()
    for number, line in enumerate(lines, 1):
        try:
            body = json.loads(line)
            digest = body.pop("hash")
            fits = body["seq"] == link.seq + 1 and body["prev"] == link.hash and digest == _digest(body)
            # To the byte: a name given twice is read by some as the first, by others as the last.
            fits = fits and line == _line(body, digest)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            fits = False
        if not fits:
            raise AuditBroken(f"line {number}: isn't what was written after line {number - 1}")
        link = Link(link.seq + 1, digest)
    return link


def bounded(fields: Mapping[str, object]) -> dict[str, object]:
    """Returns fields that JSON has types for, none of them too long or too deep."""
    return {name[:MAX_TEXT]: _bounded(value, MAX_DEPTH) for name, value in fields.items()}


def _line(body: Mapping[str, object], digest: str) -> bytes:
    return json.dumps({**body, "hash": digest}, separators=(",", ":")).encode() + b"\n"


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, separators=(",", ":"), sort_keys=True).encode()).hexdigest()


def _bounded(value: object, depth: int) -> object:
    """Cuts what is too long, and makes text of what JSON has no type for."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        # Python writes only so many decimal digits.
        return value if value.bit_length() < 64 else hex(value)[:MAX_TEXT]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if depth and isinstance(value, Mapping):
        return {str(name)[:MAX_TEXT]: _bounded(item, depth - 1) for name, item in list(value.items())[:MAX_ITEMS]}
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_bounded(item, depth - 1) for item in list(value)[:MAX_ITEMS]]
    text = str(value).encode(errors="backslashreplace").decode()
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"
