"""Children: kept running, stopped in order, never left behind."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from meshwarden.controlplane.local import kernel, record
from meshwarden.controlplane.local.error import LocalError
from meshwarden.controlplane.local.mesh import environment
from meshwarden.controlplane.local.plan import Plan
from meshwarden.controlplane.local.process import Children, Program, children, tail

DEADLINE_S = 60.0
SLEEP = "import signal, time; print('ready', flush=True); time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


def program(directory: Path, name: str, code: str, grace_s: float = 5.0) -> Program:
    environment = {kernel.MARK: str(directory)}
    return Program(name, (sys.executable, "-c", code), environment, directory / f"{name}.log", grace_s)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - files have no events
            await asyncio.sleep(0.01)


def ready(directory: Path, name: str) -> bool:
    log = directory / f"{name}.log"
    return log.exists() and "ready" in log.read_text()


def keep(directory: Path, reports: list[str]) -> AbstractAsyncContextManager[Children]:
    ranks = {"low": 0, "high": 1}
    return children(record.Record(directory), reports.append, random.Random(1), lambda name: ranks.get(name, 0))


async def test_stops_the_highest_first_and_leaves_none(tmp_path: Path) -> None:
    reports: list[str] = []
    pids = []
    note = "import signal, sys, time\ndef end(*_):\n open({!r}, 'a').write({!r}); sys.exit(0)\n"
    note += "signal.signal(signal.SIGTERM, end); print('ready', flush=True); time.sleep(600)"
    async with keep(tmp_path, reports) as kept:
        assert isinstance(kept, Children)
        for name in ("low", "high"):
            child = await kept.start(program(tmp_path, name, note.format(str(tmp_path / "ended"), name)))
            pids.append(child.pid)
        await until(lambda: ready(tmp_path, "low") and ready(tmp_path, "high"))
        assert [process.name for process in record.load(tmp_path)] == ["low", "high"]
    assert (tmp_path / "ended").read_text() == "highlow"
    assert [kernel.start_time(pid) for pid in pids] == [None, None]
    assert record.load(tmp_path) == []
    assert reports == []


async def test_where_a_library_aborts_a_program_it_says_where(tmp_path: Path) -> None:
    code = "import os, threading, time\n"
    code += "for _ in range(5): threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    code += "def in_the_library():\n print('Check failed: has_value()', flush=True); os.abort()\nin_the_library()"
    async with keep(tmp_path, []) as kept:
        crashing = program(tmp_path, "low", code)
        traced = {**crashing.environment, **environment(Plan(tmp_path))}
        child = await kept.start(replace(crashing, environment=traced))
        await until(lambda: child.failure)
    assert child.failure is not None
    assert child.failure.startswith("low was ended by SIGABRT. The end of ")
    assert "Check failed: has_value()" in child.failure
    assert "in in_the_library" in child.failure


async def test_restarts_what_crashes_and_shows_the_end_of_its_log(tmp_path: Path) -> None:
    reports: list[str] = []
    code = "import os, sys, time\nif os.path.exists({0!r}): print('ready', flush=True); time.sleep(600)\n"
    code += "open({0!r}, 'w'); print('boom', flush=True); sys.exit(3)"
    code = code.format(str(tmp_path / "once"))
    async with keep(tmp_path, reports) as kept:
        child = await kept.start(program(tmp_path, "low", code))
        child.settle()
        await until(lambda: ready(tmp_path, "low"))
        assert child.restarts == 1
    assert len(reports) == 1
    assert "low exited 3; again in" in reports[0]
    assert "boom" in reports[0]


async def test_what_ends_before_it_has_settled_is_left_so_and_says_why(tmp_path: Path) -> None:
    reports: list[str] = []
    async with keep(tmp_path, reports) as kept:
        child = await kept.start(program(tmp_path, "low", "print('boom'); raise SystemExit(3)"))
        await until(lambda: child.failure)
        assert child.failure is not None
        assert child.failure.startswith("low exited 3. The end of ")
        assert child.failure.endswith("  boom")
        assert child.pid is None
    assert reports == []


async def test_who_is_killed_does_not_come_back(tmp_path: Path) -> None:
    reports: list[str] = []
    async with keep(tmp_path, reports) as kept:
        child = await kept.start(program(tmp_path, "low", DEAF))
        child.settle()
        await until(lambda: ready(tmp_path, "low"))
        kept.kill()
        await until(lambda: child.pid is None)
        await child.stop()
    assert child.restarts == 0
    assert reports == []


async def test_a_record_that_cannot_be_written_costs_no_child(tmp_path: Path) -> None:
    reports: list[str] = []
    full = tmp_path / "full"
    full.mkdir()
    async with keep(full, reports) as kept:
        full.rmdir()
        child = await kept.start(program(tmp_path, "low", SLEEP))
        pid = child.pid
        await until(lambda: ready(tmp_path, "low"))
    assert kernel.start_time(pid or 0) is None
    assert "low runs unrecorded" in reports[0]


async def test_kills_what_ignores_the_signal(tmp_path: Path) -> None:
    reports: list[str] = []
    async with keep(tmp_path, reports) as kept:
        child = await kept.start(program(tmp_path, "low", DEAF, grace_s=0.2))
        pid = child.pid
        await until(lambda: ready(tmp_path, "low"))
    assert kernel.start_time(pid) is None
    assert reports == ["low did not end within 0.2 s: killed"]


async def test_stops_all_when_the_body_fails(tmp_path: Path) -> None:
    async def body() -> None:
        async with keep(tmp_path, []) as kept:
            await kept.start(program(tmp_path, "low", SLEEP))
            raise ValueError("the body")

    with pytest.raises(ExceptionGroup) as caught:
        await body()
    assert caught.group_contains(ValueError, match="the body")
    assert list(kernel.marked(str(tmp_path))) == []


async def test_stop_and_start_again(tmp_path: Path) -> None:
    reports: list[str] = []
    async with keep(tmp_path, reports) as kept:
        child = await kept.start(program(tmp_path, "low", SLEEP))
        first = child.pid
        await child.stop(signal.SIGKILL)
        assert child.pid is None
        assert record.load(tmp_path) == []
        assert await child.start() not in (None, first)
    assert reports == []


async def test_says_why_a_program_can_not_be_run(tmp_path: Path) -> None:
    missing = Program("low", ("/no/such/program",), {}, tmp_path / "low.log")
    with pytest.raises(ExceptionGroup) as caught:
        async with keep(tmp_path, []) as kept:
            await kept.start(missing)
    assert caught.group_contains(LocalError, match="/no/such/program: No such file")


def test_a_signal_reaches_only_who_was_meant() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as process:
        started = kernel.start_time(process.pid)
        assert started is not None
        assert not kernel.send(process.pid, started + 1, signal.SIGKILL)
        assert kernel.wait_gone(process.pid, started + 1, 0)
        assert not kernel.wait_gone(process.pid, started, 0)
        assert kernel.send(process.pid, started, signal.SIGKILL)
        assert kernel.wait_gone(process.pid, started, DEADLINE_S)
    assert not kernel.send(process.pid, started, signal.SIGKILL)


def test_a_process_is_gone_when_its_last_thread_is() -> None:
    """Its first thread may end long before, and the others still hold its files and ports."""
    code = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=[600]).start(); "
    code += "input(); ctypes.CDLL(None).pthread_exit(None)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        started = kernel.start_time(process.pid)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        try:
            deadline = time.monotonic() + DEADLINE_S
            while kernel.start_time(process.pid) is not None:  # until the first thread is a zombie
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert started is not None
            assert not kernel.wait_gone(process.pid, started, 0)
        finally:
            process.kill()
        assert kernel.wait_gone(process.pid, started, DEADLINE_S)


def test_the_mark_finds_grandchildren(tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"
    subprocess.run([sys.executable, "-c", code], env={kernel.MARK: str(tmp_path)}, check=True)
    assert len(list(kernel.marked(str(tmp_path)))) == 1
    assert kernel.sweep(str(tmp_path)) == 1
    assert list(kernel.marked(str(tmp_path))) == []


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"name": 1}]', "\x00", json.dumps([{"name": "a", "pid": "x"}])])
def test_a_spoiled_record_names_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / record.FILE).write_text(text)
    assert record.load(tmp_path) == []


def test_private_from_the_first_byte(tmp_path: Path) -> None:
    record.write_private(tmp_path / "file", "secret")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_draft_that_cannot_be_written_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        record.write_private(tmp_path / "file", "secret")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert "printed nothing" in tail(log)
    log.write_text("\n".join(map(str, range(100))))
    assert tail(log, lines=2).splitlines()[1:] == ["  98", "  99"]
    begun = log.stat().st_size
    assert "printed nothing" in tail(log, since_byte=begun)
    with log.open("a") as file:
        file.write("\nbegun\nerror: no room\nfix: make some\nbye\n")
    assert tail(log, since_byte=begun).splitlines() == [f"It said, in {log}:", "  error: no room", "  fix: make some"]
