"""What the kernel says of a process: who it is, and where it comes from.

Nothing here believes the program. A pid alone names nobody, since it is given anew; with its start time it does, and
whoever asks looks once more afterwards whether the process still lives.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshwarden.sdk.mtls.connection import Connection

_MAX_ANCESTORS: Final = 64


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
class Credential:
    """As whom a process acts: effective user and group, supplementary groups."""

    uid: int
    gid: int
    groups: frozenset[int]


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
    """The process behind a connection; None for one of TLS, or of a process that is not that one any more.

    One that runs as another user by now than when it connected is not: it may have become a program with that user's
    rights, while whoever started it holds the socket.
    """
    pid, start_time, uid, gid = connection.pid, connection.start_time, connection.uid, connection.gid
    if pid is None or start_time is None or uid is None or gid is None or not is_alive(pid, start_time):
        return None
    credential = read_credential(pid)
    if credential is None or (credential.uid, credential.gid) != (uid, gid):
        return None
    return Program(pid, start_time, uid, gid)


def read_credential(pid: int) -> Credential | None:
    """As whom a process acts, of one moment; None if there is no such process.

    Source: proc_pid_status(5), Uid, Gid and Groups; the second column of the first two is effective.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            words = (line.split() for line in file if line.startswith((b"Uid:", b"Gid:", b"Groups:")))
            said = {name: list(map(int, values)) for name, *values in words}
        return Credential(said[b"Uid:"][1], said[b"Gid:"][1], frozenset(said[b"Groups:"]))
    except (OSError, KeyError, IndexError, ValueError):
        return None


def is_own_user(connection: Connection) -> bool:
    """Whether the agent's own user or root is calling."""
    return connection.uid in (0, os.geteuid())
