"""How far a revision has come: what nodes have said, judged; and kept, for other control planes and after a restart."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from google.protobuf import json_format

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.identity.record import NodeRecord, node_key
from meshwarden.controlplane.policy.mesh import Change, Impact, Key, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.publish import progress as module
from meshwarden.controlplane.publish import standing
from meshwarden.controlplane.publish.progress import Question, progress
from meshwarden.controlplane.publish.publisher import Publisher
from meshwarden.controlplane.publish.sessions import Sessions
from meshwarden.controlplane.store.port import Put
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1 import resources_pb2
from meshwarden.v1.admin_service_pb2 import NodeState
from meshwarden.v1.revision_service_pb2 import Progress, ProgressShare

NOW = datetime(2026, 1, 2, tzinfo=UTC)
DEADLINE_S = 60.0


def change(kind: str, tenant: str, name: str, **spec: Any) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


MESH = Mesh("mesh.test")
MESH.apply(
    [
        change("Service", "acme", "web", protocol="GRPC"),
        change("WorkloadEntry", "acme", "web", service="web", nodes=["n1", "n2", "n3"]),
        change("Service", "globex", "web", protocol="GRPC"),
        change("WorkloadEntry", "globex", "web", service="web", nodes=["n1"]),
    ]
)


def ref(tenant: str, number: int = 1) -> v1.DataPlaneRef:
    return v1.DataPlaneRef(
        id=f"{tenant}/web#{number}/grpc", tenant=tenant, entry="web", dialect="GRPC", listen_address="127.0.0.1:1"
    )


def state(node: str, acked: int, *refs: v1.DataPlaneRef, **fields: Any) -> NodeState:
    return NodeState(node=node, connected=True, acked_revision=acked, data_planes=refs, **fields)


def question(revision: int, impact: Impact | None = None, tenant: str = "") -> Question:
    shown = (lambda _: True) if not tenant else (lambda name: name == tenant)
    return Question(revision, NOW, impact, MESH, shown, not tenant)


def counts(share: ProgressShare) -> tuple[int, int, int, int]:
    return share.acknowledged, share.lagging, share.rejected, share.unneeded


def test_a_node_is_as_its_data_planes_are() -> None:
    nack = v1.Nack(data_plane="acme/web#1/grpc", type_url="t.Listener", message="no", taken_revision=4)
    states = [
        state("n1", 5, ref("acme"), ref("globex")),
        state("n2", 4, ref("acme"), ref("acme", 2), pending_revision=5, pending=["acme/web#2/grpc"]),
        state("n3", 5, ref("acme"), nacks=[nack]),
        NodeState(node="n4"),
    ]
    found = progress(states, question(5))
    assert (counts(found.nodes), counts(found.data_planes)) == ((1, 2, 1, 0), (3, 1, 1, 0))
    assert [(one.node, list(one.data_planes), one.acked_revision, one.connected) for one in found.lagging] == [
        ("n2", ["acme/web#2/grpc"], 4, True),
        ("n4", [], 0, False),
    ]
    assert all(one.since.ToDatetime(UTC) == NOW for one in found.lagging)
    assert [(one.node, one.nack) for one in found.rejections] == [("n3", nack)]


def test_who_refuses_what_is_newer_has_the_revision() -> None:
    nack = v1.Nack(data_plane="acme/web#1/grpc", message="no", taken_revision=5)
    found = progress([state("n1", 7, ref("acme"), nacks=[nack])], question(5))
    assert (counts(found.nodes), list(found.rejections)) == ((1, 0, 0, 0), [])
    assert counts(progress([state("n1", 7, ref("acme"), nacks=[nack])], question(6)).nodes) == (0, 0, 1, 0)


def test_who_needs_nothing_of_it_holds_nothing_up() -> None:
    states = [state("n1", 4, ref("acme"), ref("globex")), state("n2", 4, ref("acme")), state("n5", 4)]
    touched = question(5, Impact(servers={Name("globex", "web")}))
    found = progress(states, touched)
    assert (counts(found.nodes), counts(found.data_planes)) == ((0, 1, 0, 2), (0, 1, 0, 2))
    assert [list(one.data_planes) for one in found.lagging] == [["globex/web#1/grpc"]]
    # An entry of the node is changed: the node needs it, data plane or not.
    assert counts(progress(states, question(5, Impact(nodes={"n5"}))).nodes) == (0, 1, 0, 2)
    # Of one that was never heard of nobody knows.
    assert counts(progress([NodeState(node="n9")], touched).nodes) == (0, 1, 0, 0)


def test_a_tenants_operator_is_told_of_its_own_alone() -> None:
    nacks = [v1.Nack(data_plane=f"{tenant}/web#1/grpc", message=tenant) for tenant in ("acme", "globex")]
    states = [state("n1", 5, ref("acme"), ref("globex"), nacks=nacks), state("n2", 4, ref("globex")), state("n3", 1)]
    found = progress(states, question(5, tenant="acme"))
    assert (counts(found.nodes), counts(found.data_planes)) == ((0, 0, 1, 0), (0, 0, 1, 0))
    assert [one.nack.message for one in found.rejections] == ["acme"]
    assert not found.lagging


def test_so_many_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LISTED", 2)
    nacks = [v1.Nack(data_plane="acme/web#1/grpc")] * 3
    states = [*(state(f"n{number}", 1, ref("acme")) for number in range(5)), state("x", 9, ref("acme"), nacks=nacks)]
    found = progress(states, question(5))
    assert (len(found.lagging), len(found.rejections), found.omitted) == (2, 2, 4)


async def until(condition: Callable[[], Any], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - nothing signals it
                await anyio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"did not come true: {what}") from None


@asynccontextmanager
async def control_plane(path: Path, name: str) -> AsyncIterator[Sessions]:
    async with open_store(path / "s" / "store.sqlite") as store:
        publisher = Publisher(store, trust_domain="mesh.test", audit=None)  # type: ignore[arg-type]
        sessions = Sessions(publisher, store, region="eu", clock=utc_now, owner=name)
        record = NodeRecord("n1", NOW, "", "")
        await store.commit([Put(node_key("n1"), record.encode())])
        async with anyio.create_task_group() as group:
            await group.start(publisher.run)
            await group.start(sessions.run)
            yield sessions
            group.cancel_scope.cancel()


def acked(sessions: Sessions) -> int:
    return next((state.acked_revision for state in sessions.everywhere() if state.node == "n1"), -1)


async def test_another_control_plane_and_the_next_start_know_how_far_a_node_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "FIRST_S", 0.01)
    async with control_plane(tmp_path, "a") as a, control_plane(tmp_path, "b") as b:
        session = a.open("n1", v1.NodeHello())
        session.take(v1.SyncRequest(interest=v1.Interest(data_planes=[ref("acme")])))
        session.take(v1.SyncRequest(ack=v1.ConfigAck(revision=7, nacks=[v1.Nack(message="no")])))
        await until(lambda: acked(b) == 7, "the other knows")
        (there,) = b.everywhere()
        assert (there.connected, there.control_plane, there.nacks[0].message) == (False, "a", "no")
        assert [one.id for one in there.data_planes] == ["acme/web#1/grpc"]
        # It moves, and whoever had it first has nothing to say any more.
        newer = b.open("n1", v1.NodeHello())
        newer.take(v1.SyncRequest(ack=v1.ConfigAck(revision=9)))
        session.close()
        await until(lambda: acked(a) == 9, "the first knows")
        assert acked(b) == 9
        newer.close()
        await until(lambda: not b.everywhere()[0].connected, "it is away")
    async with control_plane(tmp_path, "b") as again:
        assert acked(again) == 9
        (away,) = again.everywhere()
        assert away.HasField("last_seen")
        # In a new session it says so itself.
        again.open("n1", v1.NodeHello())
        assert acked(again) == 0


@pytest.mark.parametrize("value", [b"", b"\xff", b"x\x9c\x03"])
async def test_a_record_that_is_none_is_nobodys_word(tmp_path: Path, value: bytes) -> None:
    async with control_plane(tmp_path, "a") as a, open_store(tmp_path / "s" / "store.sqlite") as store:
        await store.commit([Put(f"{standing.PREFIX}0/00", value), Put(f"{standing.PREFIX}1", value)])
        session = a.open("n1", v1.NodeHello())
        session.take(v1.SyncRequest(ack=v1.ConfigAck(revision=7)))
        assert acked(a) == 7
        session.close()
        assert acked(a) == 7


def test_an_answer_of_many_nodes_fits() -> None:
    states = [state(f"node-{number}", 1, *(ref("acme", plane) for plane in range(8))) for number in range(5000)]
    found = progress(states, question(5))
    assert isinstance(found, Progress)
    assert counts(found.data_planes) == (0, 40_000, 0, 0)
    assert found.ByteSize() < 1 << 20
    assert found.omitted == 4500
    assert NOW + timedelta(0) == found.time.ToDatetime(UTC)
