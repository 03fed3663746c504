"""Programs of Go under a real agent: its files are their identity, and what they are told comes through it."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import _directory, _start

from meshwarden.controlplane.local.port import free_port

pytestmark = [pytest.mark.by_hand, pytest.mark.timeout(900)]
WEB = "spiffe://mesh.test/tenant/acme/service/web"
SERVED = """\
kind: Service
metadata: {tenant: platform, name: served}
spec: {protocol: GRPC, exportTo: [acme], healthCheck: {interval: 0.2s}}
---
kind: WorkloadEntry
metadata: {tenant: platform, name: served}
spec: {service: served, nodes: [node-b], port: PORT, selectors: {uid: UID}, insecureSameUser: true}
---
kind: AccessPolicy
metadata: {tenant: platform, name: served}
spec: {service: served, allow: [{from: [{tenant: acme, service: web}]}]}
---
kind: RatePolicy
metadata: {tenant: platform, name: served}
spec: {service: served, limits: [{tenant: acme, requests: 1, per: 3600s, burst: 1}]}
"""


@pytest.fixture
def up() -> Iterator[Any]:
    """A mesh with the samples of the shop."""
    with _directory() as directory, _start(directory) as start:
        made = start("g")
        made.wait_until_up()
        yield made


def command(up: Any, node: int, entry: str) -> list[str]:
    socket = up.up_json["agents"][node]["agent_socket"]
    return [sys.executable, "-m", "meshwarden.agents", "exec", "--socket", socket, "--entry", entry, "--"]


@contextmanager
def client(up: Any, peer: str, entry: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs a client as an instance of an entry; gives a function that asks it."""
    with subprocess.Popen(
        [*command(up, 0, entry), peer, "client"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(**fields: Any) -> dict[str, Any]:
            stdin.write(json.dumps({"target": "xds:///orders", "timeout_s": 60, **fields}) + "\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline())
            return answer

        try:
            yield ask
        finally:
            stdin.close()
            process.wait(60)


def test_programs_of_go_are_citizens(up: Any, peer: str, tmp_path: Path) -> None:
    port = free_port(random.SystemRandom())
    (tmp_path / "served.yaml").write_text(SERVED.replace("PORT", str(port)).replace("UID", str(os.geteuid())))
    applied = up.run("apply", "-f", str(tmp_path / "served.yaml"), "--wait")
    assert applied.returncode == 0, applied.stderr
    with ExitStack() as stack:
        web, intruder = (stack.enter_context(client(up, peer, entry)) for entry in ("acme/web", "acme/intruder"))
        answer = web(count=300, concurrency=4)
        assert answer["codes"] == {"OK": 300}, answer
        assert 0 < answer["versions"]["v2"] < answer["versions"]["v1"]
        assert intruder(count=10)["codes"] == {"PERMISSION_DENIED": 10}

        serving = [*command(up, 1, "platform/served"), peer, "server", f"127.0.0.1:{port}"]
        server = stack.enter_context(subprocess.Popen(serving, stdin=subprocess.PIPE))
        stack.callback(server.kill)
        up.until(lambda: set(web(target="xds:///served.platform", timeout_s=5)["codes"]) == {"OK"})
        assert web(target="xds:///served.platform")["callers"] == {WEB: 1}, "its certificate says who calls"
        status = json.loads(up.run("status", "--output", "json").stdout)
        kinds = {plane.get("client", "").partition("/")[0] for node in status["nodes"] for plane in node["dataPlanes"]}
        assert {"go", "c-core", "envoy"} <= kinds, "each client is known by what it says of itself"
        gaps = [(gap["policy"], gap["client"], gap["effect"]) for gap in status["gaps"]]
        assert ("RatePolicy platform/served", "platform/served", "IGNORED") in gaps, "a limit that nobody holds is told"
        asked = ("explain", "--from", "acme/web", "--to", "platform/served", "--method", "/a.B/C")
        assert "not held by platform/served" in up.run(*asked).stdout

        renewed = up.run("svid", "renew", "--reason", "a test")
        assert renewed.returncode == 0, renewed.stderr
        for target in ("xds:///orders", "xds:///served.platform"):
            assert web(target=target, count=200, concurrency=2)["codes"] == {"OK": 200}, "and goes on with new ones"
