"""Whole meshes, started as a user starts them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from quota_mesh import Quota

from meshwarden.controlplane.local import kernel

DEADLINE_S = 120.0


class Up:
    """A running `meshwarden up` and what it says."""

    def __init__(self, state_dir: Path, home: Path, *arguments: str) -> None:
        self.state_dir = state_dir
        self.environment = {**os.environ, "XDG_CONFIG_HOME": str(home)}
        self.out = state_dir.with_suffix(".out")
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "meshwarden.controlplane", "up", "--state-dir", str(state_dir), *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    @property
    def up_json(self) -> dict[str, Any]:
        """What up.json says."""
        content: dict[str, Any] = json.loads((self.state_dir / "up.json").read_text())
        return content

    def wait_until_up(self) -> dict[str, Any]:
        """Waits for up.json."""
        self.until(lambda: (self.state_dir / "up.json").exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said()
        return self.up_json

    def until(self, condition: Callable[[], object]) -> None:
        """Waits until something holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of the operator's."""
        command = [sys.executable, "-m", "meshwarden.controlplane", *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )

    def wait_until_ended(self) -> int:
        """Waits for the exit status."""
        return self.process.wait(DEADLINE_S)

    def said(self) -> str:
        """All that it printed."""
        return self.out.read_text(errors="replace")

    def left(self) -> list[int]:
        """The processes of this mesh: by their mark, and by their command lines, for an Envoy's environment is bare."""
        directory = str(self.state_dir.resolve())
        found = {pid for pid, _ in kernel.marked(directory)}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if f"{directory}/".encode() in path.read_bytes():
                    found.add(int(path.parent.name))
        return sorted(found - {os.getpid(), self.process.pid})

    def end(self) -> None:
        """Ends it, whatever state it is in."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        kernel.sweep(str(self.state_dir.resolve()))


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mw-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _start(directory: Path) -> Iterator[Callable[..., Up]]:
    running: list[Up] = []

    def starting(name: str, *arguments: str) -> Up:
        running.append(Up(directory / name, directory / "config", *arguments))
        return running[-1]

    yield starting
    for up in running:
        up.end()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with _directory() as path:
        yield path


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Up]]:
    """Starts meshes; ends those that still run."""
    with _start(directory) as starting:
        yield starting


@pytest.fixture(scope="module")
def shared_directory() -> Iterator[Path]:
    """The same for all tests of a module."""
    with _directory() as path:
        yield path


@pytest.fixture(scope="module")
def start_shared(shared_directory: Path) -> Iterator[Callable[..., Up]]:
    """Starts meshes that last for all tests of a module."""
    with _start(shared_directory) as starting:
        yield starting


@pytest.fixture
def quota(start: Callable[..., Any], directory: Path, request: pytest.FixtureRequest) -> Iterator[Quota]:
    up = start("q", "--no-samples")
    up.wait_until_up()
    plans, limits = request.param
    made = Quota(up, directory, plans)
    try:
        made.apply(limits)
        made.serve()
        yield made
    finally:
        made.end()
