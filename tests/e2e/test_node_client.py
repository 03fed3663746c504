"""An unmodified Node client calls the mesh: it has an identity, is routed, refused and let in as any other."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.needs("node", "npm"),
    pytest.mark.timeout(900),
]
CLIENT = Path(__file__).parent / "node"
GRANT = """\
kind: AccessPolicy
metadata: {tenant: platform, name: node-client}
spec:
  service: orders
  allow:
  - from: [{tenant: acme, service: intruder}]
"""


@contextmanager
def client(up: Any, entry: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs the Node client as an instance of `entry`; gives a function that asks it."""
    socket = up.up_json["agents"][0]["agent_socket"]
    orders = str(files("meshwarden.examples.orders") / "orders.proto")
    command = [sys.executable, "-m", "meshwarden.agents", "exec", "--socket", socket, "--entry", entry, "--"]
    command += ["node", "client.js", orders]
    with subprocess.Popen(
        command, cwd=CLIENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=up.environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(**fields: Any) -> dict[str, Any]:
            stdin.write(json.dumps({"target": "xds:///orders", "method": "Get", **fields}) + "\n")
            stdin.flush()
            answer: dict[str, Any] = json.loads(stdout.readline())
            return answer

        try:
            yield ask
        finally:
            stdin.close()
            process.wait(60)


def test_an_unmodified_node_client_is_a_citizen(start: Callable[..., Any], tmp_path: Path) -> None:
    up = start("node")
    up.wait_until_up()
    with client(up, "acme/web") as allowed, client(up, "acme/intruder") as intruder:
        answer = allowed(count=300, concurrency=4, timeout_s=60, metadata={"x-tenant": "globex"})
        assert answer["codes"] == {"OK": 300}, answer
        assert answer["tenants"] == {"acme": 300}
        assert 0 < answer["versions"]["v2"] < answer["versions"]["v1"]
        status = json.loads(up.run("status", "--output", "json").stdout)
        kinds = {plane.get("client", "").partition("/")[0] for node in status["nodes"] for plane in node["dataPlanes"]}
        assert {"node", "c-core", "envoy"} <= kinds, "each client is known by what it says of itself"
        assert intruder(count=10, timeout_s=60)["codes"] == {"PERMISSION_DENIED": 10}
        (tmp_path / "grant.yaml").write_text(GRANT)
        applied = up.run("apply", "-f", str(tmp_path / "grant.yaml"))
        assert applied.returncode == 0, applied.stderr
        up.until(lambda: set(intruder(count=1)["codes"]) == {"OK"})
