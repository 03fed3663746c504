"""Who watches the mesh: one look for all of them, changes for those who keep up, all of it for those who do not."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from meshwarden.controlplane.api.errors import Busy
from meshwarden.controlplane.api.live import feed as mesh_feed
from meshwarden.controlplane.api.live.feed import Feed
from meshwarden.controlplane.api.live.look import Look, Standing
from meshwarden.controlplane.api.live.scene import Scope
from meshwarden.controlplane.insight.flow import Flow
from meshwarden.v1.admin_service_pb2 import GraphEdge
from meshwarden.v1.console_service_pb2 import WatchMeshResponse

ALL = Scope("", "", 100)


def a_look(revision: int, **rates: float) -> Look:
    """A mesh whose services call "acme/orders", so many times a second each."""
    flows: Mapping[Any, Flow] = {
        (f"acme/{name}", "acme/orders"): Flow((rate, 0, 0, 0), (0, 0, 0), GraphEdge.PROVEN, ("eu",))
        for name, rate in rates.items()
    }
    services = {"acme/orders": Standing(1, 1, ("eu",), is_external=False)}
    return Look(datetime(2026, 11, 26, tzinfo=UTC), revision, services, flows, (), ())


class Mesh:
    """A mesh that changes as a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mesh_feed, "PAUSE_S", 0.0)
        self.now, self.looks = a_look(1, web=1), 0
        self.feed = Feed(self.look, WatchMeshResponse(region="eu"))

    async def look(self) -> Look:
        self.looks += 1
        await asyncio.sleep(0)
        return self.now

    async def looked(self, often: int) -> None:
        """Returns when it was looked at so often."""
        last = self.looks + often
        async with asyncio.timeout(60):
            while self.looks < last:  # noqa: ASYNC110 - the feed tells nobody that it looks
                await asyncio.sleep(0)


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> Mesh:
    return Mesh(monkeypatch)


async def following(watch: Any, revision: int) -> WatchMeshResponse:
    async with asyncio.timeout(60):
        while True:
            message: WatchMeshResponse = await anext(watch)
            if message.revision == revision:
                return message


async def test_those_who_watch_the_same_are_told_by_the_same_message(mesh: Mesh) -> None:
    watches = [mesh.feed.watch(ALL, f"viewer {number}") for number in range(50)]
    first = await asyncio.gather(*(anext(watch) for watch in watches))
    assert first[0].whole
    assert all(message is first[0] for message in first)
    assert mesh.looks == 1
    mesh.now = a_look(2, web=2)
    told = await asyncio.gather(*(following(watch, 2) for watch in watches))
    assert all(message is told[0] for message in told)
    assert not told[0].whole
    assert [edge.calls_per_s for edge in told[0].edges] == [2]
    for watch in watches:
        await watch.aclose()


async def test_whoever_is_slow_is_told_the_newest_and_nothing_that_is_over(mesh: Mesh) -> None:
    quick, slow = mesh.feed.watch(ALL, "quick"), mesh.feed.watch(ALL, "slow")
    await anext(quick)
    await anext(slow)
    for revision in range(2, 6):
        mesh.now = a_look(revision, **{f"web{revision}": 1.0})
        told = await following(quick, revision)
        assert not told.whole
        assert list(told.gone_edges) == [f"acme/web{revision - 1 if revision > 2 else ''} acme/orders"]
    late = await anext(slow)
    assert (late.whole, late.revision) == (True, 5)
    assert [edge.source for edge in late.edges] == ["acme/web5"]
    assert not late.gone_edges
    await quick.aclose()
    await slow.aclose()


async def test_many_wait_longer_for_what_is_large(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    watches = [mesh.feed.watch(ALL, f"viewer {number}") for number in range(20)]
    first = await asyncio.gather(*(anext(watch) for watch in watches))
    own = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await own(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(mesh_feed, "BYTES_PER_S", first[0].ByteSize() / 60)
    mesh.now = a_look(2, web=2)
    await asyncio.gather(*(following(watch, 2) for watch in watches))
    mesh.now = a_look(3, web=3)
    await asyncio.gather(*(following(watch, 3) for watch in watches))
    # Twenty times the change, where all there is may be sent once in a minute.
    assert max(slept) > 60
    for watch in watches:
        await watch.aclose()


async def test_where_nothing_changes_nothing_is_told(mesh: Mesh) -> None:
    watch = mesh.feed.watch(ALL, "viewer")
    await anext(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await mesh.looked(20)
    assert not waiting.done()
    mesh.now = a_look(1, web=1.00001)  # which is no news either
    await mesh.looked(20)
    assert not waiting.done()
    waiting.cancel()


async def test_nothing_is_kept_of_those_who_have_left_and_one_who_looks_may_leave(mesh: Mesh) -> None:
    watches = [mesh.feed.watch(ALL, "viewer") for _ in range(3)]
    for watch in watches:
        await anext(watch)
    waiting = [asyncio.ensure_future(anext(watch)) for watch in watches]
    await asyncio.sleep(0)
    waiting[0].cancel()  # who looks for the others
    mesh.now = a_look(2, web=3)
    async with asyncio.timeout(60):
        told = await asyncio.gather(*waiting[1:])
    assert [message.revision for message in told] == [2, 2]
    for watch in watches[1:]:
        await watch.aclose()
    assert not mesh.feed._views
    assert not mesh.feed._callers


async def test_how_many_watch_and_how_many_different_things_is_bounded(mesh: Mesh) -> None:
    mine = [mesh.feed.watch(ALL, "one") for _ in range(mesh_feed.VIEWERS_PER_CALLER)]
    for watch in mine:
        await anext(watch)
    with pytest.raises(Busy, match="of one caller"):
        await anext(mesh.feed.watch(ALL, "one"))
    others = [
        mesh.feed.watch(Scope("", "", number + 1), f"other {number}") for number in range(mesh_feed.MAX_SCOPES - 1)
    ]
    for watch in others:
        await anext(watch)
    with pytest.raises(Busy, match="different views"):
        await anext(mesh.feed.watch(Scope("acme", "", 7), "another"))
    await anext(mesh.feed.watch(ALL, "another"))  # what is watched already costs nothing more
    for watch in (*mine, *others):
        await watch.aclose()
