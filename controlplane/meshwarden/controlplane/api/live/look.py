"""What there is of the mesh at one moment, read once for everybody who watches it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import anyio.lowlevel

from meshwarden.controlplane.gather.graph.graph import Graph
from meshwarden.controlplane.insight.burn import burns
from meshwarden.controlplane.insight.flow import Flow, Pair, flows
from meshwarden.controlplane.policy.endpoint import state_of
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.v1.admin_service_pb2 import GraphEdge, NodeState
from meshwarden.v1.console_service_pb2 import MeshObjective

WINDOW: Final = timedelta(minutes=1)
"""What rates are taken over: short, since it is to be seen what is going on."""
_AT_ONCE: Final = 500


@dataclass(frozen=True)
class Standing:
    """What the store says of a service."""

    endpoints: int
    healthy: int
    regions: tuple[str, ...]
    is_external: bool


@dataclass(frozen=True)
class Look:
    """The mesh at one moment.

    Attributes:
        now: when it was read.
        revision: the store's newest revision.
        services: {"<tenant>/<service>": what the store says of it}.
        flows: {(source, destination): flow}.
        nodes: who has joined, and since when each is behind; None for one that is not.
        objectives: how each SLO does, by name.
    """

    now: datetime
    revision: int
    services: Mapping[str, Standing]
    flows: Mapping[Pair, Flow]
    nodes: tuple[tuple[NodeState, datetime | None], ...]
    objectives: tuple[MeshObjective, ...]


class Looker:
    """Looks at the mesh, and remembers what a look alone does not say."""

    def __init__(
        self,
        graphs: Callable[[], Iterable[Graph]],
        publisher: Publisher,
        sessions: Sessions,
        clock: Callable[[], datetime],
    ) -> None:
        """Looks at these.

        Args:
            graphs: each region's.
            publisher: has the mesh as stored.
            sessions: has the nodes.
            clock: the present, aware.
        """
        self._graphs, self._publisher, self._sessions, self._clock = graphs, publisher, sessions, clock
        self._behind: dict[str, datetime] = {}
        # As of a revision: what endpoints there are changes with it alone.
        self._standings: tuple[int, Mapping[str, Standing]] = (-1, {})

    async def look(self) -> Look:
        """Reads all there is; others have their turn meanwhile."""
        edges = []
        for graph in list(self._graphs()):
            for number, edge in enumerate(graph.edges(WINDOW, lambda _: True), 1):
                # The graph's own message changes with the next question.
                own = GraphEdge()
                own.CopyFrom(edge)
                own.ClearField("outcomes")
                edges.append(own)
                if number % _AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()
        mesh, revision = self._publisher.mesh, self._publisher.revision
        slos = [item for key, item in sorted(mesh.all().items()) if key.kind == "SLO"]
        services = frozenset(f"{item.metadata.tenant}/{item.spec.service}" for item in slos)
        counted = [one for graph in self._graphs() for one in graph.counts(WINDOW, services)] if slos else []
        now = self._clock()
        return Look(
            now=now,
            revision=revision,
            services=self._read(mesh, revision),
            flows=flows(edges),
            nodes=tuple(self._nodes(revision, now)),
            objectives=tuple(burns(slos, counted)),
        )

    def _read(self, mesh: Mesh, revision: int) -> Mapping[str, Standing]:
        if self._standings[0] != revision:
            self._standings = revision, {str(name): _standing(mesh, name) for name in mesh.callees()}
        return self._standings[1]

    def _nodes(self, revision: int, now: datetime) -> Iterable[tuple[NodeState, datetime | None]]:
        states = self._sessions.states()
        behind = {state.node for state in states if state.connected and state.acked_revision < revision}
        self._behind = {node: self._behind.get(node, now) for node in behind}
        for state in states:
            own = NodeState()
            own.CopyFrom(state)
            yield own, self._behind.get(state.node)


def _standing(mesh: Mesh, name: Name) -> Standing:
    endpoints: Mapping[Any, Any] = mesh.of_service("Endpoint", name)
    healthy = sum(state_of(mesh, key, item.spec) == "HEALTHY" for key, item in endpoints.items())
    regions = {item.spec.locality.region for item in endpoints.values()} - {""}
    return Standing(len(endpoints), healthy, tuple(sorted(regions)), mesh.is_external(name))


def seconds_since(moment: datetime, now: datetime) -> int:
    """Whole seconds from a moment to now."""
    return max(0, int((now - moment.astimezone(UTC)).total_seconds()))
