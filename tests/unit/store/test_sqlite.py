"""What is SQLite's own: the file, its format, a full disk, a busy one."""

import asyncio
import errno
import os
import stat
import subprocess
import sys
import threading
from contextlib import aclosing
from pathlib import Path

import apsw
import pytest

from meshwarden.controlplane.store import sqlite_writer
from meshwarden.controlplane.store.port import Put, TooLarge, Unavailable, Unusable
from meshwarden.controlplane.store.sqlite import SqliteStore, open_store
from meshwarden.controlplane.store.wake import Wake


def execute(path: Path, *statements: str) -> None:
    connection = apsw.Connection(str(path))
    for statement in statements:
        connection.execute(statement).fetchall()
    connection.close()


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "store.db"
    async with open_store(path) as store:
        await store.commit([Put("a", b"")])
        modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in path.parent.iterdir()}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600, "store.db.wake": 0o700}


async def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(Unusable, match="chmod"):
        async with open_store(directory / "store.db"):
            pass


async def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_store(path) as store:
        await store.commit([Put("a", b"1")])
    execute(path, "PRAGMA user_version = 3")
    with pytest.raises(Unusable, match="format 3, and this Meshwarden knows up to 2"):
        async with open_store(path):
            pass
    execute(path, "PRAGMA user_version = 1")
    async with open_store(path) as store:
        assert (await store.get("a"))[0] is not None


@pytest.mark.parametrize("statement", ["CREATE TABLE mine (x)", "PRAGMA application_id = 7"])
async def test_another_programs_database_is_refused(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "store.db"
    execute(path, "PRAGMA user_version = 0", statement)
    with pytest.raises(Unusable, match="not a store"):
        async with open_store(path):
            pass


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"kind: Tenant\n" * 500)
    with pytest.raises(Unusable, match="not a store"):
        async with open_store(path):
            pass


async def test_a_copy_in_the_files_place_is_another_history(tmp_path: Path) -> None:
    path, copy = tmp_path / "store.db", tmp_path / "copy.db"
    async with open_store(path) as store:
        await store.commit([Put("a", b"1")])
        first = store.incarnation
    copy.write_bytes(path.read_bytes())
    copy.rename(path)
    async with open_store(path) as store:
        assert store.incarnation != first
        assert (await store.get("a"))[0] is not None


async def test_a_full_disk_refuses_the_group_and_the_store_recovers(tmp_path: Path) -> None:
    engine = SqliteStore(tmp_path / "store.db")
    try:
        held = await engine.commit([Put("held", b"1")])
        connection = engine._writer._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchall()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall()
        results = await asyncio.gather(
            *(engine.commit([Put(f"k{n}", b"x" * 20_000)]) for n in range(5)), return_exceptions=True
        )
        assert all(isinstance(result, Unavailable) for result in results), results
        assert "the disk is full" in str(results[0])
        page = await engine.range("")
        assert [record.key for record in page.records] == ["held"]
        assert page.revision == held
        connection.execute("PRAGMA max_page_count = 1000000").fetchall()
        assert await engine.commit([Put("k", b"x" * 20_000)]) > held
    finally:
        await engine.close()


async def test_a_store_that_another_process_holds_is_unavailable_and_then_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshwarden.controlplane.store.sqlite.BUSY_MS", 50)
    path = tmp_path / "store.db"
    async with open_store(path) as store:
        await store.commit([Put("a", b"1")])
        other = apsw.Connection(str(path))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="another process"):
            await store.commit([Put("a", b"2")])
        record, _ = await store.get("a")
        assert record is not None
        assert record.value == b"1"
        other.execute("ROLLBACK")
        other.close()
        await store.commit([Put("a", b"2")])


async def test_one_refused_commit_leaves_its_group_alone(tmp_path: Path) -> None:
    async with open_store(tmp_path / "store.db") as store:
        results = await asyncio.gather(
            *(store.commit([Put(f"k{n % 10}", b"", 0)]) for n in range(100)),
            return_exceptions=True,
        )
        written = [result for result in results if isinstance(result, int)]
        assert len(written) == len(set(written)) == 10
        assert len((await store.range("")).records) == 10


async def test_a_defect_in_one_job_reaches_its_caller_and_the_writer_lives_on(tmp_path: Path) -> None:
    engine = SqliteStore(tmp_path / "store.db")
    try:

        def broken(transaction: sqlite_writer.Transaction) -> None:
            transaction.commit([Put("half", b"")], None)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await engine._writer.do(broken)
        assert (await engine.get("half"))[0] is None
        await engine.commit([Put("a", b"")])
    finally:
        await engine.close()


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    async with open_store(tmp_path / "store.db") as store:
        await store.commit([Put("a", b"")])
    with pytest.raises(Unavailable):
        await store.commit([Put("a", b"")])
    with pytest.raises(Unavailable):
        await store.get("a")
    assert not list((tmp_path / "store.db.wake").iterdir())


