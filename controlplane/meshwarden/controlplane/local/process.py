"""Children that are kept running until they are told to stop."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import anyio
from anyio.abc import TaskGroup

from meshwarden.controlplane.local.error import LocalError
from meshwarden.controlplane.local.record import Record

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
# One that ran this long has started well: its next pause is a short one again.
STEADY_S = 10.0
TAIL_LINES = 12
LOG_BYTES = 32 << 20
# How our own programs, and click, begin the lines that say why they end.
REASONS = ("error: ", "Error: ", "fix: ")
# How `faulthandler` begins to say where a program was when a library aborted it.
_CRASH = "Fatal Python error: "
_CRASHED = "Current thread "
_BEFORE_CRASH = 3


@dataclass(frozen=True)
class Program:
    """What to run.

    Attributes:
        name: of the child, its log and its record.
        argv: the command; it holds no secret.
        environment: all of it.
        log: takes what it prints.
        grace_s: how long it may take to end after SIGTERM.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    grace_s: float = 5.0


class Child:
    """A program that is restarted when it ends by itself, once it has settled.

    Attributes:
        program: what it runs.
        restarts: how often it came back by itself.
        failure: how it ended before it had settled, with the end of its log; it is not restarted then.
    """

    def __init__(self, program: Program, record: Record, report: Callable[[str], None], rng: random.Random) -> None:
        self.program = program
        self.restarts = 0
        self.failure: str | None = None
        self._is_settled = False
        self._log_start = 0
        self._record = record
        self._report = report
        self._rng = rng
        self._wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._spawned = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._unwanted.set()
        self._idle.set()

    @property
    def pid(self) -> int | None:
        """Its process, while there is one."""
        return None if self._process is None else self._process.pid

    async def start(self) -> int:
        """Starts it and returns its pid.

        Raises:
            LocalError: the program can't be run.
        """
        self._spawned.clear()
        self._unwanted.clear()
        self._wanted.set()
        await self._spawned.wait()
        if self._process is None:
            raise LocalError(f"{self.program.name} ended at once. {self._tail()}")
        return self._process.pid

    def settle(self) -> None:
        """It has come up: from now on it is restarted when it ends by itself."""
        self._is_settled = True

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends a signal and waits until it is gone; SIGKILL to its whole session once the grace is over."""
        self._wanted.clear()
        self._unwanted.set()
        process = self._process
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(number)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.program.grace_s):
                    await self._idle.wait()
            if not self._idle.is_set():
                self._report(f"{self.program.name} did not end within {self.program.grace_s:g} s: killed")
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        await self._idle.wait()

    def kill(self) -> None:
        """Kills it and its session at once, for good; who stops it sees it go."""
        self._wanted.clear()
        self._unwanted.set()
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def run(self) -> None:
        """Keeps it as it is wanted, until cancelled; then it must have been stopped."""
        pause_s = FIRST_PAUSE_S
        while True:
            await self._wanted.wait()
            self._idle.clear()
            began = asyncio.get_running_loop().time()
            # While there is a process somebody must wait for it: whoever cancels us stops it first.
            with anyio.CancelScope(shield=True):
                code = await self._once()
            self._idle.set()
            if self._unwanted.is_set():
                pause_s = FIRST_PAUSE_S
                continue
            if not self._is_settled:
                self._wanted.clear()
                self.failure = f"{self.program.name} {_ending(code)}. {self._tail()}"
                continue
            if asyncio.get_running_loop().time() - began > STEADY_S:
                pause_s = FIRST_PAUSE_S
            await self._pause(code, pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S) * self._rng.uniform(0.9, 1.1)

    async def _pause(self, code: int, pause_s: float) -> None:
        """Reports how it ended, and waits before it is to come back."""
        # The first time with what it said last: what goes on failing is not to fill the screen, and who is killed says
        # nothing.
        is_telling = pause_s == FIRST_PAUSE_S and code != -signal.SIGKILL
        why = self._tail() if is_telling else f"See {self.program.log}"
        self._report(f"{self.program.name} {_ending(code)}; again in {pause_s:.1f} s. {why}")
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._unwanted.wait()
        self.restarts += 1

    async def _once(self) -> int:
        """Runs the program once; returns its exit status, negative for a signal."""
        program = self.program
        try:
            with _log(program.log) as log:
                self._log_start = os.fstat(log.fileno()).st_size
                process = await asyncio.create_subprocess_exec(
                    *program.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(program.environment),
                    # Ctrl-C on our terminal is for us alone: we stop the children in their order.
                    start_new_session=True,
                )
        except OSError as error:
            with suppress(OSError), _log(program.log) as log:
                log.write(f"{error.filename or program.argv[0]}: {error.strerror}\n".encode())
            self._spawned.set()
            return 127
        self._process = process
        self._note(lambda: self._record.add(program.name, process.pid, program.grace_s))
        self._spawned.set()
        if self._unwanted.is_set():  # stopped while it was being started
            process.kill()
        try:
            return await process.wait()
        finally:
            self._process = None
            self._spawned.clear()
            self._note(lambda: self._record.remove(program.name))

    def _tail(self) -> str:
        return tail(self.program.log, since_byte=self._log_start)

    def _note(self, change: Callable[[], None]) -> None:
        """Changes the record. On a full disk the child goes on without: `down` finds it by its mark too."""
        try:
            change()
        except OSError as error:
            self._report(f"{error.filename}: {error.strerror}: {self.program.name} runs unrecorded")


class Children:
    """The children of one mesh, in the order in which they were added."""

    def __init__(self, group: TaskGroup, record: Record, report: Callable[[str], None], rng: random.Random) -> None:
        self._group = group
        self._record = record
        self._report = report
        self._rng = rng
        self._children: dict[str, Child] = {}

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    def __contains__(self, name: object) -> bool:
        return name in self._children

    async def start(self, program: Program) -> Child:
        """Starts a program and keeps it running.

        Raises:
            LocalError: it can't be run.
        """
        child = Child(program, self._record, self._report, self._rng)
        self._children[program.name] = child
        self._group.start_soon(child.run)
        await child.start()
        return child

    async def stop(self, names: list[str]) -> None:
        """Stops these at once, and waits for all."""
        async with anyio.create_task_group() as group:
            for name in names:
                if name in self._children:
                    group.start_soon(self._children[name].stop)

    def kill(self) -> None:
        """Kills whatever runs, at once; those who stop them see them go."""
        for child in self._children.values():
            child.kill()

    @property
    def names(self) -> list[str]:
        """What was started, in that order."""
        return list(self._children)


@asynccontextmanager
async def children(
    record: Record, report: Callable[[str], None], rng: random.Random, order: Callable[[str], int]
) -> AsyncIterator[Children]:
    """Keeps children for as long as the body runs, then stops those of the highest `order` first, whatever happens.

    Args:
        record: where they are recorded.
        report: takes a text when one fails.
        rng: spreads restarts.
        order: ranks a child by its name; those of one rank are stopped together.
    """
    async with anyio.create_task_group() as group:
        kept = Children(group, record, report, rng)
        try:
            yield kept
        finally:
            with anyio.CancelScope(shield=True):
                for _, names in groupby(sorted(kept.names, key=order, reverse=True), key=order):
                    await kept.stop(list(names))
            group.cancel_scope.cancel()


def tail(log: Path, lines: int = TAIL_LINES, since_byte: int = 0) -> str:
    """What a child said last, for a message about its failure: its own words on why, or else the end of its log.

    Args:
        log: its log.
        lines: how many, at the most.
        since_byte: where in the log its words begin.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(since_byte, log.stat().st_size - 65_536))
            said = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        said = []
    if not said:
        return f"It printed nothing ({log})."
    said = _crash(said, lines) or said
    reasons = [line for line in said if line.startswith(REASONS)]
    head = f"It said, in {log}:" if reasons else f"The end of {log}:"
    return "\n".join([head, *(f"  {line}" for line in (reasons or said)[-lines:])])


def _crash(said: Sequence[str], lines: int) -> list[str]:
    """Where a library aborted a program, as `faulthandler` says, and what was said before; empty if none did.

    Of the stacks of all threads the one is shown that the program was aborted in.
    """
    start = next((number for number, line in enumerate(said) if line.startswith(_CRASH)), len(said))
    stack = next((number for number in range(start, len(said)) if said[number].startswith(_CRASHED)), len(said))
    if stack == len(said):
        return []
    before = said[max(0, start - _BEFORE_CRASH) : start + 1]
    return [*before, *said[stack : stack + max(1, lines - len(before))]]


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"exited {code}"


def _log(path: Path) -> BinaryIO:
    """Opens a log to write at its end; one that has grown large is put aside first."""
    with suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
    return open(path, "ab", opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
