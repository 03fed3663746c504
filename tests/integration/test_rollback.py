"""Rollback behind the front and the peer check: what was comes back, whole or not at all, whoever else is at it."""

import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_resource_service import (
    ACME,
    MESH,
    NOW,
    OPERATOR,
    WORKLOAD,
    World,
    apply,
    batch,
    ref,
    refused,
    serve,
    violations,
)

from meshwarden.controlplane.api.change import GUARD
from meshwarden.controlplane.history.prune import Bounds, prune
from meshwarden.controlplane.history.read import records
from meshwarden.controlplane.history.record import whole
from meshwarden.controlplane.resources.model import key_of, normalise, title
from meshwarden.controlplane.store.port import Put
from meshwarden.v1 import resource_service_pb2 as resource_pb
from meshwarden.v1 import revision_service_pb2 as v1
from meshwarden.v1.resources_pb2 import Resource
from meshwarden.v1.revision_service_pb2_grpc import RevisionServiceStub

ROUTE = ref("RoutePolicy", "platform", "orders")
WEB = "kind: Service\nmetadata: {tenant: acme, name: web}\nspec: {protocol: GRPC}"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with serve(tmp_path) as served:
        yield served


@pytest.fixture
async def root(world: World) -> AsyncIterator[Any]:
    async with world.channel(OPERATOR) as channel:
        yield RevisionServiceStub(channel)


@pytest.fixture
async def acme(world: World) -> AsyncIterator[Any]:
    async with world.channel(ACME) as channel:
        yield RevisionServiceStub(channel)


async def roll_back(stub: Any, revision: int, **asked: Any) -> v1.RollbackResponse:
    return await stub.Rollback(v1.RollbackRequest(revision=revision, **asked), timeout=60)


async def delete(world: World, *refs: resource_pb.ResourceRef) -> int:
    return (await world.root.Delete(resource_pb.DeleteRequest(refs=refs), timeout=60)).revision


async def present(world: World) -> dict[str, Resource]:
    """{key: resource}."""
    found = await world.root.List(resource_pb.ListRequest(), timeout=60)
    return {key_of(resource): normalise(resource) for resource in found.resources}


def told(answer: v1.RollbackResponse) -> dict[str, str]:
    return {title(one.ref): resource_pb.Change.Action.Name(one.action) for one in answer.changes}


async def test_what_was_created_changed_and_deleted_since_is_taken_back(world: World, root: Any) -> None:
    first = (await apply(world.root, MESH)).revision
    was = await present(world)
    await apply(world.root, MESH.replace("weight: 1", "weight: 2"))
    await apply(world.root, MESH.replace("weight: 1", "weight: 3") + "---\n" + WEB.replace("web", "api"))
    last = await delete(world, ref("AccessPolicy", "platform", "orders"))
    then = await present(world)
    preview = await roll_back(root, first, dry_run=True)
    wanted = {
        "AccessPolicy platform/orders": "CREATED",
        "Service acme/api": "DELETED",
        "RoutePolicy platform/orders": "UPDATED",
    }
    assert told(preview) == wanted
    assert (await present(world), list(preview.faults), preview.trace_id) == (then, [], "")
    done = await roll_back(root, first, as_of=preview.revision, reason="it broke")
    assert told(done) == wanted
    assert done.changes == preview.changes
    assert await present(world) == was
    assert done.revision > last
    # It is a change of its own, which can be taken back as well.
    change = await root.GetRevision(v1.GetRevisionRequest(revision=done.revision), timeout=60)
    assert (change.reason, change.trace_id) == (f"rollback to {first}: it broke", done.trace_id)
    assert change.changes == done.changes
    (event,) = [event for event in world.events() if event["event"] == "resource.rollback"]
    assert event["fields"]["by"] == str(OPERATOR.spiffe_id)
    await roll_back(root, last)
    assert await present(world) == then
    assert not (await roll_back(root, last)).changes


async def test_only_some_of_it_can_be_taken_back(world: World, root: Any) -> None:
    first = (await apply(world.root, MESH)).revision
    changed = MESH.replace("weight: 1", "weight: 2").replace("protocol: HTTP", "protocol: GRPC")
    await apply(world.root, changed)
    assert told(await roll_back(root, first, tenant="acme", dry_run=True)) == {"Service acme/web": "UPDATED"}
    assert told(await roll_back(root, first, tenant="nobody")) == {}
    assert told(await roll_back(root, first, resources=[ROUTE])) == {"RoutePolicy platform/orders": "UPDATED"}
    assert told(await roll_back(root, first)) == {"Service acme/web": "UPDATED"}


