"""The secrets of this node's entries: in memory only, and only for as long as the entry names this node.

An agent that starts again has none until the control plane tells them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import structlog

from meshwarden.v1 import node_service_pb2 as node_pb

MAX_VALUE_BYTES = 64 * 1024
_log = structlog.get_logger()


@dataclass(frozen=True)
class Secret:
    """A secret, or why there is none."""

    name: str
    value: str = field(repr=False)
    version: int
    error: str


Held = tuple[Secret, ...]


class Secrets:
    """What the control plane has told, {"<tenant>/<entry>": secrets}."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}
        self._listeners: list[Callable[[], None]] = []

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back after each change."""
        self._listeners.append(callback)

    def take(self, message: node_pb.EntrySecrets) -> None:
        """Takes the secrets of an entry: all of them."""
        held = tuple(Secret(one.name, one.value, one.version, one.error) for one in message.secrets)
        entry = f"{message.tenant}/{message.entry}"
        if held == self._held.get(entry, ()):
            return
        if held:
            self._held[entry] = held
        else:
            del self._held[entry]
        _log.info("secrets told", entry=entry, versions={one.name: one.version for one in held})
        self._notify()

    def keep(self, entries: Iterable[str]) -> None:
        """Forgets those of all other entries."""
        gone = self._held.keys() - set(entries)
        for entry in gone:
            del self._held[entry]
        if gone:
            self._notify()

    def of(self, entry: str) -> Held:
        """The secrets of an entry, the same object until they change; none until they were told."""
        return self._held.get(entry, ())

    def errors(self) -> Mapping[str, str]:
        """What is wrong: {"<tenant>/<entry>": reason}."""
        found = {}
        for entry, held in self._held.items():
            reasons = [f"secret {one.name}: {one.error}" for one in held if one.error]
            if reasons:
                found[entry] = "; ".join(reasons)
        return found

    def _notify(self) -> None:
        for callback in self._listeners:
            callback()
