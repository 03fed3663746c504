"""What the kernel says of a program: who it is, where it comes from, and whether it fits an entry's selectors.

Nothing here believes the program. A pid alone names nobody, since it is given anew; with its start time it does, and
whoever asks looks once more afterwards whether the process still lives.
"""

import asyncio
import contextlib
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshwarden.sdk.mtls.connection import Connection
from meshwarden.v1 import resources_pb2 as resources

_MAX_ANCESTORS: Final = 64
_MAX_DIGESTS: Final = 1024
_CHUNK_BYTES: Final = 1 << 20
_MAX_BYTES: Final = 1 << 30
_TICK_S: Final = 0.02  # the slowest kernel's, CONFIG_HZ=100, twice


@dataclass(frozen=True)
class Program:
    """A live process, by the kernel's word.

    Attributes:
        pid: its process id.
        start_time: when it started, in clock ticks since boot.
        uid: its effective user.
        gid: its effective group.
    """

    pid: int
    start_time: int
    uid: int
    gid: int


@dataclass(frozen=True)
class _Stat:
    state: str
    parent: int
    start_time: int


def read_stat(pid: int) -> _Stat | None:
    """State, parent and start time of a process, of one moment; None if there is no such process.

    Source: proc_pid_stat(5), fields 3, 4 and 22.
    """
    try:
        # The command's name stands in parentheses and may itself hold parentheses and spaces.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return _Stat(fields[0].decode("ascii"), int(fields[1]), int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def is_alive(pid: int, start_time: int) -> bool:
    """Whether the process with this pid and start time still runs; a zombie does not."""
    stat = read_stat(pid)
    return stat is not None and stat.start_time == start_time and stat.state not in "ZX"


def ancestors(pid: int, start_time: int) -> Iterator[tuple[int, int]]:
    """The process itself, then its parent and so on: `(pid, start time)` each.

    A parent that started after its child is a reused pid: the walk ends there.
    """
    youngest = start_time
    for depth in range(_MAX_ANCESTORS):
        stat = read_stat(pid)
        if stat is None or stat.start_time > youngest or (depth == 0 and stat.start_time != start_time):
            return
        yield pid, stat.start_time
        if stat.parent <= 1:
            return
        pid, youngest = stat.parent, stat.start_time


def program_of(connection: Connection) -> Program | None:
    """The process behind a connection; None for one of TLS, or of a process that is not that one any more."""
    pid, start_time, uid, gid = connection.pid, connection.start_time, connection.uid, connection.gid
    if pid is None or start_time is None or uid is None or gid is None or not is_alive(pid, start_time):
        return None
    return Program(pid, start_time, uid, gid)


class Executables:
    """Paths and digests of running programs; digests are kept by file identity, so each file is read once."""

    def __init__(self) -> None:
        self._digests: OrderedDict[tuple[int, int, int, int], str] = OrderedDict()
        self._reading = asyncio.Lock()

    def path(self, pid: int) -> str | None:
        """The absolute path of a process's executable, as it stands in our own file system.

        None if it cannot be told, or if the path leads to another file here: a process with a mount namespace of its
        own can put anything under any name.
        """
        link = f"/proc/{pid}/exe"
        try:
            path = os.readlink(link)
            theirs, ours = os.stat(link), os.stat(path)
        except (OSError, ValueError):
            return None
        return path if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino) else None

    def sha256(self, pid: int) -> str | None:
        """The SHA-256 of a process's executable, in hexadecimal; None if `read` has not read it, or could not."""
        try:
            descriptor = os.open(f"/proc/{pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return self._find(_identity(descriptor))
        finally:
            os.close(descriptor)

    async def read(self, pid: int) -> None:
        """Reads a process's executable for `sha256`: one at a time and in a thread, since it can be large."""
        async with self._reading:
            if self.sha256(pid) is None:
                await asyncio.to_thread(self._read, pid)

    def _find(self, identity: tuple[int, int, int, int]) -> str | None:
        known = self._digests.get(identity)
        if known is not None:
            self._digests.move_to_end(identity)
        return known

    def _read(self, pid: int) -> None:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/exe", "rb") as file:
            before = _identity(file.fileno())
            if os.fstat(file.fileno()).st_size > _MAX_BYTES:
                return
            # A change within one tick of the kernel's clock after the last would not show; from here on each does.
            time.sleep(_TICK_S)
            digest = hashlib.sha256()
            for _ in range(_MAX_BYTES // _CHUNK_BYTES + 1):
                digest.update(chunk := file.read(_CHUNK_BYTES))
                if not chunk:
                    break
            if _identity(file.fileno()) != before:
                return  # it was written to meanwhile
            self._digests[before] = digest.hexdigest()
            if len(self._digests) > _MAX_DIGESTS:
                self._digests.popitem(last=False)


def _identity(descriptor: int) -> tuple[int, int, int, int]:
    """Names a file's content: the time of its last change, unlike that of its last write, is not its owner's to set."""
    stat = os.fstat(descriptor)
    return stat.st_dev, stat.st_ino, stat.st_ctime_ns, stat.st_size


def user_misfits(selectors: resources.Selectors, program: Program) -> list[str]:
    """In which ways a program's user does not fit; these hold before the program is started and after."""
    misfits = []
    if selectors.HasField("uid") and selectors.uid != program.uid:
        misfits.append(f"its uid is {program.uid}, the entry wants {selectors.uid}")
    if selectors.HasField("gid") and selectors.gid != program.gid:
        misfits.append(f"its gid is {program.gid}, the entry wants {selectors.gid}")
    return misfits


def misfits(selectors: resources.Selectors, program: Program, executables: Executables) -> list[str]:
    """In which ways a program does not fit an entry's selectors; empty if it fits."""
    found = misfits_but_sha256(selectors, program, executables)
    if not found and selectors.sha256 and (digest := executables.sha256(program.pid)) != selectors.sha256:
        found.append(f"its executable's SHA-256 is {digest or 'unknown'}, the entry wants {selectors.sha256}")
    return found


def misfits_but_sha256(selectors: resources.Selectors, program: Program, executables: Executables) -> list[str]:
    """The misfits that can be told without having read the program's executable.

    Selectors that select nothing fit nobody: the control plane refuses them, and we don't rely on that.
    """
    found = user_misfits(selectors, program)
    if not (selectors.HasField("uid") or selectors.HasField("gid") or selectors.path or selectors.sha256):
        found.append("the entry has no selectors")
    if selectors.path and (path := executables.path(program.pid)) != selectors.path:
        is_ = path or "not the file of its name, or was replaced since it started"
        found.append(f"its executable is {is_}, the entry wants {selectors.path}")
    return found
