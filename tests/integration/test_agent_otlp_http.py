"""OTLP over HTTP, and over loopback TCP with a token: programs of the mesh, strangers, and hostile senders."""

import asyncio
import contextlib
import gzip
import http.client
import json
import os
import random
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from tests.written import written

from meshwarden.controlplane.local.port import free_port
from meshwarden.xds import telemetry_names as names

PROTOBUF, JSON = "application/x-protobuf", "application/json"
# Posts what it is told, "TARGET PATH TYPE ENCODING HEX"; answers the status, Retry-After and the body in hex.
SENDER = """
import http.client, os, socket, sys
from urllib.parse import unquote
class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["MESHWARDEN_OTLP_HTTP_SOCKET"])
for line in sys.stdin:
    target, path, kind, encoding, body = line.rstrip("\\n").split(" ")
    tcp = os.environ.get("MESHWARDEN_OTLP_HTTP", "").removeprefix("http://")
    link = Unix("localhost") if target == "unix" else http.client.HTTPConnection(tcp)
    headers = {"content-type": kind, "content-encoding": encoding}
    if target == "token":
        headers["authorization"] = unquote(os.environ["OTEL_EXPORTER_OTLP_HEADERS"].partition("=")[2])
    link.request("POST", path, bytes.fromhex(body), headers)
    answer = link.getresponse()
    print(answer.status, answer.headers.get("retry-after", "-"), answer.read().hex() or "-", flush=True)
    link.close()
"""
# The real exporter, over TCP: the token comes from the environment.
TRACED = """
import os
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=os.environ["MESHWARDEN_OTLP_GRPC"])))
with provider.get_tracer("test").start_as_current_span("over tcp"):
    pass
provider.shutdown()
print("done", flush=True)
import sys; sys.stdin.read()
"""


def request(name: str = "x") -> bytes:
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8, name=name)
    return message.SerializeToString()


def in_json(name: str) -> bytes:
    span = {"traceId": "0a" * 16, "spanId": "0b" * 8, "name": name, "kind": 2, "startTimeUnixNano": "5", "new": {}}
    said = {"key": "mesh.tenant", "value": {"stringValue": "globex"}}
    resource = {"resource": {"attributes": [said]}, "scopeSpans": [{"spans": [span]}]}
    return json.dumps({"resourceSpans": [resource]}).encode()


def spans(control_plane: Any) -> dict[str, dict[str, str]]:
    """What came up of programs: {name of a span: attributes of its resource}."""
    found = {}
    for export in control_plane.exports:
        for body in export.resource_spans:
            message = ResourceSpans.FromString(body)
            said = {pair.key: pair.value.string_value for pair in message.resource.attributes}
            if said["service.name"] == "meshwarden-agent":
                continue
            found.update({span.name: said for scope in message.scope_spans for span in scope.spans})
    return found


class Sender:
    """A program of the mesh that sends what it is told."""

    def __init__(self, agent: Any) -> None:
        self.program = agent.exec("web", sys.executable, "-c", SENDER)

    async def post(
        self,
        body: bytes,
        path: str = "/v1/traces",
        kind: str = PROTOBUF,
        encoding: str = "identity",
        target: str = "unix",
    ) -> tuple[int, str, bytes]:
        def ask() -> str:
            self.program.stdin.write(f"{target} {path} {kind} {encoding} {body.hex()}\n")
            self.program.stdin.flush()
            return str(self.program.stdout.readline())

        words = (await asyncio.wait_for(asyncio.to_thread(ask), 60)).split()
        assert words, self.program.stderr.read()
        return int(words[0]), words[1], b"" if words[2] == "-" else bytes.fromhex(words[2])


def configure(agent: Any, **settings: Any) -> None:
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    agent.config.write_text(agent.config.read_text() + lines)


