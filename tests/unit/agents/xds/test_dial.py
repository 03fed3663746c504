"""The names that a program may dial."""

from meshwarden.agents.xds.dial import names
from meshwarden.controlplane.policy.grpc import client, server
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.variant import Kind, Variant
from meshwarden.xds.snapshot import Snapshot

ORDERS = Name("platform", "orders")


def test_names_come_from_the_clients_listeners_alone() -> None:
    mesh, variant = Mesh("mesh.test"), Variant(Kind.C_CORE)
    called = {"orders": ORDERS, "orders.platform": ORDERS, "a-b.c-d": Name("c-d", "a-b")}
    listeners = [client.listener(mesh, name, service, variant) for name, service in called.items()]
    listeners.append(server.listener("127.0.0.1:7021", ORDERS))
    assert names(Snapshot.of(listeners)) == {
        "orders": "platform/orders",
        "orders.platform": "platform/orders",
        "a-b.c-d": "c-d/a-b",
    }


def test_without_a_snapshot_there_is_no_name() -> None:
    assert names(None) == {}
