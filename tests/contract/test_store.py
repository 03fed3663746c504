"""What every engine of the store promises. An engine joins by one line in ENGINES."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshwarden.controlplane.store import port
from meshwarden.controlplane.store.port import ABSENT, ANY, Batch, Check, Delete, Event, Put, Record, Store
from meshwarden.controlplane.store.sqlite import open_store

Open = Callable[[], AbstractAsyncContextManager[Store]]

ENGINES: dict[str, Callable[[Path], Open]] = {
    "sqlite": lambda directory: lambda: open_store(directory / "s" / "store.db")
}


@pytest.fixture(params=ENGINES)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same store again with each call."""
    return ENGINES[request.param](tmp_path)


@pytest.fixture
async def store(opener: Open) -> AsyncIterator[Store]:
    async with opener() as opened:
        yield opened


async def take(batches: AsyncIterator[Batch], count: int) -> list[Batch]:
    """The next `count` batches that are no bookmarks."""
    found: list[Batch] = []
    async with asyncio.timeout(60):
        async for batch in batches:
            if batch.events:
                found.append(batch)
            if len(found) == count:
                break
    return found


async def bookmark(batches: AsyncIterator[Batch]) -> int:
    async with asyncio.timeout(60):
        async for batch in batches:
            if not batch.events:
                return batch.revision
    raise AssertionError("the watch ended")


async def all_of(store: Store, prefix: str, at: int = 0, limit: int = 500) -> dict[str, bytes]:
    found, start = {}, ""
    while True:
        page = await store.range(prefix, start=start, limit=limit, at=at)
        found.update({record.key: record.value for record in page.records})
        start = page.next_key
        if not start:
            return found


async def test_a_put_is_read_back_with_its_revision(store: Store) -> None:
    assert (await store.get("a"))[0] is None
    first = await store.commit([Put("a", b"1")])
    second = await store.commit([Put("b", b"\0\xff")])
    assert 0 < first < second
    assert await store.get("a") == (Record("a", b"1", first), second)
    assert (await store.get("b"))[0] == Record("b", b"\0\xff", second)


async def test_a_commit_is_one_revision_and_one_batch(store: Store) -> None:
    await store.commit([Put("k/gone", b"x")])
    revision = await store.commit([Put("k/b", b"2"), Put("k/a", b"1"), Delete("k/gone")])
    async with aclosing(store.watch("k/", after=revision - 1)) as batches:
        (batch,) = await take(batches, 1)
    assert batch.revision == revision
    assert set(batch.events) == {Event("k/a", b"1"), Event("k/b", b"2"), Event("k/gone", None)}


async def test_a_guard_that_does_not_hold_changes_nothing_and_says_where_records_stand(store: Store) -> None:
    revision = await store.commit([Put("a", b"1")])
    with pytest.raises(port.Conflict) as conflict:
        await store.commit([Put("new", b""), Put("a", b"2", ABSENT), Check("b", 7)])
    assert conflict.value.actual == {"a": revision, "b": 0}
    assert await store.get("new") == (None, revision)
    await store.commit([Put("a", b"2", revision), Check("b", ABSENT)])
    with pytest.raises(port.Conflict):
        await store.commit([Delete("a", revision)])


async def test_a_deleted_record_that_is_made_anew_is_no_old_one(store: Store) -> None:
    first = await store.commit([Put("a", b"1")])
    await store.commit([Delete("a", first)])
    await store.commit([Put("a", b"1", ABSENT)])
    with pytest.raises(port.Conflict):
        await store.commit([Put("a", b"2", first)])


async def test_a_commit_that_changes_nothing_has_the_present_revision(store: Store) -> None:
    revision = await store.commit([Put("a", b"1")])
    assert await store.commit([]) == revision
    assert await store.commit([Check("a", revision), Delete("none", ANY)]) == revision


async def test_a_range_has_pages_as_of_one_revision(store: Store) -> None:
    keys = [f"p/{number:03}" for number in range(25)]
    at = await store.commit([Put(key, b"old") for key in keys])
    await store.commit([Put("p", b""), Put("q", b"")])
    page = await store.range("p/", limit=10)
    assert [record.key for record in page.records] == keys[:10]
    assert page.next_key == keys[10]
    await store.commit([Put(keys[10], b"new"), Delete(keys[11]), Put("p/0100", b"")])
    assert await all_of(store, "p/", at=at, limit=7) == dict.fromkeys(keys, b"old")
    now = await all_of(store, "p/", limit=7)
    assert now[keys[10]] == b"new"
    assert keys[11] not in now
    assert "p/0100" in now


