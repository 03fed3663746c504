"""Envoy's dialect, put together."""

from collections.abc import Hashable

from meshwarden.controlplane.policy import access, denied, rate
from meshwarden.controlplane.policy.choice import Choice
from meshwarden.controlplane.policy.envoy import egress, inbound, outbound, plain
from meshwarden.controlplane.policy.grant import Access
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Method, Name
from meshwarden.controlplane.policy.traffic import Route
from meshwarden.controlplane.policy.variant import Asker
from meshwarden.controlplane.resources.reach import Width
from meshwarden.v1 import node_service_pb2
from meshwarden.xds.snapshot import Resource


class Envoy:
    """Says a mesh to the Envoys beside programs."""

    def bearing(self, said: Route, chosen: Choice, asker: Asker) -> Hashable:
        """Nothing: the routes, which depend on the caller, are no part of a service."""
        return None

    def way(self, mesh: Mesh, service: Name, asker: Asker) -> tuple[Resource, ...]:
        """Clusters."""
        return outbound.service_resources(mesh, service)

    def client(self, mesh: Mesh, asker: Asker) -> tuple[Resource, ...]:
        """The routes of all that the caller's tenant sees."""
        return (outbound.routes(mesh, asker.caller),)

    def server(self, mesh: Mesh, service: Name, said: Access) -> tuple[Resource, ...]:
        """Routes to the program, who may call, and how much."""
        # Validation lets a service that Envoys serve have one policy of each width.
        limits = {one.width: one for one in reversed(rate.limits(mesh, service)) if one.adaptive is None}
        return (
            inbound.routes(service),
            inbound.access(said, mesh.trust_domain),
            *(inbound.limit(service, width, limits.get(width)) for width in Width),
            *(inbound.quota(service, width, limits.get(width)) for width in Width),
        )

    def egress(self, mesh: Mesh, service: Name, tenant: str, said: Access) -> tuple[Resource, ...]:
        """What the Envoys of a tenant share of an external service, where that is who may call it."""
        return egress.shared(mesh, service, tenant, said)

    def clear(self, service: Name, methods: tuple[Method, ...]) -> tuple[Resource, ...]:
        """What anybody may call in the clear."""
        return (plain.access(service, methods),)

    def listener(
        self, mesh: Mesh, ref: node_service_pb2.DataPlaneRef, service: Name, *, permissive: bool
    ) -> tuple[Resource, ...]:
        """The listeners that the instance has, and its program's cluster."""
        found: list[Resource] = []
        if ref.outbound_path:
            found.append(outbound.listener(ref.outbound_path, service, mesh.trust_domain))
            for name in mesh.externals(service.tenant):
                found += egress.instance(mesh, name, ref.outbound_path, service, access.access(mesh, name))
        if ref.listen_address and ref.app_address:
            message = mesh.find("Service", *service)
            spoken = message.spec.protocol if message is not None else 0
            epoch = mesh.epochs.get(service, lambda: denied.of(access.access(mesh, service), mesh.denied))
            found.append(
                inbound.listener(
                    ref.listen_address, service, mesh.trust_domain, epoch, mesh.foreign, permissive=permissive
                )
            )
            found.append(inbound.app(ref.app_address, spoken))
        return tuple(found)
