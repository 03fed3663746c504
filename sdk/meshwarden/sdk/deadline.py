"""Whether a caller that has gone has run out of time."""

from typing import Final

import grpc

# What a server sees of a deadline: a client gives the time that is left, rounded up to as little as three digits, and
# ends the call by its own clock; so the word that it has gone is here before the time is over.
# Source: gRPC over HTTP/2, "Timeout"; C-core's `Timeout` (1.85), which rounds so.
_ROUNDED: Final = 0.01
_ON_THE_WAY_S: Final = 0.05


class Deadline:
    """The deadline of one call, as its server sees it."""

    __slots__ = ("_slack_s",)

    def __init__(self, remaining_s: float | None) -> None:
        """`remaining_s` is what `context.time_remaining()` says when the call comes in."""
        self._slack_s = _ON_THE_WAY_S + _ROUNDED * (remaining_s or 0.0)

    def code(self, remaining_s: float | None) -> grpc.StatusCode:
        """The status of a call whose caller has gone with that much time left."""
        late = remaining_s is not None and remaining_s <= self._slack_s
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
