"""Dividing as a control plane does it: policies come and go, nodes speak for themselves, a lease says who divides."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from meshwarden.controlplane.api.metrics.quotas import of_quotas
from meshwarden.controlplane.cli.insight import quota as quota_command
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.quota import node as node_module
from meshwarden.controlplane.quota.division import LEASE, LEASE_TTL_S, Division, NotAllocator
from meshwarden.controlplane.quota.leases import TERM_S, TTL_S
from meshwarden.controlplane.quota.node import NodeStream, SayAgain
from meshwarden.controlplane.quota.tree import Bucket
from meshwarden.controlplane.quota.usage import OTHER, Usages
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.v1 import resources_pb2
from meshwarden.v1.admin_service_pb2 import GetQuotasResponse

TURNS = itertools.count(1)
POLICY, CREATE = "platform/limits", "/shop.v1.Orders/Create"
LIMITS: list[Any] = [
    {"tenant": "acme", "requests": 100, "methods": [{"method": CREATE, "requests": 10}]},
    {"tenant": "*", "requests": 40},
]


def made(kind: str, tenant: str, name: str, **spec: Any) -> Change:
    fields = {"kind": kind, "metadata": {"tenant": tenant, "name": name}, "spec": spec}
    return Change(Key(kind, tenant, name), json_format.ParseDict(fields, getattr(resources_pb2, kind)()))


def policy(**spec: Any) -> Change:
    return made("RatePolicy", "platform", "limits", service="orders", limits=LIMITS, **spec)


def entry(name: str, service: str, node: str) -> Change:
    return made("WorkloadEntry", "platform", name, service=service, nodes=[node], selectors={"uid": 1})


def mesh_of(*changes: Change) -> Mesh:
    mesh = Mesh("mesh.test")
    mesh.apply(
        [
            *(made("Tenant", name, name) for name in ("platform", "acme", "globex")),
            made("Service", "platform", "orders", protocol="GRPC"),
            made("Service", "platform", "billing", protocol="GRPC"),
            entry("orders", "orders", "n1"),
            entry("billing", "billing", "n2"),
            *changes,
        ]
    )
    return mesh


class World:
    """A division with a clock of the test's."""

    def __init__(self, division: Division, store: Any) -> None:
        self.division, self.store = division, store
        self.now_s = 0.0
        self.wall_s = 1_790_000_000.0


@contextlib.asynccontextmanager
async def dividing(tmp_path: Path, mesh: Mesh, owner: str = "a", ahead_s: float = TERM_S) -> AsyncIterator[World]:
    """A division that has learnt all there is to learn, or has not."""
    async with open_store(tmp_path / "store.sqlite") as store:
        world = World(None, store)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        world.division = Division(
            store, mesh, owner, lambda: loop.time() + world.now_s, lambda: world.wall_s, lambda: next(TURNS)
        )
        world.division.touch(mesh.apply([]))
        task = asyncio.ensure_future(world.division.run())
        try:
            world.division.touch(mesh.apply([mesh_change(mesh)]))
            await until(lambda: world.division.leases is not None, task)
            world.now_s = ahead_s
            yield world
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def mesh_change(mesh: Mesh) -> Change:
    """Says again what is there: as the publisher does when it has read the store."""
    key = next(key for key in mesh.all() if key.kind == "RatePolicy")
    return Change(key, mesh.all()[key])


async def until(condition: Callable[[], Any], task: "asyncio.Future[Any] | None" = None) -> None:
    async with asyncio.timeout(20):
        while not condition():
            if task is not None and task.done():
                task.result()
            await asyncio.sleep(0.01)


def used(tenant: str, allowed: int, denied: int = 0, method: str = "", policy: str = POLICY) -> pb.BucketUsage:
    return pb.BucketUsage(bucket=pb.Bucket(policy=policy, tenant=tenant, method=method), allowed=allowed, denied=denied)


def report(*usages: pb.BucketUsage, point: str = "p", **fields: Any) -> pb.ShareRequest:
    fields = {"service": "platform/orders", **fields}
    return pb.ShareRequest(sequence=1, points=[pb.PointReport(point=point, usages=usages, **fields)])


