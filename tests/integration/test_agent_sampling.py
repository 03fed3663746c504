"""Head sampling as a service's policy says: with the SDK, and for who asks by the Jaeger remote-sampling API."""

import asyncio
import json
import sys
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from meshwarden.v1 import resources_pb2
from meshwarden.v1.report_pb2 import ModelCalls

# Begins as many traces as it is told, and one more with a call of a model; asks the agent as a Jaeger client does; says
# how many of them it recorded, and both parts of the answer.
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
    said = {"gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o"}
    with tracer.start_as_current_span("chat", kind=trace.SpanKind.CLIENT, attributes=said) as call:
        call.set_attributes({"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 2})
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
    asked = 0

    def ask() -> tuple[int, float]:
        nonlocal asked
        asked += 1
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
    # Each call of a model is told of, sampled or not; a span that is not goes no further.
    await until(lambda: len(model_calls(control_plane)) == asked, "all calls are told of")
    assert sum(model_calls(control_plane).values()) == 7 * asked
    if ratio == 0:
        assert len(spans_of_calls(control_plane)) < asked


def model_calls(control_plane: Any) -> dict[int, int]:
    """The tokens of each call of a model that was told of, by its span."""
    told = [ModelCalls.FromString(body) for export in control_plane.exports for body in export.model_calls]
    assert {one.reporter for one in told} <= {"web.acme"}
    return {call.id: call.input_tokens + call.output_tokens for one in told for call in one.calls}


def spans_of_calls(control_plane: Any) -> list[Span]:
    """Their spans that came up."""
    found = [ResourceSpans.FromString(body) for export in control_plane.exports for body in export.resource_spans]
    return [span for one in found for scope in one.scope_spans for span in scope.spans if span.name == "chat"]


async def test_a_stranger_has_no_policy(agent: Any) -> None:
    await agent.ready()
    reader, writer = await asyncio.open_unix_connection(agent.socket.with_name("otlp.sock"))
    writer.write(b"GET /sampling?service=web.acme HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 401 ")