async def test_the_empty_prefix_is_everything(store: Store) -> None:
    revision = await store.commit([Put("a", b"1"), Put("ÿ", b"2"), Put("\U0010ffff", b"3")])
    assert {"a", "ÿ", "\U0010ffff"} <= set(await all_of(store, ""))
    async with aclosing(store.watch("", after=revision - 1)) as batches:
        (batch,) = await take(batches, 1)
    assert {event.key for event in batch.events} >= {"a", "ÿ", "\U0010ffff"}


@pytest.mark.parametrize("prefix", ["ÿ", "a\x7f", "\U0010ffff", "߿"])
async def test_a_prefix_may_end_in_any_character(store: Store, prefix: str) -> None:
    revision = await store.commit([Put(prefix, b""), Put(prefix + "\U0010ffff", b""), Put("b", b"")])
    assert set(await all_of(store, prefix)) == {prefix, prefix + "\U0010ffff"}
    async with aclosing(store.watch(prefix, after=revision - 1)) as batches:
        (batch,) = await take(batches, 1)
    assert {event.key for event in batch.events} == {prefix, prefix + "\U0010ffff"}


async def test_a_watch_gives_what_was_and_what_comes_and_after_is_exclusive(store: Store) -> None:
    one = await store.commit([Put("w/a", b"1")])
    two = await store.commit([Put("w/a", b"2")])
    async with aclosing(store.watch("w/", after=one)) as batches:
        assert await take(batches, 1) == [Batch(two, (Event("w/a", b"2"),))]
        three = await store.commit([Delete("w/a")])
        await store.commit([Put("other", b"")])
        assert await take(batches, 1) == [Batch(three, (Event("w/a", None),))]


async def test_a_watch_says_when_it_has_caught_up_and_moves_on_while_others_write(store: Store) -> None:
    revision = await store.commit([Put("w/a", b"1")])
    async with aclosing(store.watch("w/", after=0)) as batches:
        assert [batch.revision async for batch in _first(batches, 2)] == [revision, revision]
        elsewhere = await store.commit([Put("x", b"")])
        assert await bookmark(batches) >= elsewhere


async def _first(batches: AsyncIterator[Batch], count: int) -> AsyncIterator[Batch]:
    for _ in range(count):
        async with asyncio.timeout(60):
            yield await anext(batches)


async def test_a_long_history_comes_whole_and_in_order(store: Store) -> None:
    wanted = [await store.commit([Put(f"l/{n % 7}-{part}", b"%d" % n) for part in range(90)]) for n in range(40)]
    async with aclosing(store.watch("l/", after=0)) as batches:
        found = await take(batches, 40)
    assert [batch.revision for batch in found] == wanted
    assert {len(batch.events) for batch in found} == {90}


async def test_large_records_come_in_small_portions(store: Store) -> None:
    large = {f"big/{number:02}": bytes([number]) * 900_000 for number in range(12)}
    wanted = [await store.commit([Put(key, value)]) for key, value in large.items()]
    page = await store.range("big/")
    assert sum(len(record.value) for record in page.records) < 2_000_000
    assert await all_of(store, "big/") == await all_of(store, "big/", at=wanted[-1]) == large
    async with aclosing(store.watch("big/", after=0)) as batches:
        assert [batch.revision for batch in await take(batches, 12)] == wanted


async def test_history_that_is_compacted_is_refused_and_records_stay(store: Store) -> None:
    await store.commit([Put("c/a", b"1"), Put("c/b", b"1"), Put("c/gone", b"1")])
    await store.commit([Put("c/a", b"2"), Delete("c/gone")])
    revision = await store.commit([Put("c/a", b"3")])
    last = await store.commit([Put("c/a", b"4")])
    await store.compact(revision)
    await store.compact(revision - 1)
    assert await all_of(store, "c/", at=revision) == {"c/a": b"3", "c/b": b"1"}
    assert await all_of(store, "c/") == {"c/a": b"4", "c/b": b"1"}
    async with aclosing(store.watch("c/", after=revision)) as batches:
        assert [batch.revision for batch in await take(batches, 1)] == [last]
    with pytest.raises(port.Compacted) as compacted:
        await store.range("c/", at=revision - 1)
    assert compacted.value.revision == revision
    with pytest.raises(port.Compacted):
        await anext(aiter(store.watch("c/", after=revision - 1)))


