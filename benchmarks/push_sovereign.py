"""`sovereign` from PyPI, a control plane for Envoys in Python, serving the same services beside ours in `push`.

It is asked by poll over plain HTTP and answers in JSON with all endpoints whenever any has changed. A template gives it
the services from a file, which it reads when that has changed. It has an environment of its own (`make bench` makes
it), since it wants other versions of much that we want, and runs there as one process of uvicorn.
"""

import asyncio
import json
import random
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks import push_mesh
from benchmarks.process import Broken, Child, child, cpu_s, say
from meshwarden.controlplane.local.port import free_port

PYTHON = Path(__file__).parents[1] / ".venv" / "sovereign" / "bin" / "python"
NAME = "sovereign 0.32.12, by poll over plain HTTP, all endpoints as JSON"
START_S = 60.0
TEMPLATE = """
import json, os
known = {}
def call(**_):
    stamp = os.stat(PATH).st_mtime_ns
    if known.get("stamp") != stamp:
        with open(PATH) as file:
            known.update(stamp=stamp, services=json.load(file))
    for name, places in known["services"].items():
        ends = [{"endpoint": {"address": {"socket_address": {"address": a, "port_value": p}}}} for a, p in places]
        yield {"cluster_name": name, "endpoints": [{"lb_endpoints": ends}]}
"""
CONFIG = {
    "templates": {"default": {}},
    "template_context": {},
    "sources": [{"type": "inline", "config": {"instances": []}}],
}
SETTINGS = dict.fromkeys(
    ("SOVEREIGN_NODE_MATCHING", "SOVEREIGN_NODE_MATCHING_ENABLED", "SOVEREIGN_ENABLE_ACCESS_LOGS"), "false"
)
SERVE = "import sys, uvicorn; from sovereign.app import app; uvicorn.run(app, port=int(sys.argv[1]), access_log=False)"


class Sovereign:
    """It, running."""

    def __init__(self, process: Child, port: int, services: Path) -> None:
        self._process, self._port, self._services = process, port, services
        self._version, self._number = "0", 0

    async def update(self) -> float:
        """Moves an endpoint, and has one client get what has changed; returns the CPU seconds that this takes it."""
        self._number += 1
        _write(self._services, push_mesh.PORT + self._number)
        before_s = cpu_s(self._process.pid)
        await self.ask()
        return cpu_s(self._process.pid) - before_s

    async def ask(self) -> None:
        """Asks as an Envoy does that has what it was told last."""
        said = await asyncio.to_thread(self._post)
        if len(said["resources"]) != push_mesh.SERVICES:
            raise ValueError(f"sovereign tells of {len(said['resources'])} services")
        self._version = said["version_info"]

    def _post(self) -> dict[str, list[object]]:
        node = {"id": "bench", "cluster": "bench", "build_version": "x/1.30.0/Clean/RELEASE"}
        body = {"node": node, "version_info": self._version, "resource_names": []}
        url = f"http://127.0.0.1:{self._port}/v3/discovery:endpoints"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=START_S) as answer:  # noqa: S310 - our own URL
            found: dict[str, list[object]] = json.load(answer)
        return found


@asynccontextmanager
async def sovereign(directory: Path) -> AsyncIterator[Sovereign | None]:
    """Runs it for the length of the block; None where it is not installed."""
    if not PYTHON.exists():
        say("push: sovereign is left out: `make bench` installs it")
        yield None
        return
    directory.mkdir(mode=0o700)
    services, template, config = directory / "services.json", directory / "endpoints.py", directory / "sovereign.yaml"
    _write(services, push_mesh.PORT)
    template.write_text(f"PATH = {str(services)!r}\n{TEMPLATE}")
    templates = {"default": {"endpoints": f"python://{template}"}}
    config.write_text(json.dumps({**CONFIG, "templates": templates}))  # JSON is YAML
    port = free_port(random.SystemRandom())
    extra = {"SOVEREIGN_CONFIG": f"file://{config}", **SETTINGS}
    async with child("sovereign", [str(PYTHON), "-c", SERVE, str(port)], directory, extra) as process:
        made = Sovereign(process, port, services)
        await _ready(process, made)
        yield made


async def _ready(process: Child, made: Sovereign) -> None:
    async with asyncio.timeout(START_S):
        while True:
            process.check()
            try:
                return await made.ask()
            except urllib.error.HTTPError as error:
                raise Broken(f"sovereign answers {error.code}: {error.read(500)!r}") from None
            except OSError:
                await asyncio.sleep(0.2)


def _write(path: Path, port: int) -> None:
    """The same endpoints as the mesh's, the first of them at another port."""
    found = {}
    for number in range(push_mesh.SERVICES):
        ends = [push_mesh.endpoint(number, place, push_mesh.PORT).endpoint.spec for place in range(push_mesh.ENDPOINTS)]
        found[f"svc-{number:04}"] = [(end.address, end.port) for end in ends]
    found["svc-0000"][0] = (found["svc-0000"][0][0], port)
    path.write_text(json.dumps(found))
