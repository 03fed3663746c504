"""The writing side of the SQLite engine: what a transaction may do, and the one thread that commits groups of them."""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future as ThreadFuture
from pathlib import Path
from typing import Any, TypeVar

import apsw

from meshwarden.controlplane.store.port import (
    ANY,
    Ambiguous,
    Conflict,
    Delete,
    Fenced,
    Future,
    Lease,
    LeaseHeld,
    LeaseLost,
    Op,
    Put,
    StoreError,
    Unavailable,
)

GROUP = 64
BUSY_MS = 5000

Result = TypeVar("Result")
Row = tuple[Any, ...]
Job = tuple[Callable[["Transaction"], Any], "ThreadFuture[Any]"]


def rows(connection: apsw.Connection, statement: str, *values: Any) -> list[Row]:
    """Runs one statement to its end; returns its rows."""
    return connection.execute(statement, values).fetchall()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def failure(error: apsw.Error) -> StoreError:
    """Says in the port's words that nothing was done, and why."""
    if isinstance(error, apsw.FullError):
        return Unavailable("the disk is full: make room, and the store goes on by itself")
    if isinstance(error, apsw.BusyError):
        return Unavailable(f"another process has held the store for {BUSY_MS / 1000:g} s")
    return Unavailable(f"the store can't: {error}")


class Transaction:
    """One group's view of the store; changes count only if the group commits."""

    def __init__(self, connection: apsw.Connection, boot: str) -> None:
        self._connection = connection
        self.boot = boot
        self.revision: int = self._meta("revision")
        self.began_at = self.revision
        self.keys: set[str] = set()
        """What has changed."""

    def _meta(self, name: str) -> int:
        return int(self._execute("SELECT value FROM meta WHERE name = ?", name)[0][0])

    def _execute(self, statement: str, *values: Any) -> list[Row]:
        return rows(self._connection, statement, *values)

    def finish(self) -> None:
        """Writes what the transaction itself keeps; the last step before COMMIT."""
        if self.revision != self.began_at:
            self._execute("UPDATE meta SET value = ? WHERE name = 'revision'", self.revision)

    def _held(self, name: str) -> tuple[str, int] | None:
        """The owner and token of a lease that has not ended."""
        found = self._execute("SELECT owner, token, deadline_s, boot FROM lease WHERE name = ?", name.encode())
        for owner, token, deadline_s, boot in found:
            if boot == self.boot and deadline_s > time.monotonic():
                return owner, token
        return None

    def commit(self, ops: Sequence[Op], fence: Lease | None) -> int:
        """See `Store.commit`."""
        # Everything that can be refused is refused before the first write: a refused commit leaves its group alone.
        if fence is not None and self._held(fence.name) != (fence.owner, fence.token):
            raise Fenced(f"the lease {fence.name} is not held with token {fence.token} any more")
        now = {op.key: self._revision_of(op.key) for op in ops}
        if moved := {op.key: now[op.key] for op in ops if op.expect not in (ANY, now[op.key])}:
            raise Conflict(moved)
        writes = [op for op in ops if isinstance(op, Put) or (isinstance(op, Delete) and now[op.key])]
        if not writes:
            return self.revision
        self.revision += 1
        self.keys.update(op.key for op in writes)
        for op in writes:
            key, value = op.key.encode(), op.value if isinstance(op, Put) else None
            self._execute("INSERT INTO event VALUES (?, ?, ?)", key, self.revision, value)
            if value is None:
                self._execute("DELETE FROM record WHERE key = ?", key)
            else:
                self._execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?)", key, self.revision, value)
        return self.revision

    def _revision_of(self, key: str) -> int:
        found = self._execute("SELECT revision FROM record WHERE key = ?", key.encode())
        return int(found[0][0]) if found else 0

    def compact(self, revision: int) -> None:
        """See `Store.compact`."""
        if revision > self.revision:
            raise Future(self.revision)
        if revision <= self._meta("compacted"):
            return
        self._execute("UPDATE meta SET value = ? WHERE name = 'compacted'", revision)
        # The newest state of each key as of `revision` stays readable.
        self._execute(
            "DELETE FROM event WHERE revision <= ?1 AND (value IS NULL OR EXISTS (SELECT 1 FROM event AS later"
            " WHERE later.key = event.key AND later.revision > event.revision AND later.revision <= ?1))",
            revision,
        )

    def number(self, version: int) -> None:
        """Sets the format's number."""
        self._execute(f"PRAGMA user_version = {version}")

    def acquire(self, name: str, owner: str, ttl_s: float) -> Lease:
        """See `Store.acquire`."""
        held = self._held(name)
        if held is not None and held[0] != owner:
            raise LeaseHeld(f"{held[0]} holds the lease {name}")
        self.revision += 1
        lease = Lease(name, owner, self.revision, ttl_s, time.monotonic() + ttl_s)
        self._execute(
            "INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?)",
            name.encode(),
            owner,
            lease.token,
            lease.deadline_s,
            self.boot,
        )
        return lease

    def renew(self, lease: Lease, release: bool) -> Lease:
        """See `Store.renew`."""
        if self._held(lease.name) != (lease.owner, lease.token):
            raise LeaseLost(f"the lease {lease.name} is not held with token {lease.token} any more")
        deadline_s = time.monotonic() + (0 if release else lease.ttl_s)
        self._execute("UPDATE lease SET deadline_s = ? WHERE name = ?", deadline_s, lease.name.encode())
        return Lease(lease.name, lease.owner, lease.token, lease.ttl_s, deadline_s)


