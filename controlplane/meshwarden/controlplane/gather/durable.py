"""The one durable step of the up river: what batches have brought, and that they came, in one transaction.

`gather.sqlite` has parts: marks, ledger, tally, what goes on to backends. Each keeps in memory what it was given; a
flush takes all of it and writes it together. So a batch is on disk as a whole or not at all, and one that is sent again
after a crash of either side counts once. Agents are answered after the flush, which outlives the machine's power too
(`synchronous = FULL`).
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
import apsw

# What leads to traces is in no order, so that each flush changes pages everywhere: those in memory are not read again.
_CACHE_KIB = 16 << 10
_Found = TypeVar("_Found")


class Part(Protocol):
    """Something that is kept in the file."""

    def create(self, db: apsw.Connection) -> None:
        """Makes the part's tables, if they aren't there, and reads what it needs of them."""

    def take(self) -> Any:
        """Removes and returns what waits to be written; None if nothing does."""

    def write(self, db: apsw.Connection, waiting: Any) -> None:
        """Writes it, on a thread, within the transaction."""

    def written(self, waiting: Any) -> None:
        """Takes note that it is written."""

    def give_back(self, waiting: Any) -> None:
        """Takes it back: it could not be written."""


class Durable:
    """The file and its parts. One process has it; flushes and `work` are one after the other."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it, 0600.

        Raises:
            apsw.Error: the file is none of ours, or can't be written.
        """
        self._path = path
        self._parts: list[Part] = []
        self._lock = anyio.Lock()
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._db = apsw.Connection(str(path))
        self._db.set_busy_timeout(5000)
        pragmas = (
            "auto_vacuum = INCREMENTAL",
            "journal_mode = WAL",
            "synchronous = FULL",
            f"cache_size = -{_CACHE_KIB}",
        )
        for pragma in pragmas:
            self._db.execute(f"PRAGMA {pragma}").fetchall()

    def add(self, part: Part) -> None:
        """Makes something a part of the file.

        Raises:
            apsw.Error: the file can't be written.
        """
        part.create(self._db)
        self._parts.append(part)

    async def flush(self) -> None:
        """Writes what waits; what can't be written waits on.

        Raises:
            apsw.Error: the file can't be written.
        """
        async with self._lock:
            taken = [(part, waiting) for part in self._parts if (waiting := part.take()) is not None]
            if not taken:
                return
            try:
                # What is cut off here might go on unseen, and be written twice.
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._write, taken)
            except BaseException:
                for part, waiting in taken:
                    part.give_back(waiting)
                raise
            for part, waiting in taken:
                part.written(waiting)

    async def work(self, work: Callable[[apsw.Connection], _Found]) -> _Found:
        """Does something to the file, on a thread, between two flushes.

        Raises:
            apsw.Error: the file can't be written.
        """
        # What is cut off here might go on unseen.
        with anyio.CancelScope(shield=True):
            async with self._lock:
                found = await anyio.to_thread.run_sync(work, self._db)
        return found

    async def read(self, read: Callable[[apsw.Connection], _Found]) -> _Found:
        """Reads what is written, on a thread.

        Raises:
            apsw.Error: the file can't be read.
        """
        return await anyio.to_thread.run_sync(self._read, read)

    def close(self) -> None:
        """Closes the file; flush first."""
        self._db.close()

    def _write(self, taken: Sequence[tuple[Part, Any]]) -> None:
        with transaction(self._db):
            for part, waiting in taken:
                part.write(self._db, waiting)

    def _read(self, read: Callable[[apsw.Connection], _Found]) -> _Found:
        with self._reader() as reader:
            return read(reader)

    @contextlib.contextmanager
    def _reader(self) -> Iterator[apsw.Connection]:
        # A connection of its own: whoever asked may be gone before the answer, and the writer must not meet it.
        with contextlib.closing(apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY)) as reader:
            reader.set_busy_timeout(5000)
            yield reader


@contextlib.contextmanager
def transaction(db: apsw.Connection) -> Iterator[None]:
    """All of what is done within, or nothing of it. A full disk ends a transaction by itself."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def size_bytes(db: apsw.Connection) -> int:
    """What is in use of a file."""
    return int((db.pragma("page_count") - db.pragma("freelist_count")) * db.pragma("page_size"))
