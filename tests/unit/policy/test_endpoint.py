"""Endpoints as data planes see them."""

from google.protobuf import json_format

from meshwarden.controlplane.policy import endpoint
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.v1 import resources_pb2
from meshwarden.xds import api

ORDERS = Name("platform", "orders")


def made(name: str, port: int, **spec: object) -> Change:
    fields = {
        "kind": "Endpoint",
        "metadata": {"tenant": "platform", "name": name},
        "spec": {"service": "orders", "address": "127.0.0.1", "port": port, **spec},
    }
    return Change(Key("Endpoint", "platform", name), json_format.ParseDict(fields, resources_pb2.Endpoint()))


def test_no_endpoints_is_an_empty_assignment() -> None:
    compiled = endpoint.assignment(Mesh("mesh.test"), ORDERS)
    assert (compiled.type_url, compiled.name) == (api.ENDPOINT, "orders.platform")
    assert api.to_dict(api.parse("envoy.config.endpoint.v3.ClusterLoadAssignment", compiled.body)) == {
        "cluster_name": "orders.platform"
    }


def test_only_healthy_is_healthy_and_versions_are_apart() -> None:
    mesh = Mesh("mesh.test")
    mesh.apply(
        [
            made("n1-a", 1, version="v1", health="HEALTHY", locality={"region": "eu", "zone": "a"}),
            made("n1-b", 2, version="v1", health="DRAINING", locality={"region": "eu", "zone": "a"}),
            made("n2-a", 3, version="v2", health="UNHEALTHY", locality={"region": "eu", "zone": "b"}),
        ]
    )
    every = api.parse("envoy.config.endpoint.v3.ClusterLoadAssignment", endpoint.assignment(mesh, ORDERS).body)
    found = [
        (group["locality"]["zone"], item["endpoint"]["address"]["socket_address"]["port_value"], item["health_status"])
        for group in api.to_dict(every)["endpoints"]
        for item in group["lb_endpoints"]
    ]
    assert found == [("a", 1, "HEALTHY"), ("a", 2, "DRAINING"), ("b", 3, "UNHEALTHY")]
    only = api.parse("envoy.config.endpoint.v3.ClusterLoadAssignment", endpoint.assignment(mesh, ORDERS, "v2").body)
    assert [group["locality"]["zone"] for group in api.to_dict(only)["endpoints"]] == ["b"]
