"""What the kernel and the node's user database say of running programs, as far as selectors ask for it."""

import asyncio
import contextlib
import hashlib
import math
import os
import pwd
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Final

from meshwarden.agents.attestation.caller import Program, read_credential
from meshwarden.agents.attestation.cgroup import Placement, parse

_MAX_DIGESTS: Final = 1024
_CHUNK_BYTES: Final = 1 << 20
_MAX_BYTES: Final = 1 << 30
_MAX_PROC_BYTES: Final = 1 << 17
_TICK_S: Final = 0.02  # the slowest kernel's, CONFIG_HZ=100, twice
_USER_S: Final = 10.0
_PATIENCE_S: Final = 2.0


class Evidence:
    """Paths, digests, groups, control groups and users.

    Nothing here is kept by pid. Whoever asks looks afterwards whether the process still lives, for else what was read
    may be another's, which has been given its pid meanwhile.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        """Knows nothing yet; digests are kept by file identity, so each file is read once."""
        self._clock_s = clock_s
        self._digests: OrderedDict[tuple[int, int, int, int], str] = OrderedDict()
        self._reading = asyncio.Lock()
        self._users: dict[str, tuple[float, int | None]] = {}
        self._looking: asyncio.Future[None] | None = None

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

    def placement(self, pid: int) -> Placement:
        """Where a process stands among control groups."""
        try:
            with open(f"/proc/{pid}/cgroup", "rb") as file:
                content = file.read(_MAX_PROC_BYTES + 1)
            return parse(content.decode("ascii")) if len(content) <= _MAX_PROC_BYTES else Placement()
        except (OSError, UnicodeDecodeError):
            return Placement()

    def groups(self, program: Program) -> frozenset[int] | None:
        """A program's supplementary groups; None if its user or group is another by now, or it is gone."""
        credential = read_credential(program.pid)
        if credential is None or (credential.uid, credential.gid) != (program.uid, program.gid):
            return None
        return credential.groups

    # -- users

    def uid_of(self, user: str) -> int | None:
        """The uid of a user of this node; None if there is no such user, or if it was not looked up of late."""
        return self._users[user][1] if self.knows(user) else None

    def knows(self, user: str) -> bool:
        """Whether a user was looked up of late; found or not."""
        return self._age_s(user) < _USER_S

    def is_old(self, user: str) -> bool:
        """Whether a user should be looked up again, before it is not known any more."""
        return self._age_s(user) > _USER_S / 2

    def _age_s(self, user: str) -> float:
        return self._clock_s() - self._users[user][0] if user in self._users else math.inf

    async def look_up(self, users: Collection[str]) -> None:
        """Looks users up for `uid_of`: in a thread, and not for long, since a directory in the network may be asked."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look_up(list(users)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await asyncio.shield(self._looking)

    async def _look_up(self, users: Sequence[str]) -> None:
        found = await asyncio.to_thread(lambda: [_uid_of(user) for user in users])
        now_s = self._clock_s()
        self._users = {user: known for user, known in self._users.items() if now_s - known[0] < _USER_S}
        self._users |= {user: (now_s, uid) for user, uid in zip(users, found, strict=True)}

    # -- digests

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


def _uid_of(user: str) -> int | None:
    with contextlib.suppress(KeyError, OSError, ValueError):
        return pwd.getpwnam(user).pw_uid
    return None


def _identity(descriptor: int) -> tuple[int, int, int, int]:
    """Names a file's content: the time of its last change, unlike that of its last write, is not its owner's to set."""
    stat = os.fstat(descriptor)
    return stat.st_dev, stat.st_ino, stat.st_ctime_ns, stat.st_size
