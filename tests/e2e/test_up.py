"""`meshwarden up` and `meshwarden down`, as a user has them: everything starts, and nothing stays."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshwarden.controlplane.local import kernel, record

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
# tests/e2e/conftest.py: Up
Start = Callable[..., Any]
EXAMPLES = Path(__file__).parents[2] / "examples" / "api"


def test_up_ends_by_itself(start: Start) -> None:
    up = start("a", "--no-samples", "--for", "1")
    assert up.wait_until_ended() == 0, up.said()
    assert up.left() == []
    assert not (up.state_dir / "up.json").exists()
    assert "no context" in up.run("status").stderr


def test_up_with_samples_and_down_after_it_was_killed(start: Start) -> None:
    up = start("a")
    said = up.wait_until_up()
    assert set(said) == {
        *("trust_domain", "region", "control_plane", "admin", "metrics_url", "rest", "agents", "workloads", "envoys"),
    }
    assert said["trust_domain"] == "mesh.test"
    assert [agent["node"] for agent in said["agents"]] == ["node-a", "node-b"]
    workloads = {item["name"]: item for item in said["workloads"]}
    assert sorted(workloads) == [
        *("acme-web", "billing", "globex-web", "intruder", "orders-v1-a", "orders-v1-b", "orders-v2"),
    ]
    assert set(workloads["billing"]) == {"name", "tenant", "service", "node", "pid", "spiffe_id", "entry"}
    assert workloads["billing"]["spiffe_id"] == "spiffe://mesh.test/tenant/platform/service/billing"
    assert len(said["envoys"]) == 4
    for path in (said["admin"]["key_file"], up.state_dir / "up.json"):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    for envoy in said["envoys"]:
        assert stat.S_ISSOCK(os.stat(envoy["admin_socket"]).st_mode)
    status = up.run("status")
    assert status.returncode == 0, status.stderr
    assert "spiffe://mesh.test/tenant/acme/service/web" in status.stdout
    up.until(lambda: "allowed" in up.said())
    events = json.loads(up.run("audit", "list", "--event", "node.", "-o", "json").stdout)
    assert {event["fields"]["node"] for event in events if event["event"] == "node.attest"} == {"node-a", "node-b"}
    verified = up.run("audit", "verify")
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.startswith("whole\t")
    _operators_have_what_their_role_is(up)
    _examples_of_the_api_run(up)
    up.process.kill()
    up.process.wait()
    # Control plane, two agents, seven samples, four Envoys.
    assert len(up.left()) >= 14
    down = up.run("down")
    assert down.returncode == 0
    assert "stopped server" in down.stderr
    assert up.left() == []
    assert "no context" in up.run("status").stderr


def _examples_of_the_api_run(up: Any) -> None:
    """What docs/api.md shows, run as it says."""
    scripts = {
        "read.sh": ('"trustDomain":"mesh.test"', '"dataPlanes"', '"decision":"ALLOWED"'),
        "resources.sh": ('"action":"CREATED"', '"action":"UPDATED"', '"status":412'),
        "grpc.sh": ('"trustDomain": "mesh.test"', '"name": "orders"', '"revisions"'),
        "watch.py": ("node-a connected", "platform/orders", "acme is there", "is news"),
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for name, wanted in scripts.items():
        script, up_json = EXAMPLES / name, str(up.state_dir / "up.json")
        command = [sys.executable, str(script), up_json] if script.suffix == ".py" else ["bash", str(script)]
        found = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=up.state_dir,
            env={**os.environ, "UP_JSON": up_json, "PATH": path},
        )
        assert found.returncode == 0, f"{name}: {found.stdout[-1000:]}{found.stderr[-2000:]}"
        for text in wanted:
            assert text in found.stdout, f"{name}: {text}: {found.stdout[:2000]}"


def _operators_have_what_their_role_is(up: Any) -> None:
    """An editor of a tenant, made, used and removed as a person would."""
    directory = up.state_dir.parent / "ann"
    made = up.run("operator", "create", "ann", "--tenant", "acme", "--role", "editor", "--out", str(directory))
    assert made.returncode == 0, made.stderr
    assert stat.S_IMODE(os.stat(directory / "tls.key").st_mode) == 0o600
    own = json.loads(up.run("context", "list", "-o", "json").stdout)["current"]
    command = made.stderr.partition("use it with: meshwarden ")[2].split()
    assert up.run(*command).returncode == 0
    assert "spiffe://mesh.test/tenant/acme/operator/ann" in up.run("context", "show").stdout
    assert "web" in up.run("get", "Service", "--tenant", "acme").stdout
    for refused in (
        ("get", "Service", "--tenant", "platform"),
        ("token", "create", "--node", "node-x"),
        ("operator", "create", "eve", "--tenant", "acme", "--out", str(directory / "eve")),
        ("audit", "verify"),
    ):
        done = up.run(*refused)
        assert done.returncode != 0, refused
        assert "may not" in done.stderr, done.stderr
    assert up.run("operator", "renew").returncode == 0
    assert up.run("--context", own, "operator", "remove", "ann", "--tenant", "acme").returncode == 0
    assert "no more" in up.run("get", "Service", "--tenant", "acme").stderr
    assert up.run("context", "use", own).returncode == 0
    assert up.run("context", "remove", "ann").returncode == 0


def test_no_secret_is_on_a_command_line(start: Start) -> None:
    up = start("a", "--no-samples")
    up.wait_until_up()
    secrets = {(up.state_dir / "ca-passphrase").read_text()}
    secrets |= {path.read_text() for path in up.state_dir.glob("*/join-token")}
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in up.left()]
    assert len(lines) == 3
    assert not [secret for secret in secrets for line in lines if secret in line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything(start: Start, number: signal.Signals) -> None:
    up = start("a", "--no-samples")
    up.wait_until_up()
    assert len(up.left()) == 3
    up.process.send_signal(number)
    assert up.wait_until_ended() == 0, up.said()
    assert up.left() == []
    assert record.load(up.state_dir) == []


def test_a_signal_while_it_starts_stops_what_has_started(start: Start) -> None:
    up = start("a", "--no-samples")
    up.until(up.left)
    up.process.send_signal(signal.SIGINT)
    assert up.wait_until_ended() == 0, up.said()
    assert up.left() == []
    assert not (up.state_dir / "up.json").exists()


def test_down_stops_it_and_then_finds_nothing(start: Start) -> None:
    up = start("a", "--no-samples")
    up.wait_until_up()
    assert up.run("down").returncode == 0
    assert up.wait_until_ended() == 0, up.said()
    assert up.left() == []
    again = up.run("down", "--state-dir", str(up.state_dir))
    assert again.returncode == 0
    assert "no mesh runs" in again.stderr


def test_up_cleans_up_after_a_killed_up_and_keeps_what_was_applied(start: Start, directory: Path) -> None:
    up = start("a", "--no-samples")
    first = up.wait_until_up()
    manifest = directory / "tenant.yaml"
    manifest.write_text("kind: Tenant\nmetadata:\n  name: kept\n")
    assert up.run("apply", "-f", str(manifest)).returncode == 0
    up.process.kill()
    up.process.wait()
    (up.state_dir / "up.json").unlink()
    left = up.left()
    again = start("a", "--no-samples")
    assert again.wait_until_up()["control_plane"] == first["control_plane"]
    assert not set(left) & set(again.left())
    assert "Tenant\tkept" in again.run("get", "Tenant").stdout


def test_two_beside_each_other(start: Start) -> None:
    one, two = start("a", "--no-samples"), start("b", "--no-samples", "--trust-domain", "other.test")
    addresses = {up.wait_until_up()["control_plane"]["address"] for up in (one, two)}
    assert len(addresses) == 2
    for name, domain in (("a", "mesh.test"), ("b", "other.test")):
        status = json.loads(one.run("--context", name, "status", "-o", "json").stdout)
        assert status["trustDomain"] == domain
        assert [node.get("connected") for node in status["nodes"]] == [True, True]
    assert one.run("--context", "a", "down").returncode == 0
    assert one.wait_until_ended() == 0, one.said()
    assert one.left() == []
    assert two.run("status").returncode == 0


def test_a_second_up_on_one_directory_is_refused(start: Start) -> None:
    up = start("a", "--no-samples")
    up.wait_until_up()
    said = up.run("up", "--state-dir", str(up.state_dir), "--no-samples")
    assert said.returncode == 1
    assert "a mesh runs on this state directory already" in said.stderr
    assert up.process.poll() is None
    assert up.run("status").returncode == 0


def test_a_killed_control_plane_and_a_killed_agent_come_back(start: Start) -> None:
    up = start("a", "--no-samples")
    up.wait_until_up()
    for name in ("server", "agent-node-a"):
        process = next(item for item in record.load(up.state_dir) if item.name == name)
        os.kill(process.pid, signal.SIGKILL)
        assert kernel.wait_gone(process.pid, process.start_time, 30)

    def connected() -> bool:
        said = up.run("status", "-o", "json")
        return (
            said.returncode == 0
            and [node.get("connected") for node in json.loads(said.stdout).get("nodes", [])] == [True] * 2
        )

    up.until(connected)
    assert "server was ended by SIGKILL; again in" in up.said()


def test_a_start_that_fails_says_why_and_leaves_nothing(start: Start) -> None:
    up = start("a", "--no-samples", "--listen", "192.0.2.1:0")  # TEST-NET-1: not an address of this machine
    assert up.wait_until_ended() == 1, up.said()
    assert "server exited 1" in up.said()
    assert "listen = 192.0.2.1:" in up.said()
    assert "Cannot assign requested address" in up.said()
    assert "again in" not in up.said()
    assert up.left() == []


def test_a_check_that_is_interrupted_does_not_hold(start: Start) -> None:
    up = start("a", "--check", "--json")
    up.until(lambda: "svid-valid" in up.said())
    up.process.send_signal(signal.SIGINT)
    assert up.wait_until_ended() == 1, up.said()
    document = json.loads(next(line for line in up.said().splitlines() if line.startswith('{"checks"')))
    assert document["ok"] is False
    assert {check["name"]: check["ok"] for check in document["checks"]}["svid-valid"] is True
    assert document["checks"][-1]["detail"] == "not run: interrupted"


def test_a_path_too_long_for_sockets_is_refused_at_once(start: Start) -> None:
    up = start("a" * 100, "--no-samples")
    assert up.wait_until_ended() == 1, up.said()
    assert "too long by" in up.said()
    assert "meshwarden up --state-dir /tmp/mw" in up.said()
