"""TCP ports for servers that must be told theirs: chosen once for a state directory, and the same next time if free."""

import json
import random
import socket
from collections.abc import Collection, Iterable
from pathlib import Path

from meshwarden.controlplane.local.error import LocalError
from meshwarden.controlplane.local.record import write_private

HOST = "127.0.0.1"
# Below what kernels hand out to clients (32768 by default), so that no connection takes a port that we have chosen.
FIRST, LAST = 16_000, 30_000
TRIES = 200


def choose(file: Path, names: Iterable[str], rng: random.Random) -> dict[str, int]:
    """Returns {name: port}, a free one for each name, and keeps the choice in `file`.

    Raises:
        LocalError: no free port was found.
    """
    before = _load(file)
    chosen: dict[str, int] = {}
    for name in names:
        kept = before.get(name)
        if kept is None or kept in chosen.values() or not is_free(kept):
            kept = free_port(rng, {*before.values(), *chosen.values()})
        chosen[name] = kept
    write_private(file, json.dumps({**before, **chosen}))
    return chosen


def free_port(rng: random.Random, taken: Collection[int] = ()) -> int:
    """A port at which a server can listen now, and that no connection will take before.

    Args:
        rng: chooses it.
        taken: ports that it must not be.

    Raises:
        LocalError: there is none.
    """
    for _ in range(TRIES):
        port = rng.randrange(FIRST, LAST)
        if port not in taken and is_free(port):
            return port
    raise LocalError(f"no free TCP port between {FIRST} and {LAST} on {HOST}", "see what listens: ss -ltn")


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        # As servers do: what is left in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _load(file: Path) -> dict[str, int]:
    try:
        found = json.loads(file.read_text())
        return {str(name): int(port) for name, port in found.items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        return {}
