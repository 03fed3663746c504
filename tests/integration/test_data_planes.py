"""What operators are shown of data planes: by DataPlaneService with made-up agents, and by a real agent and Envoy."""

import asyncio
import json
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from policy_world import Policy, settled
from test_history import ack, joined, plane
from test_resource_service import ACME, MESH, OPERATOR, WORKLOAD, World, apply, refused, serve

from meshwarden.controlplane.publish import question as question_module
from meshwarden.controlplane.publish.session import Session
from meshwarden.v1 import data_plane_service_pb2 as v1
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1.data_plane_service_pb2_grpc import DataPlaneServiceStub
from meshwarden.xds import api

ORDERS = "platform/orders-v1#1/grpc"
ANSWER = zlib.compress(json.dumps({"source": "agent", "resources": [], "refused": []}).encode())
IDLE = "import sys; sys.stdin.read()"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with serve(tmp_path) as served:
        yield served


@pytest.fixture
async def root(world: World) -> AsyncIterator[Any]:
    async with world.channel(OPERATOR) as channel:
        yield DataPlaneServiceStub(channel)


@pytest.fixture
async def acme(world: World) -> AsyncIterator[Any]:
    async with world.channel(ACME) as channel:
        yield DataPlaneServiceStub(channel)


async def node(world: World) -> Session:
    """A node with data planes of two tenants, at the newest revision."""
    revision = (await apply(world.root, MESH)).revision
    await joined(world, "n1")
    session = world.sessions.open("n1", node_pb.NodeHello())
    orders = plane("platform", "orders-v1")
    orders.listen_address = "127.0.0.1:7001"
    session.take(node_pb.SyncRequest(interest=node_pb.Interest(data_planes=[orders, plane("acme", "web")])))
    ack(session, revision)
    return session


async def parts(stub: Any, data_plane: str, *, live: bool = False, of: str = "n1") -> list[v1.DataPlanePart]:
    request = v1.GetDataPlaneRequest(node=of, data_plane=data_plane, live=live)
    return [part async for part in stub.GetDataPlane(request, timeout=60)]


async def asked(session: Session) -> node_pb.DataPlaneQuestion:
    """What the agent is asked next."""
    async with asyncio.timeout(60):
        while True:
            for message in await session.feed.next():
                if message.said is not None and message.said.HasField("data_plane_question"):
                    return message.said.data_plane_question


async def test_each_data_plane_is_told_by_type(world: World, root: Any, until: Any) -> None:
    session = await node(world)
    found = await root.ListDataPlanes(v1.ListDataPlanesRequest(), timeout=60)
    assert [(one.node, one.ref.id, one.connected) for one in found.data_planes] == [
        ("n1", "acme/web#1/grpc", True),
        ("n1", ORDERS, True),
    ]
    orders = found.data_planes[1]
    assert {one.state for one in orders.types} == {v1.DataPlaneType.SYNCED}
    assert api.LISTENER in {one.type_url for one in orders.types}
    assert "no workload entry acme/web" in found.data_planes[0].refused
    nack = node_pb.Nack(data_plane=ORDERS, type_url=api.LISTENER, message="no")
    changed = await apply(world.root, MESH.replace("weight: 1", "weight: 2"))

    async def is_stale() -> bool:
        stale = await root.ListDataPlanes(v1.ListDataPlanesRequest(node="n1", tenant="platform"), timeout=60)
        return {one.state for one in stale.data_planes[0].types} == {v1.DataPlaneType.STALE}

    await until(is_stale, "the control plane has something newer for it")
    ack(session, changed.revision, nack)
    (after,) = (await root.ListDataPlanes(v1.ListDataPlanesRequest(tenant="platform"), timeout=60)).data_planes
    states = {one.type_url: one.state for one in after.types}
    assert states.pop(api.LISTENER) == v1.DataPlaneType.NACKED
    assert set(states.values()) <= {v1.DataPlaneType.SYNCED}
    assert not (await root.ListDataPlanes(v1.ListDataPlanesRequest(node="n2"), timeout=60)).data_planes


