"""The mesh with the changes of rollouts laid over it: nodes of a stage have them, all others are told as before."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from test_publish import NOW, ORDERS, Rig, following, names, put, ref, running

from meshwarden.controlplane.policy.compile import compile_scope
from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.policy.stage import EVERY
from meshwarden.controlplane.publish.compiled import Scopes
from meshwarden.controlplane.publish.layer import Layer, Layers
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.store.port import Delete, Put
from meshwarden.v1 import resources_pb2
from meshwarden.v1.resources_pb2 import Rollout, RolloutStatus

ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
SCOPE = "client/acme/c-core"


def message(kind: str, tenant: str, name: str, **spec: Any) -> Any:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return json_format.ParseDict(fields, getattr(resources_pb2, kind)())


def route(timeout: str = "1s", service: str = "orders") -> Any:
    return message("RoutePolicy", "platform", service, service=service, rules=[{"timeout": timeout}])


def rollout(
    *, zone: str = "", below: int = 0, phase: int = RolloutStatus.RUNNING, name: str = "r", **of: Any
) -> Rollout:
    stage = {"zone": zone} if zone else {"percent": 50}
    made: Rollout = message("Rollout", "platform", name, stages=[stage])
    made.spec.route_policies.append(of.get("policy") or route())
    made.status.phase, made.status.hash_below = phase, below
    made.status.start_time.FromDatetime(NOW)
    return made


def stored(one: Rollout) -> Put:
    return Put(f"/resource/Rollout/platform/{one.metadata.name}", model.encode(model.wrap(one)))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(
        tmp_path, *ORDERS, put("Service", "platform", "bills", protocol="GRPC", exportTo=["acme"])
    ) as made:
        yield made


def timeouts(held: dict[str, Any]) -> bool:
    """Whether what a client holds has the timeout of one second."""
    return any(b"\x08\x01" in item.body for key, item in held[SCOPE].items() if key == (ROUTES, "orders.platform"))


async def test_nodes_of_a_stage_are_told_its_changes_and_others_nothing(rig: Rig) -> None:
    inside, outside = rig.publisher.open("n2", place=Place("eu", "a")), rig.publisher.open("n2", place=Place("eu", "b"))
    held: list[dict[str, Any]] = [{}, {}]
    for feed, have in zip((inside, outside), held, strict=True):
        feed.set_interest([ref("acme", "web")])
        await following(feed, have, rig.publisher.revision)
    before = dict(held[1][SCOPE])
    revision = await rig.commit(stored(rollout(zone="a")))
    (changed,) = await following(inside, held[0], revision)
    assert names(changed) == {"RouteConfiguration orders.platform"}, "and nothing that the changes don't touch"
    (same,) = await following(outside, held[1], revision)
    assert not same.config.scopes
    assert held[1][SCOPE] == before
    assert held[0][SCOPE] != before
    # What else is changed comes to both.
    revision = await rig.commit(put("Endpoint", "platform", "e", service="orders", address="127.0.0.1", port=1))
    told = [await following(feed, have, revision) for feed, have in zip((inside, outside), held, strict=True)]
    assert [names(one) for (one,) in told] == [{"ClusterLoadAssignment orders.platform"}] * 2
    with_it = dict(held[0][SCOPE])
    # Rolled back: all is as it was.
    revision = await rig.commit(stored(rollout(zone="a", phase=RolloutStatus.ROLLED_BACK)))
    (back,) = await following(inside, held[0], revision)
    await following(outside, held[1], revision)
    assert names(back) == {"RouteConfiguration orders.platform"}
    assert held[0] == held[1]
    # Committed: those who have it already have nothing to take.
    revision = await rig.commit(stored(rollout(zone="a", name="s")))
    await following(inside, held[0], revision)
    assert held[0][SCOPE] == with_it
    policy = Put("/resource/RoutePolicy/platform/orders", model.encode(model.wrap(route())))
    revision = await rig.commit(stored(rollout(zone="a", name="s", phase=RolloutStatus.COMMITTED)), policy)
    (quiet,) = await following(inside, held[0], revision)
    assert not quiet.config.scopes
    await following(outside, held[1], revision)
    assert held[1][SCOPE] == with_it


async def test_a_session_that_begins_in_a_stage_has_its_changes_from_the_start(rig: Rig) -> None:
    await rig.commit(stored(rollout(below=EVERY)))
    feed, held = rig.publisher.open("n2"), {}
    feed.set_interest([ref("acme", "web")])
    await following(feed, held, rig.publisher.revision)
    revision = await rig.commit(Delete("/resource/Rollout/platform/r"))
    (gone,) = await following(feed, held, revision)
    assert names(gone) == {"RouteConfiguration orders.platform"}
    assert rig.publisher.layer("n2").mesh is rig.publisher.mesh


async def test_who_enforces_access_gets_it_from_its_own_layer(rig: Rig) -> None:
    server = ref("platform", "orders", "127.0.0.1:7021")
    feed, held = rig.publisher.open("n1"), {}
    feed.set_interest([server])
    await following(feed, held, rig.publisher.revision)
    made = rollout(below=EVERY)
    del made.spec.route_policies[:]
    access = message("AccessPolicy", "platform", "p", service="orders", allow=[{"from": [{"tenant": "acme"}]}])
    made.spec.access_policies.append(access)
    revision = await rig.commit(stored(made))
    (told,) = await following(feed, held, revision)
    assert {one.scope for one in told.config.scopes} == {"server/platform/orders/grpc"}


def mesh_of(count: int) -> Mesh:
    mesh = Mesh("mesh.test")
    found = [message("Service", "acme", "web", protocol="GRPC")]
    for number in range(count):
        found.append(message("Service", "platform", f"s{number}", protocol="GRPC", exportTo=["acme"]))
    mesh.apply(Change(Key(one.DESCRIPTOR.name, one.metadata.tenant, one.metadata.name), one) for one in found)
    return mesh


def layers_of(mesh: Mesh) -> Layers:
    base = Layer(mesh, Scopes(mesh, lambda: 0.0, lambda _: None))
    return Layers(base, lambda: 0.0, lambda _: None)


def test_what_changes_do_not_touch_is_the_same_object() -> None:
    mesh = mesh_of(4)
    one = rollout(below=EVERY, policy=route(service="s1"))
    mesh.apply([Change(Key("Rollout", "platform", "r"), one)])
    layers = layers_of(mesh)
    layer = layers.of("n", Place("eu", "a"))
    assert layers.of("m", Place("eu", "b")) is layer, "shared by all that have the same"
    assert layer.scopes.get("client/globex/c-core") is layers.base.scopes.get("client/globex/c-core")
    assert layer.scopes.get(SCOPE) is not layers.base.scopes.get(SCOPE)
    mine, theirs = (item.scopes.get(SCOPE).resources for item in (layer, layers.base))
    assert {key for key in mine if mine[key] != theirs[key]} == {(ROUTES, "s1.platform")}


policies = st.sampled_from(
    [
        Change(Key("RoutePolicy", "platform", "s0"), route("2s", "s0")),
        Change(Key("RoutePolicy", "platform", "s0"), None),
        Change(Key("RoutePolicy", "platform", "s1"), route("3s", "s1")),
        Change(Key("Service", "platform", "s1"), message("Service", "platform", "s1", protocol="GRPC")),
        Change(
            Key("Service", "platform", "s1"),
            message("Service", "platform", "s1", protocol="GRPC", exportTo=["*"]),
        ),
        Change(
            Key("Endpoint", "platform", "e"),
            message("Endpoint", "platform", "e", service="s1", address="127.0.0.1", port=1, version="v2"),
        ),
        Change(Key("Endpoint", "platform", "e"), None),
        Change(
            Key("WorkloadEntry", "platform", "w"),
            message("WorkloadEntry", "platform", "w", service="s1", nodes=["n"], version="v3"),
        ),
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(policies, max_size=12), st.integers(0, 12))
def test_a_layer_is_what_the_mesh_would_be_with_the_changes(changes: list[Change], begun: int) -> None:
    """Whatever is changed below it, and whenever it has begun."""
    mesh = mesh_of(3)
    one = rollout(below=EVERY, policy=route(service="s1"))
    mesh.apply([Change(Key("Rollout", "platform", "r"), one)])
    layers, layer = layers_of(mesh), None
    scopes = (SCOPE, "client/platform/envoy", "client/globex/c-core", "server/platform/s1/envoy")
    for number, change in enumerate([*changes, Change(Key("Endpoint", "platform", "x"), None)]):
        if number == min(begun, len(changes)):
            layer = layers.of("n", Place("eu", "a"))
        layers.base.scopes.touch(mesh.apply([change]))
        for overlay in layers.overlays():
            overlay.scopes.touch(overlay.apply([change]))
        if layer is None:
            continue
        wanted = mesh.fork()
        wanted.apply([Change(Key("RoutePolicy", "platform", "s1"), one.spec.route_policies[0])])
        for scope in scopes:
            content = compile_scope(wanted, scope, at_s=0.0)
            told = {key: item.body for key, item in layer.scopes.get(scope).resources.items()}
            assert told == {(item.type_url, item.name): item.body for item in content.resources}, scope
