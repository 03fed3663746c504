"""How exactly one limit holds over twenty enforcement points: SDK servers and Envoys on two nodes, four tenants.

The reference is the same load on the same processes with the limit split among the points once and for all: each has a
twentieth of each tenant's part by weight. What is served is counted by the servers, what is called by the callers.
The figures and all that they were taken from are written to the file that the variable BENCH_TRACE names, for
`benchmarks.accuracy_plot`. `make accuracy` does both without the other cases of the benchmark.

    BENCH_TRACE=quota.json python -m benchmarks.accuracy
"""

import asyncio
import json
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import accuracy_figures as figures
from benchmarks import quota_mesh
from benchmarks.accuracy_figures import Record
from benchmarks.process import Broken, Child, say
from benchmarks.quota_mesh import NODES, Manifest, Mesh, resource
from benchmarks.result import Case

POINTS, ENVOYS = 20, 6
LIMIT: Final = 120
WEIGHTS: Final = {"acme": 3.0, "globex": 1.0, "initech": 1.0, "umbrella": 1.0}
MEAN: Final = {"acme": 80.0, "globex": 48.0, "initech": 12.0, "umbrella": 28.0}
"""Calls a second of each tenant, about which they move: as many as two cores serve with a third of them left."""
SURGE: Final = 80.0
MOST_LOAD: Final = 70.0
"""Above so many per cent of the machine in use, figures are those of the machine and not of the limit."""
STEADY_S, PHASE_S, SETTLE_S, CUT_S = 60.0, 21.0, 8.0, 5.0
REFERENCE: Final = "the limit split among the points once and for all"
SERVICE: Final = "orders"
EVENTS: Final = ("step", "shift", "leave", "agent killed", "partition", "restart")
TIMES: Final = 3
"""So often each event is seen where the limit is shared: calls come at random, and one time may be a chance."""


async def cases(directory: Path) -> AsyncIterator[Case]:
    """Yields the cases; each is measured once, for a minute or more, and of events what the median one took."""
    minutes = (2 * (SETTLE_S + STEADY_S) + (TIMES + 1) * len(EVENTS) * (SETTLE_S + PHASE_S)) / 60
    say(f"quota: a mesh with {POINTS} enforcement points, {ENVOYS} of them Envoys: {minutes + 1:.0f} minutes")
    async with quota_mesh.running(directory) as mesh:
        load = Load(mesh)
        await load.start()
        ours, theirs = await load.measure("shared", _shared(), TIMES), await load.measure("split", _split(), 1)
    if trace := os.environ.get("BENCH_TRACE"):
        Path(trace).write_text(json.dumps({"limit": LIMIT, "shared": ours, "split": theirs}))
    for name in ("over-admission 1 s", "over-admission 10 s", "over-admission window", "under-use"):
        yield _case(name, "%", ours, theirs)
    yield _case("Jain", "index", ours, theirs)
    yield _case("machine in use", "%", ours, theirs)
    for event in EVENTS:
        yield _case(f"convergence {event}", "s", ours, theirs)