async def test_a_revision_that_has_not_been_is_refused(store: Store) -> None:
    revision = await store.commit([Put("a", b"")])
    with pytest.raises(port.Future):
        await store.range("", at=revision + 1000)
    with pytest.raises(port.Future):
        await anext(aiter(store.watch("", after=revision + 1000)))
    with pytest.raises(port.Future):
        await store.compact(revision + 1000)


@pytest.mark.parametrize(
    ("ops", "error"),
    [
        ([Put(f"k{n}", b"") for n in range(111)], port.TooLarge),
        ([Put("a", b"x" * 1_400_001)], port.TooLarge),
        ([Put("a", b""), Check("a", 0)], port.TooLarge),
        ([Put("", b"")], port.InvalidKey),
        ([Put("k" * 1025, b"")], port.InvalidKey),
        ([Put("\ud800", b"")], port.InvalidKey),
        ([Put("a\0b", b"")], port.InvalidKey),
    ],
)
async def test_what_exceeds_the_limits_is_refused_and_named(
    store: Store, ops: list[port.Op], error: type[Exception]
) -> None:
    _, before = await store.get("any")
    with pytest.raises(error):
        await store.commit([Put("fine", b""), *ops])
    assert await store.get("fine") == (None, before)


async def test_a_page_has_a_limit(store: Store) -> None:
    with pytest.raises(port.TooLarge, match="1000"):
        await store.range("", limit=1001)


async def test_concurrent_counters_lose_nothing(store: Store) -> None:
    await store.commit([Put("n", b"0")])

    async def add() -> None:
        while True:
            record, _ = await store.get("n")
            assert record is not None
            try:
                await store.commit([Put("n", b"%d" % (int(record.value) + 1), record.revision)])
            except port.Conflict:
                continue
            return

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(add)
    record, _ = await store.get("n")
    assert record is not None
    assert record.value == b"20"


async def test_two_handles_share_one_history(opener: Open) -> None:
    async with opener() as one, opener() as two:
        assert one.incarnation == two.incarnation
        async with aclosing(two.watch("s/", after=0)) as batches:
            await bookmark(batches)
            revision = await one.commit([Put("s/a", b"1")])
            assert await take(batches, 1) == [Batch(revision, (Event("s/a", b"1"),))]
        assert (await two.get("s/a"))[0] == Record("s/a", b"1", revision)
        incarnation = one.incarnation
    async with opener() as again:
        assert again.incarnation == incarnation
        assert (await again.get("s/a"))[0] == Record("s/a", b"1", revision)


async def test_a_lease_has_one_owner_and_its_token_grows(store: Store) -> None:
    lease = await store.acquire("sweeper", "one", 30)
    with pytest.raises(port.LeaseHeld, match="one"):
        await store.acquire("sweeper", "two", 30)
    await store.commit([Put("a", b"")], fence=lease)
    renewed = await store.renew(lease)
    assert renewed.token == lease.token
    assert renewed.deadline_s >= lease.deadline_s
    await store.renew(renewed, release=True)
    other = await store.acquire("sweeper", "two", 30)
    assert other.token > lease.token
    with pytest.raises(port.Fenced):
        await store.commit([Put("a", b"late")], fence=lease)
    with pytest.raises(port.LeaseLost):
        await store.renew(lease)
    assert (await store.get("a"))[0] is not None


async def test_an_owner_that_takes_its_lease_again_fences_its_former_self(store: Store) -> None:
    former = await store.acquire("x", "one", 30)
    lease = await store.acquire("x", "one", 30)
    assert lease.token > former.token
    with pytest.raises(port.Fenced):
        await store.commit([Put("a", b"")], fence=former)
    await store.commit([Put("a", b"")], fence=lease)


async def test_a_lease_ends_by_itself(store: Store) -> None:
    lease = await store.acquire("x", "one", 1)
    async with asyncio.timeout(60):
        while True:
            try:
                taken = await store.acquire("x", "two", 30)
                break
            except port.LeaseHeld:
                await anyio.sleep(0.05)
    assert taken.token > lease.token
    with pytest.raises(port.Fenced):
        await store.commit([Put("a", b"")], fence=lease)


