"""A mesh with servers that count what they serve under a limit, and callers; for the tests of quotas."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from programs import Programs, ask, free_port

from meshwarden.controlplane.local import kernel, record

RATE = 20  # a busy machine calls more often as well
BURST = 20
LEAST_BURST, STARTER = 3, 2
GIVEN_ON = 0.4 * RATE  # what ran over at one point and is used at another


@dataclass(frozen=True, eq=False)
class Plan:
    """A kind of enforcement point, and where they are.

    Attributes:
        name: of the service.
        protocol: that it speaks.
        data_plane: of its entries and its callers'.
        servers: {version: (node, its part of the calls in per cent, a program that counts what it served)}
        op: how the probe calls.
        codes: of a call that went on, and of one that was refused.
        minted: what of a burst may be there again when shares move.
        throttled: whether callers hold calls back that would be refused.
        lease_s: so long after its last word a server uses its share.
    """

    name: str
    protocol: str
    data_plane: str
    servers: dict[str, tuple[str, int, str]]
    op: dict[str, Any]
    codes: tuple[str, str]
    minted: int = 0
    throttled: bool = False
    lease_s: float = 3.0


CALLERS = 5
SDK = Plan(
    "orders",
    "GRPC",
    "PROXYLESS",
    {
        "v1": ("node-a", 60, "counting_orders.py"),
        "v2": ("node-a", 25, "counting_orders_aio.py"),
        "v3": ("node-b", 10, "counting_orders.py"),
        "v4": ("node-b", 5, "counting_orders_aio.py"),
    },
    {"op": "grpc"},
    ("OK", "RESOURCE_EXHAUSTED"),
    throttled=True,
)
THREE = replace(SDK, servers={version: SDK.servers[version] for version in ("v1", "v2", "v3")})
FEW = replace(SDK, servers={version: SDK.servers[version] for version in ("v1", "v4")})
# Their calls take a while, cost something and answer at length.
WORK = replace(
    SDK,
    servers={
        version: (node, 25, program.replace("counting", "working"))
        for version, (node, _, program) in SDK.servers.items()
    },
    throttled=False,
)
# A bucket of Envoy stays full to the same part when it is made larger.
ENVOY = Plan(
    "ledger",
    "HTTP",
    "ENVOY",
    {"v1": ("node-a", 80, "counting_http.py"), "v2": ("node-b", 20, "counting_http.py")},
    {"op": "http", "host": "ledger.platform", "path": "/calls"},
    ("200", "429"),
    minted=2 * BURST,
    lease_s=7.0,
)

LIMITS = f"""\
whenAway: DENY
  limits: [{{tenant: acme, requests: {RATE}, burst: {BURST}}}]
"""
DAY = 1500

TENANTS = """\
kind: Tenant
metadata: {name: platform}
---
kind: Tenant
metadata: {name: acme}
---
kind: Service
metadata: {tenant: acme, name: web}
spec: {protocol: GRPC}
---
kind: WorkloadEntry
metadata: {tenant: acme, name: web}
spec: {service: web, dataPlane: ENVOY, nodes: [node-a, node-b], selectors: {uid: UID}, insecureSameUser: true}
---
kind: RatePolicy
metadata: {tenant: platform, name: limit}
spec:
  REACH
  LIMITS
"""
SERVICE = """\
---
kind: Service
metadata: {tenant: platform, name: NAME}
spec: {protocol: PROTOCOL, exportTo: [acme]}
---
kind: AccessPolicy
metadata: {tenant: platform, name: NAME}
spec: {service: NAME, allow: [{from: [{tenant: acme, service: web}]}]}
---
kind: RoutePolicy
metadata: {tenant: platform, name: NAME}
spec: {service: NAME, rules: [{split: SPLIT}]}
"""
ENTRY = """\
---
kind: WorkloadEntry
metadata: {tenant: platform, name: NAME-VERSION}
spec:
  service: NAME
  dataPlane: PLANE
  nodes: [NODE]
  selectors: {uid: UID}
  version: VERSION
  port: PORT
  insecureSameUser: true