async def told(stream: NodeStream, what: str) -> dict[tuple[str, str], float]:
    """The next shares of a point: {(tenant, method): rate}."""
    async with asyncio.timeout(20):
        while True:
            for response in await stream.next():
                for shares in response.points:
                    if shares.point == what and shares.shares:
                        return {(item.bucket.tenant, item.bucket.method): item.rate for item in shares.shares}


async def test_who_reports_is_answered_and_given_a_share(tmp_path: Path) -> None:
    async with dividing(tmp_path, mesh_of(policy())) as world:
        stream = world.division.open("n1")
        stream.take(report(used("acme", 2, 500), used("globex", 2, 500), used("acme", 2, 50, CREATE), begins=True))
        first = (await stream.next())[0]
        assert (first.answers, first.ttl.seconds) == (1, TTL_S)
        shares = await told(stream, "p")
        assert shares["globex", ""] == pytest.approx(40)
        assert shares["acme", CREATE] == pytest.approx(10)
        assert shares["acme", ""] == pytest.approx(90)


async def test_what_is_said_in_another_unit_than_the_policys_by_now_is_let_go(tmp_path: Path) -> None:
    mesh = mesh_of(policy())
    async with dividing(tmp_path, mesh, ahead_s=0.0) as world:
        stream = world.division.open("n1")
        in_bytes = [{"tenant": "globex", "bytes": 5_000_000}]
        changed = made("RatePolicy", "platform", "limits", service="orders", limits=in_bytes)
        world.division.touch(mesh.apply([changed]))
        held = pb.Share(bucket=pb.Bucket(policy=POLICY, tenant="globex"), rate=40)
        stream.take(report(used("globex", 40), held=[held], begins=True))
        assert world.division.leases is not None
        assert (stream.ignored["unknown"], world.division.leases.find(POLICY)) == (2, [])
        usage = used("globex", 4000)
        usage.bucket.unit = held.bucket.unit = "bytes"
        stream.take(report(usage, held=[held], begins=True))
        (lease,) = world.division.leases.find(POLICY)
        assert lease.held == 40
        world.now_s = TERM_S
        usage.denied = 10**6
        stream.take(report(usage, begins=True))
        async with asyncio.timeout(20):
            while not (shares := [item for one in await stream.next() for said in one.points for item in said.shares]):
                pass
        assert {share.bucket.unit for share in shares} == {"bytes"}


async def test_a_node_speaks_for_services_that_it_hosts_and_of_tenants_that_there_are(tmp_path: Path) -> None:
    async with dividing(tmp_path, mesh_of(policy())) as world:
        other = world.division.open("n2")
        other.take(report(used("acme", 1, 9), held=[pb.Share(bucket=pb.Bucket(policy=POLICY, tenant="acme"), rate=9)]))
        other.take(report(used("acme", 1, 9), service="platform/billing"))
        assert other.ignored["foreign"] == 3, "it runs that service, of which the policy says nothing"
        own = world.division.open("n1")
        own.take(report(used("nobody", 1, 9), used("acme", 1, 9, "/no/Such"), used("acme", 1, policy="acme/none")))
        assert (own.ignored["foreign"], own.ignored["unknown"]) == (2, 1)
        assert world.division.leases is not None
        assert world.division.leases.find(POLICY) == []
        assert world.division.ignored()["foreign"] == 5


async def test_whoever_calls_an_external_service_speaks_for_its_own_tenant(tmp_path: Path) -> None:
    hosts = [{"address": "api.model.example", "port": 443}]
    mesh = mesh_of(
        made("ExternalService", "platform", "model", protocol="HTTPS", hosts=hosts, exportTo=["acme"]),
        made("RatePolicy", "platform", "limits", service="model", limits=LIMITS[1:]),
        made("WorkloadEntry", "acme", "web", service="web", nodes=["n3"], selectors={"uid": 1}),
        made("WorkloadEntry", "globex", "web", service="web", nodes=["n4"], selectors={"uid": 1}),
    )
    async with dividing(tmp_path, mesh) as world:
        acme, globex = world.division.open("n3"), world.division.open("n4")
        acme.take(report(used("acme", 0, 500), used("globex", 0, 500), service="acme/web", begins=True))
        assert acme.ignored["foreign"] == 1, "a limit of another tenant"
        assert await told(acme, "p") == pytest.approx({("acme", ""): 40})
        globex.take(report(used("globex", 0, 500), service="globex/web", begins=True))
        assert globex.ignored["foreign"] == 1, "it doesn't see it"


