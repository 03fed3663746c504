"""Head sampling as a service's policy says: with the SDK, and for who asks by the Jaeger remote-sampling API."""

import asyncio
import json
import sys
from typing import Any

import pytest

from meshwarden.v1 import resources_pb2

# Begins as many traces as it is told, and asks the agent as a Jaeger client does; says how many it recorded, and both
# parts of the answer.
SAMPLED = """
import http.client, json, os, socket, sys
from opentelemetry import trace
from meshwarden.sdk import telemetry
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["MESHWARDEN_OTLP_HTTP_SOCKET"])
assert telemetry.configure()
tracer = trace.get_tracer("test")
for line in sys.stdin:
    spans = [tracer.start_span("x") for _ in range(int(line))]
    recorded = sum(span.is_recording() for span in spans)
    link = Unix("localhost")
    link.request("GET", "/sampling?service=another.tenant")
    answer = json.loads(link.getresponse().read())
    link.request("POST", "/sampling")
    print(recorded, json.dumps(answer), link.getresponse().status, sep="|", flush=True)
    link.close()
"""


@pytest.mark.parametrize("ratio", [0.0, 0.5])
async def test_a_policy_reaches_programs_that_run(
    agent: Any, control_plane: Any, entry: Any, until: Any, ratio: float
) -> None:
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", SAMPLED)

    def ask() -> tuple[int, float]:
        program.stdin.write("200\n")
        program.stdin.flush()
        recorded, answer, status = program.stdout.readline().split("|")
        said = json.loads(answer)
        assert (said["strategyType"], int(status)) == ("PROBABILISTIC", 405)
        return int(recorded), said["probabilisticSampling"]["samplingRate"]

    assert await asyncio.to_thread(ask) == (200, 1.0)
    entries = entry.set(entry.of("acme", "web"))
    entries.services[0].spec.trace_sampling.CopyFrom(resources_pb2.TraceSampling(ratio=ratio))
    control_plane.push(entries=entries)

    async def followed() -> bool:
        recorded, rate = await asyncio.to_thread(ask)
        return rate == ratio and (recorded == 0 if ratio == 0 else 0 < recorded < 200)

    async with asyncio.timeout(30):
        while not await followed():  # noqa: ASYNC110 - a program tells nobody
            await asyncio.sleep(0.05)


async def test_a_stranger_has_no_policy(agent: Any) -> None:
    await agent.ready()
    reader, writer = await asyncio.open_unix_connection(agent.socket.with_name("otlp.sock"))
    writer.write(b"GET /sampling?service=web.acme HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 401 ")
