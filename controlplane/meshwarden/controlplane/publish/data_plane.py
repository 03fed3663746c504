"""Data planes as operators look at them: what each is to have, and how far it has come."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from meshwarden.controlplane.policy.scope import scopes_of
from meshwarden.controlplane.publish.compiled import Compiled
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.v1.admin_service_pb2 import NodeState
from meshwarden.v1.data_plane_service_pb2 import DataPlaneState, DataPlaneType
from meshwarden.v1.node_service_pb2 import DataPlaneRef, XdsResource
from meshwarden.xds import api

_ORDER = {type_url: number for number, type_url in enumerate(api.TYPE_URLS)}


class DataPlanes:
    """Reads what `publisher` compiles for data planes."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def states(self, nodes: Iterable[NodeState], shown: Callable[[str], bool]) -> Iterator[DataPlaneState]:
        """How far each data plane has come that is shown, in the order of nodes and ids.

        Args:
            nodes: the nodes, in order.
            shown: whether a tenant's are.
        """
        counted: dict[Compiled, Counter[str]] = {}
        for node in nodes:
            for ref in sorted(node.data_planes, key=lambda ref: ref.id):
                if shown(ref.tenant):
                    yield self.state(node, ref, counted)

    def state(self, node: NodeState, ref: DataPlaneRef, counted: dict[Compiled, Counter[str]]) -> DataPlaneState:
        """How far one has come; `counted` keeps how many resources of each type the scopes have."""
        answered = node.acked_revision
        if node.pending_revision and ref.id not in node.pending:
            answered = max(answered, node.pending_revision)
        state = DataPlaneState(
            node=node.node,
            ref=ref,
            connected=node.connected or bool(node.control_plane),
            control_plane=node.control_plane,
            revision=answered,
        )
        if node.HasField("last_seen"):
            state.last_seen.CopyFrom(node.last_seen)
        try:
            scopes = self._compiled(node.node, ref)
        except ValueError as error:
            state.refused = str(error)
            return state
        total = Counter[str]()
        for compiled in scopes:
            if compiled not in counted:
                counted[compiled] = Counter(type_url for type_url, _ in compiled.versions)
            total += counted[compiled]
        nacks = {nack.type_url: nack for nack in node.nacks if nack.data_plane == ref.id}
        word = DataPlaneType.SYNCED if answered >= self._publisher.revision else DataPlaneType.STALE
        for type_url in sorted(total.keys() | nacks.keys(), key=lambda url: (_ORDER.get(url, len(_ORDER)), url)):
            one = state.types.add(type_url=type_url, state=word, resources=total[type_url])
            if type_url in nacks:
                one.state = DataPlaneType.NACKED
                one.nack.CopyFrom(nacks[type_url])
        return state

    def resources(self, node: str, ref: DataPlaneRef) -> Mapping[tuple[str, str], XdsResource]:
        """What a data plane is to have at present: `{(type_url, name): resource}`, in the order of names.

        Raises:
            ValueError: it may not have any; says why.
        """
        found = {name: item for compiled in self._compiled(node, ref) for name, item in compiled.resources.items()}
        return dict(sorted(found.items(), key=lambda item: (_ORDER.get(item[0][0], len(_ORDER)), item[0])))

    def _compiled(self, node: str, ref: DataPlaneRef) -> list[Compiled]:
        layer = self._publisher.layer(node)
        entry = layer.mesh.find("WorkloadEntry", ref.tenant, ref.entry)
        if entry is None:
            raise ValueError(f"there is no workload entry {ref.tenant}/{ref.entry}")
        if node not in entry.spec.nodes:
            raise ValueError(f"workload entry {ref.tenant}/{ref.entry} does not name node {node}")
        place = self._publisher.place(node) if layer.mesh.near(ref.tenant) else None
        return [
            layer.scopes.listener(scope, ref, entry, None) if scope.startswith("listener/") else layer.scopes.get(scope)
            for scope in scopes_of(ref, node, entry, layer.mesh.named, place, layer.mesh.externals(ref.tenant))
        ]