async def test_callers_of_another_trust_domain_have_a_share_of_their_own(tmp_path: Path) -> None:
    mesh = mesh_of(policy(), made("TrustDomain", "platform", "other", trustDomain="other.test"))
    async with dividing(tmp_path, mesh) as world:
        own = world.division.open("n1")
        own.take(report(used("spiffe://other.test", 1, 9), used("spiffe://third.test", 1, 9), begins=True))
        assert own.ignored["foreign"] == 1


async def test_one_limit_over_several_services(tmp_path: Path) -> None:
    parts = [{"service": "orders", "requests": 20, "methods": [{"method": CREATE, "requests": 5}]}]
    limits = [{"tenant": "acme", "requests": 60, "services": parts}, {"tenant": "globex", "requests": 80}]
    wide = made("RatePolicy", "platform", "limits", services=["*"], limits=limits, total={"requests": 100})
    async with dividing(tmp_path, mesh_of(wide)) as world:
        orders, billing = world.division.open("n1"), world.division.open("n2")
        orders.take(report(used("acme", 0, 500), used("acme", 0, 500, CREATE), used("globex", 0, 500), begins=True))
        billing.take(report(used("acme", 0, 500), used("globex", 0, 500), service="platform/billing", begins=True))
        expected = {("acme", ""): 15, ("acme", CREATE): 5, ("globex", ""): 25}
        assert await told(orders, "p") == pytest.approx(expected)
        assert await told(billing, "p") == pytest.approx({("acme", ""): 30, ("globex", ""): 25})
        billing.take(report(used("acme", 0, 500, CREATE), service="platform/billing"))
        assert billing.ignored["unknown"] == 1, "that is a part of its calls of orders alone"
        states = world.division.states(POLICY, lambda tenant: True, whole=True)
        named = [(state.bucket.tenant, state.bucket.service, state.bucket.method) for state in states]
        assert ("acme", "platform/orders", CREATE) in named
        assert ("acme", "", "") in named
        assert all(state.bucket.service == "" for state in states if state.bucket.tenant == "globex")
        (create,) = (state for state in states if state.bucket.method)
        assert (create.limit, create.share) == (5, 5)


@pytest.mark.parametrize("count", [2**64 - 1, 2**63])
async def test_absurd_usage_of_one_moves_nobody_elses_share(tmp_path: Path, count: int) -> None:
    limits = [{"tenant": "acme", "requests": 100}, {"tenant": "globex", "requests": 40}]
    change = made("RatePolicy", "platform", "limits", service="orders", limits=limits, total={"requests": 100})
    async with dividing(tmp_path, mesh_of(change)) as world:
        stream = world.division.open("n1")
        stream.take(report(used("globex", 30, 0), used("acme", count, count)))
        shares = await told(stream, "p")
        assert shares["globex", ""] >= 30
        assert shares["acme", ""] <= 100
        assert world.division.ignored()["absurd"] == 1


async def test_a_point_that_was_silent_for_too_long_has_to_begin_anew(tmp_path: Path) -> None:
    async with dividing(tmp_path, mesh_of(policy())) as world:
        stream = world.division.open("n1")
        stream.take(report(used("globex", 1)))
        world.now_s += TTL_S + 1
        with pytest.raises(SayAgain, match="nothing was heard of p"):
            stream.take(report(used("globex", 1)))
        stream.take(report(used("globex", 1), begins=True))


