"""How it is with calls at once at the servers of a node, as they say it of themselves, for Prometheus.

Nothing is decided by it; what a program says is shown under its own name, and bounded.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from meshwarden.sdk.backpressure.criticality import Criticality
from meshwarden.sdk.backpressure.room import MAX_SHED
from meshwarden.v1 import workload_service_pb2 as pb

OTHER: Final = "_other"
"""The tenant of calls whose tenants are too many to be told apart."""
MAX_SERIES: Final = 5000
"""Of how many workloads, policies, tenants and levels of a node it is shown what was not let in."""
MAX_PROCESSES: Final = 64
"""How many processes of one workload are heard."""
SILENT_S: Final = 10.0
"""After how long a server is forgotten that says nothing."""
_MAX_COUNT: Final = 10**12
_MAX_CALLS: Final = 100_000


class InvalidState(Exception):
    """What a server says is not taken; the message names the field."""


class _Said(NamedTuple):
    at_s: float
    states: Collection[pb.ConcurrencyState]


class Concurrencies:
    """What servers have said last."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        """Nobody has said anything."""
        self._monotonic_s = monotonic_s
        # {(workload, process): what it said}
        self._said: dict[tuple[str, int], _Said] = {}

    def take(
        self, workload: str, process: int, states: Collection[pb.ConcurrencyState], policies: Collection[str]
    ) -> None:
        """Takes what a process says of its server; of policies that aren't its own nothing is taken.

        Raises:
            InvalidState: it is out of bounds.
        """
        for index, state in enumerate(states):
            _check(state, f"concurrency[{index}]")
        self._forget()
        key = (workload, process)
        if not states:
            self._said.pop(key, None)
        elif key in self._said or sum(known == workload for known, _ in self._said) < MAX_PROCESSES:
            self._said[key] = _Said(self._monotonic_s(), [state for state in states if state.policy in policies])

    def metrics(self) -> Iterable[Metric]:
        """The series."""
        self._forget()
        limits: dict[tuple[str, str], int] = {}
        in_flight: dict[tuple[str, str], int] = {}
        shed: dict[tuple[str, ...], int] = {}
        for (workload, _), said in self._said.items():
            for state in said.states:
                of = (state.policy, workload)
                limits[of] = limits.get(of, 0) + min(state.limit, _MAX_CALLS)
                in_flight[of] = in_flight.get(of, 0) + min(state.in_flight, _MAX_CALLS)
                for item in state.shed:
                    labels: tuple[str, ...] = (*of, item.tenant or OTHER, item.criticality)
                    if labels not in shed and len(shed) >= MAX_SERIES:
                        labels = ("", "", OTHER, item.criticality)
                    shed[labels] = shed.get(labels, 0) + min(item.count, _MAX_COUNT)
        text = "How many calls at once a workload's server takes, as it has found."
        yield _gauge("meshwarden_concurrency_limit", text, limits)
        yield _gauge("meshwarden_concurrency", "How many there are.", in_flight)
        counted = CounterMetricFamily(
            "meshwarden_concurrency_shed",
            "Calls that a server did not let in, by who called and how much they matter.",
            labels=["policy", "workload", "tenant", "criticality"],
        )
        for labels, count in shed.items():
            counted.add_metric(list(labels), count)
        yield counted

    def _forget(self) -> None:
        before_s = self._monotonic_s() - SILENT_S
        self._said = {key: said for key, said in self._said.items() if said.at_s >= before_s}


def _check(state: pb.ConcurrencyState, where: str) -> None:
    if len(state.shed) > MAX_SHED:
        raise InvalidState(f"{where}.shed: {len(state.shed)} of them; at most {MAX_SHED}")
    for index, item in enumerate(state.shed):
        if len(item.tenant) > 264:
            raise InvalidState(f"{where}.shed[{index}].tenant: longer than 264")
        if item.criticality not in Criticality.__members__:
            raise InvalidState(f"{where}.shed[{index}].criticality: unknown")


def _gauge(name: str, text: str, rows: dict[tuple[str, str], int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["policy", "workload"])
    for labels, value in rows.items():
        family.add_metric(list(labels), value)
    return family
