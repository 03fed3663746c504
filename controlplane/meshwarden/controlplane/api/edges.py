"""What `status` shows of the mesh's edges: where calls are made in the clear, and by whom."""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from meshwarden.controlplane.policy import permissive
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.v1 import admin_service_pb2 as v1

SOON: Final = timedelta(days=7)
"""From when on before its end `status` warns of who still calls in the clear."""
_MOST: Final = 256


def permissive_states(
    mesh: Mesh, nodes: Iterable[v1.NodeState], shown: Callable[[str], bool], now: datetime
) -> list[v1.PermissiveState]:
    """The services that take calls in the clear now, of tenants that may be shown, and who calls them so."""
    found = {
        name: v1.PermissiveState(service=str(name))
        for name in mesh.services()
        if shown(name.tenant) and (said := permissive.find(mesh, name)) is not None and said.holds(now.timestamp())
    }
    for name, state in found.items():
        state.until.CopyFrom(mesh.find("Service", *name).spec.permissive.until)  # type: ignore[union-attr]
    for node in nodes if found else ():
        for seen in node.health.clear_callers:
            if (of := found.get(Name(seen.tenant, seen.service))) is not None:
                of.callers.add(node=node.node, address=seen.address, count=seen.count, last=seen.last)
    for state in found.values():
        callers = sorted(state.callers, key=lambda one: one.last.ToNanoseconds(), reverse=True)[:_MOST]
        del state.callers[:]
        state.callers.extend(callers)
    return list(found.values())


def edge_warnings(
    mesh: Mesh, states: Iterable[v1.PermissiveState], shown: Callable[[str], bool], now: datetime
) -> Iterator[str]:
    """The warnings, of what tenants own that may be shown."""
    for name in mesh.callees():
        message = mesh.find("ExternalService", *name)
        if message is None or not shown(name.tenant):
            continue
        if message.spec.insecure:
            yield f"ExternalService {name} is called in the clear beyond the node (insecure)"
        if message.spec.internal:
            yield f"ExternalService {name} may lead to its callers' own nodes (internal)"
    for state in states:
        until = state.until.ToDatetime(UTC)
        text = f"Service {state.service} takes calls in the clear until {until:%Y-%m-%d %H:%M} UTC"
        late = [one for one in state.callers if until - now <= SOON and now - one.last.ToDatetime(UTC) <= SOON]
        if late:
            text += f"; addresses that still call so, and get nothing any more then: {len(late)}"
        yield text