async def test_a_newer_stream_of_a_node_ends_the_older(tmp_path: Path) -> None:
    async with dividing(tmp_path, mesh_of(policy())) as world:
        older, newer = world.division.open("n1"), world.division.open("n1")
        assert await older.next() == []
        assert "newer stream" in older.ended
        world.division.close(older)
        newer.take(report(used("globex", 1, 9)))
        assert await told(newer, "p")


async def test_a_node_that_reads_nothing_fills_no_memory(tmp_path: Path) -> None:
    async with dividing(tmp_path, mesh_of(policy())) as world:
        stream = world.division.open("n1")
        for _ in range(node_module.MAX_UNREAD + 1):
            stream.take(report(used("globex", 1)))
        with pytest.raises(SayAgain, match="does not read"):
            stream.take(report(used("globex", 1)))
        assert await stream.next() == []
        assert not stream._out


async def test_a_point_that_has_left_frees_its_share_at_once(tmp_path: Path) -> None:
    async with dividing(tmp_path, mesh_of(policy())) as world:
        stream = world.division.open("n1")
        stream.take(report(used("globex", 1, 500), point="one"))
        assert (await told(stream, "one"))["globex", ""] == pytest.approx(40)
        stream.take(report(used("globex", 1, 500), point="two"))
        stream.take(pb.ShareRequest(sequence=2, left=["one", "never-was"]))
        assert (await told(stream, "two"))["globex", ""] == pytest.approx(40)


async def test_a_point_may_be_back_in_the_message_that_says_that_it_has_left(tmp_path: Path) -> None:
    async with dividing(tmp_path, mesh_of(policy())) as world:
        stream = world.division.open("n1")
        stream.take(report(used("globex", 1, 500)))
        await told(stream, "p")
        again = report(used("globex", 1, 500), begins=True)
        again.left.append("p")
        stream.take(again)
        assert (await told(stream, "p"))["globex", ""] == pytest.approx(40)


async def test_points_of_a_node_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "MAX_POINTS", 5)
    async with dividing(tmp_path, mesh_of(policy())) as world:
        stream = world.division.open("n1")
        for number in range(20):
            stream.take(report(used("globex", 1), point=f"p{number}"))
        assert stream.ignored["points"] == 15
        world.now_s += TTL_S + 1
        stream.take(report(used("globex", 1), point="late"))
        assert stream.ignored["points"] == 15, "those whose leases ran out make room"


async def test_a_policy_that_changes_is_divided_as_it_is_then(tmp_path: Path) -> None:
    mesh = mesh_of(policy())
    async with dividing(tmp_path, mesh) as world:
        stream = world.division.open("n1")
        stream.take(report(used("globex", 1, 500)))
        assert (await told(stream, "p"))["globex", ""] == pytest.approx(40)
        limits = [{"tenant": "*", "requests": 4}]
        change = made("RatePolicy", "platform", "limits", service="orders", limits=limits)
        world.division.touch(mesh.apply([change]))
        assert (await told(stream, "p"))["globex", ""] == pytest.approx(4)
        world.division.touch(mesh.apply([policy(scope="POINT")._replace(message=None)]))
        assert list(world.division.policies()) == []
        stream.take(report(used("globex", 1)))
        assert stream.ignored["foreign"] == 1


async def test_nobody_divides_where_no_policy_holds_across_the_mesh(tmp_path: Path) -> None:
    limits = [{"tenant": "acme", "requests": 1}]
    mesh = mesh_of(made("RatePolicy", "platform", "limits", service="orders", scope="POINT", limits=limits))
    async with open_store(tmp_path / "store.sqlite") as store:
        division = Division(store, mesh, "a", lambda: 0.0, lambda: 0.0, lambda: 1)
        task = asyncio.ensure_future(division.run())
        division.touch(mesh.apply([mesh_change(mesh)]))
        await asyncio.sleep(0)
        with pytest.raises(NotAllocator):
            division.open("n1")
        _, revision = await store.get("x")
        assert revision == 0, "the lease was not even asked for"
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_one_process_divides_at_a_time(tmp_path: Path) -> None:
    mesh = mesh_of(policy())
    async with dividing(tmp_path, mesh, "a") as world:
        other = Division(world.store, mesh, "b", lambda: 0.0, lambda: 0.0, lambda: 1)
        task = asyncio.ensure_future(other.run())
        other.touch(mesh.apply([mesh_change(mesh)]))
        stream = world.division.open("n1")
        # Somebody who was taken for dead is not: its lease is fenced off.
        await world.store.acquire(LEASE, "a", 60.0)
        await until(lambda: world.division.leases is None or stream.ended)
        assert other.leases is None
        with pytest.raises(NotAllocator):
            other.open("n1")
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert await stream.next() == []


