"""History does not grow for ever."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from meshwarden.controlplane.store.compaction import compact_old
from meshwarden.controlplane.store.port import Compacted, Put, Store, Unavailable
from meshwarden.controlplane.store.sqlite import open_store


async def _is_compacted(store: Store) -> bool:
    try:
        await store.range("", at=1)
    except Compacted:
        return True
    return False


async def test_old_history_goes_and_records_stay(tmp_path: Path) -> None:
    async with open_store(tmp_path / "store.db") as store:
        for value in (b"1", b"2", b"3"):
            await store.commit([Put("a", value)])
        async with asyncio.timeout(60):
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: compact_old(store, look_s=0.01, keep_looks=2))
                while not await _is_compacted(store):  # noqa: ASYNC110 - nothing tells of it
                    await anyio.sleep(0.01)
                group.cancel_scope.cancel()
        record, revision = await store.get("a")
        assert record is not None
        assert record.value == b"3"
        async with aclosing(store.watch("", after=revision)) as batches:
            assert (await anext(batches)).events == ()


async def test_a_store_that_cant_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_store(tmp_path / "store.db") as store:
        asked = 0
        done = anyio.Event()

        async def compact(revision: int) -> None:
            nonlocal asked
            asked += 1
            if asked == 2:
                done.set()
            raise Unavailable("full")

        monkeypatch.setattr(store, "compact", compact)
        async with asyncio.timeout(60):
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: compact_old(store, look_s=0.01, keep_looks=0))
                await done.wait()
                group.cancel_scope.cancel()
