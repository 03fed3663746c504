"""Servers that are asked for more than they can do, with threads and of grpc.aio, under real agents.

One tenant floods them; the other's calls go on. What is asserted is who was let in and how many there were at once, by
the servers' own count; never how long something takes.
"""

import json
import os
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Programs, ask, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

LEAST, MOST = 6, 12
SERVERS = {"sync": "node-a", "aio": "node-b"}
MESH = """\
kind: Tenant
metadata: {name: platform}
---
kind: Service
metadata: {tenant: platform, name: orders}
spec: {protocol: GRPC, exportTo: [noisy, quiet]}
---
kind: AccessPolicy
metadata: {tenant: platform, name: orders}
spec: {service: orders, allow: [{from: [{tenant: noisy, service: web}, {tenant: quiet, service: web}]}]}
---
kind: RatePolicy
metadata: {tenant: platform, name: room}
spec: {service: orders, scope: POINT, adaptive: {min: LEAST, max: MOST}}
"""
CALLER = """\
---
kind: Tenant
metadata: {name: TENANT}
---
kind: Service
metadata: {tenant: TENANT, name: web}
spec: {protocol: GRPC}
---
kind: WorkloadEntry
metadata: {tenant: TENANT, name: web}
spec: {service: web, nodes: [node-a, node-b], selectors: {uid: UID}, insecureSameUser: true}
"""
SERVER = """\
---
kind: WorkloadEntry
metadata: {tenant: platform, name: orders-KIND}
spec: {service: orders, nodes: [NODE], selectors: {uid: UID}, version: KIND, port: PORT, insecureSameUser: true}
"""


class World(Programs):
    """A mesh with two servers, and programs that call them."""

    def apply(self) -> None:
        text = MESH.replace("LEAST", str(LEAST)).replace("MOST", str(MOST))
        text += "".join(CALLER.replace("TENANT", tenant) for tenant in ("noisy", "quiet"))
        for kind, node in SERVERS.items():
            text += SERVER.replace("KIND", kind).replace("NODE", node).replace("PORT", str(free_port()))
        path = self.directory / "room.yaml"
        path.write_text(text.replace("UID", str(os.getuid())))
        said = self.up.run("apply", "-f", str(path))
        assert said.returncode == 0, said.stderr

    def call(self, tenant: str, node: str, rate: int, callers: int) -> "subprocess.Popen[str]":
        """Begins to call, so many times a second and as fast as so many callers can."""
        probe = self.start(node, f"{tenant}/web", "-m", "meshwarden.examples.probe")
        call = {"op": "grpc", "rate": rate, "concurrency": callers, "timeout_s": 20}
        ask(probe, op="steady_start", id="load", call=call)
        return probe

    def came(self, kind: str) -> list[tuple[int, str]]:
        """What a server has written of each call: how many there were, and whose it was."""
        path = self.directory / f"came-{kind}"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(int(here), tenant) for here, tenant in lines]

    def until_served(self, tenant: str, more: int) -> None:
        """Waits until each server has let in so many more calls of a tenant."""

        def counted() -> dict[str, int]:
            return {kind: sum(whose == tenant for _, whose in self.came(kind)) for kind in SERVERS}

        before = counted()
        self.up.until(lambda: all(counted()[kind] >= before[kind] + more for kind in SERVERS))

    def shown(self, name: str) -> Counter[str]:
        """A series of the agents: {its labels: value}."""
        found: Counter[str] = Counter()
        nodes = json.loads(self.up.run("status", "-o", "json").stdout)["nodes"]
        for address in (node["metricsAddress"] for node in nodes):
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
                for line in answer.read().decode().splitlines():
                    series, _, value = line.rpartition(" ")
                    if series.partition("{")[0] == name:
                        found[series] += float(value)
        return found


@pytest.fixture
def world(start: Callable[..., Any], directory: Path) -> Iterator[World]:
    up = start("o", "--no-samples")
    up.wait_until_up()
    made = World(up, directory)
    try:
        made.apply()
        for kind, node in SERVERS.items():
            program = str(Path(__file__).with_name("crowded_orders.py"))
            made.start(node, f"platform/orders-{kind}", program, kind, str(directory / f"came-{kind}"))
        yield made
    finally:
        made.end()


def test_a_tenant_that_floods_does_not_stop_anothers_calls(world: World) -> None:
    noisy = [world.call("noisy", node, 2000, 30) for node in SERVERS.values()]
    world.until_served("noisy", 50)
    quiet = world.call("quiet", "node-a", 20, 2)
    world.until_served("quiet", 40)
    world.until_served("noisy", 50)
    of_quiet = ask(quiet, op="steady_stop", id="load")["codes"]
    of_noisy: Counter[str] = Counter()
    for probe in noisy:
        of_noisy.update(ask(probe, op="steady_stop", id="load")["codes"])

    assert of_noisy["UNAVAILABLE"] > 0
    assert of_noisy["OK"] > 0, "what the quiet one leaves is used"
    assert of_quiet["OK"] > 0.8 * sum(of_quiet.values()), of_quiet
    for kind in SERVERS:
        assert max(here for here, _ in world.came(kind)) <= MOST
    world.up.until(lambda: len(world.shown("meshwarden_concurrency_limit")) == len(SERVERS))
    limits = world.shown("meshwarden_concurrency_limit").values()
    assert all(LEAST <= limit <= MOST for limit in limits)
    shed = world.shown("meshwarden_concurrency_shed_total")
    assert sum(value for series, value in shed.items() if 'tenant="noisy"' in series) > 0
    assert all('criticality="CRITICAL"' in series for series in shed)
