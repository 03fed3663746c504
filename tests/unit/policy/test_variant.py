"""Clients by what they call themselves, and what is said of those that can't do what a policy says."""

import re
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.policy.choice import Balancing, Choice, Cookie
from meshwarden.controlplane.policy.gap import gaps, untested
from meshwarden.controlplane.policy.grpc import balance
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.variant import Client, Kind, Variant, clients
from meshwarden.v1 import resources_pb2
from meshwarden.v1.node_service_pb2 import DataPlaneRef

ORDERS = Name("platform", "orders")


def made(kind: str, tenant: str, name: str, spec: dict[str, Any]) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def mesh_of(rules: list[dict[str, Any]], protocol: str = "GRPC") -> Mesh:
    mesh = Mesh("mesh.test")
    policy = made("RoutePolicy", "platform", "orders", {"service": "orders", "rules": rules})
    mesh.apply([made("Service", "platform", "orders", {"protocol": protocol, "exportTo": ["*"]}), policy])
    return mesh


@pytest.mark.parametrize(
    ("said", "variant"),
    [
        ("", "c-core"),
        ("c-core/58.0.0", "c-core"),
        ("node/1.14.1", "node"),
        ("go/1.85.0-dev", "go"),
        ("java/1.85.0", "java"),
        ("c-core/58.0.0, node/1.14.1", "c-core"),
        ("node/1.14.1, node/1.13.0", "node"),
        ("cobol/1", "c-core"),
        ("unknown", "c-core"),
        ("envoy/1.40.0", "c-core"),  # a gRPC data plane that says so gets what gRPC takes
    ],
)
def test_a_grpc_data_plane_gets_what_its_clients_are_by_their_word(said: str, variant: str) -> None:
    found = Variant.of(DataPlaneRef(dialect="GRPC", client=said))
    assert str(found) == variant
    assert Variant.parse(str(found)) == found


def test_an_envoy_is_one_by_its_data_plane() -> None:
    assert Variant.of(DataPlaneRef(dialect="ENVOY", client="node/1.14")) == Variant(Kind.ENVOY)
    with pytest.raises(ValueError, match="unknown dialect 0"):
        Variant.of(DataPlaneRef(id="x"))


@given(st.text(max_size=64))
def test_whatever_a_client_calls_itself_it_is_some_client(text: str) -> None:
    client = Client.parse(text)
    assert len(client.version) <= 4
    assert Client.parse(str(client)) == client
    assert str(Variant.of(DataPlaneRef(dialect="GRPC", client=text))) in Kind._value2member_map_
    assert len(list(untested(text))) <= len(clients(text)) + 1


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("c-core/58.0.0", []),
        ("c-core", []),
        ("envoy/1.40.3", []),
        ("envoy/1.39.9", ["older than the oldest that is tested, 1.40"]),
        ("c-core/57.0.0", ["older than the oldest that is tested, 58"]),
        ("java/1.85.0", ["no test runs it"]),
        ("perl/5", ["none that is known"]),
        ("c-core/58.0.0, node/1.14.1", ["run the others as workloads of their own"]),
        ("", []),
    ],
)
def test_clients_that_no_test_runs_are_told(said: str, why: list[str]) -> None:
    found = list(untested(said))
    assert len(found) == len(why)
    assert all(text in gap.why for gap, text in zip(found, why, strict=True))


def test_a_header_that_grpc_keeps_to_itself_is_a_gap_of_its_clients_alone() -> None:
    headers = [{"name": "x-beta", "exact": "1"}, {"name": "trace-bin", "present": True}]
    rules = [
        {"split": [{"version": "v1", "weight": 1}]},
        {"match": {"headers": headers}, "split": [{"version": "v2", "weight": 1}]},
    ]
    mesh = mesh_of(rules)
    for kind in (Kind.C_CORE, Kind.NODE, Kind.GO, Kind.JAVA):
        (gap,) = gaps(mesh, ORDERS, Variant(kind))
        assert (gap.policy, gap.field, gap.kind, gap.what) == (
            ORDERS,
            "spec.rules[1].match.headers[1]",
            str(kind),
            "ignored",
        )
    assert gaps(mesh, ORDERS, Variant(Kind.ENVOY)) == ()
    assert gaps(mesh_of(rules, "HTTP"), ORDERS, Variant(Kind.NODE)) == (), "nobody calls that by gRPC"
    assert gaps(Mesh("mesh.test"), ORDERS, Variant(Kind.NODE)) == ()


def test_go_takes_an_empty_header_for_none() -> None:
    headers = [{"name": "x-beta", "present": True}, {"name": "x-old", "present": False}, {"name": "x-c", "exact": ""}]
    mesh = mesh_of([{"match": {"headers": headers}, "split": [{"version": "v2", "weight": 1}]}])
    found = [(gap.field, gap.what) for gap in gaps(mesh, ORDERS, Variant(Kind.GO))]
    assert found == [(f"spec.rules[0].match.headers[{number}]", "equivalent") for number in range(2)]
    assert gaps(mesh, ORDERS, Variant(Kind.NODE)) == ()


@pytest.mark.parametrize("kind", [Kind.GO, Kind.JAVA])
@pytest.mark.parametrize("cookies", ["who=1", "a=b; who=1; c=d", "a=b; who=1", "who=1; c=d; e=f", "xwho=2; who=1;c=d"])
def test_what_is_hashed_of_a_cookie_is_its_value(cookies: str, kind: Kind) -> None:
    """Where all that fits is replaced, and a reference to a group is taken for text."""
    chosen = Choice(None, balancing=Balancing("ring_hash", hash_on="cookie", name="who", cookie=Cookie("who")))
    (policy,) = balance.route_fields(chosen, Variant(kind))["hash_policy"]
    rewrite = policy["header"]["regex_rewrite"]
    assert rewrite["substitution"] == ""
    assert re.sub(rewrite["pattern"]["regex"], "", cookies) == "1"
