"""Processes under measurement: starting them, ending them, and what the kernel says that they use."""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

STOP_S = 15.0
LOOK_S = 0.05
CPUCLOCK_SCHED = 2


class Broken(Exception):
    """A process that a benchmark needs has ended, or does not get ready; the message has the end of its log."""


class Child:
    """A program that we started."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self._process, self.log = name, process, log

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def check(self) -> None:
        """Looks whether it lives.

        Raises:
            Broken: it has ended.
        """
        if self._process.returncode is not None:
            raise Broken(f"{self.name} ended with {self._process.returncode}: {self.tail()}")

    async def until_written(self, path: Path, timeout_s: float = 30.0) -> str:
        """Waits for a file that the program writes when it is ready, and returns its text.

        Raises:
            Broken: the program ended, or the file did not come in time.
        """
        await self._until(lambda: path.is_file() and path.stat().st_size > 0, timeout_s)
        return path.read_text()

    async def until_listening(self, path: Path, timeout_s: float = 30.0) -> None:
        """Waits until the program listens on a Unix socket; its path is there before that.

        Raises:
            Broken: the program ended, or does not listen in time.
        """
        await self._until(lambda: _connects(str(path)), timeout_s)

    async def until_port(self, port: int, timeout_s: float = 60.0) -> None:
        """Waits until the program listens on a port of loopback.

        Raises:
            Broken: the program ended, or does not listen in time.
        """
        await self._until(lambda: _connects(("127.0.0.1", port)), timeout_s)

    async def _until(self, is_ready: Callable[[], bool], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not is_ready():
            self.check()
            if time.monotonic() > deadline_s:
                raise Broken(f"{self.name} was not ready within {timeout_s:g} s: {self.tail()}")
            await asyncio.sleep(LOOK_S)

    async def ask(self, line: str) -> None:
        """Writes a line to it."""
        assert self._process.stdin is not None  # it was started to be asked
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    async def answer(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Reads a line of JSON from it.

        Raises:
            Broken: it ended, or said nothing in time.
        """
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise Broken(f"{self.name} says nothing: {self.tail()}") from None
        if not line:
            raise Broken(f"{self.name} has ended: {self.tail()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def stop(self) -> None:
        """Ends it: SIGTERM, and SIGKILL if that is not enough."""
        if self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def tail(self) -> str:
        """The end of what it said."""
        lines = self.log.read_text(errors="replace").splitlines()
        return " | ".join(lines[-5:]) or "it said nothing"


@asynccontextmanager
async def child(
    name: str,
    command: Sequence[str],
    directory: Path,
    extra: Mapping[str, str] | None = None,
    is_asked: bool = False,
) -> AsyncIterator[Child]:
    """Runs a program for the length of the block; its log is `<directory>/<name>.log`.

    `is_asked` says that we speak with it, by `Child.ask` and `Child.answer`.
    """
    log = directory / f"{name}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.PIPE if is_asked else subprocess.DEVNULL,
            stdout=subprocess.PIPE if is_asked else output,
            stderr=output,
            env={**environment(), **(extra or {})},
            start_new_session=True,  # a Ctrl-C is ours to handle
        )
    started = Child(name, process, log)
    try:
        yield started
    finally:
        await started.stop()


def python(
    name: str,
    arguments: Sequence[str],
    directory: Path,
    extra: Mapping[str, str] | None = None,
    is_asked: bool = False,
) -> AbstractAsyncContextManager[Child]:
    """Runs this Python with `arguments`, as `child` does."""
    return child(name, [sys.executable, *arguments], directory, extra, is_asked)


def environment() -> dict[str, str]:
    """Ours, without what would configure a part of the mesh."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MESHWARDEN_", "GRPC_", "OTEL_"))}


def raise_descriptor_limit() -> int:
    """Lets this process, and those that it starts, open as many files as it may; returns how many that are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def cpu_s(pid: int) -> float:
    """The CPU time that a process has used, in all its threads, to the nanosecond.

    `/proc/<pid>/stat` has the same in ticks of 10 ms, too coarse for one push.

    Source: clock_getcpuclockid(3); the id is made as glibc makes it.
    """
    return time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)


def rss_mib(pid: int) -> float:
    """The resident memory of a process."""
    return _rollup_mib(pid, "Rss")


def pss_mib(pid: int) -> float:
    """The resident memory of a process, where a page that n processes share counts one n-th."""
    return _rollup_mib(pid, "Pss")


def forget_peak(pid: int) -> None:
    """Has `peak_mib` begin anew.

    Source: proc_pid_clear_refs(5).
    """
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_mib(pid: int) -> float:
    """The most resident memory that a process has had since `forget_peak`."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _rollup_mib(pid: int, field: str) -> float:
    """Source: proc_pid_smaps(5), smaps_rollup."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/{pid}/smaps_rollup has no {field}")


def _connects(place: str | tuple[str, int]) -> bool:
    with socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET) as probe:
        return probe.connect_ex(place) == 0


def say(text: str) -> None:
    """Shows progress; standard output is for results."""
    print(text, file=sys.stderr, flush=True)
