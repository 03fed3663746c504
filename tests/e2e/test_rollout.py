"""Rollouts on real data planes: a faulty route is stopped where it began, a good one reaches all.

With two nodes a stage of half of them is one node. What is counted is what the callers themselves have seen.
"""

import json
import os
import shlex
import signal
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Programs, ask
from tests.shell import Shell

from meshwarden.controlplane.local import kernel, record

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PAGE, HELD, BACK = "docs/rollout.md", "docs/runbooks/RolloutHeld.md", "docs/runbooks/RolloutRolledBack.md"
KILLS = bool(os.environ.get("MESHWARDEN_KILLS"))
NODES = ("node-a", "node-b")
CALLS = {
    "orders": {"op": "grpc", "target": "xds:///orders", "method": "Get", "rate": 60},
    "billing": {"op": "http", "host": "billing.platform", "path": "/invoices/1", "rate": 60},
}
FINE = frozenset({"OK", "200"})
ROLLOUT = """\
kind: Rollout
metadata: {tenant: platform, name: NAME}
spec:
  routePolicies:
    - kind: RoutePolicy
      metadata: {tenant: platform, name: orders}
      spec: {service: orders, rules: [{timeout: 4s, split: [{version: v1, weight: 1}]GRPC}]}
    - kind: RoutePolicy
      metadata: {tenant: platform, name: billing}
      spec: {service: billing, rules: [{timeout: 4s, split: [{version: v1, weight: 1}]HTTP}]}
  stages: [{percent: 50, hold: 3s, wait: 120s}, {all: true, hold: 3s, wait: 120s}]
  judge: {minCalls: 100}
"""
FAULTS = {
    "GRPC": ", fault: {abort: {percent: 10, grpcStatus: UNAVAILABLE}}",
    "HTTP": ", fault: {abort: {percent: 10, httpStatus: 503}}",
}


class World(Programs):
    """The samples' mesh, and a caller of both services on each node."""

    def start_callers(self) -> None:
        self.probes = {node: self.start(node, "acme/web", "-m", "meshwarden.examples.probe") for node in NODES}
        for probe in self.probes.values():
            for call in CALLS.values():
                ask(probe, **{**call, "count": 5, "timeout_s": 20})

    def start_calls(self) -> None:
        for probe in self.probes.values():
            for name, call in CALLS.items():
                ask(probe, op="steady_start", id=name, call={**call, "concurrency": 4, "timeout_s": 20})

    def stop_calls(self) -> dict[str, dict[str, Counter[str]]]:
        """Returns `{node: {service: {what came of a call: how often}}}`."""
        return {
            node: {name: Counter(ask(probe, op="steady_stop", id=name)["codes"]) for name in CALLS}
            for node, probe in self.probes.items()
        }

    def roll_out(self, name: str, faults: dict[str, str], hold: str = "3s") -> None:
        text = ROLLOUT.replace("NAME", name).replace("hold: 3s", f"hold: {hold}")
        for word in FAULTS:
            text = text.replace(word, faults.get(word, ""))
        path = self.directory / f"{name}.yaml"
        path.write_text(text)
        said = self.up.run("apply", "-f", str(path))
        assert said.returncode == 0, said.stderr

    def state(self, name: str) -> dict[str, Any]:
        said = self.up.run("rollout", "status", f"platform/{name}", "-o", "json")
        found: list[dict[str, Any]] = json.loads(said.stdout) if said.returncode == 0 else [{}]
        status: dict[str, Any] = found[0].get("rollout", {}).get("status", {})
        return status

    def kill_control_plane(self) -> None:
        (process,) = [one for one in record.load(self.up.state_dir) if one.name == "server"]
        os.kill(process.pid, signal.SIGKILL)
        assert kernel.wait_gone(process.pid, process.start_time, 60)


@pytest.fixture(scope="module")
def world(start_shared: Callable[..., Any], shared_directory: Path) -> Iterator[World]:
    up = start_shared("r")
    up.wait_until_up()
    made = World(up, shared_directory)
    try:
        made.start_callers()
        yield made
    finally:
        made.end()


def bad(codes: dict[str, Counter[str]]) -> dict[str, int]:
    return {name: sum(count for code, count in found.items() if code not in FINE) for name, found in codes.items()}


def test_a_faulty_route_is_rolled_back_in_its_first_stage(world: World) -> None:
    world.start_calls()
    world.roll_out("faulty", FAULTS)
    watched = world.up.run("rollout", "watch", "platform/faulty")
    assert watched.returncode == 1, watched.stdout
    assert "error: ROLLED_BACK: stage 1 of 2 (50 %) is bad" in watched.stderr
    status = world.state("faulty")
    (verdict,) = status["verdicts"]
    assert (verdict["nodes"], verdict["nodesConcerned"]) == (1, 2)
    world.up.until(lambda: world.up.run("wait", "--revision", newest(world)).returncode == 0)
    with urllib.request.urlopen(world.up.up_json["metrics_url"], timeout=60) as answer:  # noqa: S310 - on loopback
        assert b'{phase="ROLLED_BACK",rollout="faulty",tenant="platform"}' in answer.read(), "an alert comes of it"
    codes = world.stop_calls()
    failed = {node: bad(of_node) for node, of_node in codes.items()}
    # The blast radius: the nodes of the stage, and no call anywhere else.
    hit = [node for node in NODES if sum(failed[node].values())]
    assert len(hit) == 1, codes
    assert all(failed[hit[0]][name] <= 0.2 * codes[hit[0]][name].total() for name in CALLS), (
        "and there a tenth of the calls, give or take"
    )
    policies = json.loads(world.up.run("get", "RoutePolicy", "-o", "json").stdout)
    assert "fault" not in json.dumps(policies), "the policies were never changed"
    for probe in world.probes.values():
        for call in CALLS.values():
            assert set(ask(probe, **{**call, "rate": 0, "count": 100, "timeout_s": 20})["codes"]) <= FINE


