"""How far a change would be pushed: which nodes and data planes would get something, by compiling what it touches."""

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from meshwarden.controlplane.policy.compile import Parts, ScopeContent, compile_scope
from meshwarden.controlplane.policy.endpoint import NOWHERE, Place
from meshwarden.controlplane.policy.mesh import Impact, Mesh
from meshwarden.controlplane.policy.scope import scopes_of, touched
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1.preview_service_pb2 import PushReach

# What is beyond is taken to be changed if it is touched.
MAX_SCOPES: Final = 256
MAX_VISIBLE: Final = 4000


class Node(NamedTuple):
    """A node that is connected, and its data planes."""

    name: str
    data_planes: tuple[v1.DataPlaneRef, ...]
    serves: Callable[[str], bool] = lambda tenant: True
    place: Place = NOWHERE


class _Plane(NamedTuple):
    ref: v1.DataPlaneRef
    scopes: tuple[str, ...]
    entry: Any


def reach(before: Mesh, after: Mesh, impact: Impact, nodes: Iterable[Node]) -> PushReach:
    """Counts who would get something.

    Args:
        before: the mesh as it is.
        after: as it would be.
        impact: what the change touches.
        nodes: who is there.
    """
    answer = PushReach()
    planes = {node.name: (_planes(before, node), _planes(after, node)) for node in nodes}
    in_use = {
        scope: plane
        for pair in planes.values()
        for of_mesh in pair
        for plane in of_mesh.values()
        for scope in plane.scopes
    }
    changed, answer.at_most = _changed(before, after, impact, in_use)
    for name, (old, new) in planes.items():
        answer.connected_nodes += 1
        answer.connected_data_planes += len(new)
        told = [
            plane
            for key, plane in new.items()
            if key not in old or old[key].scopes != plane.scopes or not changed.isdisjoint(plane.scopes)
        ]
        answer.data_planes += len(told)
        answer.nodes += bool(told) or old.keys() != new.keys() or _entries(before, name) != _entries(after, name)
    return answer


def _planes(mesh: Mesh, node: Node) -> dict[str, _Plane]:
    """The data planes that a node may have, by their ids."""
    found = {}
    for ref in node.data_planes:
        entry = mesh.find("WorkloadEntry", ref.tenant, ref.entry)
        if entry is not None and node.name in entry.spec.nodes and node.serves(ref.tenant):
            try:
                place = node.place if mesh.near(ref.tenant) else None
                found[ref.id] = _Plane(
                    ref, scopes_of(ref, node.name, entry, mesh.named, place, mesh.externals(ref.tenant)), entry
                )
            except ValueError:
                continue  # refused, now and then
    return found


def _entries(mesh: Mesh, node: str) -> list[Any]:
    """What a node is told of its entries and their services."""
    entries = mesh.entries_on(node)
    return [*entries, *(mesh.find("Service", entry.metadata.tenant, entry.spec.service) for entry in entries)]


def _changed(before: Mesh, after: Mesh, impact: Impact, in_use: dict[str, _Plane]) -> tuple[set[str], bool]:
    """The scopes that would hold something else, and whether some of them may after all not."""
    found = {scope: plane for scope, plane in in_use.items() if touched(scope, impact)}
    tenants = {scope.split("/")[1] for scope in found if scope.startswith("client/")}
    if len(found) > MAX_SCOPES or sum(len(after.visible(tenant)) for tenant in tenants) > MAX_VISIBLE:
        return set(found), True
    parts = Parts()
    old = {scope: _compiled(before, scope, plane, parts) for scope, plane in found.items()}
    parts.forget(impact)
    return {scope for scope, plane in found.items() if _compiled(after, scope, plane, parts) != old[scope]}, False


def _compiled(mesh: Mesh, scope: str, plane: _Plane, parts: Parts) -> object:
    """What a scope holds, in a form that is equal if that is; None if it can't be compiled."""
    try:
        content: ScopeContent = compile_scope(mesh, scope, plane.ref, plane.entry, parts)
    except ValueError:
        return None
    return (
        {(item.type_url, item.name, item.version) for item in content.resources},
        content.limits,
        content.access,
        content.later,
    )