async def test_a_tenants_operator_takes_back_what_is_its_own(world: World, acme: Any) -> None:
    first = (await apply(world.root, MESH)).revision
    await apply(world.root, MESH.replace("weight: 1", "weight: 2").replace("protocol: HTTP", "protocol: GRPC"))
    for asked in ({"tenant": "platform"}, {"resources": [ROUTE]}):
        error = await refused(acme.Rollback(v1.RollbackRequest(revision=first, **asked)))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    answer = await roll_back(acme, first)
    assert told(answer) == {"Service acme/web": "UPDATED"}
    assert b"platform" not in answer.SerializeToString()
    assert (await present(world))[key_of(ROUTE)].route_policy.spec.rules[0].split[0].weight == 2
    async with world.channel(WORKLOAD) as channel:
        error = await refused(RevisionServiceStub(channel).Rollback(v1.RollbackRequest(revision=first)))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_only_an_operator_of_the_mesh_brings_back_what_reaches_out_of_a_tenant(world: World, acme: Any) -> None:
    await apply(world.root, MESH)
    first = (await apply(world.root, WEB + "  # as HTTP was")).revision
    abroad = WEB.replace("protocol: GRPC", "protocol: GRPC, spiffeId: 'spiffe://partner.example/web'")
    partner = (
        "kind: TrustDomain\nmetadata: {tenant: platform, name: partner}\nspec:\n  trustDomain: partner.example\n"
        "  bundleEndpoint: {url: 'https://partner.example:8443/bundle.json', profile: HTTPS_WEB}\n---\n"
    )
    await apply(world.root, partner + abroad)
    error = await refused(acme.Rollback(v1.RollbackRequest(revision=first)))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_reference_that_is_gone_is_named(world: World, root: Any) -> None:
    policy, web = ref("AccessPolicy", "platform", "orders"), ref("Service", "acme", "web")
    first = (await apply(world.root, MESH)).revision
    await delete(world, policy)
    await delete(world, web)
    asked = v1.RollbackRequest(revision=first, resources=[policy])
    error = await refused(root.Rollback(asked))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    wanted = "AccessPolicy platform/orders spec.allow[0].from[0].service"
    assert violations(error) == [f"{wanted}: there is no Service acme/web"]
    asked.dry_run = True
    preview = await root.Rollback(asked, timeout=60)
    assert [(fault.field, fault.message) for fault in preview.faults] == [(wanted, "there is no Service acme/web")]
    # Both together are as they were.
    assert told(await roll_back(root, first)) == {
        "AccessPolicy platform/orders": "CREATED",
        "Service acme/web": "CREATED",
    }


async def test_what_others_need_by_now_is_not_taken_away(world: World, root: Any) -> None:
    await apply(world.root, "kind: Tenant\nmetadata: {name: acme}\n---\nkind: Tenant\nmetadata: {name: platform}")
    first = (await apply(world.root, WEB)).revision
    await apply(world.root, MESH)
    service = ref("Service", "platform", "orders")
    error = await refused(root.Rollback(v1.RollbackRequest(revision=first, resources=[service])))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    preview = await roll_back(root, first, resources=[service], dry_run=True)
    assert any("AccessPolicy platform/orders needs it" in fault.message for fault in preview.faults)
    assert len((await roll_back(root, first)).changes) == 5


async def test_what_was_changed_meanwhile_is_not_run_over(world: World, root: Any) -> None:
    first = (await apply(world.root, MESH)).revision
    await apply(world.root, MESH.replace("weight: 1", "weight: 2"))
    preview = await roll_back(root, first, dry_run=True)
    await apply(world.root, WEB.replace("web", "api"))
    asked = v1.RollbackRequest(revision=first, as_of=preview.revision)
    error = await refused(root.Rollback(asked))
    assert (error.code(), "Service acme/api" in (error.details() or "")) == (grpc.StatusCode.ABORTED, True)
    # What is to be brought back was not touched.
    asked.resources.append(ROUTE)
    assert told(await root.Rollback(asked, timeout=60)) == {"RoutePolicy platform/orders": "UPDATED"}


