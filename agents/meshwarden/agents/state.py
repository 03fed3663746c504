"""The agent's place on disk, and the lock that keeps it to one agent.

<state_dir>/            0711  others may pass through to the sockets, if these lie below
  lock                        held while an agent runs
  identity/             0700  the node's certificate and key
  cache/                0700  what `Cache` keeps
  inner/                0700  the gRPC server's private socket
  spool/                0700  what was reported and has not gone up yet
<run_dir>/workloads/    0711  a directory each; itself locked, too
"""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from meshwarden.agents.cache import Cache
from meshwarden.agents.config import AgentConfig
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.workload import Stored
from meshwarden.certs import files
from meshwarden.v1 import node_service_pb2 as node_pb

_ENTRIES: Final = "entries"
_WORKLOADS: Final = "workloads"


class StateTaken(Exception):
    """Another agent runs on the same state directory, or beside the same socket."""


@dataclass(frozen=True)
class Place:
    """The directories, all there."""

    identity: Path
    cache: Path
    inner: Path
    spool: Path
    workloads: Path


@contextlib.contextmanager
def hold(config: AgentConfig) -> Iterator[Place]:
    """Makes the directories and holds their locks.

    Raises:
        StateTaken: another agent holds one, or serves one of the sockets.
        OSError: a directory cannot be made.
    """
    state = config.state_dir.absolute()
    place = Place(state / "identity", state / "cache", state / "inner", state / "spool", config.run_dir / "workloads")
    with contextlib.ExitStack() as held:
        _directory(state, 0o711)
        lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        held.callback(os.close, lock)
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        _lock(lock, f"another agent (pid {holder or 'unknown'}) runs on {state}: stop it, or say another state_dir")
        os.ftruncate(lock, 0)
        with contextlib.suppress(OSError):  # a full disk; the lock is held all the same
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        for path in (config.agent_socket, config.workload_api_socket):
            if not path.parent.exists():
                _directory(path.parent, 0o711)
            if _is_served(path):
                raise StateTaken(f"another agent serves {path}: stop it, or say another socket")
        _directory(place.inner, 0o700)
        for name in place.inner.iterdir():  # what a crash has left
            name.unlink()
        _directory(place.workloads, 0o711)
        workloads = os.open(place.workloads, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, workloads)
        # We clear away what we don't know there: it must not be another agent's.
        _lock(workloads, f"another agent keeps {place.workloads}: stop it, or say an agent_socket in another directory")
        yield place


def wipe(place: Place) -> None:
    """Removes what proves anybody's identity, and the cache: of a node that is banned nothing is left to be used.

    What was reported and has not gone up stays in the spool: it proves nothing.
    """
    for directory in (place.identity, place.cache, place.workloads):
        for path in directory.iterdir() if directory.exists() else ():
            if path.is_dir() and not path.is_symlink():
                files.remove(path)
            else:
                path.unlink(missing_ok=True)


def _lock(descriptor: int, taken: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StateTaken(taken) from None


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _directory(path: Path, mode: int) -> None:
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    path.chmod(mode)


class Memory:
    """Entries and registrations on disk, so that an agent starts again where it was."""

    def __init__(self, cache: Cache) -> None:
        """Keeps them in `cache`."""
        self._cache = cache
        self._kept: bytes | None = None

    def recall(self, registry: Registry, workloads: Path) -> None:
        """Gives a registry what an earlier run has left, and clears away what belongs to nobody now."""
        body = self._cache.load(_ENTRIES)
        if body is not None:
            try:
                registry.set_entries(node_pb.EntrySet.FromString(body))
            except ValueError as error:  # protobuf's DecodeError is one
                self._cache.set_aside(_ENTRIES, str(error))
        registry.restore(self._stored())
        used = {workload.directory.name for workload in registry.workloads.values()}
        for path in workloads.iterdir():
            if path.name not in used:
                files.remove(path)

    def keep_entries(self, entry_set: node_pb.EntrySet) -> None:
        """Keeps the entries of a node."""
        self._cache.keep(_ENTRIES, entry_set.SerializeToString())

    def keep_workloads(self, registry: Registry) -> None:
        """Keeps the registrations, if they have changed."""
        about = {"boot": _boot_id(), "workloads": [asdict(item) for item in registry.stored()]}
        body = json.dumps(about, sort_keys=True).encode()
        if body != self._kept:
            self._kept = body
            self._cache.keep(_WORKLOADS, body)

    def _stored(self) -> Sequence[Stored]:
        body = self._cache.load(_WORKLOADS)
        if body is None:
            return ()
        try:
            about = json.loads(body)
            if about["boot"] != _boot_id():
                return ()  # pids and start times are those of another boot
            return [Stored(**item) for item in about["workloads"]]
        except (ValueError, KeyError, TypeError) as error:
            self._cache.set_aside(_WORKLOADS, str(error))
            return ()


def _boot_id() -> str:
    """Names this boot of the machine. Source: random(4), /proc/sys/kernel/random/boot_id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
