"""The store is marked as long as it has what the last release would misread."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import apsw
import pytest

from meshwarden.controlplane.publish import way_back
from meshwarden.controlplane.publish.way_back import WayBack
from meshwarden.controlplane.resources import model
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.controlplane.store.port import Delete, Put, Store, Unusable
from meshwarden.controlplane.store.sqlite import FORMAT, RELEASED, open_store
from meshwarden.v1.resources_pb2 import Resource

SERVICE = "kind: Service\nmetadata: {tenant: platform, name: NAME}\nspec: {protocol: GRPC}"


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last release knows no service whose name is "new"."""

    def unreleased(resource: Resource) -> tuple[str, ...]:
        return ("spec",) if resource.service.metadata.name == "new" else ()

    monkeypatch.setattr(way_back, "unreleased", unreleased)
    monkeypatch.setattr(way_back, "may_be_unreleased", lambda kind: kind in ("Service", "Teapot"))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "store") as opened:
        yield opened


def put(name: str) -> Put:
    resource = parse(SERVICE.replace("NAME", name), "m")[0].resource
    return Put(model.key_of(resource), model.encode(resource))


def number(path: Path) -> int:
    with apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY) as connection:
        ((found,),) = connection.execute("PRAGMA user_version").fetchall()
    return int(found)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - of another connection's file
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("newer")
async def test_the_mark_follows_the_resources(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "store"
    await store.commit([put("old")])
    async with anyio.create_task_group() as group:
        group.start_soon(WayBack(store).run)
        await store.commit([put("new")])
        await until(lambda: number(path) == FORMAT)
        await store.commit([Delete(put("new").key)])
        await until(lambda: number(path) == RELEASED)
        await store.commit([Put(f"{model.ROOT}Teapot/platform/a", b"\xff")])
        await until(lambda: number(path) == FORMAT)
        group.cancel_scope.cancel()
    async with anyio.create_task_group() as group:  # a start: what was there decides
        await store.commit([Delete(f"{model.ROOT}Teapot/platform/a")])
        group.start_soon(WayBack(store).run)
        await until(lambda: number(path) == RELEASED)
        group.cancel_scope.cancel()


async def test_a_marked_store_is_none_of_the_last_releases(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.mark(True)
    async with open_store(tmp_path / "store"):
        """This one opens it."""
    monkeypatch.setattr("meshwarden.controlplane.store.sqlite.FORMAT", RELEASED)
    with pytest.raises(Unusable, match="format 2, and this Meshwarden knows up to 1: run the newer one"):
        async with open_store(tmp_path / "store"):
            pass
    monkeypatch.undo()
    await store.mark(False)
    monkeypatch.setattr("meshwarden.controlplane.store.sqlite.FORMAT", RELEASED)
    async with open_store(tmp_path / "store"):
        """And so does that."""