async def test_programs_send_protobuf_and_json_plain_and_packed(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()
    sender = Sender(agent)
    assert await sender.post(request("plain")) == (200, "-", b"")
    assert (await sender.post(gzip.compress(request("packed")), encoding="gzip"))[0] == 200
    assert await sender.post(in_json("json"), kind=JSON) == (200, "-", b"{}")
    assert (await sender.post(gzip.compress(in_json("packed json")), kind=JSON, encoding="gzip"))[0] == 200
    bad = ExportTraceServiceRequest.FromString(request("bad"))
    bad.resource_spans[0].scope_spans[0].spans[0].trace_id = b""
    status, _, answer = await sender.post(bad.SerializeToString())
    assert (status, ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans) == (200, 1)
    found = await until(lambda: len(spans(control_plane)) == 4 and spans(control_plane), "all have come")
    assert set(found) == {"plain", "packed", "json", "packed json"}
    assert {said["mesh.tenant"] for said in found.values()} == {"acme"}
    assert {said["service.name"] for said in found.values()} == {"web.acme"}


async def test_hostile_requests_are_refused_and_cost_nobody_else(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()
    sender = Sender(agent)
    bomb = gzip.compress(bytes(256 << 20), 9)
    deep = b'{"resourceSpans":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    hostile: list[tuple[int, dict[str, Any]]] = [
        (400, {"body": b"\xff\xff"}),
        (400, {"body": bomb, "encoding": "gzip"}),
        (400, {"body": b"no gzip", "encoding": "gzip"}),
        (400, {"body": gzip.compress(request())[:-9], "encoding": "gzip"}),
        (400, {"body": gzip.compress(b" " * (1 << 20) + in_json("x")), "encoding": "gzip", "kind": JSON}),
        (400, {"body": deep, "kind": JSON}),
        (400, {"body": b'{"resourceSpans": [{"scopeSpans": "x"}]}', "kind": JSON}),
        (400, {"body": b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "zz"}]}]}]}', "kind": JSON}),
        (400, {"body": b'"\xff\xfe"', "kind": JSON}),
        (400, {"body": b"[]", "kind": JSON}),
        (404, {"body": request(), "path": "/v1/profiles"}),
        (415, {"body": request(), "kind": "text/plain"}),
        (415, {"body": request(), "encoding": "br"}),
    ]
    for expected, arguments in hostile:
        assert (await sender.post(**arguments))[0] == expected, arguments["body"][:60]
    assert (await sender.post(request("fine")))[0] == 200
    await until(lambda: "fine" in spans(control_plane), "what is fine has come")
    await until(
        lambda: control_plane.dropped().get(("span", "malformed", "acme")) == 10, "what was not read is counted"
    )


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + bytes(5 << 20),
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000,
        b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffffffff\r\n",
    ],
)
async def test_what_is_no_request_ends_its_connection_alone(agent: Any, said: bytes) -> None:
    await agent.ready()
    reader, writer = await asyncio.open_unix_connection(agent.socket.with_name("otlp.sock"))
    with_answer = b""
    try:
        writer.write(said)
        await writer.drain()
        with_answer = await asyncio.wait_for(reader.read(), 60)
    except OSError:
        pass  # it was cut off while we wrote
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    assert with_answer == b"" or re.match(rb"HTTP/1.1 4\d\d ", with_answer)  # noqa: TID251 - a prefix
    assert await agent.answers()


