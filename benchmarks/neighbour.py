"""What a tenant at fifty times its limit does to another tenant's calls of the same server.

The other's calls go to the server that the noisy one calls, and in turns with that to a server that nobody else calls:
the same program under the same policy. The noisy one calls through gRPC alone: the SDK would hold it back.
"""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from benchmarks import quota_mesh
from benchmarks.process import Broken, Child, say
from benchmarks.quota_mesh import NODES, Mesh, resource
from benchmarks.result import Case

LIMIT, TIMES, CALM = 10, 50, 100.0
SETTLE_S, ROUND_S = 2.0, 8.0
TENANTS: Final = ("acme", "globex")
"""The noisy one, and the other."""


async def cases(directory: Path, rounds: int) -> AsyncIterator[Case]:
    """Yields the medians and the 99th percentiles of the other's calls."""
    say(f"quota: a tenant that calls {TIMES} times its limit, and another beside it")
    found = {
        name: Case("quota", f"noisy neighbour, {name}", "the same load on a server that nobody else calls", "ms")
        for name in ("p50", "p99")
    }
    async with quota_mesh.running(directory) as mesh:
        await mesh.apply([*quota_mesh.callers(dict.fromkeys(TENANTS)), *_service("busy"), *_service("calm")])
        for name in ("busy", "calm"):
            log = str(directory / f"served-{name}")
            await mesh.start(NODES[0], f"platform/{name}", "benchmarks.accuracy_server", log, "sdk")
        noisy = await _caller(mesh, "acme", "busy", "bare")
        others = {name: await _caller(mesh, "globex", name) for name in ("busy", "calm")}
        await _ask(noisy, float(LIMIT * TIMES))
        for number in range(rounds):
            # Whoever comes second is not always the same.
            turns = ("busy", "calm") if number % 2 else ("calm", "busy")
            took = {name: await _round(mesh, others[name], name) for name in turns}
            say(f"  {number + 1}: p99 {took['busy'][1]:.1f} / {took['calm'][1]:.1f} ms")
            for case, busy, calm in zip(found.values(), took["busy"], took["calm"], strict=True):
                case.add(busy, calm)
    for case in found.values():
        yield case


async def _round(mesh: Mesh, caller: Child, name: str) -> tuple[float, float]:
    """Calls for some seconds; the median and the 99th percentile of how long they took, in ms."""
    await _ask(caller, CALM)
    await asyncio.sleep(SETTLE_S)
    begun_s = time.monotonic()
    await asyncio.sleep(ROUND_S)
    await _ask(caller, 0.0)
    await asyncio.sleep(0.5)
    lines = [line.split() for line in _log(mesh, "globex", name).read_text().splitlines()]
    took = [float(ms) for moment, code, ms in lines if code == "OK" and float(moment) >= begun_s]
    if len(took) < 0.8 * CALM * ROUND_S:
        raise Broken(
            f"{name}: {len(took)} calls of {CALM * ROUND_S:.0f} were answered: this machine has too much to do"
        )
    cuts = statistics.quantiles(took, n=100)
    return cuts[49], cuts[98]


async def _caller(mesh: Mesh, tenant: str, name: str, *more: str) -> Child:
    target, log = f"xds:///{name}.platform", str(_log(mesh, tenant, name))
    return await mesh.start(NODES[0], f"{tenant}/web", "benchmarks.accuracy_caller", target, log, *more, is_asked=True)


async def _ask(caller: Child, rate: float) -> None:
    await caller.ask(json.dumps({"rate": rate}))
    await caller.answer()


def _log(mesh: Mesh, tenant: str, name: str) -> Path:
    return mesh.directory / f"called-{tenant}-{name}"


def _service(name: str) -> list[quota_mesh.Manifest]:
    (port,) = quota_mesh.free_ports(1)
    limits = [{"tenant": "acme", "requests": LIMIT}, {"tenant": "globex", "requests": 1000}]
    return [
        *quota_mesh.service(name, "GRPC", TENANTS),
        quota_mesh.entry("platform", name, name, NODES[0], port=port),
        resource("RatePolicy", "platform", name, service=name, limits=limits),
    ]
