"""Which nodes have the changes of a rollout."""

from typing import Any

from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.stage import (
    EVERY,
    bound_of,
    changes_of,
    concerned,
    has_changes,
    hash_of,
    is_live,
    is_over,
    services_of,
    without_nodes,
)
from meshwarden.v1 import resources_pb2
from meshwarden.v1.resources_pb2 import Rollout

HERE = Place("eu", "a")
names = st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z]", fullmatch=True), min_size=1, max_size=60, unique=True)


def made(kind: str, tenant: str, name: str, **spec: Any) -> Any:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return json_format.ParseDict(fields, getattr(resources_pb2, kind)())


def rollout(*stages: dict[str, Any], phase: str = "RUNNING", stage: int = 0, below: int = 0, **spec: Any) -> Rollout:
    found: Rollout = made("Rollout", "shop", "r", stages=list(stages), **spec)
    found.status.phase = resources_pb2.RolloutStatus.Phase.Value(phase)
    found.status.stage, found.status.hash_below = stage, below
    return found


@given(names, st.lists(st.floats(0.1, 99.9), min_size=1, max_size=6))
def test_a_share_is_of_so_many_nodes_and_each_is_part_of_the_next(nodes: list[str], shares: list[float]) -> None:
    """The blast radius: never more nodes than the stage says, unless that is none."""
    shares = sorted(set(shares))
    one = rollout(*({"percent": share} for share in shares))
    before: set[str] = set()
    for number, share in enumerate(shares):
        one.status.stage = number
        one.status.hash_below = bound_of(one, number, nodes)
        found = {node for node in nodes if has_changes(one, node, HERE)}
        assert len(found) == max(1, int(len(nodes) * share / 100 + 1e-9))
        assert before <= found
        before = found


@given(names, st.floats(1, 99), st.integers(0, EVERY))
def test_a_share_never_gets_smaller_though_nodes_leave(nodes: list[str], share: float, below: int) -> None:
    one = rollout({"percent": share}, below=below)
    assert bound_of(one, 0, nodes) >= below
    assert bound_of(one, 0, []) >= below


def test_all_are_all() -> None:
    for said in ({"all": True}, {"percent": 100}):
        one = rollout(said)
        one.status.hash_below = bound_of(one, 0, ["n1"])
        assert one.status.hash_below == EVERY
        assert all(has_changes(one, f"n{number}", Place("", "")) for number in range(100))


def test_another_rollout_takes_other_nodes_first() -> None:
    one, other = rollout({"percent": 10}), rollout({"percent": 10})
    other.metadata.name = "s"
    nodes = [f"node-{number}" for number in range(100)]
    assert sorted(nodes, key=lambda node: hash_of(one, node)) != sorted(nodes, key=lambda node: hash_of(other, node))


def test_a_zone_and_a_region_come_beside_what_was_before() -> None:
    one = rollout({"zone": "a"}, {"region": "us"})
    places = {"n1": Place("eu", "a"), "n2": Place("eu", "b"), "n3": Place("us", "b")}
    assert [node for node, place in places.items() if has_changes(one, node, place)] == ["n1"]
    one.status.stage = 1
    assert [node for node, place in places.items() if has_changes(one, node, place)] == ["n1", "n3"]
    assert bound_of(one, 1, places) == 0


def test_who_has_changes_when() -> None:
    for phase, live, over in (
        ("PENDING", False, False),
        ("RUNNING", True, False),
        ("PAUSED", True, False),
        ("COMMITTED", False, True),
        ("ROLLED_BACK", False, True),
        ("ABORTED", False, True),
    ):
        one = rollout({"all": True}, phase=phase, below=EVERY)
        assert (is_live(one), is_over(one), has_changes(one, "n1", HERE)) == (live, over, live)


def test_a_stage_of_no_node_that_is_there_is_named() -> None:
    mesh = Mesh("mesh.test")
    entry = made("WorkloadEntry", "shop", "orders", service="orders", nodes=["n1", "n2"])
    mesh.apply([Change(Key("WorkloadEntry", "shop", "orders"), entry)])
    one = rollout({"zone": "b"}, {"zone": "nowhere"}, {"region": "us"}, {"all": True})
    one.spec.access_policies.append(made("AccessPolicy", "shop", "new", service="orders", allow=[{}]))
    places = {"n1": Place("eu", "a"), "n2": Place("eu", "b"), "elsewhere": Place("us", "nowhere")}
    assert list(without_nodes(one, mesh, places)) == [
        ("spec.stages[1].zone", "no node that it concerns is in zone nowhere: they are in a, b"),
        ("spec.stages[2].region", "no node that it concerns is in region us: they are in eu"),
    ]
    assert [field for field, _ in without_nodes(one, mesh, {"elsewhere": Place("eu", "b")})] == ["spec"]


def test_whom_it_concerns() -> None:
    mesh = Mesh("mesh.test")
    mesh.apply(
        Change(Key(one.DESCRIPTOR.name, one.metadata.tenant, one.metadata.name), one)
        for one in (
            made("Service", "shop", "orders", protocol="GRPC", exportTo=["acme"]),
            made("Service", "shop", "bills", protocol="GRPC"),
            made("WorkloadEntry", "shop", "orders", service="orders", nodes=["n1", "n2"]),
            made("WorkloadEntry", "acme", "web", service="web", nodes=["n3"]),
            made("WorkloadEntry", "globex", "web", service="web", nodes=["n4"]),
            made("AccessPolicy", "shop", "old", service="bills", allow=[{}]),
        )
    )
    access = made("AccessPolicy", "shop", "new", service="orders", allow=[{}])
    route = made("RoutePolicy", "shop", "orders", service="orders")
    one = rollout({"all": True})
    one.spec.access_policies.append(access)
    assert concerned(one, mesh) == {"n1", "n2"}, "where it is served"
    one.spec.route_policies.append(route)
    assert concerned(one, mesh) == {"n1", "n2", "n3"}, "and whoever may call"
    one.spec.deletions.add(kind="AccessPolicy", name="old")
    services = services_of(one, mesh)
    assert services["AccessPolicy"] == {Name("shop", "orders"), Name("shop", "bills")}
    assert services["RoutePolicy"] == {Name("shop", "orders")}
    assert [(change.key.kind, change.key.name, change.message is None) for change in changes_of(one)] == [
        ("AccessPolicy", "new", False),
        ("RoutePolicy", "orders", False),
        ("AccessPolicy", "old", True),
    ]
