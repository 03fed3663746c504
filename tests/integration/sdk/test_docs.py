"""What docs/sdk.md prints runs as printed."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.quota_service_pb2 import Bucket, Share
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

PAGE = Path(__file__).parents[3] / "docs" / "sdk.md"
CALL, SERVE, _, CONFIGURE, AIO = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_examples_of_the_page(mesh: Any, port: int) -> None:
    serving = mesh.workload("platform", "orders", port)
    program = serving.start("-c", CONFIGURE + SERVE)
    mesh.until_open(serving, program)
    calling = mesh.workload("acme", "web").start("-c", CONFIGURE + CALL)
    assert calling.popen.stdout.readline() == "acme\n", "".join(calling.log)
    assert calling.popen.wait(60) == 0
    assert program.end() == 0


def test_the_example_of_an_aio_server(mesh: Any, port: int, until: Callable[..., Any]) -> None:
    serving = mesh.workload("platform", "orders", port)
    program = serving.start("-c", AIO)
    mesh.until_open(serving, program)
    acme = RateLimit(tenant="acme", requests=1000, burst=1000)
    said = PolicyLimits(policy="platform/orders", spec=RatePolicySpec(limits=[acme]))
    serving.tell(ServerLimits(policies=[said]))
    serving.agent.shares = [Share(bucket=Bucket(policy="platform/orders", tenant="acme"), rate=1e-6, burst=3.0)]
    _, probe = mesh.probe()
    until(lambda: probe.ask("grpc")["codes"] == {"RESOURCE_EXHAUSTED": 1}, "its first calls, and no more")
    assert "rate policy platform/orders limits tenant acme: try again in" in probe.ask("grpc")["errors"][0]
    until(lambda: serving.agent.used["acme", "", "denied"] >= 2, "said")
    _, globex = mesh.probe("globex", "web")
    assert globex.ask("grpc")["codes"] == {"PERMISSION_DENIED": 1}, "no policy lets it in"
    assert program.end() == 0, "".join(program.log)
    until(lambda: serving.agent.left == 1, "goodbye")
