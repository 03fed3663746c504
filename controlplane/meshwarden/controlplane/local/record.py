"""`processes.json`: what runs, written before anyone can lose it, so that `down` can clean up after a killed `up`."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meshwarden.controlplane.local.kernel import start_time

FILE = "processes.json"
# The entry of `up` itself.
UP = "up"


@dataclass(frozen=True)
class Process:
    """A process of a mesh.

    Attributes:
        name: of the child, "server" for one.
        pid: its number.
        start_time: in clock ticks since boot: with the pid it names one process for ever.
        grace_s: how long it may take to end after SIGTERM.
    """

    name: str
    pid: int
    start_time: int
    grace_s: float = 5.0


class Record:
    """The processes of one mesh, in the order in which they were started, kept on disk."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._processes: dict[str, Process] = {}

    def add(self, name: str, pid: int, grace_s: float) -> None:
        """Records a process that has just been started; one that is gone already is not recorded."""
        started = start_time(pid)
        if started is not None:
            self._processes[name] = Process(name, pid, started, grace_s)
            self._save()

    def remove(self, name: str) -> None:
        """Forgets a process that has ended."""
        if self._processes.pop(name, None) is not None:
            self._save()

    def _save(self) -> None:
        write_private(self._path, json.dumps([asdict(process) for process in self._processes.values()]))


def load(state_dir: Path) -> list[Process]:
    """Returns the recorded processes in the order of their start; none if there is no record."""
    try:
        rows: list[dict[str, Any]] = json.loads((state_dir / FILE).read_text())
        return [
            Process(str(row["name"]), int(row["pid"]), int(row["start_time"]), float(row["grace_s"])) for row in rows
        ]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        # Half a file can't be: it is replaced whole. Whatever this is, it is none of ours; the mark finds the rest.
        return []


def write_private(path: Path, text: str) -> None:
    """Replaces a file as a whole, 0600 from its first byte on."""
    draft = path.with_name(f"{path.name}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w") as file:
            file.write(text)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a write knows its file by number alone
        raise
