"""gRPC's dialect, put together."""

from meshwarden.controlplane.policy import access
from meshwarden.controlplane.policy.endpoint import cluster_name
from meshwarden.controlplane.policy.grpc import client, server
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.variant import Variant
from meshwarden.v1 import node_service_pb2
from meshwarden.xds.snapshot import Resource


class Grpc:
    """Says a mesh to gRPC's own xDS clients and servers."""

    def bearing(self, mesh: Mesh, service: Name, variant: Variant) -> Variant:
        """Nothing of a service depends on the client's kind."""
        return variant.plain

    def part(self, mesh: Mesh, service: Name, variant: Variant) -> tuple[Resource, ...]:
        """The canonical listener, routes, clusters and endpoints."""
        return (client.listener(cluster_name(service), service), *client.service_resources(mesh, service))

    def client(self, mesh: Mesh, tenant: str) -> tuple[Resource, ...]:
        """The listeners of the short names."""
        return tuple(client.listener(short, service) for short, service in mesh.short_names(tenant).items())

    def server(self, mesh: Mesh, service: Name) -> tuple[Resource, ...]:
        """The routes that carry who may call."""
        return (server.routes(access.access(mesh, service), mesh.trust_domain),)

    def listener(self, mesh: Mesh, ref: node_service_pb2.DataPlaneRef, service: Name) -> tuple[Resource, ...]:
        """The listener, if the instance has one."""
        return (server.listener(ref.listen_address, service),) if ref.listen_address else ()
