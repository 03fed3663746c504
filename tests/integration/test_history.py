"""RevisionService behind the front and the peer check, beside the ResourceService whose changes it tells of."""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC
from pathlib import Path
from typing import Any

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_resource_service import ACME, MESH, NOW, OPERATOR, WORKLOAD, World, apply, batch, ref, refused, serve

from meshwarden.controlplane.identity.record import NodeRecord, node_key
from meshwarden.controlplane.publish.session import Session
from meshwarden.controlplane.resources.model import normalise, title
from meshwarden.controlplane.store.port import Put
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import resource_service_pb2 as resource_pb
from meshwarden.v1 import revision_service_pb2 as v1
from meshwarden.v1.revision_service_pb2_grpc import RevisionServiceStub

ROOT_ID, ACME_ID = str(OPERATOR.spiffe_id), str(ACME.spiffe_id)


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


async def listed(stub: Any, **asked: Any) -> list[v1.Revision]:
    answer = await stub.ListRevisions(v1.ListRevisionsRequest(**asked), timeout=60)
    return list(answer.revisions)


async def test_each_change_is_told_with_who_when_why_and_what(world: World, root: Any) -> None:
    first = await apply(world.root, MESH)
    request = resource_pb.ApplyRequest(resources=batch(MESH.replace("weight: 1", "weight: 2")), reason="canary")
    second = await world.root.Apply(request, timeout=60)
    route = ref("RoutePolicy", "platform", "orders")
    third = await world.root.Delete(resource_pb.DeleteRequest(refs=[route], reason="not needed"), timeout=60)
    found = await listed(root)
    assert [(one.revision, one.reason, one.by) for one in found] == [
        (third.revision, "not needed", ROOT_ID),
        (second.revision, "canary", ROOT_ID),
        (first.revision, "", ROOT_ID),
    ]
    assert all(one.time.ToDatetime(UTC) == NOW for one in found)
    assert second.trace_id == found[1].trace_id != ""
    whole = await root.GetRevision(v1.GetRevisionRequest(revision=second.revision), timeout=60)
    (change,) = whole.changes
    assert (title(change.ref), change.action) == ("RoutePolicy platform/orders", resource_pb.Change.UPDATED)
    assert change.before.route_policy.spec.rules[0].split[0].weight == 1
    assert change.after.route_policy.spec.rules[0].split[0].weight == 2
    assert change.after == normalise(change.after)
    events = [event for event in world.events() if event["event"] == "resource.apply"]
    assert [event["fields"].get("reason") for event in events] == [None, "canary"]


async def test_what_changed_nothing_or_was_refused_has_no_history(world: World, root: Any) -> None:
    await apply(world.root, MESH)
    await apply(world.root, MESH)
    await apply(world.root, MESH.replace("weight: 1", "weight: 2"), dry_run=True)
    await refused(apply(world.root, MESH.replace("{version: v1,", "{version: v9,")))
    await refused(world.root.Delete(resource_pb.DeleteRequest(refs=[ref("Tenant", "acme", "acme")])))
    assert len(await listed(root)) == 1


async def test_the_history_can_be_asked_of_one_resource_a_kind_and_a_tenant(world: World, root: Any) -> None:
    first = await apply(world.root, MESH)
    second = await apply(world.root, MESH.replace("weight: 1", "weight: 2"))
    for asked, revisions, parts in (
        ({"resource": ref("RoutePolicy", "platform", "orders")}, [second.revision, first.revision], [1, 1]),
        ({"kind": "Service"}, [first.revision], [2]),
        ({"tenant": "acme"}, [first.revision], [2]),
        ({"tenant": "nobody"}, [], []),
        ({"before": second.revision}, [first.revision], [7]),
        ({"before": 1}, [], []),
    ):
        found = await listed(root, **asked)
        assert ([one.revision for one in found], [len(one.changes) for one in found]) == (revisions, parts), asked


async def test_a_tenants_operator_is_shown_its_own_part(world: World, acme: Any) -> None:
    first = await apply(world.root, MESH)
    await apply(world.root, MESH.replace("weight: 1", "weight: 2"))
    own = await apply(world.acme, "kind: Service\nmetadata: {tenant: acme, name: api}\nspec: {protocol: GRPC}")
    found = await listed(acme)
    assert [(one.revision, one.by) for one in found] == [(own.revision, ACME_ID), (first.revision, ROOT_ID)]
    assert {change.ref.tenant for one in found for change in one.changes} == {"acme"}
    whole = await acme.GetRevision(v1.GetRevisionRequest(revision=first.revision), timeout=60)
    assert {change.ref.tenant for change in whole.changes} == {"acme"}
    assert b"orders" not in whole.SerializeToString()


async def test_nobody_is_shown_what_is_not_his(world: World, acme: Any) -> None:
    await apply(world.root, MESH)
    hidden = await apply(world.root, MESH.replace("weight: 1", "weight: 2"))
    error = await refused(acme.GetRevision(v1.GetRevisionRequest(revision=hidden.revision)))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    for call in (
        acme.ListRevisions(v1.ListRevisionsRequest(tenant="platform")),
        acme.GetRevision(v1.GetRevisionRequest(revision=hidden.revision, tenant="platform")),
    ):
        assert (await refused(call)).code() is grpc.StatusCode.PERMISSION_DENIED
    for identity in (WORKLOAD, None):
        async with world.channel(identity) as channel:
            stub = RevisionServiceStub(channel)
            codes = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}
            assert (await refused(stub.ListRevisions(v1.ListRevisionsRequest()))).code() in codes
            assert (await refused(stub.GetRevision(v1.GetRevisionRequest(revision=1)))).code() in codes


