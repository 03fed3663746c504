"""A control plane as a process of its own: what it says when it can't start, and what its log does not say."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from meshwarden.controlplane.gather.resource import OWN_NAME
from meshwarden.controlplane.local.otlp import OtlpReceiver, receiver

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
    assert [event["event"] for event in events] == ["authority.issue", "controlplane.issue", "authority.jwt_key"]
    issuing = events[0]["fields"]
    assert issuing["subject"].endswith("CN=issuing of mesh.test,O=Meshwarden")
    assert len(issuing["root"]) == 64


def names_of(backend: OtlpReceiver) -> set[str]:
    return {metric.name for item in list(backend.metrics) for scope in item.scope_metrics for metric in scope.metrics}


async def test_its_metrics_go_to_a_backend(short_dir: Path) -> None:
    async with receiver() as backend:
        interval = "otlp_metrics_interval_s = 1"
        (short_dir / "server.toml").write_text(
            f'trust_domain = "mesh.test"\nstate_dir = "{short_dir / "state"}"\nlisten = "127.0.0.1:0"\n'
            f'metrics_listen = "127.0.0.1:0"\n{interval}\n[authority]\nkind = "memory"\n'
            f'[[otlp]]\nname = "sink"\nendpoint = "{backend.endpoint}"\n'
        )
        command = ["-m", "meshwarden.controlplane", "server", "--config", str(short_dir / "server.toml")]
        async with await anyio.open_process([sys.executable, *command], stdout=None, stderr=None) as process:
            wanted = {"meshwarden.store_revision", "meshwarden.svids_issued", "process.cpu.time"}
            wanted |= {"meshwarden.telemetry_received", "cpython.gc.collections", "meshwarden.svid_expiry"}
            async with asyncio.timeout(100):
                while not wanted <= names_of(backend):  # noqa: ASYNC110
                    await anyio.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    assert all(item.resource.attributes[0].value.string_value == OWN_NAME for item in backend.metrics)


def test_a_traceback_in_the_log_shows_no_variables() -> None:
    done = subprocess.run([sys.executable, "-c", FAULT], capture_output=True, text=True, check=True)
    first, second = map(json.loads, done.stderr.splitlines())
    assert first["event"] == "rpc.failed"
    assert second["event"] == "callback failed"
    for line in (first, second):
        assert "ValueError: a defect" in line["exception"]
    assert "t0ps3cret" not in done.stderr.replace('attest("t0ps3cret")', "")
