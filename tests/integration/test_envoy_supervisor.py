"""The supervisor with the real Envoy: it comes up, comes back, drains, and never outlives the agent."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from meshwarden.agents.envoy import admin
from meshwarden.agents.envoy.bootstrap import envoy_bootstrap
from meshwarden.agents.envoy.supervisor import EnvoyPlan, Supervisor, find_envoy

pytestmark = pytest.mark.envoy
_DEADLINE_S = 60.0
_FILTERS = "type.googleapis.com/envoy.extensions.filters."
_AGENT = """
import asyncio, json, os, random, sys
from pathlib import Path
from meshwarden.agents.envoy.supervisor import EnvoyPlan, Supervisor, find_envoy
directory = Path(sys.argv[1])
plan = EnvoyPlan("acme/web#1", json.loads(sys.argv[2]), directory)
asyncio.run(Supervisor(plan, lambda pid: print(pid, flush=True), random.Random(1), find_envoy()).run())
"""


def dead(pid: int) -> bool:
    """A zombie is dead: its parent has only not looked yet."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def static_bootstrap(directory: Path) -> dict[str, object]:
    """Ours, but without ADS, and with a listener: an Envoy that is ready by itself."""
    bootstrap = envoy_bootstrap("acme/web#1/envoy", "web.acme", "local", "a", directory / "agent", directory / "admin")
    del bootstrap["dynamic_resources"], bootstrap["layered_runtime"]
    manager = {
        "@type": f"{_FILTERS}network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "web",
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{_FILTERS}http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
    }
    bootstrap["static_resources"]["listeners"] = [
        {
            "name": "outbound",
            "address": {"pipe": {"path": str(directory / "outbound"), "mode": 0o600}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        }
    ]
    return bootstrap


class Keeper:
    """A supervisor at work, and the pids that it told of."""

    def __init__(self, plan: EnvoyPlan, binary: Path | None = None) -> None:
        self.pids: list[int] = []
        self.supervisor = Supervisor(plan, self.pids.append, random.Random(1), binary or find_envoy())
        self.ended = asyncio.Event()

    async def run(self) -> None:
        await self.supervisor.run()
        self.ended.set()


@contextlib.asynccontextmanager
async def keeping(plan: EnvoyPlan, binary: Path | None = None) -> AsyncIterator[Keeper]:
    keeper = Keeper(plan, binary)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        yield keeper
        tasks.cancel_scope.cancel()


@pytest.fixture
def plan(tmp_path: Path) -> EnvoyPlan:
    directory = tmp_path / "web"
    return EnvoyPlan("acme/web#1", static_bootstrap(directory), directory, drain_s=1.0)


async def test_it_comes_up_and_says_its_pid_before(plan: EnvoyPlan) -> None:
    async with keeping(plan) as keeper:
        async with asyncio.timeout(_DEADLINE_S):
            await keeper.supervisor.wait_ready()
        assert keeper.pids == [keeper.supervisor.pid]
        # argv[0] after the launcher became Envoy in place.
        assert psutil.Process(keeper.supervisor.pid).exe() == str(find_envoy())
    assert dead(keeper.pids[0])
    assert not plan.admin_socket.exists()


async def test_killed_it_comes_back(plan: EnvoyPlan, until: Any) -> None:
    async with keeping(plan) as keeper:
        async with asyncio.timeout(_DEADLINE_S):
            await keeper.supervisor.wait_ready()
        first = keeper.supervisor.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: len(keeper.pids) == 2, "it is started again")
        async with asyncio.timeout(_DEADLINE_S):
            await keeper.supervisor.wait_ready()
        assert keeper.supervisor.pid not in (0, first)
        assert keeper.supervisor.restarts == 1