"""


class Quota(Programs):
    """A mesh with servers that count, of one service or of several under one limit, and callers."""

    def __init__(self, up: Any, directory: Path, plans: Sequence[Plan]) -> None:
        super().__init__(up, directory)
        self.plans = plans

    @property
    def points(self) -> list[tuple[Plan, str]]:
        """Every server: its service, and its version."""
        return [(plan, version) for plan in self.plans for version in plan.servers]

    @property
    def minted(self) -> int:
        """What of bursts may be there again when shares move."""
        return sum(plan.minted for plan in self.plans)

    def apply(self, limits: str) -> None:
        names = json.dumps([plan.name for plan in self.plans])
        reach = f"services: {names}" if len(self.plans) > 1 else f"service: {self.plans[0].name}"
        text = TENANTS.replace("LIMITS", limits).replace("REACH", reach)
        text += "".join(map(_manifest, self.plans))
        path = self.directory / "quota.yaml"
        path.write_text(text.replace("UID", str(os.getuid())))
        said = self.up.run("apply", "-f", str(path))
        assert said.returncode == 0, said.stderr

    def serve(self) -> None:
        """Starts every server, and waits until the mesh has all of them: callers may ask for any at once."""
        for plan, version in self.points:
            self.serve_one(plan, version)
        self.up.until(self._all_healthy)

    def _all_healthy(self) -> bool:
        endpoints = json.loads(self.up.run("get", "Endpoint", "-o", "json").stdout or "[]")
        return [one["spec"].get("health") for one in endpoints] == ["HEALTHY"] * len(self.points)

    def serve_one(self, plan: Plan, version: str) -> None:
        node, _, program = plan.servers[version]
        command = str(Path(__file__).with_name(program)), self._log(plan, version)
        self.start(node, f"platform/{plan.name}-{version}", *command)

    def limit(self, spec: str) -> None:
        """Puts another limit in force, and waits until every server has a part of it."""
        path = self.directory / "limit.yaml"
        path.write_text(f"kind: RatePolicy\nmetadata: {{tenant: platform, name: limit}}\nspec: {spec}\n")
        self.up.until(lambda: self.up.run("apply", "-f", str(path)).returncode == 0)  # the control plane may be away

        def is_divided() -> bool:
            quotas = json.loads(self.up.run("quota", "top", "-o", "json").stdout).get("quotas", [])
            points = [len(quota.get("points", [])) for quota in quotas if f"{quota['unit']}: " in spec]
            return len(self.points) in points

        self.up.until(is_divided)

    def probe(self, node: str) -> "subprocess.Popen[str]":
        """Starts a program of acme that calls when it is told to."""
        return self.start(node, "acme/web", "-m", "meshwarden.examples.probe")

    def call(self, node: str, plan: Plan, callers: int = CALLERS) -> "subprocess.Popen[str]":
        """Starts to call, as fast as so many callers can; on node-b, as the SDK lets them."""
        probe = self.probe(node)
        held = plan.throttled and node == "node-b"
        call = {**plan.op, "rate": 150, "concurrency": callers, "timeout_s": 20, "throttled": held}
        ask(probe, op="steady_start", id="load", call=call)
        return probe

    def served(self, plan: Plan, version: str) -> list[float]:
        """When a server served a call of acme."""
        path = Path(self._log(plan, version))
        if not path.exists():
            return []
        lines = [line.split() for line in path.read_text().splitlines()]
        assert all(tenant == "acme" for _, tenant in lines)
        return [float(moment) for moment, _ in lines]

    def all_served(self) -> list[float]:
        return sorted(moment for plan, version in self.points for moment in self.served(plan, version))

    def until_each_served(self, more: int) -> None:
        """Waits until each server has served so many more calls."""
        before = {point: len(self.served(*point)) for point in self.points}
        self.up.until(lambda: all(len(self.served(*point)) >= before[point] + more for point in self.points))

    def held_back(self, plan: Plan) -> float:
        """How many calls the control plane says that callers didn't make."""
        try:
            with urllib.request.urlopen(self.up.up_json["metrics_url"], timeout=30) as answer:  # noqa: S310 - on loopback
                lines = answer.read().decode().splitlines()
        except OSError:  # it is starting again
            return 0
        of_service = f'destination_service="{plan.name}"'
        found = [line for line in lines if line.startswith("meshwarden_requests_total{") and of_service in line]
        return sum(float(line.split()[-1]) for line in found if 'decision="throttled"' in line)

    def kill(self, name: str) -> None:
        """Kills a process of the mesh, which is started again."""
        process = self._running(name)
        os.kill(process.pid, signal.SIGKILL)
        assert kernel.wait_gone(process.pid, process.start_time, 60)

    def hold_still(self, name: str, for_s: float) -> tuple[str, float, float]:
        """Holds a process of the mesh still: who speaks with it hears nothing, as if the way were cut.

        Returns:
            Its name, since when, and until when.
        """
        process, waiting = self._running(name), threading.Event()
        os.kill(process.pid, signal.SIGSTOP)
        begun_s = time.monotonic()
        try:
            waiting.wait(for_s)
            return name, begun_s, time.monotonic()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)

    def _running(self, name: str) -> record.Process:
        """A process of the mesh, once it runs."""
        found: list[record.Process] = []

        def runs() -> bool:
            found[:] = [item for item in record.load(self.up.state_dir) if item.name == name]
            return bool(found) and kernel.start_time(found[0].pid) == found[0].start_time

        self.up.until(runs)
        return found[0]

    def _log(self, plan: Plan, version: str) -> str:
        return str(self.directory / f"served-{plan.name}-{version}")


def _manifest(plan: Plan) -> str:
    split = json.dumps([{"version": version, "weight": weight} for version, (_, weight, _) in plan.servers.items()])
    text = SERVICE.replace("SPLIT", split)
    for version, (node, _, _) in plan.servers.items():
        text += ENTRY.replace("VERSION", version).replace("NODE", node).replace("PORT", str(free_port()))
    for word, value in (("NAME", plan.name), ("PROTOCOL", plan.protocol), ("PLANE", plan.data_plane)):
        text = text.replace(word, value)
    return text
