"""The audit log in a file: JSON lines, 0600, chained, synced before anyone is told that an event is stored.

One thread writes. It takes all that waits at once, so that many events cost one sync.
"""

import asyncio
import fcntl
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import structlog

from meshwarden.controlplane.audit import chain
from meshwarden.controlplane.audit.chain import MAX_LINE_BYTES
from meshwarden.controlplane.audit.port import AuditBroken, AuditError, AuditLog, AuditUnavailable

MAX_BATCH = 256
MAX_NOTES = 1024
# How many notes are stored in full, at once and each second; those beyond are counted. Strangers cause notes; at one a
# second they fill some 40 MB a day.
NOTES_AT_ONCE = 50
NOTES_PER_S = 1

log = structlog.get_logger()


@dataclass(frozen=True)
class _Job:
    event: str
    rows: Sequence[Mapping[str, object]]
    time: datetime
    done: "Future[None]"


class FileAuditLog(AuditLog):
    """Appends events to a file."""

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        """Opens the file; see `open`."""
        self._path = path
        self._clock = clock
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._notes = _Allowance()
        self._closed = False
        # Without buffering: what a failed write leaves behind is in the file, where it can be cut off.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._file: BinaryIO = os.fdopen(fd, "r+b", buffering=0)
        try:
            self._lock()
            self._link, self._size, torn = _read(self._file, path)
        except BaseException:
            self._file.close()
            raise
        if torn:
            log.warning("audit.healed", path=str(path), torn_bytes=torn)
            self.note("audit.heal", torn_bytes=torn)
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, clock: Callable[[], datetime]) -> AsyncIterator["FileAuditLog"]:
        """Verifies the file, makes it if there is none, and writes until the context ends.

        A last line that a crash tore is cut off, and that is an event.

        Raises:
            AuditBroken: the chain doesn't hold; the message says where.
            AuditError: the file can't be opened, or another process writes it.
        """
        try:
            opened = await asyncio.to_thread(cls, path, clock)
        except OSError as error:
            raise AuditError(f"{path}: {error.strerror}") from None
        try:
            yield opened
        finally:
            # What waits is written even when the context ends by cancellation.
            opened.close()

    @property
    def end(self) -> chain.Link:
        """Where the chain ends: the newest event that is durable."""
        return self._link

    async def record(self, event: str, **fields: object) -> None:
        """Stores an event; it is durable on return."""
        await self.record_all(event, [fields])

    async def record_all(self, event: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Stores several events of one kind, durable on return."""
        if rows:
            await asyncio.wrap_future(self._put(event, rows))

    def note(self, event: str, **fields: object) -> None:
        """Stores an event soon; past a rate only the number of them."""
        now = self._clock()
        if self._jobs.qsize() >= MAX_NOTES or not self._notes.take(now):
            self._notes.suppressed += 1
            return
        rows = [fields]
        if self._notes.suppressed:
            rows[0] = fields | {"suppressed_before": self._notes.suppressed}
            self._notes.suppressed = 0
        self._put(event, rows)

    def close(self) -> None:
        """Writes what waits, then closes the file."""
        if not self._closed:
            if self._notes.suppressed:
                self._put("audit.suppressed", [{"number": self._notes.suppressed}])
            self._closed = True
            self._jobs.put(None)
            self._thread.join()
            self._file.close()

    def _put(self, event: str, rows: Sequence[Mapping[str, object]]) -> "Future[None]":
        done: Future[None] = Future()
        if self._closed:
            done.set_exception(AuditUnavailable(f"{self._path}: is closed"))
        else:
            # Bounded here: what can't be written is the caller's fault, and must not end the one thread that writes.
            self._jobs.put(_Job(event, [chain.bounded(row) for row in rows], self._clock(), done))
        return done

    def _lock(self) -> None:
        os.fchmod(self._file.fileno(), 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AuditError(f"{self._path}: another process writes it") from None

    def _write_all(self) -> None:
        ended = False
        while not ended:
            jobs = [self._jobs.get()]
            while len(jobs) < MAX_BATCH and not self._jobs.empty():
                jobs.append(self._jobs.get())
            ended = None in jobs
            batch = [job for job in jobs if job is not None]
            if batch:
                self._commit(batch)

    def _commit(self, batch: Sequence[_Job]) -> None:
        link, lines = self._link, []
        for job in batch:
            for row in job.rows:
                link, line = chain.append(link, job.time, job.event, row)
                lines.append(line)
        content = b"".join(lines)
        try:
            self._append(content)
        except OSError as error:
            log.error("audit.failed", path=str(self._path), error=error.strerror)
            for job in batch:
                _finish(job.done, AuditUnavailable(f"{self._path}: {error.strerror}"))
            return
        self._link, self._size = link, self._size + len(content)
        for job in batch:
            _finish(job.done, None)

    def _append(self, content: bytes) -> None:
        fd = self._file.fileno()
        # First of all cut off what an earlier failure may have left: the file ends where the chain does.
        os.ftruncate(fd, self._size)
        view, offset = memoryview(content), self._size
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written
        os.fdatasync(fd)


class _Allowance:
    """So many notes at once, one more each second, and the count of those beyond."""

    def __init__(self) -> None:
        self._left = float(NOTES_AT_ONCE)
        self._since: datetime | None = None
        self.suppressed = 0

    def take(self, now: datetime) -> bool:
        # A clock that was set back takes nothing away.
        elapsed_s = max(0.0, (now - (self._since or now)).total_seconds())
        self._left, self._since = min(float(NOTES_AT_ONCE), self._left + elapsed_s * NOTES_PER_S), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _finish(done: "Future[None]", error: AuditUnavailable | None) -> None:
    # A caller that was cancelled has cancelled its future; the event is stored all the same.
    if done.set_running_or_notify_cancel():
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


def _read(file: BinaryIO, path: Path) -> tuple[chain.Link, int, int]:
    """Verifies the file and cuts off a torn last line; returns the link, the size and how many bytes were torn."""
    whole = 0

    def lines() -> Iterator[bytes]:
        nonlocal whole
        with os.fdopen(os.dup(file.fileno()), "rb") as buffered:
            while line := buffered.readline(MAX_LINE_BYTES):
                if not line.endswith(b"\n"):
                    if len(line) == MAX_LINE_BYTES:
                        raise AuditBroken(f"{path}: a line of more than {MAX_LINE_BYTES} bytes")
                    return
                yield line
                whole += len(line)

    try:
        link = chain.verify(lines())
    except AuditBroken as error:
        raise AuditBroken(f"{path}: {error}. Keep this file, move it away, and find out who wrote to it") from None
    torn = os.fstat(file.fileno()).st_size - whole
    if torn:
        os.ftruncate(file.fileno(), whole)
        os.fsync(file.fileno())
    return link, whole, torn
