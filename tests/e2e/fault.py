"""Faults that are put into a mesh and taken out again."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stops a process, and lets it go on at the end, if it is still there."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def small_disks(state_dir: Path, *parts: str) -> Iterator[dict[str, Path]]:
    """Gives parts of a mesh that is yet to be started a disk each; none where this user may not mount."""
    state_dir.mkdir(mode=0o700)
    (state_dir / "up.lock").touch(mode=0o600)  # else `up` takes it for somebody's
    mounted: dict[str, Path] = {}
    for part in parts:
        (state_dir / part).mkdir(mode=0o711)
        command = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=711", "tmpfs", str(state_dir / part)]
        if os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            mounted[part] = state_dir / part
    try:
        yield mounted
    finally:
        for path in mounted.values():
            subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    """Fills a disk, and empties it at the end."""
    filler = directory / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    try:
        yield
    finally:
        filler.unlink()