async def test_it_commits_where_there_is_no_descriptor_left_to_tell_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listdir(_: object) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    async with open_store(tmp_path / "store.db") as store:
        monkeypatch.setattr("meshwarden.controlplane.store.wake.os.listdir", listdir)
        async with asyncio.timeout(60):
            first = await store.commit([Put("a", b"")])
            assert await store.commit([Put("a", b"")]) > first


def test_one_that_cant_be_opened_on_a_full_disk_says_so(tmp_path: Path) -> None:
    code = (
        "import asyncio, pathlib, resource, sys\n"
        "from meshwarden.controlplane.store.port import Unavailable\n"
        "from meshwarden.controlplane.store.sqlite import open_store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "async def main():\n"
        "    async with open_store(pathlib.Path(sys.argv[1])):\n"
        "        pass\n"
        "try: asyncio.run(main())\n"
        "except Unavailable as error: print(error)\n"
    )
    for number, limit in enumerate((0, 5000, 20_000)):
        path = tmp_path / f"s{number}" / "store.db"
        told = subprocess.run([sys.executable, "-c", code, path, str(limit)], capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        assert "the store can't" in told.stdout or "the disk is full" in told.stdout


async def test_a_commit_of_a_caller_that_went_away_hurts_nobody(tmp_path: Path) -> None:
    async with open_store(tmp_path / "store.db") as store:
        tasks = [asyncio.ensure_future(store.commit([Put(f"k{n}", b"")])) for n in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, int) for result in results[1::2])
        await store.commit([Put("after", b"")])


async def test_limits_are_checked_before_the_engine(tmp_path: Path) -> None:
    async with open_store(tmp_path / "store.db") as store:
        with pytest.raises(TooLarge, match="110"):
            await store.commit([Put(f"{n}", b"") for n in range(111)])
        with pytest.raises(ValueError, match="expect"):
            await store.commit([Put("a", b"", -2)])


async def test_a_wake_up_reaches_the_living_and_forgets_the_dead(tmp_path: Path) -> None:
    # Deeper than the 108 bytes of a Unix address.
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True)
    one, two = Wake(directory / "wake"), Wake(directory / "wake")
    woken = asyncio.Event()
    two.listen(woken.set)
    one.listen(lambda: pytest.fail("one's own commits wake it without a datagram"))
    gone = Wake(directory / "wake")
    gone._socket.close()
    os.close(gone._directory)
    one.notify()
    async with asyncio.timeout(60):
        await woken.wait()
    assert len(list((directory / "wake").iterdir())) == 2
    one.close()
    two.close()


async def test_a_watch_that_is_left_alone_ends_without_a_trace(tmp_path: Path) -> None:
    engine = SqliteStore(tmp_path / "store.db")
    try:
        async with aclosing(engine.watch("", after=0)) as batches:
            await anext(batches)
            assert len(engine._waiting) == 1
        assert not engine._waiting
    finally:
        await engine.close()


async def test_one_record_is_read_at_once_and_never_beside_the_reader(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(connection: apsw.Connection) -> int:
        begun.set()
        go_on.wait()
        return len(connection.execute("SELECT key FROM record").fetchall())

    store = SqliteStore(tmp_path / "store.db")
    try:
        await store.commit([Put("a", b"1")])
        one, _ = await store.get("a")
        assert one is not None
        assert (one.value, store._reads) == (b"1", 0)
        waiting = [asyncio.ensure_future(store._read(slow)) for _ in range(2)]
        await asyncio.to_thread(begun.wait)
        beside = asyncio.ensure_future(store.get("a"))
        # The connection is the reader's until it says that it is done, whether anybody still waits for that or not.
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        late = asyncio.ensure_future(store.get("a"))
        await asyncio.sleep(0)
        assert not beside.done()
        assert not late.done()
        go_on.set()
        assert await waiting[1] == 1
        assert [(await found)[0] for found in (beside, late)] == [one, one]
        assert store._reads == 0
        with pytest.raises(Unavailable):
            await store._read(_fails)
        assert (await store.get("a"))[0] == one
    finally:
        go_on.set()
        await store.close()
    with pytest.raises(Unavailable, match="closed"):
        await store.get("a")


def _fails(connection: apsw.Connection) -> None:
    connection.execute("SELECT nothing FROM nowhere")
