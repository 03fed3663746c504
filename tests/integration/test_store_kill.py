"""kill -9 at any point: every acknowledged write is there, none is torn, no revision stands twice."""

import random
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path

import apsw

from meshwarden.controlplane.store.port import Store
from meshwarden.controlplane.store.sqlite import open_store

# Writes pairs of records and says which are acknowledged; the two of a pair are equal, or the commit was torn.
WRITER = """
import asyncio, sys
from pathlib import Path
import anyio
from meshwarden.controlplane.store.port import Put
from meshwarden.controlplane.store.sqlite import open_store

async def write(store, name):
    number = 0
    while True:
        number += 1
        value = f"{name}-{number}".encode()
        revision = await store.commit([Put(f"kill/{name}/left", value), Put(f"kill/{name}/right", value)])
        sys.stdout.write(f"{name} {number} {revision}\\n")
        sys.stdout.flush()

async def main():
    async with open_store(Path(sys.argv[1])) as store:
        async with anyio.create_task_group() as group:
            for client in range(4):
                group.start_soon(write, store, f"{sys.argv[2]}-{client}")

asyncio.run(main())
"""
ROUNDS = 8


def start(path: Path, name: str, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as out:
        return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=out)


def acknowledged(log: Path) -> list[tuple[str, int, int]]:
    """What a writer has said of whole lines; a line cut by the kill does not count."""
    lines = log.read_bytes().decode().split("\n")[:-1]
    return [(name, int(number), int(revision)) for name, number, revision in map(str.split, lines)]


def wait_for(log: Path, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(acknowledged(log)) < count:
        if time.monotonic() > deadline:
            raise AssertionError("the writer writes nothing")
        time.sleep(0.005)


async def history(store: Store) -> dict[int, dict[str, bytes | None]]:
    found: dict[int, dict[str, bytes | None]] = {}
    async with aclosing(store.watch("kill/", after=0)) as batches:
        async for batch in batches:
            if not batch.events:
                return found
            assert batch.revision not in found
            found[batch.revision] = {event.key: event.value for event in batch.events}
    raise AssertionError("the watch ended")


async def test_no_acknowledged_write_is_lost(tmp_path: Path) -> None:
    rng = random.Random(7)
    path = tmp_path / "s" / "store.db"
    said: list[tuple[str, int, int]] = []
    for number in range(ROUNDS):
        logs = [tmp_path / f"{number}-{side}.log" for side in "ab"]
        writers = [start(path, f"{number}{side}", log) for side, log in zip("ab", logs, strict=True)]
        try:
            for log in logs:
                wait_for(log, rng.randint(1, 150))
        finally:
            for writer in rng.sample(writers, 2):
                writer.send_signal(signal.SIGKILL)
            for writer in writers:
                assert writer.wait(60) == -signal.SIGKILL
        for log in logs:
            said += acknowledged(log)
    revisions = [revision for _, _, revision in said]
    assert len(said) > ROUNDS
    assert len(set(revisions)) == len(revisions)
    async with open_store(path) as store:
        found = await history(store)
    for name, number, revision in said:
        value = f"{name}-{number}".encode()
        assert found[revision] == {f"kill/{name}/left": value, f"kill/{name}/right": value}
    for written in found.values():
        assert len(set(written.values())) == 1, "a commit was torn"
    connection = apsw.Connection(str(path))
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
