"""What other regions have denied is denied here, stays so while they are away, and ends when they end it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from meshwarden.certs.deny import MAX_DENIES, InvalidDeny
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.identity.deny import DeniedElsewhere, Denies
from meshwarden.controlplane.identity.deny_elsewhere import DeniesElsewhere, told
from meshwarden.controlplane.identity.deny_watch import DenyWatch
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1.node_service_pb2 import Deny
from meshwarden.v1.region_service_pb2 import GetDeniesResponse, RegionDeny

WEB, ORDERS = (f"spiffe://a.test/tenant/acme/service/{name}" for name in ("web", "orders"))
ANN = "spiffe://a.test/operator/ann"


class Region:
    """A region's denies, on a real store."""

    def __init__(self, name: str) -> None:
        self.name, self.now = name, datetime(2026, 1, 2, tzinfo=UTC)

    async def start(self, stack: AsyncExitStack, directory: Path) -> None:
        self.store = await stack.enter_async_context(open_store(directory / f"{self.name}.sqlite"))
        audit = await stack.enter_async_context(FileAuditLog.open(directory / f"{self.name}.jsonl", self.clock))
        self.denies, self.watch = Denies(self.store, audit, self.clock), DenyWatch(self.store, self.clock)
        self.regions = DeniesElsewhere(self.denies, self.watch, self.clock)
        group = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(group.cancel_scope.cancel)
        await group.start(self.watch.run)

    def clock(self) -> datetime:
        return self.now

    async def hears(self, other: "Region", etag: str = "") -> GetDeniesResponse:
        answer = told(other.watch, etag)
        await self.regions.hear(other.name, answer)
        await self.settled()
        return answer

    async def settled(self) -> None:
        revision = (await self.store.range("/identity/deny/")).revision
        async with asyncio.timeout(30):
            await self.watch.wait_revision(revision)

    async def deny(self, *ids: str, reason: str = "leaked") -> None:
        await self.watch.wait_revision(await self.denies.deny(ids, reason=reason, by=ANN))

    async def allow(self, spiffe_id: str, by: str = ANN) -> None:
        await self.watch.wait_revision(await self.denies.allow([(spiffe_id, "")], "found", by))

    def denied(self) -> dict[str, tuple[str, str]]:
        return {str(record.deny): (record.by, record.reason) for record in self.watch.records()}


@pytest.fixture
async def regions(tmp_path: Path) -> AsyncIterator[tuple[Region, Region]]:
    async with AsyncExitStack() as stack:
        eu, us = Region("eu"), Region("us")
        for region in (eu, us):
            await region.start(stack, tmp_path)
        yield eu, us


async def test_what_one_denies_the_other_denies_until_it_is_allowed(regions: tuple[Region, Region]) -> None:
    eu, us = regions
    await eu.deny(WEB, ORDERS)
    await eu.denies.deny(serials={"5f": WEB}, reason="core dump", by=ANN)
    await eu.settled()
    answer = await us.hears(eu)
    serial = f"serial 5f of {WEB}"
    leaked, dumped = ("region eu", "leaked"), ("region eu", "core dump")
    assert us.denied() == {WEB: leaked, ORDERS: leaked, serial: dumped}
    assert sorted(map(str, us.watch.present)) == sorted(map(str, eu.watch.present))
    assert {deny.not_after for deny in us.watch.present} == {deny.not_after for deny in eu.watch.present}
    # Nothing of it goes back, nor is it told again to who has it.
    assert not told(us.watch, "").denies
    assert not told(eu.watch, answer.etag).denies
    before = us.watch.present.revision
    await us.hears(eu, answer.etag)
    assert us.watch.present.revision == before
    await eu.allow(ORDERS)
    await us.hears(eu, answer.etag)
    assert us.denied() == {WEB: leaked, serial: dumped}


