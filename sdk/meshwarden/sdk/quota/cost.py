"""What a call costs: as its caller declares it, and as its service reports it.

    stub.Generate(request, metadata=[(cost.KEY, "500")])      # the caller

    sdk.report_cost(answer.input_tokens + answer.output_tokens)  # the handler; or trailing metadata of the same name

A call is let in for what it declares, but for no less than the policy reserves, and settled at its end by what is
reported.
"""

import contextvars
import logging
from collections.abc import Iterable
from typing import Final, Protocol

KEY: Final = "x-meshwarden-cost"
"""The metadata in which caller and service say it: a whole number, in ASCII digits."""
MAX_COST: Final = 1_000_000_000
"""Of one call."""
_MAX_DIGITS: Final = 10
_log = logging.getLogger("meshwarden.sdk")


class Malformed(ValueError):
    """What a caller declares is no cost; the message names the header."""


class Call(Protocol):
    """A call whose cost is counted."""

    def cost(self, more: int) -> None:
        """It has cost so much more."""


serving: contextvars.ContextVar[Call | None] = contextvars.ContextVar("meshwarden_sdk_cost", default=None)
"""The call that is served here, if its cost is counted, or one that was before and has ended."""


def report_cost(more: int) -> None:
    """Says inside a handler that the call has cost so much more; outside, or where nothing counts it, it does nothing.

    What is reported first takes the place of what was declared or reserved. It holds at once where it is more, and at
    the call's end where it is less. A call of which nothing is reported has cost what was reserved.

    Raises:
        ValueError: it is negative, or past `MAX_COST`.
    """
    if not 0 <= more <= MAX_COST:
        raise ValueError(f"a cost is between 0 and {MAX_COST}, and not {more}")
    call = serving.get()
    if call is not None:
        call.cost(int(more))


def find_declared(metadata: Iterable[tuple[str, str | bytes]]) -> int | None:
    """Returns what a caller's metadata declare; None if nothing.

    Raises:
        Malformed: they say something else, or two things.
    """
    said = {value for name, value in metadata if name == KEY}
    if not said:
        return None
    cost = _parse(said.pop()) if len(said) == 1 else None
    if cost is None:
        raise Malformed(f"{KEY}: give one whole number up to {MAX_COST}, in digits")
    return cost


def find_reported(metadata: Iterable[tuple[str, str | bytes]]) -> int | None:
    """Returns what a service's trailing metadata report; None if nothing, or what is none, which is logged."""
    try:
        return find_declared(metadata)
    except Malformed as error:
        _log.warning("a cost in trailing metadata was not counted: %s", error)
        return None


def _parse(value: str | bytes) -> int | None:
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > _MAX_DIGITS:
        return None
    cost = int(value)
    return cost if cost <= MAX_COST else None
