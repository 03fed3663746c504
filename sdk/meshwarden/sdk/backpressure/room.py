"""How many calls at once one server takes under the policies that let it find that by itself."""

import heapq
from collections.abc import Callable
from operator import itemgetter
from typing import Final, TypeAlias

from meshwarden.sdk.backpressure.concurrency import Concurrency, Part, Usage
from meshwarden.v1 import node_service_pb2
from meshwarden.v1.workload_service_pb2 import ConcurrencyState, ShedCalls

MOST_CALLS: Final = 100_000
MAX_SHED: Final = 500
"""Of how many tenants and levels a server tells what it didn't let in: of those of which there is most."""
CONCURRENCY: Final = "concurrency"
"""The level of a decision that is about calls at once."""


Room: TypeAlias = tuple[str, Concurrency]
"""A policy's name, and what it is held by."""


class Rooms:
    """Those of one server. `update` is for one thread at a time; the rest is safe to share between threads.

    Attributes:
        all: (policy, its places), as of the last update.
    """

    def __init__(self, most_calls: int, chance: Callable[[], float]) -> None:
        """See `meshwarden.sdk.quota.limits.Limits`."""
        self._most_calls, self._chance = max(1, most_calls), chance
        self.all: tuple[Room, ...] = ()

    def update(self, limits: node_service_pb2.ServerLimits, now_s: float) -> None:
        """Puts other policies in force; what was found under those that stay is kept."""
        known = dict(self.all)
        found = []
        for said in limits.policies:
            if said.spec.HasField("adaptive"):
                least = min(said.spec.adaptive.min, self._most_calls)
                most = min(said.spec.adaptive.max, self._most_calls)
                room = known.get(said.policy) or Concurrency(least, most, now_s, self._chance)
                room.update(
                    least, most, {part.tenant: Part(part.weight, part.concurrent) for part in said.spec.limits}, now_s
                )
                found.append((said.policy, room))
        self.all = tuple(found)

    def states(self) -> list[ConcurrencyState]:
        """How things are, for the agent."""
        return [_state(policy, room.usage) for policy, room in self.all]


def _state(policy: str, usage: Usage) -> ConcurrencyState:
    state = ConcurrencyState(policy=policy, limit=usage.limit, in_flight=usage.in_flight)
    most = heapq.nlargest(MAX_SHED, usage.shed.items(), key=itemgetter(1))
    state.shed.extend(ShedCalls(tenant=tenant, criticality=level.name, count=count) for (tenant, level), count in most)
    return state
