"""gRPC's dialect, put together."""

from collections.abc import Hashable

from meshwarden.controlplane.policy.choice import Choice
from meshwarden.controlplane.policy.endpoint import cluster_name
from meshwarden.controlplane.policy.grant import Access
from meshwarden.controlplane.policy.grpc import client, server
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Method, Name
from meshwarden.controlplane.policy.traffic import Route
from meshwarden.controlplane.policy.variant import Asker, Feature, Kind
from meshwarden.v1 import node_service_pb2
from meshwarden.xds.snapshot import Resource


class Grpc:
    """Says a mesh to gRPC's own xDS clients and servers."""

    def bearing(self, said: Route, chosen: Choice, asker: Asker) -> Hashable:
        """The rules that are about the caller, and what of the client's kind timeouts, sessions and clusters take."""
        rules = tuple(rule.index for rule in said.rules_of(asker.caller)) if said.names_callers else None
        keeps = asker.variant.can(Feature.SESSION) if chosen.affinity is not None else None
        is_node = asker.variant.kind is Kind.NODE
        return rules, client.backstop(asker.variant) if said.has_timeout else None, keeps, is_node

    def way(self, mesh: Mesh, service: Name, asker: Asker) -> tuple[Resource, ...]:
        """The canonical listener, routes and clusters."""
        own = client.listener(mesh, cluster_name(service), service, asker.variant)
        return (own, *client.service_resources(mesh, service, asker))

    def client(self, mesh: Mesh, asker: Asker) -> tuple[Resource, ...]:
        """The listeners of the short names."""
        names = mesh.short_names(asker.caller.tenant).items()
        return tuple(
            client.listener(mesh, short, service, asker.variant)
            for short, service in names
            if not mesh.is_external(service)
        )

    def server(self, mesh: Mesh, service: Name, said: Access) -> tuple[Resource, ...]:
        """The routes that carry who may call."""
        return (server.routes(said, mesh.trust_domain),)

    def egress(self, mesh: Mesh, service: Name, tenant: str, said: Access) -> tuple[Resource, ...]:
        """Nothing: gRPC's own clients reach no external service."""
        return ()

    def clear(self, service: Name, methods: tuple[Method, ...]) -> tuple[Resource, ...]:
        """Nothing: gRPC's own servers take TLS or none."""
        return ()

    def listener(
        self, mesh: Mesh, ref: node_service_pb2.DataPlaneRef, service: Name, *, permissive: bool
    ) -> tuple[Resource, ...]:
        """The listener, if the instance has one."""
        return (server.listener(ref.listen_address, service, mesh.epochs.of_all),) if ref.listen_address else ()