@pytest.mark.parametrize(
    "request_",
    [
        v1.ListRevisionsRequest(kind="Nothing"),
        v1.ListRevisionsRequest(page_size=1001),
        v1.ListRevisionsRequest(before=2**64 - 1),
        v1.ListRevisionsRequest(tenant="x" * 64),
        v1.ListRevisionsRequest(resource=resource_pb.ResourceRef(kind="Service", tenant="../acme", name="web")),
        v1.GetRevisionRequest(),
        v1.GetRevisionRequest(revision=2**64 - 1),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(root: Any, request_: Any) -> None:
    method = root.GetRevision if isinstance(request_, v1.GetRevisionRequest) else root.ListRevisions
    assert (await refused(method(request_, timeout=60))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_reason_is_bounded(world: World) -> None:
    long = resource_pb.ApplyRequest(resources=batch(MESH), reason="x" * 513)
    assert (await refused(world.root.Apply(long))).code() is grpc.StatusCode.INVALID_ARGUMENT


def plane(tenant: str, entry: str) -> node_pb.DataPlaneRef:
    return node_pb.DataPlaneRef(id=f"{tenant}/{entry}#1/grpc", tenant=tenant, entry=entry, dialect="GRPC")


async def joined(world: World, *nodes: str) -> None:
    """Nodes that have joined, as the sessions know it."""
    for node in nodes:
        await world.store.commit([Put(node_key(node), NodeRecord(node, NOW, "", "").encode())])
    async with asyncio.timeout(60):
        while not set(nodes) <= world.sessions.joined.keys():  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.01)


def opened(world: World, node: str, *planes: node_pb.DataPlaneRef) -> Session:
    session = world.sessions.open(node, node_pb.NodeHello())
    session.take(node_pb.SyncRequest(interest=node_pb.Interest(data_planes=planes)))
    return session


def ack(session: Session, revision: int, *nacks: node_pb.Nack) -> None:
    session.take(node_pb.SyncRequest(ack=node_pb.ConfigAck(revision=revision, nacks=nacks)))


async def test_how_far_a_change_has_come_is_told_as_it_goes(world: World, root: Any, acme: Any) -> None:
    first = await apply(world.root, MESH)
    await joined(world, "n1", "n2")
    one = opened(world, "n1", plane("platform", "orders-v1"), plane("acme", "web"))
    ack(one, first.revision)
    changed = await apply(world.root, MESH.replace("weight: 1", "weight: 2"))
    request = v1.GetProgressRequest(revision=changed.revision)
    call = root.WatchProgress(request, timeout=60)
    told = await call.read()
    assert (told.nodes.lagging, told.data_planes.lagging, told.data_planes.unneeded) == (2, 1, 1)
    assert [(late.node, late.connected) for late in told.lagging] == [("n1", True), ("n2", False)]
    assert told.time.ToDatetime(UTC) == NOW
    nack = node_pb.Nack(data_plane="platform/orders-v1#1/grpc", type_url="t.Listener", message="no")
    ack(one, changed.revision, nack)
    told = await call.read()
    assert [(bad.node, bad.nack.message) for bad in told.rejections] == [("n1", "no")]
    ack(one, changed.revision)
    told = await call.read()
    assert (told.nodes.acknowledged, told.nodes.lagging, told.nodes.rejected) == (1, 1, 0)
    call.cancel()
    # Another tenant's operator is told of its own data planes, which see what has changed, and of no others.
    mine = await acme.GetProgress(request, timeout=60)
    assert (mine.nodes.unneeded + mine.nodes.acknowledged, mine.nodes.lagging) == (1, 0)
    assert b"platform" not in mine.SerializeToString()
    newest = await root.GetProgress(v1.GetProgressRequest(), timeout=60)
    assert (newest.revision, newest.data_planes.acknowledged) == (changed.revision, 2)


async def test_what_changes_no_resource_is_had_by_who_has_all_before_it(world: World, root: Any) -> None:
    first = await apply(world.root, MESH)
    await joined(world, "n1")
    ack(opened(world, "n1"), first.revision)
    later = await world.store.commit([Put("/else", b"")])
    found = await root.GetProgress(v1.GetProgressRequest(revision=later), timeout=60)
    assert (found.revision, found.nodes.acknowledged, found.nodes.lagging) == (first.revision, 1, 0)
    error = await refused(root.GetProgress(v1.GetProgressRequest(revision=later + 1000)))
    assert (error.code(), "yet" in (error.details() or "")) == (grpc.StatusCode.NOT_FOUND, True)


async def test_nobody_asks_how_far_it_is_for_another_tenant(world: World, acme: Any) -> None:
    await apply(world.root, MESH)
    error = await refused(acme.GetProgress(v1.GetProgressRequest(tenant="platform")))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    call = acme.WatchProgress(v1.GetProgressRequest(tenant="platform"), timeout=60)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
