"""Whether a call that its destination would most likely refuse is made at all: adaptive throttling by the caller.

A refused call costs a server nearly what a served one does, so a server that refuses most calls is kept from serving by
those that it refuses. Over two minutes a caller counts how many calls there were of a method and how many of them the
destination accepted, and refuses one by itself with the probability

    (calls - K * accepted) / (calls + 1),  K = 2

so that it sends about twice as many calls as are accepted: where at least half of them are, none is refused here, nor
while there were fewer than `LEAST` calls, which say little. A tenth of the calls goes in any case, and one a second;
after `RECOVERED` accepted ones in a row all go again.

Only a destination that says of itself "not now" is one that refuses: RESOURCE_EXHAUSTED or UNAVAILABLE with a time to
try again, or by a policy of the mesh. That it can't be reached, or answers with an error, says nothing of its load.

Time and chance are passed in: seconds of any clock that never goes back, and a number from 0 up to 1.

Source: Beyer and others, Site Reliability Engineering, ch. 21, "Client-Side Throttling".
"""

import threading
from collections.abc import Iterable
from typing import Final

import grpc

K: Final = 2.0
WINDOW_S: Final = 120.0
MOST: Final = 0.9
LEAST: Final = 10
PROBE_S: Final = 1.0
RECOVERED: Final = 10
_SLOT_S: Final = 10.0
_SLOTS: Final = round(WINDOW_S / _SLOT_S)
_ROUNDING: Final = 1e-6
_LATER: Final = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
_WHEN: Final = frozenset({"retry-after", "grpc-retry-pushback-ms"})
_DECISION: Final = ("mesh-decision", "limited")
_DETAILS: Final = ("grpc-status-details-bin", b"google.rpc.RetryInfo")


class Throttle:
    """What is known of the calls of one method. Safe to share between threads.

    Attributes:
        on: whether `admits` is to be asked before a call; whoever calls looks at this alone as long as all goes well.
        accepted: how many calls the destination has accepted, ever; for who calls to count up. That it may miss one
            where threads meet changes nothing that is decided.
    """

    __slots__ = ("_at_refusal", "_lock", "_passed_s", "_rolled_s", "_seen", "_slots", "accepted", "on")

    def __init__(self, now_s: float) -> None:
        self.on = False
        self.accepted = 0
        self._lock = threading.Lock()
        # {number of a slot: [accepted, refused by the destination, refused here]}
        self._slots: dict[int, list[float]] = {}
        self._seen, self._rolled_s = 0, now_s
        self._at_refusal, self._passed_s = 0, now_s

    def refused(self, now_s: float) -> None:
        """The destination has refused a call."""
        with self._lock:
            self._roll(now_s)[1] += 1
            self._at_refusal = self.accepted
            if not self.on and self._probability() > 0:
                self.on, self._passed_s = True, now_s

    def admits(self, now_s: float, chance: float) -> bool:
        """Whether a call is to be made."""
        with self._lock:
            slot = self._roll(now_s)
            if self.accepted - self._at_refusal >= RECOVERED:
                self._slots.clear()
            probability = self._probability()
            if probability <= 0:
                self.on = False
                return True
            if chance >= probability or now_s - self._passed_s >= PROBE_S:
                self._passed_s = now_s
                return True
            slot[2] += 1
            return False

    def counts(self) -> tuple[int, int]:
        """Of the last two minutes: how many calls the destination refused, and how many were made."""
        with self._lock:
            accepted, refused, _ = self._sums()
        return round(refused), round(accepted + refused)

    def _probability(self) -> float:
        accepted, refused, here = self._sums()
        calls = accepted + refused + here
        if calls < LEAST - _ROUNDING:
            return 0.0
        return min((calls - K * accepted) / (calls + 1), MOST)

    def _sums(self) -> tuple[float, float, float]:
        accepted = refused = here = 0.0
        for slot in self._slots.values():
            accepted += slot[0]
            refused += slot[1]
            here += slot[2]
        return accepted, refused, here

    def _roll(self, now_s: float) -> list[float]:
        """Brings the window to now, and returns the slot of now.

        When each call was accepted isn't kept: they are taken to have come evenly since the last time.
        """
        now_s = max(now_s, self._rolled_s)
        last = int(now_s // _SLOT_S)
        for number in [number for number in self._slots if number <= last - _SLOTS]:
            del self._slots[number]
        accepted, begun_s = self.accepted - self._seen, self._rolled_s
        self._seen, self._rolled_s = self._seen + accepted, now_s
        for number in range(max(int(begun_s // _SLOT_S), last - _SLOTS + 1), last + 1):
            within_s = min(now_s, (number + 1) * _SLOT_S) - max(begun_s, number * _SLOT_S)
            part = within_s / (now_s - begun_s) if now_s > begun_s else 1.0
            self._slots.setdefault(number, [0.0, 0.0, 0.0])[0] += accepted * part
        return self._slots[last]


def is_refusal(code: grpc.StatusCode | None, trailing: Iterable[tuple[str, object]]) -> bool:
    """Whether an answer says that the destination takes no more calls for now."""
    if code not in _LATER:
        return False
    return any(
        key in _WHEN
        or (key, value) == _DECISION
        or (key == _DETAILS[0] and isinstance(value, bytes) and _DETAILS[1] in value)
        for key, value in trailing
    )
