"""Who would get something of a change."""

from typing import Any

from google.protobuf import json_format

from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.publish.reach import Node, reach
from meshwarden.v1 import resources_pb2
from meshwarden.v1.node_service_pb2 import DataPlaneRef


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def test_a_route_of_one_caller_reaches_that_alone() -> None:
    before = Mesh("mesh.test")
    before.apply([made("Service", "platform", "orders", {"protocol": "GRPC", "exportTo": ["acme"]})])
    nodes = []
    for node, name in (("n1", "web"), ("n2", "shop")):
        before.apply([made("WorkloadEntry", "acme", name, {"service": name, "nodes": [node]})])
        ref = DataPlaneRef(id=f"acme/{name}#1/grpc", tenant="acme", entry=name, dialect="GRPC")
        nodes.append(Node(node, (ref,), lambda tenant: True))
    after = before.fork()
    rules = [{"match": {"from": [{"tenant": "acme", "service": "web"}]}, "timeout": "1s"}]
    impact = after.apply([made("RoutePolicy", "platform", "orders", {"service": "orders", "rules": rules})])
    answer = reach(before, after, impact, nodes)
    assert (answer.connected_data_planes, answer.data_planes, answer.nodes) == (2, 1, 1)
    assert not answer.at_most