async def test_more_than_a_batch_is_refused_by_its_limit(world: World, root: Any) -> None:
    first = (await apply(world.root, MESH)).revision
    for start in (0, 60):
        await apply(world.root, "\n---\n".join(WEB.replace("web", f"s{number}") for number in range(start, start + 60)))
    for dry_run in (False, True):
        error = await refused(root.Rollback(v1.RollbackRequest(revision=first, dry_run=dry_run)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "the limit is 100" in (error.details() or "")
    assert len((await roll_back(root, first, resources=[ref("Service", "acme", "s7")])).changes) == 1


async def test_where_the_history_has_a_gap_nothing_is_guessed(world: World, root: Any) -> None:
    first = (await apply(world.root, MESH)).revision
    second = (await apply(world.root, MESH.replace("weight: 1", "weight: 2"))).revision
    third = (await apply(world.root, MESH.replace("weight: 1", "weight: 3"))).revision
    await prune(world.store, Bounds(1, timedelta(days=900), 1 << 30), NOW)
    error = await refused(root.Rollback(v1.RollbackRequest(revision=first)))
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    assert f"as of revision {second}" in (error.details() or "")
    assert len((await roll_back(root, second, dry_run=True)).changes) == 1
    # An older control plane has made a change, without history.
    await world.store.commit([Put(GUARD, b"")])
    error = await refused(root.Rollback(v1.RollbackRequest(revision=third)))
    assert error.code() is grpc.StatusCode.OUT_OF_RANGE
    error = await refused(root.Rollback(v1.RollbackRequest(revision=third + 1000)))
    assert (error.code(), "yet" in (error.details() or "")) == (grpc.StatusCode.OUT_OF_RANGE, True)


@pytest.mark.parametrize(
    "request_",
    [
        v1.RollbackRequest(),
        v1.RollbackRequest(revision=2**64 - 1),
        v1.RollbackRequest(revision=1, as_of=2**64 - 1),
        v1.RollbackRequest(revision=1, reason="x" * 481),
        v1.RollbackRequest(revision=1, resources=[ROUTE] * 101),
        v1.RollbackRequest(revision=1, resources=[resource_pb.ResourceRef(kind="Nothing", tenant="a", name="b")]),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(root: Any, request_: Any) -> None:
    assert (await refused(root.Rollback(request_, timeout=60))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_it_is_as_it_was_after_any_change(world: World, root: Any) -> None:
    rng = random.Random(7)
    first = (await apply(world.root, MESH)).revision
    states = {first: await present(world)}
    for _ in range(30):
        names = [f"s{number}" for number in rng.sample(range(6), 3)]
        there = states[max(states)]
        gone = [ref("Service", "acme", name) for name in names if key_of(ref("Service", "acme", name)) in there]
        if gone and rng.random() < 0.4:
            revision = await delete(world, *gone)
        elif rng.random() < 0.2:
            revision = (await roll_back(root, rng.choice(sorted(states)))).revision
        else:
            kinds = [WEB.replace("web", name).replace("GRPC", rng.choice(["GRPC", "HTTP"])) for name in names]
            revision = (await apply(world.root, "\n---\n".join(kinds))).revision
        states[revision] = await present(world)
    for revision in rng.sample(sorted(states), 10):
        await roll_back(root, revision)
        assert await present(world) == states[revision]


async def test_changes_and_rollbacks_at_once_leave_a_history_that_tells_all(tmp_path: Path) -> None:
    """Two processes on one store: whatever the order, the history leads from nothing to what is there."""
    (tmp_path / "one").mkdir(mode=0o700)
    (tmp_path / "two").mkdir(mode=0o700)
    (tmp_path / "two" / "s").symlink_to(tmp_path / "one" / "s")
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(serve(tmp_path / "one"))
        two = await stack.enter_async_context(serve(tmp_path / "two"))
        first = (await apply(one.root, MESH)).revision
        stubs = [RevisionServiceStub(await stack.enter_async_context(world.channel(OPERATOR))) for world in (one, two)]
        outcomes: list[grpc.StatusCode] = []

        async def act(call: Any) -> None:
            try:
                await call
                outcomes.append(grpc.StatusCode.OK)
            except grpc.aio.AioRpcError as error:
                outcomes.append(error.code())

        async with anyio.create_task_group() as group:
            for number in range(12):
                text = WEB.replace("web", f"s{number}") + "\n---\n" + WEB.replace("GRPC", ("GRPC", "HTTP")[number % 2])
                group.start_soon(
                    act, (one, two)[number % 2].root.Apply(resource_pb.ApplyRequest(resources=batch(text)))
                )
                request = v1.RollbackRequest(revision=first, as_of=0 if number % 3 else first)
                group.start_soon(act, stubs[number % 2].Rollback(request, timeout=60))
        assert set(outcomes) <= {grpc.StatusCode.OK, grpc.StatusCode.ABORTED}
        assert grpc.StatusCode.OK in outcomes
        replayed: dict[str, Resource] = {}
        for record in reversed([record async for record in records(one.store)]):
            for change in whole(record).changes:
                key = key_of(change.ref)
                assert replayed.get(key) == (change.before if change.HasField("before") else None)
                replayed.pop(key, None)
                if change.HasField("after"):
                    replayed[key] = change.after
        assert replayed == await present(one) == await present(two)
