"""Which numbered requests of programs were taken, for those that go again because their answer was lost or late.

It is kept in memory: what was taken just before the agent died is taken again afterwards. Spans have ids by which the
control plane knows them.
"""

from typing import Final

from meshwarden.sdk.tracing.numbered import Number

_MAX_WORKLOADS: Final = 1024
_MAX_RUNS: Final = 256


class Repeats:
    """The last request taken of each sender. A number is its sender's word, of weight for its own requests alone."""

    def __init__(self) -> None:
        # {workload: {run: sequence}}, of both the one that sent last at the end
        self._taken: dict[str, dict[str, int]] = {}

    def has(self, workload: str, number: Number | None) -> bool:
        """Whether a request of a workload was taken before."""
        return number is not None and self._taken.get(workload, {}).get(number.run, -1) >= number.sequence

    def add(self, workload: str, number: Number | None) -> None:
        """Takes note of one that was taken now; a workload's senders beyond 256 are forgotten, the oldest first."""
        if number is None:
            return
        runs = self._taken.pop(workload, {})
        runs.pop(number.run, None)
        runs[number.run] = number.sequence
        self._taken[workload] = runs
        for kept, most in ((runs, _MAX_RUNS), (self._taken, _MAX_WORKLOADS)):
            if len(kept) > most:
                del kept[next(iter(kept))]
