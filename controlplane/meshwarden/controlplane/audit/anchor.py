"""Notes in the store where the chain of an audit log ends, so that a cut of its newest lines is seen.

/audit/end/<SHA-256 of the writer>   the end of a writer's chain: its number, its hash, and when

Each note is put over the one that this writer put before, and over no other: two that write one chain under one name,
of a copied state directory for one, are told apart at the second's first note.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from meshwarden.controlplane.audit import read
from meshwarden.controlplane.audit.chain import Link
from meshwarden.controlplane.audit.port import AuditBroken, AuditLog
from meshwarden.controlplane.store.port import ABSENT, Ambiguous, Conflict, Put, Store, StoreError

ENDS: Final = "/audit/end/"
EVERY_S: Final = 5.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Noted:
    """What the store knows of a chain: where it ended, and when that was noted."""

    link: Link = field(default_factory=Link)
    time: datetime | None = None


class Anchor:
    """Holds one writer's chain to the store."""

    def __init__(
        self,
        store: Store,
        audit: AuditLog,
        end: Callable[[], Link],
        path: Path,
        writer: str,
        clock: Callable[[], datetime],
    ) -> None:
        """Says whose chain it is.

        Args:
            store: keeps the notes.
            audit: learns of a chain that isn't the one noted.
            end: where the chain ends now.
            path: its file.
            writer: names who writes it, the same after a restart.
            clock: the present, aware.
        """
        self._store, self._audit, self._end, self._path, self._clock = store, audit, end, path, clock
        self._writer = writer
        self._key = ENDS + hashlib.sha256(writer.encode()).hexdigest()
        self._revision: int | None = None
        self.noted = Noted()
        """The newest note."""

    async def run(self) -> None:
        """Notes where the chain ends, until it is cancelled."""
        while True:
            try:
                await self.note()
            except Conflict:
                log.error("audit.two_writers", writer=self._writer)
                self._audit.note("audit.two_writers", writer=self._writer)
                self._revision = None
            except (StoreError, OSError) as error:
                log.warning("audit.not_anchored", error=str(error))
            await asyncio.sleep(EVERY_S)

    async def note(self) -> None:
        """Notes where the chain ends, if that isn't known yet.

        Raises:
            Conflict: somebody else has noted the end of a chain under our name.
            StoreError: it can't be noted now.
        """
        if self._revision is None:
            self._revision = await self._recall()
        end = self._end()
        if end.seq <= self.noted.link.seq:
            return
        noted = Noted(end, self._clock())
        try:
            self._revision = await self._store.commit([Put(self._key, self._encode(noted), self._revision)])
        except Ambiguous:
            self._revision = None
            raise
        self.noted = noted

    async def _recall(self) -> int:
        """Reads the note of an earlier run, and holds the chain against it."""
        record, _ = await self._store.get(self._key)
        if record is None:
            return ABSENT
        self.noted = _decode(record.value)
        fault = await asyncio.to_thread(self._fault, self.noted.link) if self.noted.link.seq else ""
        if fault:
            log.error("audit.broken", path=str(self._path), reason=fault)
            self._audit.note("audit.broken", reason=fault)
            # From here on the chain that is there is the one to go by; the event above stays in it.
            self.noted = Noted()
        return record.revision

    def _fault(self, link: Link) -> str:
        try:
            found = read.find(self._path, link.seq)
        except AuditBroken as error:
            return str(error)
        if found is None:
            return f"event {link.seq}, noted in the store, is not in the file: the newest events were cut off"
        return "" if found == link else f"event {link.seq} is not the one that the store has noted: another file"

    def _encode(self, noted: Noted) -> bytes:
        assert noted.time is not None  # noqa: S101 - for the type alone
        value = {"v": 1, "writer": self._writer, "seq": noted.link.seq, "hash": noted.link.hash}
        return json.dumps(value | {"time": noted.time.isoformat()}).encode()


def _decode(value: bytes) -> Noted:
    try:
        words = json.loads(value)
        return Noted(Link(int(words["seq"]), str(words["hash"])), datetime.fromisoformat(words["time"]))
    except (ValueError, KeyError, TypeError) as error:
        log.warning("audit.note_unreadable", error=str(error))
        return Noted()
