"""Whether a limit would refuse calls of which one knows the minute: surely, perhaps, or surely not."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshwarden.controlplane.policy.neutral import Rate

_MINUTE_S = 60


@dataclass
class Bucket:
    """The calls that count against one limit, by the minute (in seconds since 1970) in which they came.

    Attributes:
        sure: calls that come to it.
        maybe: calls of which nobody can say whether they do.
    """

    sure: dict[int, int] = field(default_factory=dict)
    maybe: dict[int, int] = field(default_factory=dict)

    def add(self, minute_s: int, calls: int, *, is_sure: bool) -> None:
        """Counts calls of a minute."""
        into = self.sure if is_sure else self.maybe
        into[minute_s] = into.get(minute_s, 0) + calls

    @property
    def calls(self) -> int:
        """All of them."""
        return sum(self.sure.values()) + sum(self.maybe.values())


def least_refused(calls: Mapping[int, int], rate: Rate) -> int:
    """How many calls a limit refuses, however they are spread within their minutes.

    Most get through where a bucket is never full while it fills: so much is let through as was in it when a minute
    began, and as is filled in meanwhile.
    """
    filled = rate.amount / rate.per_s * _MINUTE_S
    room, refused, last = float(rate.burst), 0.0, None
    for minute_s in sorted(calls):
        if last is not None and minute_s > last + _MINUTE_S:
            room = min(float(rate.burst), room + filled * ((minute_s - last) / _MINUTE_S - 1))
        passed = min(float(calls[minute_s]), room + filled)
        refused += calls[minute_s] - passed
        room = min(float(rate.burst), room + filled - passed)
        last = minute_s
    return int(refused)


def is_never_refused(calls: Mapping[int, int], rate: Rate) -> bool:
    """Whether a limit refuses none, however they are spread within their minutes.

    It may be that all calls of a span of minutes come from the end of its first to the beginning of its last.
    """
    filled = rate.amount / rate.per_s * _MINUTE_S
    # The most that may have come, in excess of what was filled in, up to the end of the minute before.
    worst, last = 0.0, 0
    for number, minute_s in enumerate(sorted(calls)):
        minutes = (minute_s - last) / _MINUTE_S if number else 1.0
        if calls[minute_s] + max(0.0, worst - filled * (minutes - 1)) > rate.burst:
            return False
        worst = calls[minute_s] + max(0.0, worst - filled * minutes)
        last = minute_s
    return True
