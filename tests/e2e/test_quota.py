"""One limit over a whole mesh: points on two nodes, skewed load, and what they served counted by the programs.

What is asserted is the bound of docs/quotas.md, computed for the run, and that every point serves; never how long
something takes. The policy says DENY, so that nobody goes on with a share that may be another's by then.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from meshwarden.controlplane.local import kernel, record

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

RATE = 20  # a busy machine calls more often as well
BURST = 20
LEAST_BURST, STARTER = 4, 2
CHAOS_S = float(os.environ.get("MESHWARDEN_CHAOS_S", "12"))


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
    """

    name: str
    protocol: str
    data_plane: str
    servers: dict[str, tuple[str, int, str]]
    op: dict[str, Any]
    codes: tuple[str, str]
    minted: int = 0
    throttled: bool = False


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


class Quota:
    """A mesh with servers that count, of one service or of several under one limit, and callers."""

    def __init__(self, up: Any, directory: Path, plans: Sequence[Plan]) -> None:
        self.up, self.directory, self.plans = up, directory, plans
        self.programs: list[subprocess.Popen[str]] = []

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

    def start(self, node: str, entry: str, *command: str) -> "subprocess.Popen[str]":
        sockets = {agent["node"]: agent["agent_socket"] for agent in self.up.up_json["agents"]}
        run = [sys.executable, "-m", "meshwarden.agents", "exec", "--socket", sockets[node], "--entry", entry, "--"]
        with (self.directory / f"{entry.replace('/', '-')}-{node}.log").open("ab") as log:
            program = subprocess.Popen(
                [*run, sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.programs.append(program)
        return program

    def serve(self) -> None:
        for plan, version in self.points:
            self.serve_one(plan, version)

    def serve_one(self, plan: Plan, version: str) -> None:
        node, _, program = plan.servers[version]
        command = str(Path(__file__).with_name(program)), self._log(plan, version)
        self.start(node, f"platform/{plan.name}-{version}", *command)

    def limit(self, spec: str) -> None:
        """Puts another limit in force, and waits until every server has a part of it."""
        path = self.directory / "limit.yaml"
        path.write_text(f"kind: RatePolicy\nmetadata: {{tenant: platform, name: limit}}\nspec: {spec}\n")
        said = self.up.run("apply", "-f", str(path))
        assert said.returncode == 0, said.stderr

        def is_divided() -> bool:
            quotas = json.loads(self.up.run("quota", "top", "-o", "json").stdout).get("quotas", [])
            return any(f"{quota['unit']}: " in spec and len(quota["points"]) == len(self.points) for quota in quotas)

        self.up.until(is_divided)

    def call(self, node: str, plan: Plan, callers: int = 5) -> "subprocess.Popen[str]":
        """Starts to call, as fast as so many callers can; on node-b, as the SDK lets them."""
        probe = self.start(node, "acme/web", "-m", "meshwarden.examples.probe")
        held = plan.throttled and node == "node-b"
        call = {**plan.op, "rate": 150, "concurrency": callers, "timeout_s": 20, "throttled": held}
        _ask(probe, op="steady_start", id="load", call=call)
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

    @contextlib.contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """Holds a process of the mesh still: who speaks with it hears nothing, as if the way were cut."""
        process = self._running(name)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            yield
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

    def end(self) -> None:
        for program in self.programs:
            program.kill()
            program.communicate()


def _ask(probe: "subprocess.Popen[str]", **request: Any) -> dict[str, Any]:
    assert probe.stdin is not None
    assert probe.stdout is not None
    probe.stdin.write(json.dumps(request) + "\n")
    probe.stdin.flush()
    answer: dict[str, Any] = json.loads(probe.stdout.readline())
    assert "error" not in answer, answer
    return answer


def _manifest(plan: Plan) -> str:
    split = json.dumps([{"version": version, "weight": weight} for version, (_, weight, _) in plan.servers.items()])
    text = SERVICE.replace("SPLIT", split)
    for version, (node, _, _) in plan.servers.items():
        text += ENTRY.replace("VERSION", version).replace("NODE", node).replace("PORT", str(_free_port()))
    for word, value in (("NAME", plan.name), ("PROTOCOL", plan.protocol), ("PLANE", plan.data_plane)):
        text = text.replace(word, value)
    return text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def within_bound(served: list[float], points: int, minted: int) -> None:
    """Holds every window against the bound: what the rate gives in it, what may have been saved up, and starters.

    Saved up are the bursts: together one second's calls, but no bucket's is below four. A bucket that is opened anew
    holds two.
    """
    extra = BURST + minted + points * (LEAST_BURST + STARTER)
    for width_s in (1.0, 10.0, 1e9):
        for start, moment in enumerate(served):
            inside = bisect_right(served, moment + width_s) - start
            span_s = min(width_s, served[-1] - moment)
            assert inside <= RATE * span_s + extra, f"{inside} calls in {span_s:.2f} s from {moment}"


@pytest.fixture
def quota(start: Callable[..., Any], directory: Path, request: pytest.FixtureRequest) -> Iterator[Quota]:
    up = start("q", "--no-samples")
    up.wait_until_up()
    plans, limits = request.param
    made = Quota(up, directory, plans)
    try:
        made.apply(limits)
        made.serve()
        yield made
    finally:
        made.end()


@pytest.mark.parametrize(
    "quota",
    [
        pytest.param(([SDK], LIMITS), id="sdk"),
        pytest.param(([ENVOY], LIMITS), id="envoy"),
    ],
    indirect=True,
)
def test_a_limit_holds_over_points_on_two_nodes_whoever_is_killed(quota: Quota) -> None:
    probes = [(quota.call(node, plan), plan) for node in ("node-a", "node-b") for plan in quota.plans]
    quota.until_each_served(20)
    quota.kill("agent-node-a")
    quota.until_each_served(10)
    quota.kill("server")
    quota.until_each_served(10)
    # Long enough that points who had the whole limit each would be found out.
    quota.up.until(lambda: _span_s(quota.all_served()) > 4 * (BURST + quota.minted) / RATE)
    answers = [(_ask(probe, op="steady_stop", id="load")["codes"], plan.codes) for probe, plan in probes]
    assert any(refused in codes for codes, (_, refused) in answers), answers
    served = quota.all_served()
    assert len(served) >= sum(codes.get(passed, 0) for codes, (passed, _) in answers)
    within_bound(served, len(quota.points), quota.minted)
    quota.up.until(lambda: all(quota.held_back(plan) for plan in quota.plans if plan.throttled))


def a_day() -> str:
    """So many calls for a day that is about half over somewhere, so that none ends here."""
    ahead = 12 - time.gmtime().tm_hour
    zone = f"Etc/GMT{-ahead:+d}" if ahead else "UTC"  # whose names say the opposite
    return f"period: DAY\n  timeZone: {zone}\n  limits: [{{tenant: acme, requests: {DAY}}}]\n"


@pytest.mark.parametrize("quota", [pytest.param(([THREE], a_day()), id="day")], indirect=True)
def test_a_day_has_its_calls_and_no_more_whoever_is_killed(quota: Quota) -> None:
    """What is missing at the end is no more than what is shown as lost."""
    probes = [quota.call(node, THREE) for node in ("node-a", "node-b")]
    quota.until_each_served(20)
    quota.kill("server")
    quota.until_each_served(10)
    dead = quota.programs[0]
    assert "counting_orders.py" in " ".join(map(str, dead.args)), "the one of which most is asked"
    dead.kill()
    dead.wait()
    before = len(quota.served(THREE, "v1"))
    quota.serve_one(THREE, "v1")
    quota.up.until(lambda: len(quota.served(THREE, "v1")) > before)
    quota.up.until(lambda: (state := _day(quota)) is not None and state["left"] < 1 and state["held"] < 1)
    refused = [_ask(probe, op="steady_stop", id="load")["codes"].get("RESOURCE_EXHAUSTED", 0) for probe in probes]
    assert any(refused)
    served, state = len(quota.all_served()), _day(quota)
    assert state is not None
    assert DAY - state["lost"] <= served <= DAY, state
    shown = quota.up.run("quota", "explain", "acme")
    assert f"of {DAY} used" in shown.stdout, shown


def _day(quota: Quota) -> dict[str, float] | None:
    """How the day stands, as the operator is shown; None while nobody can say."""
    shown = quota.up.run("quota", "top", "-o", "json")
    if shown.returncode != 0:
        return None
    for state in json.loads(shown.stdout).get("quotas", []):
        return {name: float(state["period"].get(name, 0)) for name in ("granted", "used", "held", "lost", "left")}
    return None


@pytest.mark.timeout(CHAOS_S + 300)
@pytest.mark.parametrize("quota", [pytest.param(([FEW, ENVOY], LIMITS), id="several")], indirect=True)
def test_the_bound_holds_over_several_services_whatever_breaks_at_random(quota: Quota) -> None:
    """Agents and the control plane are killed and held still at random; `make soak` does so for minutes."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown if it fails
    rng, waiting = random.Random(seed), threading.Event()
    probes = [(quota.call(node, plan), plan) for node in ("node-a", "node-b") for plan in quota.plans]
    quota.until_each_served(10)
    killed, until_s = 0, time.monotonic() + CHAOS_S
    while time.monotonic() < until_s:
        name = rng.choice(["agent-node-a", "agent-node-b", "server"])
        if rng.random() < 0.5:
            quota.kill(name)
            killed += 1
        else:
            with quota.stopped(name):
                waiting.wait(rng.uniform(0.5, 6.0))
        waiting.wait(rng.uniform(0.0, 4.0))
    quota.until_each_served(5)
    for probe, _ in probes:
        _ask(probe, op="steady_stop", id="load")
    # An agent's Envoys end with it: their buckets are opened anew.
    within_bound(quota.all_served(), len(quota.points) * (1 + killed), quota.minted)


def _span_s(served: list[float]) -> float:
    return served[-1] - served[0]


@dataclass(frozen=True)
class Call:
    """A call, by the word of the server that served it."""

    begun_s: float
    ended_s: float
    size_bytes: int


CALLERS = 10
COST = 8  # of working_orders.py


def worked(quota: Quota, since_s: float) -> list[Call]:
    """The calls that began since then, by their beginning."""
    lines = [
        line.split()
        for point in quota.points
        for line in Path(quota._log(*point)).read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
    calls = [Call(float(begun_s), float(ended_s), int(size)) for begun_s, ended_s, _, size in lines]
    return sorted((call for call in calls if call.begun_s >= since_s), key=lambda call: call.begun_s)


def spent_within(calls: list[Call], amounts: list[float], rate: float, extra: float) -> None:
    """Holds every window against what the rate gives in it, and what comes to that."""
    for start, first in enumerate(calls):
        together = 0.0
        for call, amount in zip(calls[start:], amounts[start:], strict=True):
            together += amount
            span_s = call.begun_s - first.begun_s
            assert together <= rate * span_s + extra, f"{together} in {span_s:.2f} s from {first.begun_s}"


def most_at_once(calls: list[Call]) -> int:
    """How many ran at once, at most."""
    steps = sorted([(call.begun_s, 1) for call in calls] + [(call.ended_s, -1) for call in calls])
    return max(itertools.accumulate(step for _, step in steps))


@pytest.mark.parametrize("quota", [pytest.param(([WORK], LIMITS), id="work")], indirect=True)
def test_costs_bytes_and_calls_at_once_hold_over_points_on_two_nodes(quota: Quota) -> None:
    points = len(quota.points)
    probes = [quota.call(node, WORK, CALLERS) for node in ("node-a", "node-b")]

    def calls_under(limit: str, least_s: float) -> list[Call]:
        quota.limit(f"{{service: orders, whenAway: DENY, {limit}}}")
        since_s = time.monotonic()
        quota.up.until(lambda: _span(worked(quota, since_s)) > least_s)
        return worked(quota, since_s)

    # Far less is reserved than a call costs: what is not settled would pass four times over.
    calls = calls_under("reserve: 2, limits: [{tenant: acme, cost: 40, burst: 40}]", 6)
    # What runs has been let in for its reserve; and a bucket lets one call in when it is opened, and when it is full.
    spent_within(calls, [COST] * len(calls), 40, 40 + (2 * CALLERS + 2 * points) * COST)
    calls = calls_under("limits: [{tenant: acme, bytes: 20000, burst: 20000}]", 4)
    large = max(call.size_bytes for call in calls)
    # What runs has been let in while something was left.
    spent_within(calls, [call.size_bytes for call in calls], 20000, 20000 + (2 * CALLERS + 2 * points) * large)
    calls = calls_under("limits: [{tenant: acme, concurrent: 6}]", 4)
    assert 3 <= most_at_once(calls) <= 6 + points
    answers = [_ask(probe, op="steady_stop", id="load")["codes"] for probe in probes]
    assert all(codes.keys() == {"OK", "RESOURCE_EXHAUSTED"} for codes in answers), answers


def _span(calls: list[Call]) -> float:
    return calls[-1].begun_s - calls[0].begun_s if calls else 0.0