class Writer:
    """The one thread of this process that writes: it commits what waits in groups."""

    def __init__(self, connection: apsw.Connection, committed: Callable[[Collection[str]], None]) -> None:
        """Writes to `connection`; `committed` is told, in the thread, which keys a group has changed."""
        self._connection = connection
        self._committed = committed
        self._boot = _boot_id()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._closed = False
        self._thread.start()

    async def do(self, work: Callable[[Transaction], Result]) -> Result:
        """Runs `work` in the next group; returns its result once the group is on the disk.

        `work` raises a StoreError before it writes, or not at all.
        """
        if self._closed:
            raise Unavailable("the store is closed")
        future: ThreadFuture[Result] = ThreadFuture()
        self._jobs.put((work, future))
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Writes what waits, then ends; in the loop of `do`, so that no job comes after the last."""
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._connection.close)

    def _run(self) -> None:
        job = self._jobs.get()
        while job is not None:
            group = []
            while job is not None:
                if job[1].set_running_or_notify_cancel():
                    group.append(job)
                if len(group) >= GROUP:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._commit_group(group)
            if job is not None:
                job = self._jobs.get()

    def _commit_group(self, group: list[Job]) -> None:
        outcomes: list[Any] = []
        stage: type[StoreError] = Unavailable
        changed: Collection[str] = ()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            transaction = Transaction(self._connection, self._boot)
            for work, _ in group:
                try:
                    outcomes.append(work(transaction))
                except StoreError as refused:
                    outcomes.append(refused)
            transaction.finish()
            changed = transaction.keys
            stage = Ambiguous
            self._connection.execute("COMMIT")
        except apsw.Error as error:
            outcomes = [self._abandon(error, stage)] * len(group)
            changed = ()
        except BaseException as error:  # a defect: its callers hear of it, and the thread lives on
            self._abandon(apsw.Error(str(error)), Unavailable)
            outcomes, changed = [error] * len(group), ()
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        if changed:
            self._committed(changed)

    def _abandon(self, error: apsw.Error, stage: type[StoreError]) -> StoreError:
        """Rolls back; says what became of the group."""
        # SQLite has rolled back by itself on some errors. Where it still can, nothing of the group is written.
        nothing_written = self._connection.in_transaction or isinstance(error, (apsw.FullError, apsw.BusyError))
        if self._connection.in_transaction:
            with contextlib.suppress(apsw.Error):  # the next group tries again
                self._connection.execute("ROLLBACK")
        if stage is Ambiguous and not nothing_written:
            return Ambiguous(f"the commit may have been written: {error}")
        return failure(error)
