"""Who was refused an identity of late, and which selector did not hold: for whoever asks why a program has none."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from meshwarden.agents.attestation.caller import Program
from meshwarden.agents.attestation.selector import Misfit, told
from meshwarden.v1 import workload_service_pb2 as pb

_MAX: Final = 64
_MAX_ENTRIES: Final = 8
_KEPT: Final = timedelta(minutes=10)


@dataclass
class Refused:
    """Programs of one user that were refused one entry's identity, for the same selectors.

    Attributes:
        entry: `<tenant>/<entry>`.
        pid: the last one's.
        uid: their user.
        misfits: what did not hold for the last one.
        last: when last.
        count: how often.
    """

    entry: str
    pid: int
    uid: int
    misfits: Sequence[Misfit]
    last: datetime
    count: int = 0


class Refusals:
    """The newest refusals, at most 64 that differ."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        """Starts empty."""
        self._clock = clock
        self._kept: OrderedDict[tuple[str, int, str], Refused] = OrderedDict()

    def add(self, entry: str, program: Program, misfits: Sequence[Misfit]) -> None:
        """Notes that a program was refused an entry's identity."""
        key = entry, program.uid, ",".join(misfit.selector for misfit in misfits)
        known = self._kept.setdefault(key, Refused(entry, program.pid, program.uid, misfits, self._clock()))
        known.pid, known.misfits, known.count, known.last = program.pid, misfits, known.count + 1, self._clock()
        self._kept.move_to_end(key)
        if len(self._kept) > _MAX:
            self._kept.popitem(last=False)

    def add_nearest(self, program: Program, misfits: dict[str, list[Misfit]]) -> None:
        """Notes that a program fits none of some entries, `{entry: its misfits}`: those that it fails by the least."""
        least = min(map(len, misfits.values()), default=0)
        for entry in sorted(name for name, found in misfits.items() if len(found) == least)[:_MAX_ENTRIES]:
            self.add(entry, program, misfits[entry])

    def forget(self, entries: set[str]) -> None:
        """Forgets what is of none of these entries."""
        for key in [key for key in self._kept if key[0] not in entries]:
            del self._kept[key]

    def __iter__(self) -> Iterator[Refused]:
        """Those of the last ten minutes, the newest first."""
        now = self._clock()
        return (refused for refused in reversed(self._kept.values()) if now - refused.last < _KEPT)


def refused_caller(refused: Refused) -> pb.RefusedCaller:
    """A refusal as the agent's own user is told of it, with what the entry wants."""
    reason = told(refused.misfits, in_full=True)
    caller = pb.RefusedCaller(entry=refused.entry, pid=refused.pid, uid=refused.uid, reason=reason, count=refused.count)
    caller.last.FromDatetime(refused.last)
    return caller
