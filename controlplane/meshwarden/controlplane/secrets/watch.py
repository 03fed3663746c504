"""Secrets that somebody waits for, kept as new as Vault has them.

Each is read when the first asks for it; after that its version is looked at now and then, and it is read again when
that has moved. While Vault is away, or refuses us, the last value stands; one that is deleted there is gone here too.
What nobody asks for any more is forgotten. Values are in memory and nowhere else.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import structlog

from meshwarden.controlplane.secrets.port import SecretAway, SecretError, SecretGone, Version, VersionedSecrets

POLL_S: Final = 30.0
# Looked at together; the client has as many sessions.
AT_ONCE: Final = 4
# Nobody else is asked for so long after one who could not be reached.
PAUSE_S: Final = 5.0
MAX_PATHS: Final = 10_000
NONE: Final = "no Vault is configured for secrets; the mesh's operator says where it is, under [vault]"

log = structlog.get_logger()
Path = tuple[str, str]
"""Mount and path of a secret."""


@dataclass
class Watched:
    """A secret, as it was read last."""

    # None until it was read, and once it is gone.
    version: Version | None = field(default=None, repr=False)
    # Why it isn't as new as Vault has it; empty if it is. `asked` tells whether Vault was asked at all.
    fault: str = ""
    asked: bool = False
    due_s: float = 0.0


class SecretWatch:
    """Reads what is wanted, again and again."""

    def __init__(
        self,
        engine: Callable[[], VersionedSecrets] | None,
        rng: random.Random,
        monotonic: Callable[[], float],
        *,
        poll_s: float = POLL_S,
    ) -> None:
        """Watches nothing yet.

        Args:
            engine: gives where secrets are, asked at the first need; None if there is no such place.
            rng: spreads looking.
            monotonic: a clock, in seconds.
            poll_s: how often versions are looked at, in seconds.
        """
        self._engine, self._rng, self._monotonic, self._poll_s = engine, rng, monotonic, poll_s
        self._watched: dict[Path, Watched] = {}
        self._wanted: dict[object, frozenset[Path]] = {}
        self._wake = asyncio.Event()
        self._listeners: list[Callable[[frozenset[Path]], None]] = []
        # Why the last one that was asked for could not be reached.
        self._away = ""

    def listen(self, callback: Callable[[frozenset[Path]], None]) -> None:
        """Calls back with what has changed: values, or why there is none."""
        self._listeners.append(callback)

    def want(self, who: object, paths: Iterable[Path]) -> None:
        """Takes all that somebody wants from now on; nothing ends it."""
        wanted = frozenset(paths)
        if wanted == self._wanted.get(who, frozenset()):
            return
        if wanted:
            self._wanted[who] = wanted
        else:
            del self._wanted[who]
        needed = frozenset[Path]().union(*self._wanted.values())
        for path in self._watched.keys() - needed:
            del self._watched[path]
        for path in sorted(needed - self._watched.keys())[: max(0, MAX_PATHS - len(self._watched))]:
            self._watched[path] = Watched()
            self._wake.set()

    def find(self, path: Path) -> Watched:
        """How it is with a secret that is wanted."""
        if self._engine is None:
            return Watched(fault=NONE, asked=True)
        found = self._watched.get(path)
        return found if found is not None else Watched(fault=f"more than {MAX_PATHS} secrets are wanted", asked=True)

    def faults(self) -> list[str]:
        """What is wrong with secrets, each once."""
        return sorted({watched.fault for watched in self._watched.values() if watched.fault})

    async def run(self) -> None:
        """Reads and looks until it is cancelled."""
        if self._engine is None:
            return
        engine = self._engine()
        while True:
            self._wake.clear()
            now = self._monotonic()
            due = [path for path, watched in self._watched.items() if watched.due_s <= now]
            for begin in range(0, len(due), AT_ONCE):
                chunk = due[begin : begin + AT_ONCE]
                changed = await asyncio.gather(*(self._look(engine, path) for path in chunk))
                self._tell(path for path, is_moved in zip(chunk, changed, strict=True) if is_moved)
                if self._away:
                    self._give_up_for_now()
                    break
            await self._rest()

    def _tell(self, moved: Iterable[Path]) -> None:
        paths = frozenset(moved)
        for callback in self._listeners if paths else ():
            callback(paths)

    def _give_up_for_now(self) -> None:
        """Lets nobody wait for one who can't be reached: each wait would be as long as the last."""
        until_s, first = self._monotonic() + PAUSE_S * self._rng.uniform(0.8, 1.2), []
        for path, watched in self._watched.items():
            watched.due_s = max(watched.due_s, until_s)
            if not watched.asked:
                watched.asked, watched.fault = True, self._away
                first.append(path)
        self._away = ""
        self._tell(first)

    async def _rest(self) -> None:
        due_s = min((watched.due_s for watched in self._watched.values()), default=None)
        left_s = None if due_s is None else max(due_s - self._monotonic(), 0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await self._wake.wait()

    async def _look(self, engine: VersionedSecrets, path: Path) -> bool:
        """Makes one as new as Vault has it; whether anything about it has changed."""
        watched = self._watched.get(path)
        if watched is None:
            return False
        before = (watched.version, watched.fault, watched.asked)
        try:
            if watched.version is None or await engine.newest(*path) != watched.version.number:
                watched.version = await engine.read_version(*path)
                log.info("secret.read", path="/".join(path), version=watched.version.number)
            watched.fault = ""
        except SecretGone as error:
            watched.version, watched.fault = None, str(error)
        except SecretAway as error:
            watched.fault = self._away = str(error)
        except SecretError as error:
            watched.fault = str(error)
        watched.asked = True
        pause_s = PAUSE_S if self._away else self._poll_s
        watched.due_s = self._monotonic() + min(pause_s, self._poll_s) * self._rng.uniform(0.8, 1.2)
        if watched.fault and watched.fault != before[1]:
            log.warning("secret.unread", path="/".join(path), reason=watched.fault, kept=watched.version is not None)
        return before != (watched.version, watched.fault, watched.asked)
