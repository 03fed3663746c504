"""What `meshwarden proxy` makes of what a data plane is to have and has; the latter may be anything."""

import json
import zlib
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from meshwarden.controlplane.cli.fault.proxy_config import Config, fetch, says
from meshwarden.controlplane.cli.fault.proxy_snapshot import scrub
from meshwarden.v1.data_plane_service_pb2 import DataPlanePart, DataPlaneState
from meshwarden.v1.node_service_pb2 import XdsResource
from meshwarden.xds import api
from meshwarden.xds.snapshot import resource


def cluster(name: str) -> XdsResource:
    made = resource(api.build("envoy.config.cluster.v3.Cluster", {"name": name, "type": "EDS"}), name)
    return XdsResource(type_url=made.type_url, name=name, version=made.version, body=made.body)


def answered(resources: Iterable[XdsResource], said: bytes, error: str = "") -> Config:
    parts = [DataPlanePart(state=DataPlaneState(node="n")), DataPlanePart(resources=resources)]
    parts += [DataPlanePart(live=said[:7]), DataPlanePart(live=said[7:], live_error=error)]
    mesh: Any = SimpleNamespace(data_plane=SimpleNamespace(GetDataPlane=lambda *_, **__: parts))
    return fetch(mesh, "n", "p", live=True)


def live(*rows: dict[str, Any], **fields: Any) -> bytes:
    return zlib.compress(json.dumps({"source": "envoy", "resources": rows, "refused": [], **fields}).encode())


def row(name: str, version: str, type_url: str = api.CLUSTER, **fields: Any) -> dict[str, Any]:
    return {"type_url": type_url, "name": name, "version": version, "body": {}, **fields}


def test_the_difference_is_shown() -> None:
    wanted = [cluster("a"), cluster("b"), cluster("c")]
    found = answered(
        wanted,
        live(
            row("a", wanted[0].version),
            row("b", "old"),
            row("d", "x"),
            row("agent", "", state="static"),
            row("default", "1", api.SECRET),
            row("a", "older", state="draining"),
        ),
    )
    assert [(one[1], one[3], one[-1]) for one in found.rows(None)] == [
        ("a", "EDS ROUND_ROBIN", "same"),
        ("b", "EDS ROUND_ROBIN", "has old"),
        ("c", "EDS ROUND_ROBIN", "missing"),
        ("d", "STATIC ROUND_ROBIN", "only there"),
    ]
    assert found.rows("route") == []
    said = found.as_dict()
    assert [one["name"] for one in said["difference"]] == ["b", "c", "d"]
    assert said["source"] == "envoy"
    json.dumps(said)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff\xff",
        zlib.compress(b"[]"),
        zlib.compress(b"{}"),
        zlib.compress(b'{"source": "x", "resources": [1], "refused": []}'),
        zlib.compress(b'{"source": "x", "resources": {}, "refused": [{}]}'),
        zlib.compress(b"[" * 1_000_000),
        live()[:-3],
    ],
)
def test_an_answer_that_is_none_is_said_to_be_none(said: bytes) -> None:
    found = answered([cluster("a")], said)
    assert (found.live, "can't be read" in found.live_error) == (None, True)
    assert len(found.rows(None)) == 1


def test_why_there_is_no_answer_is_said() -> None:
    assert answered([], b"", "it is away").live_error == "it is away"


def test_bodies_of_any_shape_say_something_or_nothing() -> None:
    for body in (
        {},
        {"endpoints": 1},
        {"virtual_hosts": [{}]},
        {"address": {"socket_address": []}},
        {"typed_config": 1},
    ):
        for type_url in (*api.TYPE_URLS, "x"):
            assert isinstance(says({"type_url": type_url, "body": body}), str)
    address = {"socket_address": {"address": "10.0.0.1", "port_value": 7}}
    endpoint = {"endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}, "health_status": "HEALTHY"}]}]}
    assert says({"type_url": api.ENDPOINT, "body": endpoint}) == "10.0.0.1:7 HEALTHY"
    hosts = {"virtual_hosts": [{"domains": ["orders"], "routes": [{"route": {"cluster": "o"}}]}]}
    assert says({"type_url": api.ROUTE, "body": hosts}) == "orders → o"


@pytest.mark.parametrize(
    "secret",
    [
        "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----",
        "-----BEGIN EC PRIVATE KEY-----\ncut off",
        "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
        "hvs.CAESIJlU9JMYEhOPYvAREiJ1c2VkIGZvcg",
        "s.abcdefghijklmnopqrstuvwx",
        "Authorization: Bearer abcdefghijklmnopqrstuvwxyz",
    ],
)
def test_nothing_that_looks_like_a_secret_is_kept(secret: str) -> None:
    value = {"a": [f"before {secret} after"], secret: 1}
    kept = json.dumps(scrub(value))
    core = secret.splitlines()[1] if "\n" in secret else secret.split()[-1]
    assert core not in kept
    assert "before" in kept
    plain = {"type_url": api.CLUSTER, "name": "orders.platform", "n": [1, None, True]}
    assert scrub(plain) == plain