class Load:
    """Servers and callers in a mesh."""

    def __init__(self, mesh: Mesh) -> None:
        """Starts nothing yet."""
        self._mesh = mesh
        self._callers: dict[str, Child] = {}
        # How much of the calls go to each point: the busiest has eight times what the idlest has.
        self._weights = [1 / (number + 1) ** 0.7 for number in range(POINTS)]

    async def start(self) -> None:
        """Starts everything, and waits until each point has served."""
        await self._mesh.apply(
            [
                *quota_mesh.callers(WEIGHTS),
                *quota_mesh.service(SERVICE, "GRPC", WEIGHTS),
                *(_entry(number, port) for number, port in enumerate(quota_mesh.free_ports(POINTS))),
                self._route(),
                _shared(),
            ]
        )
        for number in range(POINTS):
            entry, log = f"platform/{SERVICE}-{_version(number)}", str(self._log(number))
            await self._mesh.start(NODES[number % 2], entry, "benchmarks.accuracy_server", log, _kind(number))
        for tenant in WEIGHTS:
            arguments = ["benchmarks.accuracy_caller", f"xds:///{SERVICE}.platform", str(self._calls(tenant)), "bare"]
            self._callers[tenant] = await self._mesh.start(NODES[0], f"{tenant}/web", *arguments, is_asked=True)
        await self.call(MEAN)
        await self._mesh.until(lambda: all(self._log(number).exists() for number in range(POINTS)), "each point serves")

    async def measure(self, name: str, policy: Manifest, times: int) -> dict[str, Any]:
        """Runs the load and so often the events under a policy; returns the figures, and what they were taken from."""
        await self._mesh.apply([policy])
        await self.call(MEAN)
        await asyncio.sleep(SETTLE_S)
        say(f"quota: {name}: {STEADY_S:g} s of moving demand")
        begun_s, busy = time.monotonic(), psutil.cpu_times()
        await self._move(STEADY_S)
        end_s, load = time.monotonic(), 100 * _load(busy)
        say(f"quota: {name}: {load:.0f} % of the machine in use{'' if load < MOST_LOAD else ': TOO MUCH to count'}")
        events: dict[str, list[tuple[float, float]]] = {event: [] for event in EVENTS}
        for event, act in [*zip(EVENTS, self._acts(), strict=True)] * times:
            await self.call(MEAN)
            await asyncio.sleep(SETTLE_S)
            events[event].append((await act(), time.monotonic() + PHASE_S))
            await asyncio.sleep(PHASE_S)
            say(f"quota: {name}: {event}: {_converged_s(self._record(), *events[event][-1]):g} s")
        record = self._record()
        found = {**_figures(record, (begun_s, end_s), events), "machine in use": load}
        say(f"quota: {name}: {', '.join(f'{what} {figure:.3g}' for what, figure in found.items())}")
        return {
            "figures": found,
            "steady": (begun_s, end_s),
            "events": {event: spans[0] for event, spans in events.items()},
            "served": record.served,
            "offered": record.offered,
        }

    async def call(self, rates: dict[str, float]) -> None:
        """Tells the callers how often to call."""
        for tenant, rate in rates.items():
            await self._callers[tenant].ask(json.dumps({"rate": rate}))
            await self._callers[tenant].answer()

    def _acts(self) -> tuple[Callable[[], Awaitable[float]], ...]:
        """What happens to the mesh, in the order of `EVENTS`; each returns when it did."""

        async def step() -> float:
            await self.call({**MEAN, "initech": SURGE})
            return time.monotonic()

        async def shift() -> float:
            self._weights.reverse()
            await self._mesh.apply([self._route()])
            return time.monotonic()

        async def leave() -> float:
            await self.call({**MEAN, "acme": 0.0})
            return time.monotonic()

        async def kill(name: str) -> float:
            os.kill(self._mesh.pid(name), signal.SIGKILL)
            return time.monotonic()

        async def partition() -> float:
            pid, begun_s = self._mesh.pid("agent-node-b"), time.monotonic()
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(CUT_S)
            finally:
                os.kill(pid, signal.SIGCONT)
            return begun_s + CUT_S

        return step, shift, leave, lambda: kill("agent-node-b"), partition, lambda: kill("server")

    async def _move(self, length_s: float) -> None:
        """Lets demand rise and fall, each tenant's at its own time."""
        begun_s = time.monotonic()
        while (passed_s := time.monotonic() - begun_s) < length_s:
            turns = {tenant: math.tau * (passed_s / 30 + number / 4) for number, tenant in enumerate(MEAN)}
            await self.call({tenant: mean * (1 + 0.4 * math.sin(turns[tenant])) for tenant, mean in MEAN.items()})
            await asyncio.sleep(1.0)

    def _record(self) -> Record:
        served: dict[str, list[float]] = {tenant: [] for tenant in WEIGHTS}
        for number in range(POINTS):
            for line in self._log(number).read_text().splitlines():
                moment, tenant = line.split()
                served[tenant].append(float(moment))
        offered = {}
        for tenant in WEIGHTS:
            lines = self._calls(tenant).read_text().splitlines()
            offered[tenant] = sorted(float(line.split()[0]) for line in lines)
        return Record({tenant: sorted(moments) for tenant, moments in served.items()}, offered)

    def _log(self, number: int) -> Path:
        return self._mesh.directory / f"served-{_version(number)}"

    def _calls(self, tenant: str) -> Path:
        return self._mesh.directory / f"called-{tenant}"

    def _route(self) -> Manifest:
        split = [
            {"version": _version(number), "weight": round(1000 * weight)} for number, weight in enumerate(self._weights)
        ]
        return resource("RoutePolicy", "platform", SERVICE, service=SERVICE, rules=[{"split": split}])