async def test_stopped_it_drains_before_it_ends(plan: EnvoyPlan) -> None:
    async with keeping(plan) as keeper:
        async with asyncio.timeout(_DEADLINE_S):
            await keeper.supervisor.wait_ready()
        pid = keeper.supervisor.pid
        reader, writer = await asyncio.open_unix_connection(plan.directory / "outbound")
        assert await _get(reader, writer) == (200, False)
        keeper.supervisor.stop()
        # It answers on, and tells its caller to go elsewhere.
        async with asyncio.timeout(_DEADLINE_S):
            while (answer := await _get(reader, writer)) == (200, False):
                pass
        assert answer == (200, True)
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(_DEADLINE_S):
            await keeper.ended.wait()
        assert dead(pid)
        assert keeper.supervisor.restarts == 0


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, bool]:
    """The status, and whether the connection is not to be used again."""
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    return int(head.split()[1]), b"connection: close" in head


def test_an_agent_killed_leaves_no_envoy(tmp_path: Path, until: Any) -> None:
    bootstrap = json.dumps(static_bootstrap(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", _AGENT, str(tmp_path), bootstrap], stdout=subprocess.PIPE, text=True
    ) as agent:
        assert agent.stdout is not None
        envoy = int(agent.stdout.readline())
        asyncio.run(until(lambda: admin.is_ready(tmp_path / "admin"), "it is ready"))
        assert not dead(envoy)
        agent.kill()
        agent.wait()
        asyncio.run(until(lambda: dead(envoy), "it died with the agent"))


async def test_a_program_that_cannot_start_is_tried_again_ever_more_slowly(
    tmp_path: Path, plan: EnvoyPlan, until: Any
) -> None:
    broken = tmp_path / "envoy"
    broken.write_text("#!/nowhere\n")
    broken.chmod(0o755)
    async with keeping(plan, broken) as keeper:
        await until(lambda: keeper.supervisor.restarts >= 3, "it was tried again")
        assert "No such file" in keeper.supervisor.last_end
        assert not await keeper.supervisor.ready()


async def test_a_launcher_that_cannot_start_is_tried_again(tmp_path: Path, plan: EnvoyPlan, until: Any) -> None:
    async with keeping(plan) as keeper:
        async with asyncio.timeout(_DEADLINE_S):
            await keeper.supervisor.wait_ready()
        directory, moved = plan.directory, tmp_path / "moved"
        directory.rename(moved)
        directory.write_text("where a directory should be")
        os.kill(keeper.supervisor.pid, signal.SIGKILL)
        await until(lambda: keeper.supervisor.restarts >= 3, "it was tried again")
        assert len(keeper.pids) == 1
        directory.unlink()
        moved.rename(directory)
        async with asyncio.timeout(_DEADLINE_S):
            await keeper.supervisor.wait_ready()


async def test_it_runs_as_the_workloads_user(until: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: only root may start programs as others")
    base = Path("/tmp") / f"mw-{os.getpid()}"
    base.mkdir(mode=0o711)
    directory = base / "envoy"
    try:
        plan = EnvoyPlan("acme/web#1", static_bootstrap(directory), directory, uid=65534, gid=65534)
        async with keeping(plan) as keeper:
            async with asyncio.timeout(_DEADLINE_S):
                await keeper.supervisor.wait_ready()
            process = psutil.Process(keeper.supervisor.pid)
            assert set(process.uids()) == {65534}
            assert set(process.gids()) == {65534}
            assert directory.stat().st_uid == 65534
            # Its user can put links where it likes: none of them leads the agent anywhere.
            precious = base / "precious"
            precious.write_text("root's")
            for name in ("envoy.json", "envoy.stderr", "admin"):
                (directory / name).unlink(missing_ok=True)
                (directory / name).symlink_to(precious)
            os.kill(keeper.supervisor.pid, signal.SIGKILL)
            await until(lambda: len(keeper.pids) == 2, "it is started again")
            async with asyncio.timeout(_DEADLINE_S):
                await keeper.supervisor.wait_ready()
            assert (precious.read_text(), precious.stat().st_uid) == ("root's", 0)
    finally:
        shutil.rmtree(base)
