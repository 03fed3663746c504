"""Rollouts by a real control plane: ten made-up nodes call as they are told, and say what became of it."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

sys.path.insert(0, str(Path(__file__).parent))

from test_history import joined
from test_resource_service import ACME, OPERATOR, World, apply, ref, refused, serve, violations

from meshwarden.controlplane.gather.call import Call
from meshwarden.controlplane.publish.session import Session
from meshwarden.controlplane.store.port import Put
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import resource_service_pb2 as resource_pb
from meshwarden.v1 import rollout_service_pb2 as v1
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.v1.resources_pb2 import RolloutStatus, RolloutVerdict
from meshwarden.v1.revision_service_pb2 import ListRevisionsRequest, RollbackRequest
from meshwarden.v1.revision_service_pb2_grpc import RevisionServiceStub
from meshwarden.v1.rollout_service_pb2_grpc import RolloutServiceStub

NODES = [f"n{number}" for number in range(10)]
MESH = f"""\
kind: Tenant
metadata: {{name: platform}}
---
kind: Tenant
metadata: {{name: acme}}
---
kind: Service
metadata: {{tenant: platform, name: orders}}
spec: {{protocol: HTTP, exportTo: [acme]}}
---
kind: Service
metadata: {{tenant: acme, name: web}}
spec: {{protocol: HTTP}}
---
kind: WorkloadEntry
metadata: {{tenant: platform, name: orders-v1}}
spec: {{service: orders, nodes: [n0], selectors: {{uid: 1001}}, version: v1, port: 7001}}
---
kind: WorkloadEntry
metadata: {{tenant: acme, name: web}}
spec: {{service: web, dataPlane: ENVOY, nodes: {NODES}, selectors: {{uid: 1002}}}}
---
kind: RoutePolicy
metadata: {{tenant: platform, name: orders}}
spec: {{service: orders, rules: [{{timeout: 1s}}]}}
"""
GOOD, FAULTY = "{timeout: 2s}", "{fault: {abort: {percent: 10, httpStatus: 503}}}"
STAGES = "[{percent: 10, hold: 1s, wait: 60s}, {percent: 50, hold: 1s, wait: 60s}, {all: true, hold: 1s, wait: 60s}]"
SCOPE = "client/acme/envoy"


def rollout(rule: str, stages: str = STAGES, judge: str = "{minCalls: 50}", name: str = "r") -> str:
    return f"""\
kind: Rollout
metadata: {{tenant: platform, name: {name}}}
spec:
  routePolicies:
    - kind: RoutePolicy
      metadata: {{tenant: platform, name: orders}}
      spec: {{service: orders, rules: [{rule}]}}
  stages: {stages}
  judge: {judge}
"""


class Node:
    """A node whose agent takes what it is told, and whose workload then calls ten times and says so, ever again."""

    def __init__(self, name: str, fleet: "Fleet") -> None:
        self.name, self.fleet, self.revision = name, fleet, 0
        self.routes: dict[str, bytes] = {}

    @property
    def is_faulty(self) -> bool:
        return b"filters.http.fault" in self.routes.get("outbound/acme", b"")

    @property
    def has_change(self) -> bool:
        return self.is_faulty or b"B\x02\x08\x02" in self.routes.get("outbound/acme", b"")  # timeout: 2s

    async def run(self, world: World) -> None:
        hello = node_pb.NodeHello(agent_version="1", zone="a" if self.name in NODES[:3] else "b")
        session = world.sessions.open(self.name, hello)
        plane = node_pb.DataPlaneRef(
            id="acme/web#1/envoy", tenant="acme", entry="web", dialect="ENVOY", outbound_path="/run/web.sock"
        )
        session.take(node_pb.SyncRequest(interest=node_pb.Interest(data_planes=[plane])))
        async with anyio.create_task_group() as group:
            group.start_soon(self._follow, session)
            group.start_soon(self._call, world)

    async def _follow(self, session: Session) -> None:
        while True:
            for told in await session.feed.next():
                message = node_pb.SyncResponse.FromString(told.body())
                for scope in message.config.scopes:
                    if scope.scope == SCOPE and scope.full:
                        self.routes.clear()
                    for item in scope.resources if scope.scope == SCOPE else ():
                        if item.type_url.endswith("RouteConfiguration"):
                            self.routes[item.name] = item.body
                if message.HasField("config"):
                    self.revision = message.config.revision
                    session.take(node_pb.SyncRequest(ack=node_pb.ConfigAck(revision=self.revision)))

    async def _call(self, world: World) -> None:
        while True:
            await asyncio.sleep(0.05)
            if not self.fleet.calls:
                continue
            self.fleet.made[self.name] += 10
            bad = 1 if self.is_faulty else 0  # as the fault says: one of ten
            self.fleet.failed[self.name] += bad
            for status, count in (("200", 10 - bad), ("503", bad)):
                if count:
                    world.counts.take(self.name, [self._calls(status, count)])

    def _calls(self, status: str, count: int) -> Call:
        sides = ("acme", "web", "platform", "orders")
        return Call(*sides, "GET /", status, CallStat.ALLOWED, CallStat.SOURCE, self.revision, 0, count, 0.01, {})


class Fleet:
    def __init__(self) -> None:
        self.nodes = [Node(name, self) for name in NODES]
        self.made, self.failed = Counter[str](), Counter[str]()
        self.calls = True

    @property
    def changed(self) -> set[str]:
        return {node.name for node in self.nodes if node.has_change}


@asynccontextmanager
async def running(directory: Path, fleet: Fleet) -> AsyncIterator[World]:
    """A control plane, and the fleet's sessions at it; ends without a word, as one that is killed."""
    async with serve(directory, owner="one") as world, anyio.create_task_group() as group:
        for node in fleet.nodes:
            await joined(world, node.name)
            group.start_soon(node.run, world)
        yield world
        group.cancel_scope.cancel()


