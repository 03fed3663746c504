"""How much a call matters, as its caller says, and that the calls made for it matter as much.

    stub.Reindex(request, metadata=[(criticality.KEY, "SHEDDABLE")])

    with criticality.calls_are(Criticality.SHEDDABLE):
        stub.Reindex(request)

It is only ever weighed among calls of one tenant: where there is too little for all of them the sheddable are let in
while there is more than a part of it left, so that the others find something. What a caller says can't hurt any other
tenant, so everybody may say what they like.

Source: Site Reliability Engineering (Beyer et al., 2016), chapter 21, "Criticality".
"""

import contextlib
import contextvars
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from meshwarden.sdk.tracing.span import Headers

KEY: Final = "x-meshwarden-criticality"
"""The metadata in which a caller says it, by the name of a level."""


class Criticality(enum.IntEnum):
    """The levels, by falling importance."""

    CRITICAL_PLUS = 1
    CRITICAL = 2
    SHEDDABLE_PLUS = 3
    SHEDDABLE = 4


DEFAULT: Final = Criticality.CRITICAL
"""The level of a call whose caller says nothing, or nothing that is a level."""
FREE_OF_BUCKET: Final[Mapping[Criticality, float]] = {
    Criticality.CRITICAL_PLUS: 0.0,
    Criticality.CRITICAL: 0.0,
    Criticality.SHEDDABLE_PLUS: 0.25,
    Criticality.SHEDDABLE: 0.5,
}
"""Which part of a full bucket must be left after a call is let in. Who says nothing has all of what was promised."""
FREE_OF_CONCURRENCY: Final[Mapping[Criticality, float]] = {
    Criticality.CRITICAL_PLUS: 0.0,
    Criticality.CRITICAL: 0.1,
    Criticality.SHEDDABLE_PLUS: 0.25,
    Criticality.SHEDDABLE: 0.5,
}
"""Which part of a limit on calls at once, whole calls, must be left after a call is let in. The limit is found by the
server and promised to nobody, so the default leaves something to what matters more."""
_LEVELS: Final = {level.name: level for level in Criticality}
_HEADERS: Final[Mapping[Criticality, Headers]] = {level: ((KEY, level.name),) for level in Criticality}
_current: contextvars.ContextVar[Criticality | None] = contextvars.ContextVar(
    "meshwarden_sdk_criticality", default=None
)
current: Final[Callable[[], Criticality | None]] = _current.get
"""Returns the level of the calls that are made here; None: they say nothing."""


def find(metadata: Iterable[tuple[str, str | bytes]]) -> Criticality | None:
    """Returns the level that a caller's metadata names, None if there is none.

    Anything else under that name is as if it weren't there, and so are two that differ.
    """
    found: Criticality | None = None
    is_said = False
    for name, value in metadata:
        if name == KEY:
            level = _LEVELS.get(value) if isinstance(value, str) else None
            if is_said and level is not found:
                return None
            found, is_said = level, True
    return found


def serve(metadata: Iterable[tuple[str, str | bytes]]) -> Criticality | None:
    """Begins a call to be served: in this context, calls made from now on say what its caller has said.

    Returns:
        What that was; see `find`.
    """
    level: Criticality | None = None
    for pair in metadata:
        if pair[0] == KEY:
            level = find(metadata)
            break
    if level is not current():  # a thread, or a task of grpc.aio, may have served another call before
        _current.set(level)
    return level


@contextlib.contextmanager
def calls_are(level: Criticality) -> Iterator[None]:
    """Has calls that are made inside say this level, unless one's own metadata says another."""
    token = _current.set(level)
    try:
        yield
    finally:
        _current.reset(token)


def headers() -> Headers:
    """Returns what a call that is made here says."""
    level = current()
    return () if level is None else _HEADERS[level]
