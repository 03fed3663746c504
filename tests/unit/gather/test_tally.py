"""What each stage has counted: it outlives restarts, and tenants that are gone do not outlive a week."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshwarden.controlplane.gather import tally as tally_module
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.gather.tally import INGEST, OVERFLOW, RETENTION, Tally


class World:
    """A tally on disk, at a time of the test's."""

    def __init__(self, path: Path) -> None:
        self.now = datetime(2026, 11, 26, tzinfo=UTC)
        self._path = path
        self.start()

    def start(self) -> None:
        self.durable, self.tally = Durable(self._path), Tally(lambda: self.now)
        self.durable.add(self.tally)

    def restart(self) -> None:
        self.durable.close()
        self.start()

    async def comes(self, tenant: str, count: int = 1) -> None:
        self.tally.received(INGEST, "span", tenant, count)
        self.tally.passed(INGEST, "span", tenant, count - 1)
        self.tally.drop(INGEST, "span", "malformed", tenant)
        await self.durable.flush()

    async def passes(self, time: timedelta) -> None:
        self.now += time
        await self.durable.work(self.tally.forget)

    def tenants(self) -> set[str]:
        return {key[3] for key in self.tally.totals()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "gather.sqlite")


async def test_a_tenant_of_which_nothing_comes_is_forgotten_as_a_whole(world: World) -> None:
    await world.comes("acme", 5)
    await world.comes("globex", 5)
    await world.passes(RETENTION)
    await world.comes("globex")
    assert world.tenants() == {"acme", "globex"}
    await world.passes(timedelta(seconds=2))
    assert world.tenants() == {"globex"}
    world.restart()
    assert world.tenants() == {"globex"}
    assert world.tally.totals()["received", INGEST, "span", "globex", ""] == 6


async def test_restarts_do_not_keep_it(world: World) -> None:
    await world.comes("acme")
    for _ in range(4):
        await world.passes(RETENTION / 4)
        world.restart()
    assert world.tenants() == {"acme"}
    await world.passes(timedelta(seconds=2))
    assert world.tenants() == set()


async def test_who_comes_again_begins_again(world: World) -> None:
    await world.comes("acme", 5)
    await world.passes(RETENTION * 2)
    await world.comes("acme", 3)
    world.restart()
    totals = world.tally.totals()
    assert totals["received", INGEST, "span", "acme", ""] == 3
    assert totals["passed", INGEST, "span", "acme", ""] + totals["dropped", INGEST, "span", "acme", "malformed"] == 3


async def test_what_is_not_written_yet_is_not_forgotten(world: World) -> None:
    await world.comes("acme", 5)
    world.now += RETENTION * 2
    world.tally.received(INGEST, "span", "acme", 1)
    await world.passes(timedelta(0))
    await world.durable.flush()
    world.restart()
    assert world.tally.totals()["received", INGEST, "span", "acme", ""] == 6


async def test_what_is_of_no_tenant_stays(world: World) -> None:
    for tenant in ("", OVERFLOW):
        await world.comes(tenant)
    await world.passes(RETENTION * 9)
    assert world.tenants() == {"", OVERFLOW}


async def test_who_is_gone_leaves_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "MAX_SERIES", 3)
    await world.comes("acme", 2)
    await world.comes("globex", 2)
    assert world.tenants() == {"acme", OVERFLOW}
    await world.passes(RETENTION * 2)
    monkeypatch.setattr(tally_module, "MAX_SERIES", 6)  # what came beyond the bound stays
    await world.comes("globex", 2)
    assert world.tenants() == {"globex", OVERFLOW}


async def test_counts_of_a_file_from_before_are_of_today(world: World) -> None:
    await world.comes("acme")
    await world.durable.work(lambda db: db.execute("DROP TABLE tally_tenants").fetchall())
    world.restart()
    await world.passes(RETENTION)
    assert world.tenants() == {"acme"}
    await world.passes(timedelta(seconds=2))
    assert world.tenants() == set()


async def test_what_others_have_written_keeps_it_too(world: World) -> None:
    await world.comes("acme")
    await world.passes(RETENTION)
    key = ("passed", "control.store", "span", "acme", "")
    await world.durable.work(lambda db: world.tally.write(db, {key: 2}))
    world.tally.written_already(key, 2)
    await world.passes(timedelta(seconds=2))
    world.restart()
    await world.passes(timedelta(seconds=2))
    assert world.tally.totals()[key] == 2
