"""What `status` warns of at the mesh's edges."""

from collections.abc import Callable, Iterator

from meshwarden.controlplane.policy.mesh import Mesh


def edge_warnings(mesh: Mesh, shown: Callable[[str], bool]) -> Iterator[str]:
    """The warnings, of what tenants own that may be shown."""
    for name in mesh.callees():
        message = mesh.find("ExternalService", *name)
        if message is None or not shown(name.tenant):
            continue
        if message.spec.insecure:
            yield f"ExternalService {name} is called in the clear beyond the node (insecure)"
        if message.spec.internal:
            yield f"ExternalService {name} may lead to its callers' own nodes (internal)"