async def test_a_stranger_is_refused_on_the_socket(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()

    class Unix(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(agent.socket.with_name("otlp.sock")))

    def post() -> int:
        link = Unix("localhost")
        link.request("POST", "/v1/traces", request(), {"content-type": PROTOBUF})
        status = link.getresponse().status
        link.close()
        return status

    assert await asyncio.to_thread(post) == 401
    await until(lambda: control_plane.dropped().get(("span", "unidentified", "")) == 1, "it is counted")


async def test_a_token_opens_tcp_for_as_long_as_its_workload_lives(agent: Any, control_plane: Any, until: Any) -> None:
    http_port, grpc_port = free_port(random.SystemRandom()), free_port(random.SystemRandom())
    configure(agent, otlp_http_listen=f"127.0.0.1:{http_port}", otlp_grpc_listen=f"127.0.0.1:{grpc_port}")
    await agent.ready()
    sender = Sender(agent)
    assert (await sender.post(request("no token"), target="tcp"))[0] == 401
    assert (await sender.post(request("with token"), target="token"))[0] == 200
    program = agent.exec("web", sys.executable, "-c", TRACED, flags=("--instance", "two"))
    assert (await asyncio.to_thread(program.stdout.readline)).strip() == "done", program.stderr.read()
    environment = Path(f"/proc/{sender.program.pid}/environ").read_bytes().split(b"\0")
    (headers,) = [pair for pair in environment if pair.startswith(b"OTEL_EXPORTER_OTLP_HEADERS=")]
    token = headers.decode().partition("authorization=Bearer%20")[2]

    def post(shown: str) -> int:
        link = http.client.HTTPConnection("127.0.0.1", http_port)
        link.request("POST", "/v1/traces", request("x"), {"content-type": PROTOBUF, "authorization": shown})
        status = link.getresponse().status
        link.close()
        return status

    assert await asyncio.to_thread(post, f"Bearer {token}") == 200
    forged = [
        f"Bearer {token[:-1]}{'0' if token[-1] != '0' else '1'}",
        f"Bearer {token[:13]}",
        "Bearer",
        f"Basic {token}",
    ]
    for shown in forged:
        assert await asyncio.to_thread(post, shown) == 401
    await asyncio.to_thread(agent.stop, signal.SIGKILL)
    await agent.ready()  # it knows the tokens of programs that still run
    assert await asyncio.to_thread(post, f"Bearer {token}") == 200
    sender.program.kill()
    await asyncio.to_thread(sender.program.wait)
    await until(lambda: asyncio.to_thread(lambda: post(f"Bearer {token}") == 401), "it ends with its workload")
    found = await until(
        lambda: {"with token", "over tcp"} <= set(spans(control_plane)) and spans(control_plane), "both"
    )
    assert "no token" not in found
    assert {said["mesh.tenant"] for said in found.values()} == {"acme"}
    assert token.partition(".")[2] not in agent.log.read_text()
    secret = token.partition(".")[2].encode()
    assert [path for path, content in written(agent.state_dir) if secret in content] == []


async def test_whoever_sends_too_much_is_told_when_to_come_again(agent: Any, control_plane: Any, until: Any) -> None:
    configure(agent, telemetry_bytes_per_s=1024)
    await agent.ready()
    sender = Sender(agent)
    assert (await sender.post(request("x" * 1000) * 8))[0] == 200
    status, retry_after, _ = await sender.post(request())
    assert status == 429
    assert 1 <= int(retry_after) <= 10
    await until(lambda: control_plane.dropped().get(("span", "rate_limited", "acme")) == 1, "it is counted")
    # Envoys' word on calls is taken all the same, and what else came with it is refused and counted.
    logs = ExportLogsServiceRequest()
    records = logs.resource_logs.add().scope_logs.add().log_records
    for said in ({}, {names.REPORTER: names.SOURCE_SIDE, names.METHOD: "GET", names.PATH: "/kept"}, {}):
        record = records.add()
        for key, value in said.items():
            record.attributes.add(key=key).value.string_value = value
    assert (await sender.post(logs.SerializeToString(), "/v1/logs"))[0] == 429
    await until(lambda: control_plane.dropped().get(("log", "rate_limited", "acme")) == 2, "they are counted")
    calls = [stat for export in control_plane.exports for stat in export.calls]
    assert [(stat.source, stat.count) for stat in calls] == [("spiffe://mesh.test/tenant/acme/service/web", 1)]
    assert os.path.exists(agent.socket)