def test_one_who_looks_sees_what_the_page_shows(world: World) -> None:
    """What was found bad first is a matter of chance, and so is how much is known of the other by then."""
    shell = Shell(world.up.environment, world.directory)
    words = {
        "9 of 87 (10.34%)   0 of 128 (0.00%)  >= 1.83% with it, <= 8.13% without      too few": "…",
        "0 of 89 (0.00%)   >= 3.87% with it, unknown without": "…",
    }
    if "platform/billing" in world.state("faulty")["reason"]:
        words |= {"platform/orders": "that", "platform/billing": "platform/orders", "that": "platform/billing"}
    shell.types(PAGE, "meshwarden rollout watch platform/faulty", words, code=1)
    shell.types(PAGE, "meshwarden rollout status", words, rows=True)
    history = shell.types(PAGE, "meshwarden history Rollout platform/faulty")
    revision = f"--revision {history.splitlines()[1].split()[0]}"
    shell.reads(PAGE, "meshwarden trace --revision 59", {"--revision 59": revision}, rows=True)
    shell.types(BACK, "meshwarden trace --revision N", {"--revision N": revision})
    faulty = {"TENANT/ROLLOUT": "platform/faulty"}
    shell.types(HELD, "meshwarden rollout status TENANT/ROLLOUT", faulty)
    shell.types(HELD, "meshwarden history Rollout TENANT/ROLLOUT", faulty)


def newest(world: World) -> str:
    return str(json.loads(world.up.run("status", "-o", "json").stdout)["revision"])


def test_what_one_has_laid_over_the_mesh_is_told_and_goes_with_it(world: World) -> None:
    world.roll_out("held", {}, hold="3600s")
    world.up.until(lambda: world.state("held").get("phase") == "RUNNING")
    shell = Shell(world.up.environment, world.directory)
    explain = "meshwarden explain --from acme/web --to platform/billing --method 'GET /invoices/1'"
    shell.reads(PAGE, explain)
    shell.types(PAGE, "meshwarden diff --delete Rollout/platform/held", code=5, rows=True)
    shell.types(PAGE, "meshwarden diff --delete Rollout/…", {"…": "platform/held"}, code=5)
    words = {"TENANT/ROLLOUT": "platform/held"}
    shell.types(BACK, "meshwarden delete Rollout TENANT/ROLLOUT", words)
    assert "platform/held" not in world.up.run(*shlex.split(explain)[1:]).stdout


def test_an_operator_pauses_one_and_ends_it(world: World) -> None:
    shell = Shell(world.up.environment, world.directory)
    world.roll_out("stopped", {}, hold="3600s")
    world.up.until(lambda: world.state("stopped").get("phase") == "RUNNING")
    shell.types("docs/cli.md", "meshwarden rollout pause", {"pause": "pause platform/stopped"})
    assert world.state("stopped")["phase"] == "PAUSED"
    words = {"TENANT/ROLLOUT": "platform/stopped"}
    shell.types(HELD, "meshwarden rollout resume TENANT/ROLLOUT", words)
    assert world.state("stopped")["phase"] == "RUNNING"
    shell.types(HELD, "meshwarden rollout abort TENANT/ROLLOUT", words)
    assert world.state("stopped")["phase"] == "ABORTED"


def test_a_good_one_reaches_all(world: World) -> None:
    """With MESHWARDEN_KILLS=1 the control plane is killed in each stage, as `make soak` has it."""
    world.start_calls()
    world.roll_out("good", {})
    for stage in range(2) if KILLS else ():
        world.up.until(lambda stage=stage: stage <= int(world.state("good").get("stage", 0)) and is_live(world))
        world.kill_control_plane()
        world.up.until(lambda: world.state("good"))
    watched = world.up.run("rollout", "watch", "platform/good")
    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert [one.get("stage", 0) for one in world.state("good")["verdicts"]] == [0, 1], "each was judged once"
    codes = world.stop_calls()
    assert [sum(bad(of_node).values()) for of_node in codes.values()] == [0, 0], codes
    said = json.loads(world.up.run("get", "RoutePolicy", "platform/billing", "-o", "json").stdout)
    assert "4s" in json.dumps(said)
    history = world.up.run("history", "Rollout", "platform/good").stdout
    assert [history.count(word) for word in ("(50 %) begins", "(all) begins", "committed")] == [1, 1, 1], history


def is_live(world: World) -> bool:
    return world.state("good").get("phase") in ("RUNNING", "COMMITTED")
