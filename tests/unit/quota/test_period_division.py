"""Amounts for a period as a control plane gives them: written first, by the holder of the lease, and shown."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from tests.unit.quota.test_division import POLICY, World, dividing, made, mesh_of, report, until

from meshwarden.controlplane.api.metrics.quotas import of_quotas
from meshwarden.controlplane.cli.insight import quota as quota_command
from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.quota import book
from meshwarden.controlplane.quota.node import NodeStream
from meshwarden.controlplane.store import port
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.v1.admin_service_pb2 import GetQuotasResponse

ROOT = Path(__file__).parents[3]
DAY: list[Any] = [{"tenant": "acme", "requests": 100}]


def day(**spec: Any) -> Mesh:
    fields = {"service": "orders", "period": "DAY", "limits": DAY, **spec}
    return mesh_of(made("RatePolicy", "platform", "limits", **fields))


def asks(tenant: str = "acme", series: int = 7, calls: int = 1, **chunks: Any) -> pb.BucketUsage:
    named = pb.Bucket(policy=POLICY, tenant=tenant)
    return pb.BucketUsage(bucket=named, denied=calls, chunks=pb.Chunks(series=series, wanted=1, **chunks))


async def chunk(stream: NodeStream) -> pb.Chunk:
    """The next chunk that the node is told of."""
    async with asyncio.timeout(20):
        while True:
            for response in await stream.next():
                for share in (share for point in response.points for share in point.shares):
                    assert share.bucket.policy == POLICY
                    return share.chunk


async def written(world: World) -> dict[str, bytes]:
    page = await world.store.range(book.ROOT)
    return {record.key: record.value for record in page.records}


async def test_a_chunk_is_written_before_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with dividing(tmp_path, day()) as world:
        commit, tried = world.store.commit, list[int]()

        async def failing(ops: Any, **fence: Any) -> int:
            tried.append(len(ops))
            if len(tried) < 3:
                raise port.Ambiguous("who knows")
            return int(await commit(ops, **fence))

        monkeypatch.setattr(world.store, "commit", failing)
        stream = world.division.open("n1")
        stream.take(report(asks(), begins=True))
        told = await chunk(stream)
        assert len(tried) >= 3, "nothing is told of what may not be written"
        ((key, value),) = [item for item in (await written(world)).items() if b'"acme"' in item[1]]
        assert key.startswith("quota/platform/limits/DAY requests UTC/")
        assert value == f'[["acme"],{told.amount},0.0,[[7,0.0]]]'.encode()
        assert told.until.seconds > 0


async def test_the_next_holder_of_the_lease_goes_on_with_what_is_written(tmp_path: Path) -> None:
    mesh = day()
    async with dividing(tmp_path, mesh) as world:
        stream = world.division.open("n1")
        stream.take(report(asks(), begins=True))
        first = await chunk(stream)
    async with dividing(tmp_path, mesh) as world:
        stream = world.division.open("n1")
        had = {"turn": first.turn, "amount": first.amount, "left": 0}
        stream.take(report(asks(**had), begins=True))
        second = await chunk(stream)
        assert second.turn == first.turn
        assert second.amount > first.amount
        (state,) = world.division.states(POLICY, lambda _: True, whole=True)
        assert state.period.granted == second.amount, "all that was ever given"


async def test_who_lost_the_lease_gives_nothing(tmp_path: Path) -> None:
    async with dividing(tmp_path, day()) as world:
        lease = await world.store.acquire("quota-allocator", "a", 60)
        stream = world.division.open("n1")
        stream.take(report(asks(), begins=True))
        await until(lambda: stream.ended)
        assert not any(b'"acme"' in value for value in (await written(world)).values())
        await world.store.renew(lease, release=True)


async def test_rates_become_a_day_and_a_day_rates(tmp_path: Path) -> None:
    mesh = day(limits=[{"tenant": "acme", "requests": 100}])
    async with dividing(tmp_path, mesh) as world:
        stream = world.division.open("n1")
        stream.take(report(asks(), begins=True))
        await chunk(stream)
        rates = made("RatePolicy", "platform", "limits", service="orders", limits=DAY)
        world.division.touch(mesh.apply([rates]))
        assert POLICY not in world.division.ledgers
        usage = pb.BucketUsage(bucket=pb.Bucket(policy=POLICY, tenant="acme"), allowed=3)
        stream.take(report(usage))
        assert [lease.bucket.path for lease in world.division.leases.find(POLICY)] == [("acme",)]
        again = made("RatePolicy", "platform", "limits", service="orders", period="DAY", limits=DAY)
        world.division.touch(mesh.apply([again]))
        assert world.division.leases.find(POLICY) == []
        await until(lambda: world.division.ledgers.find(POLICY) is not None)


async def test_what_a_node_says_of_chunks_that_can_t_be_is_counted(tmp_path: Path) -> None:
    async with dividing(tmp_path, day()) as world:
        stream = world.division.open("n1")
        lies = [
            asks(amount=float("nan")),
            asks(amount=1, left=5),
            asks(series=0),
            pb.BucketUsage(bucket=pb.Bucket(policy=POLICY, tenant="acme"), denied=4),
        ]
        stream.take(report(*lies, asks("globex"), begins=True))
        assert world.division.ignored()["garbage"] == len(lies)
        assert world.division.states(POLICY, lambda _: True, whole=True) == []


async def test_how_a_day_stands_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with dividing(tmp_path, day(timeZone="Europe/Berlin")) as world:
        stream = world.division.open("n1")
        stream.take(report(asks(calls=40), begins=True))
        told = await chunk(stream)
        stream.take(report(asks(calls=0, turn=told.turn, amount=told.amount, left=told.amount - 3)))
        (state,) = world.division.states(POLICY, lambda _: True, whole=True)
        period = state.period
        assert (state.unit, state.limit, period.granted, period.used) == ("requests", 100, told.amount, 3)
        assert (period.held, period.lost) == (told.amount - 3, 0)
        answer = GetQuotasResponse(divides=True, quotas=[state])
        (row,) = quota_command.period_rows(answer, answer)
        assert row[:6] == (POLICY, "acme", "-", "requests", "100", "3")
        assert row[-1] == "2026-09-21T22:00Z"
        quota_command._explain_period(state, POLICY)
        assert "3 of 100 requests used, 2026-09-20T22:00Z to 2026-09-21T22:00Z" in capsys.readouterr().out
        found = {
            sample.name: sample.value
            for metric in of_quotas(world.division)
            for sample in metric.samples
            if sample.name.startswith("meshwarden_quota_period")
        }
        board = (ROOT / "deploy/grafana/dashboards/meshwarden-limits.json").read_text()
        shown = set(re.findall(r"meshwarden_quota_period_\w+", board))
        assert shown
        assert shown <= found.keys(), "a panel would show nothing but zero"
        assert found["meshwarden_quota_period_used"] == 3
        assert found["meshwarden_quota_period_limit"] == 100
        assert found["meshwarden_quota_period_end_seconds"] == period.end.seconds
