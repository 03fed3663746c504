from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from meshwarden.controlplane.audit import read
from meshwarden.controlplane.audit.anchor import ENDS, Anchor
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.store.port import Conflict, Put, Store
from meshwarden.controlplane.store.sqlite import open_store

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


class Place:
    """A store, and audit logs beside it."""

    def __init__(self, directory: Path, store: Store, stack: AsyncExitStack) -> None:
        self.path, self.store, self._stack = directory / "audit.jsonl", store, stack

    async def open(self, path: Path | None = None) -> tuple[FileAuditLog, Anchor]:
        path = path or self.path
        log = await self._stack.enter_async_context(FileAuditLog.open(path, lambda: NOW))
        return log, Anchor(self.store, log, lambda: log.end, path, "host:/state", lambda: NOW)

    def events(self) -> list[str]:
        return [entry["event"] for entry in read.newest(self.path, lambda _: True, 100).entries]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        yield Place(tmp_path, await stack.enter_async_context(open_store(tmp_path / "store")), stack)


async def test_the_end_is_noted_when_it_has_moved(place: Place) -> None:
    log, anchor = await place.open()
    await anchor.note()
    assert anchor.noted.link.seq == 0
    await log.record("a")
    await anchor.note()
    assert anchor.noted.link == log.end
    _, before = await place.store.get("/x")
    await anchor.note()
    assert (await place.store.get("/x"))[1] == before, "nothing has moved"
    assert read.verify(place.path, anchor.noted.link) == log.end


async def test_another_run_goes_on(place: Place) -> None:
    log, anchor = await place.open()
    await log.record("a")
    await anchor.note()
    log.close()
    log, again = await place.open()
    await log.record("b")
    await again.note()
    assert again.noted.link == log.end
    assert "audit.broken" not in place.events()


@pytest.mark.parametrize("made_anew", [False, True])
async def test_a_chain_that_is_not_the_one_noted_is_an_event_of_the_next(place: Place, made_anew: bool) -> None:
    log, anchor = await place.open()
    for event in ("a", "b", "c"):
        await log.record(event)
    await anchor.note()
    log.close()
    if made_anew:
        place.path.unlink()
    else:
        place.path.write_bytes(b"".join(place.path.read_bytes().splitlines(keepends=True)[:2]))
    log, again = await place.open()
    await again.note()
    await log.record("d")
    await again.note()
    assert "audit.broken" in place.events()
    assert again.noted.link == log.end


async def test_two_writers_of_one_name_are_told_apart(place: Place, tmp_path: Path) -> None:
    one, first = await place.open()
    two, second = await place.open(tmp_path / "copy.jsonl")
    for log, anchor in ((one, first), (two, second)):
        await log.record("a")
        if anchor is first:
            await anchor.note()
    await one.record("b")
    second._revision = 0  # it had looked before the first noted anything
    with pytest.raises(Conflict):
        await second.note()


async def test_a_note_that_is_none_is_as_no_note(place: Place) -> None:
    log, anchor = await place.open()
    await place.store.commit([Put(anchor._key, b"noise")])
    assert anchor._key.startswith(ENDS)
    await log.record("a")
    await anchor.note()
    assert anchor.noted.link == log.end