async def test_leases_are_outside_what_is_watched(store: Store) -> None:
    await store.acquire("x", "one", 30)
    revision = await store.commit([Put("a", b"")])
    async with aclosing(store.watch("", after=0)) as batches:
        assert await take(batches, 1) == [Batch(revision, (Event("a", b""),))]
    assert set(await all_of(store, "")) == {"a"}


@pytest.mark.parametrize("ttl_s", [0, 0.5, -1, 3601, float("nan")])
async def test_a_lease_has_bounds(store: Store, ttl_s: float) -> None:
    with pytest.raises(port.TooLarge):
        await store.acquire("x", "one", ttl_s)


HOLDER = """
import asyncio, sys
from pathlib import Path
from meshwarden.controlplane.store.port import Fenced, LeaseLost, Put
from meshwarden.controlplane.store.sqlite import open_store

async def main():
    async with open_store(Path(sys.argv[1])) as store:
        lease = await store.acquire("x", "paused", 1)
        print("held", lease.token, flush=True)
        sys.stdin.readline()
        try:
            await store.commit([Put("fenced", b"by the paused")], fence=lease)
            print("written", flush=True)
        except Fenced:
            print("fenced", flush=True)

asyncio.run(main())
"""


async def test_a_holder_that_was_paused_is_fenced(tmp_path: Path) -> None:
    path = tmp_path / "s" / "store.db"
    async with open_store(path) as store:
        holder = await asyncio.to_thread(
            subprocess.Popen,
            [sys.executable, "-c", HOLDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            word, token = (await asyncio.to_thread(holder.stdout.readline)).split()
            assert word == "held"
            os.kill(holder.pid, signal.SIGSTOP)
            async with asyncio.timeout(60):
                while True:
                    try:
                        lease = await store.acquire("x", "next", 30)
                        break
                    except port.LeaseHeld:
                        await anyio.sleep(0.05)
            await store.commit([Put("fenced", b"by the next")], fence=lease)
            os.kill(holder.pid, signal.SIGCONT)
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert (await asyncio.to_thread(holder.stdout.readline)).strip() == "fenced"
        assert lease.token > int(token)
        record, _ = await store.get("fenced")
        assert record is not None
        assert record.value == b"by the next"


KEYS = st.sampled_from(["a", "a/b", "a/c", "b", "ÿ", "é/1"])
OPS = st.lists(
    st.one_of(
        st.builds(Put, KEYS, st.binary(max_size=4), st.sampled_from([ANY, ABSENT])),
        st.builds(Delete, KEYS, st.just(ANY)),
        st.builds(Check, KEYS, st.just(ABSENT)),
    ),
    max_size=4,
    unique_by=lambda op: op.key,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commits=st.lists(OPS, max_size=12), prefix=st.sampled_from(["", "a", "a/", "ÿ", "é"]))
async def test_history_is_as_in_a_model(
    tmp_path_factory: pytest.TempPathFactory, commits: list[list[port.Op]], prefix: str
) -> None:
    """Every engine that keeps files can be held against a dict; what it says of each revision must agree."""
    async with open_store(tmp_path_factory.mktemp("model") / "s" / "store.db") as store:
        now: dict[str, bytes] = {}
        states: dict[int, dict[str, bytes]] = {}
        history: list[tuple[int, set[Event]]] = []
        for ops in commits:
            wrong = {op.key for op in ops if op.expect == ABSENT and op.key in now}
            if wrong:
                with pytest.raises(port.Conflict) as conflict:
                    await store.commit(ops)
                assert set(conflict.value.actual) == wrong
                continue
            events = set()
            for op in ops:
                if isinstance(op, Put):
                    now[op.key] = op.value
                    events.add(Event(op.key, op.value))
                elif isinstance(op, Delete) and now.pop(op.key, None) is not None:
                    events.add(Event(op.key, None))
            revision = await store.commit(ops)
            states[revision] = dict(now)
            if events:
                history.append((revision, {event for event in events if event.key.startswith(prefix)}))
        for revision, state in states.items():
            if revision:
                wanted = {key: value for key, value in state.items() if key.startswith(prefix)}
                assert await all_of(store, prefix, at=revision, limit=2) == wanted
        expected = [entry for entry in history if entry[1]]
        async with aclosing(store.watch(prefix, after=0)) as batches:
            found = (
                [(batch.revision, set(batch.events)) for batch in await take(batches, len(expected))]
                if expected
                else []
            )
        assert found == expected