async def test_who_was_held_up_for_longer_than_its_lease_lasts_says_nothing_more(tmp_path: Path) -> None:
    """Somebody else may divide by then, though it has not heard yet that it lost the lease."""
    async with dividing(tmp_path, mesh_of(policy())) as world:
        stream = world.division.open("n1")
        stream.take(report(used("acme", 2, 500), begins=True))
        await told(stream, "p")
        leases = world.division.leases
        assert leases is not None
        world.now_s += LEASE_TTL_S
        before = leases.number
        world.division.divide()
        assert leases.number == before
        stream.take(report(used("acme", 2, 500), begins=True))
        assert "does not divide" in stream.ended
        assert await stream.next() == []
        with pytest.raises(NotAllocator):
            world.division.open("n1")


async def test_a_store_that_does_not_answer_keeps_nobody_dividing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshwarden.controlplane.quota.division.LEASE_TTL_S", 2.0)
    async with dividing(tmp_path, mesh_of(policy()), ahead_s=0.0) as world:
        stream = world.division.open("n1")

        async def hangs(lease: Any) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(world.store, "renew", hangs)
        await until(lambda: stream.ended)
        await until(lambda: world.division.leases is None)


async def test_who_begins_gives_nothing_more_until_it_has_learnt(tmp_path: Path) -> None:
    async with dividing(tmp_path, mesh_of(policy()), ahead_s=0.0) as world:
        stream = world.division.open("n1")
        held = [pb.Share(bucket=pb.Bucket(policy=POLICY, tenant="globex"), rate=30)]
        stream.take(report(used("globex", 1, 500), point="old", held=held, begins=True))
        stream.take(report(used("globex", 1, 500), point="new", begins=True))
        leases = world.division.leases
        assert leases is not None
        await until(lambda: sum(lease.held for lease in leases.find(POLICY)) > 0)
        assert {lease.point.name: lease.held for lease in leases.find(POLICY)} == {"old": 30, "new": 0}


async def test_it_says_what_is_divided_and_why(tmp_path: Path) -> None:
    change = made(
        "RatePolicy",
        "platform",
        "limits",
        service="orders",
        total={"requests": 50},
        limits=[{"tenant": "acme", "requests": 45, "weight": 2}, {"tenant": "globex", "requests": 45}],
    )
    async with dividing(tmp_path, mesh_of(change)) as world:
        stream = world.division.open("n1")
        stream.take(report(used("acme", 10, 500), used("globex", 7, 500), used("platform", 1)))
        await told(stream, "p")
        states = {s.bucket.tenant: s for s in world.division.states(POLICY, lambda tenant: True, whole=True)}
        assert "the total of 50/s is short" in states["acme"].reason
        assert "by weights (this one's is 2)" in states["acme"].reason
        assert (states["globex"].allowed, states["globex"].denied) == (7, 500)
        assert [point.node for point in states["acme"].points] == ["n1"]
        (own,) = world.division.states(POLICY, lambda tenant: tenant == "globex", whole=False)
        assert own.bucket.tenant == "globex"
        assert not own.points
        assert "are wanted of it" not in own.reason, "what others want is theirs"


