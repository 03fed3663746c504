"""gRPC's dialect, put together."""

from collections.abc import Hashable

from meshwarden.controlplane.policy.endpoint import cluster_name
from meshwarden.controlplane.policy.grant import Access
from meshwarden.controlplane.policy.grpc import client, server
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.traffic import Route
from meshwarden.controlplane.policy.variant import Asker
from meshwarden.v1 import node_service_pb2
from meshwarden.xds.snapshot import Resource


class Grpc:
    """Says a mesh to gRPC's own xDS clients and servers."""

    def bearing(self, said: Route, asker: Asker) -> Hashable:
        """The rules that are about the caller, and the client's kind where calls may take so long and no longer."""
        rules = tuple(rule.index for rule in said.rules_of(asker.caller)) if said.names_callers else None
        return rules, client.backstop(asker.variant) if said.has_timeout else None

    def part(self, mesh: Mesh, service: Name, asker: Asker) -> tuple[Resource, ...]:
        """The canonical listener, routes, clusters and endpoints."""
        return (client.listener(cluster_name(service), service), *client.service_resources(mesh, service, asker))

    def client(self, mesh: Mesh, caller: Name) -> tuple[Resource, ...]:
        """The listeners of the short names."""
        return tuple(client.listener(short, service) for short, service in mesh.short_names(caller.tenant).items())

    def server(self, mesh: Mesh, service: Name, said: Access) -> tuple[Resource, ...]:
        """The routes that carry who may call."""
        return (server.routes(said, mesh.trust_domain),)

    def listener(self, mesh: Mesh, ref: node_service_pb2.DataPlaneRef, service: Name) -> tuple[Resource, ...]:
        """The listener, if the instance has one."""
        return (server.listener(ref.listen_address, service),) if ref.listen_address else ()
