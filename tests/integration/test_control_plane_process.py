"""A control plane as a process of its own: what it says when it can't start, and what its log does not say."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)
# Raises where a local variable holds a secret.
FAULT = """
import structlog
from meshwarden.controlplane import log
log.configure()
def attest(token):
    raise ValueError("a defect")
try:
    attest("t0ps3cret")
except ValueError:
    structlog.get_logger().error("rpc.failed", exc_info=True)
    import logging
    logging.getLogger("asyncio").exception("callback failed")
"""


def serve(directory: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Runs a control plane to its end."""
    lines = {"trust_domain": "mesh.test", "state_dir": str(directory / "state"), "listen": "127.0.0.1:0"}
    lines |= {"metrics_listen": "127.0.0.1:0", **settings}
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
    (directory / "server.toml").write_text(f'{text}[authority]\nkind = "memory"\n')
    command = [sys.executable, "-m", "meshwarden.controlplane", "server", "--config", str(directory / "server.toml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("setting", ["listen", "metrics_listen"])
def test_an_address_that_is_taken_is_named_and_ends_it(short_dir: Path, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = serve(short_dir, **{setting: address})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {setting} = {address}: Address already in use"
    assert "Traceback" not in done.stderr


def test_a_state_directory_too_long_for_sockets_is_named_with_the_fix(short_dir: Path) -> None:
    state_dir = short_dir / ("x" * 70)
    done = serve(short_dir, state_dir=str(state_dir))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    size = len(bytes(state_dir))
    said = f"state_dir: Value error, {state_dir} has {size} bytes, and Unix sockets below it leave 76: say"
    assert said in done.stderr
    assert not state_dir.exists()
    longest = str(short_dir / ("x" * (76 - len(bytes(short_dir)) - 1)))
    assert "listen = 192.0.2.1:1: " in serve(short_dir, state_dir=longest, listen="192.0.2.1:1").stderr


def test_its_audit_log_begins_with_the_issuing_certificate(short_dir: Path) -> None:
    serve(short_dir, listen="192.0.2.1:1")
    events = [json.loads(line) for line in (short_dir / "state" / "audit.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["authority.issue", "controlplane.issue"]
    issuing = events[0]["fields"]
    assert issuing["subject"].endswith("CN=issuing of mesh.test,O=Meshwarden")
    assert len(issuing["root"]) == 64


def test_a_traceback_in_the_log_shows_no_variables() -> None:
    done = subprocess.run([sys.executable, "-c", FAULT], capture_output=True, text=True, check=True)
    first, second = map(json.loads, done.stderr.splitlines())
    assert first["event"] == "rpc.failed"
    assert second["event"] == "callback failed"
    for line in (first, second):
        assert "ValueError: a defect" in line["exception"]
    assert "t0ps3cret" not in done.stderr.replace('attest("t0ps3cret")', "")
