"""Numbers of what a program hands to its node agent, so that what goes again, its answer lost or late, is taken once.

Whoever numbers its requests sends them one at a time, in their order and each until it is answered, and accounts itself
for what the agent refuses.
"""

import re
import secrets
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

KEY: Final = "meshwarden-number"
"""The name of the metadata."""
_FORM: Final = re.compile(r"([0-9a-f]{16})-([0-9]{1,18})")


class Number(NamedTuple):
    """One request's.

    Attributes:
        run: who counts; 16 digits.
        sequence: grows with each of its requests.
    """

    run: str
    sequence: int

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What says so."""
        return ((KEY, f"{self.run}-{self.sequence}"),)


class Numbers:
    """Counts the requests of one sender, under a name that no other has. Not safe to share between threads."""

    def __init__(self) -> None:
        self._last = Number(secrets.token_hex(8), 0)

    def next(self) -> Number:
        """Returns the next request's."""
        self._last = Number(self._last.run, self._last.sequence + 1)
        return self._last


def find(metadata: Iterable[Any] | None) -> Number | None:
    """Returns the number of a request; None if it has none that can be read."""
    for key, value in metadata or ():
        if key == KEY:
            found = _FORM.fullmatch(value)
            return Number(found[1], int(found[2])) if found else None
    return None
