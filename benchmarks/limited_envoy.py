"""What limits across the mesh cost an Envoy: its CPU for calls under a policy that lets all pass, and without."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from benchmarks import quota_mesh
from benchmarks.process import Broken, cpu_s, say
from benchmarks.quota_mesh import NODES, Mesh, resource
from benchmarks.result import Case

CALLS, WARM, AT_ONCE = 3000, 200, 4
SETTLE_S = 1.5
SERVICE = "ledger"


async def cases(directory: Path, rounds: int) -> AsyncIterator[Case]:
    """Yields the case."""
    say("quota: an Envoy with its quota filter, and without")
    case = Case("quota", "RLQS on Envoy, CPU a call", "the same Envoy without the policy", "µs")
    (port,) = quota_mesh.free_ports(1)
    policy = resource(
        "RatePolicy", "platform", SERVICE, service=SERVICE, limits=[{"tenant": "acme", "requests": 1_000_000}]
    )
    async with quota_mesh.running(directory) as mesh:
        await mesh.apply(
            [
                *quota_mesh.callers({"acme": None}, "ENVOY"),
                *quota_mesh.service(SERVICE, "HTTP", ["acme"]),
                quota_mesh.entry("platform", SERVICE, SERVICE, NODES[1], dataPlane="ENVOY", port=port),
            ]
        )
        await mesh.start(NODES[1], f"platform/{SERVICE}", "benchmarks.plain_http")
        probe = await mesh.start(NODES[0], "acme/web", "meshwarden.examples.probe", is_asked=True)
        call = {"op": "http", "host": f"{SERVICE}.platform", "path": "/", "concurrency": AT_ONCE}

        async def codes(count: int) -> dict[str, int]:
            await probe.ask(json.dumps({**call, "count": count}))
            found: dict[str, int] = (await probe.answer()).get("codes", {})
            return found

        async with asyncio.timeout(60):
            while (await codes(1)).get("200") != 1:
                pass
        envoy = _envoy(mesh)

        async def cpu_us() -> float:
            """CPU of a call, once all pass."""
            await codes(WARM)  # which opens its bucket
            await asyncio.sleep(SETTLE_S)
            async with asyncio.timeout(60):
                while await codes(WARM) != {"200": WARM}:  # until that has its share
                    pass
                while True:
                    before_s, served = cpu_s(envoy), await codes(CALLS)
                    if served == {"200": CALLS}:
                        return (cpu_s(envoy) - before_s) / CALLS * 1e6
                    say(f"  calls ended with {served}: once more")

        for number in range(rounds):
            await mesh.apply([policy])
            limited = await cpu_us()
            await mesh.delete("RatePolicy", f"platform/{SERVICE}")
            case.add(limited, await cpu_us())
            say(f"  {number + 1}: {case.ours[-1]:.1f} / {case.theirs[-1]:.1f} µs")
    yield case


def _envoy(mesh: Mesh) -> int:
    """The Envoy before the service: the one of the second node's agent."""
    agent = psutil.Process(mesh.pid(f"agent-{NODES[1]}"))
    found = [child.pid for child in agent.children(recursive=True) if child.name().startswith("envoy")]
    if len(found) != 1:
        raise Broken(f"there are {len(found)} Envoys on {NODES[1]}")
    return found[0]