async def test_what_one_is_to_have_and_has_comes_in_parts(
    world: World, root: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await node(world)
    told = await parts(root, ORDERS)
    assert (told[0].state.ref.id, told[0].state.node) == (ORDERS, "n1")
    names = {(item.type_url, item.name) for part in told for item in part.resources}
    assert names
    assert not any(part.live or part.live_error for part in told)
    answering = asyncio.ensure_future(parts(root, ORDERS, live=True))
    question = await asked(session)
    assert question.data_plane == ORDERS
    for number, part in enumerate((ANSWER[:9], ANSWER[9:])):
        answer = node_pb.DataPlaneAnswer(id=question.id, part=part, last=number == 1)
        session.take(node_pb.SyncRequest(data_plane_answer=answer))
    assert b"".join(part.live for part in await answering) == ANSWER
    # It doesn't answer, or leaves.
    monkeypatch.setattr(question_module, "TIMEOUT_S", 0.01)
    assert "has not answered" in (await parts(root, ORDERS, live=True))[-1].live_error
    session.close()
    assert "not connected" in (await parts(root, ORDERS, live=True))[-1].live_error


async def test_nobody_is_shown_anothers(world: World, root: Any, acme: Any) -> None:
    await node(world)
    mine = await acme.ListDataPlanes(v1.ListDataPlanesRequest(), timeout=60)
    assert [one.ref.id for one in mine.data_planes] == ["acme/web#1/grpc"]
    assert (mine.omitted, b"platform" in mine.SerializeToString()) == (0, False)
    error = await refused(acme.ListDataPlanes(v1.ListDataPlanesRequest(tenant="platform")))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    for stub, data_plane, of in ((acme, ORDERS, "n1"), (root, "nothing", "n1"), (root, ORDERS, "n2")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await parts(stub, data_plane, live=True, of=of)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    async with world.channel(WORKLOAD) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await parts(DataPlaneServiceStub(channel), ORDERS)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
def policy(control_plane: Any) -> Policy:
    return Policy(control_plane)


async def live(policy: Policy, data_plane: str, until: Any) -> dict[str, Any]:
    """What the agent answers to a question."""
    number = f"{data_plane} {len(policy.control_plane.heard)}"
    policy.control_plane.push(data_plane_question=node_pb.DataPlaneQuestion(id=number, data_plane=data_plane))

    def said() -> list[node_pb.DataPlaneAnswer]:
        heard = (message.data_plane_answer for message in policy.control_plane.heard)
        found = [answer for answer in heard if answer.id == number]
        return found if found and found[-1].last else []

    answers = await until(said, f"the agent answers about {data_plane}")
    if answers[-1].error:
        return {"error": answers[-1].error}
    found: dict[str, Any] = json.loads(zlib.decompress(b"".join(answer.part for answer in answers)))
    return found


async def test_an_envoy_says_itself_what_it_has(agent: Any, policy: Policy, until: Any) -> None:
    policy.declare({"tenant": "acme", "name": "shop", "protocol": "HTTP", "envoy": True})
    await agent.ready()
    agent.exec("shop", sys.executable, "-c", IDLE)
    await until(
        lambda: policy.follow() or "acme/shop#1/envoy" in str(policy.control_plane.last("interest")), "shop is there"
    )
    policy.push()
    await settled(policy, until)
    pushed = {
        (item.type_url, item.name): item.version
        for scope in policy.control_plane.state["config"].config.scopes
        if "envoy" in scope.scope
        for item in scope.resources
    }

    wanted = {key: version for key, version in pushed.items() if key[0] in (api.LISTENER, api.CLUSTER, api.ROUTE)}

    async def has_all() -> Any:
        found = await live(policy, "acme/shop#1/envoy", until)
        rows = {(row["type_url"], row["name"]): row["version"] for row in found.get("resources", ())}
        return found if wanted.items() <= rows.items() else None

    found = await until(has_all, "the Envoy has what it was told, by its own word")
    assert found["source"] == "envoy"
    rows = {(row["type_url"], row["name"]): row for row in found["resources"]}
    assert rows[api.SECRET, "default"]["body"] == {}
    assert "PRIVATE KEY" not in json.dumps(found)
    assert "no program of it" in (await live(policy, "acme/shop#1/grpc", until))["error"]
    assert "no such Envoy" in (await live(policy, "acme/shop#2/envoy", until))["error"]