def _figures(
    record: Record, steady: tuple[float, float], events: dict[str, list[tuple[float, float]]]
) -> dict[str, float]:
    served = record.all_served()
    found = {
        f"over-admission {name}": figures.over_admission(served, LIMIT, width_s, *steady)
        for width_s, name in ((1.0, "1 s"), (10.0, "10 s"), (STEADY_S - 1, "window"))
    }
    found["under-use"] = figures.under_use(record, LIMIT, *steady)
    found["Jain"] = figures.jain(record, LIMIT, WEIGHTS, *steady)
    for event, spans in events.items():
        found[f"convergence {event}"] = statistics.median(_converged_s(record, *span) for span in spans)
    return found


def _converged_s(record: Record, event_s: float, end_s: float) -> float:
    """So long as it was watched if it has not."""
    return min(PHASE_S, figures.converged_s(record, event_s, end_s))


def _case(name: str, unit: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Case:
    case = Case("quota", name, REFERENCE, unit, "higher" if unit == "index" else "lower", may_be_nothing=True)
    case.add(ours["figures"][name], theirs["figures"][name])
    return case


def _shared() -> Manifest:
    limits = [{"tenant": tenant, "requests": LIMIT, "weight": int(weight)} for tenant, weight in WEIGHTS.items()]
    return _policy(whenAway="DENY", total={"requests": LIMIT}, limits=limits)


def _split() -> Manifest:
    """Each tenant's part by weight, at each point a like part of that."""
    per_s, parts = 60, {tenant: weight / sum(WEIGHTS.values()) / POINTS for tenant, weight in WEIGHTS.items()}
    limits = [
        {
            "tenant": tenant,
            "requests": round(LIMIT * part * per_s),
            "per": f"{per_s}s",
            "burst": max(1, round(LIMIT * part)),
        }
        for tenant, part in parts.items()
    ]
    return _policy(scope="POINT", limits=limits)


def _policy(**spec: Any) -> Manifest:
    return resource("RatePolicy", "platform", SERVICE, service=SERVICE, **spec)


def _entry(number: int, port: int) -> Manifest:
    plane, version = "PROXYLESS" if _kind(number) == "sdk" else "ENVOY", _version(number)
    name = f"{SERVICE}-{version}"
    return quota_mesh.entry("platform", name, SERVICE, NODES[number % 2], dataPlane=plane, version=version, port=port)


def _version(number: int) -> str:
    return f"v{number:02}"


def _kind(number: int) -> str:
    """Envoys are spread over the points, from busy to idle."""
    return "envoy" if number % 3 == 1 and number // 3 < ENVOYS else "sdk"


def _load(since: Any) -> float:
    """What part of the machine was in use since then."""
    now = psutil.cpu_times()
    whole = sum(now[:8]) - sum(since[:8])
    return 1 - (now.idle - since.idle) / whole if whole else 0.0


async def _alone() -> None:
    with tempfile.TemporaryDirectory(prefix="mw-bench-") as name:
        async for case in cases(Path(name)):
            print(case.line(), flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(_alone())
    except Broken as error:
        sys.exit(f"accuracy: {error}")