@pytest.fixture
async def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
async def world(tmp_path: Path, fleet: Fleet) -> AsyncIterator[World]:
    async with running(tmp_path, fleet) as made:
        await apply(made.root, MESH)
        yield made


async def state(world: World, name: str = "r") -> v1.RolloutState:
    async with world.channel(OPERATOR) as channel:
        request = v1.ListRolloutsRequest(tenant="platform", name=name)
        return (await RolloutServiceStub(channel).ListRollouts(request, timeout=60)).rollouts[0]


async def until(world: World, wanted: Any) -> v1.RolloutState:
    """Returns once the rollout is as wanted: in a phase, or in a stage."""
    async with asyncio.timeout(60):
        while True:
            found = await state(world)
            status = found.rollout.status
            if status.phase == wanted if isinstance(wanted, int) else wanted(status):
                return found
            await asyncio.sleep(0.05)


async def settled(condition: Any) -> None:
    """Waits until something holds that nothing signals."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def change(world: World, action: str, reason: str = "", identity: Any = OPERATOR) -> v1.ChangeRolloutResponse:
    request = v1.ChangeRolloutRequest(ref=ref("Rollout", "platform", "r"), reason=reason)
    request.action = v1.ChangeRolloutRequest.Action.Value(action)
    async with world.channel(identity) as channel:
        return await RolloutServiceStub(channel).ChangeRollout(request, timeout=60)


async def steps(world: World) -> list[str]:
    """What the history has of the rollout, the oldest first."""
    async with world.channel(OPERATOR) as channel:
        answer = await RevisionServiceStub(channel).ListRevisions(ListRevisionsRequest(kind="Rollout"), timeout=60)
    return [one.reason.removeprefix("rollout platform/r: ") for one in reversed(answer.revisions)]


async def route(world: World) -> Any:
    found = await world.root.Get(resource_pb.GetRequest(ref=ref("RoutePolicy", "platform", "orders")), timeout=60)
    return found.route_policy.spec.rules[0]


async def test_a_faulty_route_is_rolled_back_in_its_first_stage(world: World, fleet: Fleet) -> None:
    await apply(world.root, rollout(FAULTY))
    found = await until(world, RolloutStatus.ROLLED_BACK)
    (verdict,) = found.rollout.status.verdicts
    assert (verdict.stage, verdict.outcome) == (0, RolloutVerdict.BAD)
    assert (verdict.nodes, verdict.nodes_concerned) == (1, 10)
    # The blast radius: nobody but the node of the stage has had a failed call.
    assert len([node for node in fleet.failed if fleet.failed[node]]) == 1
    (comparison,) = verdict.comparisons
    assert (comparison.service, comparison.unchanged_bad) == ("platform/orders", 0)
    assert comparison.changed_at_least > comparison.allowed == pytest.approx(0.01)
    assert "bad with the change" in found.rollout.status.reason
    await settled(lambda: not fleet.changed)
    assert (await route(world)).timeout.seconds == 1, "the policy itself was never changed"
    assert (await steps(world))[1:] == ["stage 1 of 3 (10 %) begins", found.rollout.status.reason]


async def test_a_good_one_reaches_all_and_is_one_trace(world: World, fleet: Fleet) -> None:
    await apply(world.root, rollout(GOOD))
    seen: set[int] = set()
    for stage in range(3):
        await until(world, lambda status, stage=stage: status.stage >= stage and status.phase != RolloutStatus.PENDING)
        seen.add(len(fleet.changed))
    found = await until(world, RolloutStatus.COMMITTED)
    assert [one.nodes for one in found.rollout.status.verdicts] == [1, 5, 10]
    assert {one.outcome for one in found.rollout.status.verdicts} == {RolloutVerdict.GOOD}
    assert (await route(world)).timeout.seconds == 2
    assert fleet.changed == set(NODES)
    assert await steps(world) == [
        "",
        "stage 1 of 3 (10 %) begins",
        "stage 2 of 3 (50 %) begins: stage 1 of 3 (10 %) is good",
        "stage 3 of 3 (all) begins: stage 2 of 3 (50 %) is good",
        "stage 3 of 3 (all) is good: committed",
    ]
    names = Counter(
        span.name
        for body in world.spans
        for scope in ResourceSpans.FromString(body).scope_spans
        for span in scope.spans
        if span.trace_id.hex() == found.trace_id
    )
    wanted = {"rollout begin": 1, "rollout judge": 3, "rollout promote": 2, "rollout commit": 1}
    assert {name: names[name] for name in wanted} == wanted
    assert sum(name.endswith("Apply") for name in names) == 1, "below what has proposed it"


async def test_a_control_plane_that_is_killed_in_each_stage_goes_on(tmp_path: Path, fleet: Fleet) -> None:
    async with running(tmp_path, fleet) as world:
        await apply(world.root, MESH)
        await apply(world.root, rollout(GOOD, STAGES.replace("hold: 1s", "hold: 2s")))
        await until(world, RolloutStatus.RUNNING)
    for stage in range(1, 3):
        async with running(tmp_path, fleet) as world:
            before = await state(world)
            assert (before.rollout.status.phase, before.rollout.status.stage) == (RolloutStatus.RUNNING, stage - 1)
            await until(world, lambda status, stage=stage: status.stage == stage)
    async with running(tmp_path, fleet) as world:
        found = await until(world, RolloutStatus.COMMITTED)
        assert [one.stage for one in found.rollout.status.verdicts] == [0, 1, 2], "each was judged once"
        assert len(await steps(world)) == 5
        assert fleet.changed == set(NODES)


async def test_what_was_counted_before_a_kill_counts_after_it(tmp_path: Path, fleet: Fleet) -> None:
    held = "[{percent: 10, hold: 600s}]"
    async with running(tmp_path, fleet) as world:
        await apply(world.root, MESH)
        await apply(world.root, rollout(GOOD, held))
        key = next(iter(world.publisher.mesh.rollouts))
        told = v1.RolloutCount().comparisons.add()
        async with asyncio.timeout(60):
            while not told.unchanged_calls:
                await asyncio.sleep(0.05)
                for record in (await world.store.range("/rollout/")).records:
                    told = v1.RolloutCount.FromString(record.value).comparisons[0]
    fleet.calls = False
    async with running(tmp_path, fleet) as world:
        _, (pair,) = world.counts.sums(key)
        assert pair.unchanged.calls >= told.unchanged_calls > 0


async def test_operators_pause_resume_and_abort(world: World, fleet: Fleet) -> None:
    await apply(world.root, rollout(GOOD, "[{percent: 50, hold: 1s, wait: 600s}, {all: true}]", "{minCalls: 1000000}"))
    await until(world, RolloutStatus.RUNNING)
    error = await refused_change(world, "RESUME")
    assert (error.code(), error.details()) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "Rollout platform/r is running: it can't be resumed",
    )
    paused = await change(world, "PAUSE", "lunch")
    assert paused.rollout.status.phase == RolloutStatus.PAUSED
    assert paused.rollout.status.reason == f"paused by {OPERATOR.spiffe_id}: lunch"
    await settled(lambda: len(fleet.changed) == 5)  # it stays where it was
    resumed = (await change(world, "RESUME")).rollout.status
    assert (resumed.phase, resumed.stage_revision) == (RolloutStatus.RUNNING, paused.rollout.status.stage_revision)
    error = await refused_change(world, "PAUSE", ACME)
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    # Nobody else changes what it changes; what it is not about, everybody may.
    error = await refused(apply(world.root, MESH.replace("timeout: 1s", "timeout: 3s")))
    assert violations(error) == [
        "resources[6].metadata.name: Rollout platform/r changes RoutePolicy platform/orders at present: wait until it"
        " is over, or abort it"
    ]
    await apply(world.root, MESH.replace("name: platform}", "name: platform}\nspec: {displayName: P}", 1))
    error = await refused(apply(world.root, rollout(GOOD, name="other")))
    assert "Rollout platform/r is under way: a tenant has one at a time" in violations(error)[-1]
    await change(world, "ABORT", "no")
    await settled(lambda: not fleet.changed)
    assert (await refused_change(world, "ABORT")).code() is grpc.StatusCode.FAILED_PRECONDITION
    # What is over may be tried anew.
    await apply(world.root, rollout(GOOD, "[{all: true, hold: 1s, wait: 60s}]"))
    await until(world, RolloutStatus.COMMITTED)
    assert [event["event"] for event in world.events() if str(event["event"]).startswith("rollout.")] == [
        *("rollout.begin", "rollout.paused", "rollout.resumed", "rollout.aborted"),
        *("rollout.begin", "rollout.commit"),
    ]


async def refused_change(world: World, action: str, identity: Any = OPERATOR) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await change(world, action, identity=identity)
    return error.value


async def test_without_traffic_it_waits_or_goes_on_as_it_says(world: World, fleet: Fleet) -> None:
    fleet.calls = False
    short = "[{zone: a, hold: 1s, wait: 1s}]"
    await apply(world.root, rollout(GOOD, short))
    found = await until(world, RolloutStatus.PAUSED)
    assert found.rollout.status.reason.startswith("stage 1 of 1 (zone a) has too few calls to be judged by")
    assert (found.now.nodes, found.now.nodes_concerned) == (3, 10)
    assert fleet.changed == set(NODES[:3])
    await change(world, "ABORT")
    await apply(world.root, rollout(GOOD, short, "{onNoTraffic: PROMOTE}"))
    await until(world, RolloutStatus.COMMITTED)


async def test_a_stage_of_a_region_is_all_its_nodes_and_no_others(world: World, fleet: Fleet) -> None:
    here = world.sessions.region
    stages = f"[{{region: elsewhere, hold: 1s, wait: 1s}}, {{region: {here}, hold: 1s, wait: 60s}}]"
    await apply(world.root, rollout(GOOD, stages, "{minCalls: 50, onNoTraffic: PROMOTE}"))
    done = await until(world, RolloutStatus.COMMITTED)
    assert [one.nodes for one in done.rollout.status.verdicts] == [0, len(NODES)]


async def test_what_one_replica_hears_another_judges_by(tmp_path: Path) -> None:
    """Agents report to whichever they are at; whoever holds the lease decides, by what all have heard."""
    fleet = Fleet()
    fleet.calls = False
    async with running(tmp_path, fleet) as world:
        await apply(world.root, MESH)
        await apply(world.root, rollout(FAULTY, "[{percent: 50, hold: 60s}]"))
        found = await until(world, RolloutStatus.RUNNING)
        start = found.rollout.status.start_time.ToNanoseconds()
        record = v1.RolloutCount(start_ns=start, stage=0)
        record.comparisons.add(
            service="platform/orders", side="CALLER", changed_calls=500, changed_bad=50, unchanged_calls=5000
        )
        stale = v1.RolloutCount(start_ns=start - 1, stage=0, comparisons=record.comparisons)
        await world.store.commit([Put("/rollout/platform/r/00000000000000ff", stale.SerializeToString())])
        await world.store.commit([Put("/rollout/platform/r/00000000000000fe", b"\xff nonsense")])
        assert (await state(world)).now.comparisons[0].changed_calls == 0, "of another rollout of that name"
        await world.store.commit([Put("/rollout/platform/r/00000000000000ff", record.SerializeToString())])
        await until(world, RolloutStatus.ROLLED_BACK)


async def test_a_base_that_breaks_it_is_refused_and_a_rollback_leaves_it_alone(world: World) -> None:
    first = (await apply(world.root, MESH)).revision
    await apply(world.root, rollout("{split: [{version: v1, weight: 1}]}", "[{percent: 10, hold: 600s}]"))
    await until(world, RolloutStatus.RUNNING)
    error = await refused(apply(world.root, MESH.replace("version: v1", "version: v2")))
    assert any("could not be committed" in fault for fault in violations(error))
    delete = resource_pb.DeleteRequest(refs=[ref("WorkloadEntry", "platform", "orders-v1")])
    assert "Rollout platform/r needs it" in (await refused(world.root.Delete(delete))).details()
    async with world.channel(OPERATOR) as channel:
        answer = await RevisionServiceStub(channel).Rollback(RollbackRequest(revision=first), timeout=60)
    assert not answer.changes
    assert (await state(world)).rollout.status.phase == RolloutStatus.RUNNING
    await world.root.Delete(resource_pb.DeleteRequest(refs=[ref("Rollout", "platform", "r")]), timeout=60)
    await settled(lambda: not world.publisher.mesh.rollouts)