async def test_a_deny_of_another_region_is_lifted_there_alone(regions: tuple[Region, Region]) -> None:
    eu, us = regions
    await eu.deny(WEB)
    await us.hears(eu)
    with pytest.raises(DeniedElsewhere, match="was denied in region eu; allow it there"):
        await us.allow(WEB)
    # Our own operators may deny it, too, and then it is theirs.
    await us.deny(WEB, reason="ours")
    await us.hears(eu)
    assert us.denied() == {WEB: (ANN, "ours")}
    await eu.allow(WEB)
    await us.hears(eu)
    assert us.denied() == {WEB: (ANN, "ours")}
    await us.allow(WEB)
    assert us.denied() == {}


async def test_what_our_operators_have_denied_is_not_taken_over(regions: tuple[Region, Region]) -> None:
    eu, us = regions
    await us.deny(WEB, reason="ours")
    await eu.deny(WEB)
    await us.hears(eu)
    assert us.denied() == {WEB: (ANN, "ours")}
    # Not even where the region has not heard of it yet.
    await us.denies.deny([WEB], reason="late", by="region eu")
    await us.settled()
    assert us.denied() == {WEB: (ANN, "ours")}
    # Ours ends, theirs goes on.
    await us.allow(WEB)
    await us.hears(eu)
    assert us.denied() == {WEB: ("region eu", "leaked")}


async def test_denies_end_by_themselves_and_survive_a_region_that_is_away(regions: tuple[Region, Region]) -> None:
    eu, us = regions
    await eu.deny(WEB)
    answer = await us.hears(eu)
    us.regions = DeniesElsewhere(us.denies, us.watch, us.clock)  # started again, while eu is away
    assert list(us.denied()) == [WEB]
    eu.now = us.now = us.now + timedelta(days=2)
    assert us.denied() == {}
    await us.regions.hear("eu", answer)
    assert us.denied() == {}


async def test_more_than_one_commit_holds_are_taken(regions: tuple[Region, Region]) -> None:
    eu, us = regions
    many = [f"spiffe://a.test/tenant/acme/service/s{number}" for number in range(250)]
    for start in range(0, len(many), 100):
        await eu.deny(*many[start : start + 100], reason=str(start % 3))
    await us.hears(eu)
    assert sorted(us.denied()) == sorted(many)
    for start in range(0, len(many), 100):
        await eu.denies.allow([(one, "") for one in many[start : start + 100]], "", ANN)
    await eu.settled()
    await us.hears(eu)
    assert us.denied() == {}


def deny(spiffe_id: str = WEB, serial: str = "", seconds: int = 2_000_000_000, reason: str = "") -> RegionDeny:
    made = RegionDeny(deny=Deny(spiffe_id=spiffe_id, serial=serial), reason=reason)
    made.deny.not_after.seconds = seconds
    return made


@pytest.mark.parametrize(
    "answer",
    [
        GetDeniesResponse(denies=[deny()]),
        GetDeniesResponse(etag="x" * 65, denies=[deny()]),
        GetDeniesResponse(etag="x", denies=[deny()] * (MAX_DENIES + 1)),
        GetDeniesResponse(etag="x", denies=[deny(""), deny()]),
        GetDeniesResponse(etag="x", denies=[deny("spiffe://a.test/tenant/acme/service/web\n")]),
        GetDeniesResponse(etag="x", denies=[deny(serial="zz")]),
        GetDeniesResponse(etag="x", denies=[deny(seconds=2**62)]),
        GetDeniesResponse(etag="x", denies=[deny("spiffe://a.test/region/eu/controlplane")]),
    ],
    ids=["no etag", "a long etag", "too many", "nothing", "no SPIFFE ID", "no serial", "no time", "a control plane"],
)
async def test_what_no_control_plane_would_say_changes_nothing(
    regions: tuple[Region, Region], answer: GetDeniesResponse
) -> None:
    eu, us = regions
    await eu.deny(ORDERS)
    await us.hears(eu)
    with pytest.raises(InvalidDeny):
        await us.regions.hear("eu", answer)
    await us.settled()
    assert list(us.denied()) == [ORDERS]
    # What was said before is held on to.
    await us.hears(eu)
    assert list(us.denied()) == [ORDERS]