async def test_costs_are_divided_and_shown_as_costs(tmp_path: Path) -> None:
    said = made(
        "RatePolicy",
        "platform",
        "limits",
        service="orders",
        total={"cost": 900},
        limits=[{"tenant": "globex", "cost": 400}],
    )
    async with dividing(tmp_path, mesh_of(said)) as world:
        stream = world.division.open("n1")
        usages = used("globex", 500, 2**64 - 1), used("acme", 1000, 0)
        for usage in usages:
            usage.bucket.unit = "cost"
        stream.take(report(*usages))
        await told(stream, "p")
        acme, globex = world.division.states(POLICY, lambda tenant: True, whole=True)
        assert (globex.unit, globex.limit, acme.limit) == ("cost", 400, 900)
        assert globex.share == pytest.approx(400)
        assert acme.share == pytest.approx(500)
        assert acme.reason.startswith("900.0 cost/s are wanted; the total of 900/s is short")
        samples = [one for family in of_quotas(world.division) for one in family.samples]
        found = {(one.name, *one.labels.values()): one.value for one in samples}
        assert found["meshwarden_quota_used_total", POLICY, "globex", "", "", "cost", "allowed"] == 500
        assert found["meshwarden_quota_used_total", POLICY, "globex", "", "", "cost", "limited"] == 1_000_000_000


async def test_prometheus_is_told(tmp_path: Path) -> None:
    async with dividing(tmp_path, mesh_of(policy())) as world:
        stream = world.division.open("n1")
        stream.take(report(used("globex", 3, 9), used("acme", 1, 0, CREATE), used("nobody", 1)))
        await told(stream, "p")
        samples = [one for family in of_quotas(world.division) for one in family.samples]
        found = {(one.name, *one.labels.values()): one.value for one in samples}
        assert found["meshwarden_quota_used_total", POLICY, "globex", "", "", "requests", "limited"] == 9
        assert found["meshwarden_quota_limit", POLICY, "acme", "", CREATE] == 10
        assert found["meshwarden_quota_share", POLICY, "globex", "", ""] == pytest.approx(40)
        assert found["meshwarden_quota_points", POLICY, "globex", "", ""] == 1
        assert found["meshwarden_quota_ignored_total", "foreign"] == 1
        assert found["meshwarden_quota_dividing",] == 1
        assert found["meshwarden_quota_lease_age_seconds", POLICY, "globex", "", ""] < 1
        world.now_s += 1.5
        for _ in range(3):
            stream.take(report(used("globex", 200)))
        world.now_s += 2
        samples = [one for family in of_quotas(world.division) for one in family.samples]
        found = {(one.name, *one.labels.values()): one.value for one in samples}
        assert 2 <= found["meshwarden_quota_lease_age_seconds", POLICY, "globex", "", ""] < 3
        world.now_s += 20
        samples = [one for family in of_quotas(world.division) for one in family.samples]
        found = {(one.name, *one.labels.values()): one.value for one in samples}
        # A bucket of 40/s and 40 at once would have let no more than 200 of the 603 in within three seconds.
        assert found["meshwarden_quota_excess_total", POLICY, "globex", "", "", "requests"] > 400


def test_the_table_of_top_counts_between_two_answers() -> None:
    before, now = GetQuotasResponse(), GetQuotasResponse()
    before.now.FromSeconds(10)
    now.now.FromSeconds(12)
    bucket = pb.Bucket(policy=POLICY, tenant="acme", method=CREATE)
    before.quotas.add(bucket=bucket, allowed=100, denied=4)
    now.quotas.add(bucket=bucket, allowed=120, denied=3, limit=10, demand=12, share=9.5, unit="cost")
    now.quotas.add(bucket=pb.Bucket(policy=POLICY, tenant="new"), allowed=1, unit="requests")
    assert quota_command.rows(before, now) == [
        (POLICY, "acme", CREATE, "cost", "10.0", "12.0", "9.5", "10.0", "0.0", "0.0", 0),
        (POLICY, "new", "-", "requests", "0.0", "0.0", "0.0", "0.5", "0.0", "0.0", 0),
    ]


def test_usage_is_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshwarden.controlplane.quota.usage.MAX_BUCKETS", 3)
    usages = Usages()
    for number in range(10):
        usages.add(Bucket(POLICY, (f"t{number}",)), 1, 2, 3)
    assert len(usages.all) == 4
    assert usages.all[Bucket(POLICY, (OTHER,))].denied == 14
    usages.forget(POLICY)
    assert not usages.all
