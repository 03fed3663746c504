"""Reads an audit log's file, from its end or as a whole. A line that is being written is not there yet."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from meshwarden.controlplane.audit import chain
from meshwarden.controlplane.audit.chain import MAX_LINE_BYTES
from meshwarden.controlplane.audit.port import AuditBroken

BLOCK_BYTES: Final = 64 << 10
MAX_READ_BYTES: Final = 64 << 20
"""So much of a file is looked through for one page."""

Entry = Mapping[str, Any]
"""A line: seq, time, event, fields, prev and hash."""


@dataclass(frozen=True)
class Page:
    """Events, the newest first. There may be older ones before `next_before`; 0 says that there are none."""

    entries: tuple[Entry, ...]
    next_before: int


def newest(path: Path, wanted: Callable[[Entry], bool], limit: int, before: int = 0, since: str = "") -> Page:
    """Returns the newest events that are wanted.

    Args:
        path: the file.
        wanted: says which.
        limit: so many at most.
        before: only events with smaller numbers; 0 for all.
        since: an ISO time in UTC; nothing older is looked at.

    Raises:
        AuditBroken: a line is none of ours.
        OSError: the file can't be read.
    """
    found: list[Entry] = []
    read_bytes = 0
    for line in _backwards(path):
        entry = _parse(line)
        read_bytes += len(line)
        if before and entry["seq"] >= before:
            # What is asked for lies further back: to get there is no part of the page.
            read_bytes = 0
            continue
        if since and entry["time"] < since:
            return Page(tuple(found), 0)
        if wanted(entry):
            found.append(entry)
        if len(found) == limit or read_bytes > MAX_READ_BYTES:
            return Page(tuple(found), entry["seq"] if entry["seq"] > 1 else 0)
    return Page(tuple(found), 0)


def verify(path: Path, anchor: chain.Link | None = None) -> chain.Link:
    """Verifies a whole file, and that an anchor lies in it; returns where it ends.

    Raises:
        AuditBroken: the chain doesn't hold, or ends before its anchor, or leads past it.
        OSError: the file can't be read.
    """
    at_anchor = b""

    def lines() -> Iterator[bytes]:
        nonlocal at_anchor
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
                if not line.endswith(b"\n"):
                    if len(line) == MAX_LINE_BYTES:
                        raise AuditBroken(f"line {number}: more than {MAX_LINE_BYTES} bytes")
                    return
                if anchor is not None and number == anchor.seq:
                    at_anchor = line
                yield line

    link = chain.verify(lines())
    if anchor is None or not anchor.seq:
        return link
    if link.seq < anchor.seq:
        raise AuditBroken(f"it ends with event {link.seq}, and had {anchor.seq}: the newest were cut off")
    if _parse(at_anchor)["hash"] != anchor.hash:
        raise AuditBroken(f"event {anchor.seq} is not the one that was written: the file is another, or was made anew")
    return link


def find(path: Path, seq: int) -> chain.Link | None:
    """Returns the link of an event near the end of a file; None if it isn't there.

    Raises:
        AuditBroken: a line is none of ours.
        OSError: the file can't be read.
    """
    for line in _backwards(path):
        entry = _parse(line)
        if entry["seq"] <= seq:
            return chain.Link(seq, entry["hash"]) if entry["seq"] == seq else None
    return None


def _parse(line: bytes) -> Entry:
    try:
        entry = json.loads(line)
        if not (
            isinstance(entry["seq"], int)
            and all(isinstance(entry[name], str) for name in ("time", "event", "hash"))
            and isinstance(entry["fields"], dict)
        ):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise AuditBroken(f"not a line of an audit log: {line[:60]!r}") from None
    return dict(entry)


def _backwards(path: Path) -> Iterator[bytes]:
    """Yields the whole lines of a file, the last one first."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        rest = b""
        is_last = True
        while end:
            start = max(0, end - BLOCK_BYTES)
            file.seek(start)
            first, *whole = (file.read(end - start) + rest).split(b"\n")
            end, rest = start, first
            if len(rest) > MAX_LINE_BYTES:
                raise AuditBroken(f"{path}: a line of more than {MAX_LINE_BYTES} bytes")
            if is_last and whole:
                whole.pop()  # empty, or torn
                is_last = False
            # The newline that ends `first` stands before the first of `whole`.
            yield from reversed(whole)
        if rest and not is_last:
            yield rest
