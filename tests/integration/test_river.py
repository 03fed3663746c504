"""The whole way up, to the span: programs, an agent, a control plane and an OTLP backend, killed and cut off amid it.

Tail sampling takes half of one tenant's traces, so that some of them wait whenever the control plane dies.

What was sent and what came is counted by the two ends, not by the mesh; its own counts must say the same.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from prometheus_client.parser import text_string_to_metric_families

from meshwarden.controlplane.local.port import free_port
from meshwarden.v1 import admin_service_pb2 as admin_pb
from meshwarden.v1 import resource_service_pb2 as resource_pb
from meshwarden.v1 import resources_pb2 as resources
from meshwarden.v1.admin_service_pb2_grpc import AdminServiceStub
from meshwarden.v1.resource_service_pb2_grpc import ResourceServiceStub

TENANTS = ("acme", "globex")
STAGES = ("sdk", "agent.receive", "agent.spool", "control.ingest", "control.store", "control.sample", "backend.one")
# Sends twenty good spans, one of them of a call of a model, and a bad one a request until it is told to end, and says
# what was answered. As an exporter does it sends again what was not answered; and each fifth request once more, as if
# its answer had been lost.
SENDER = """
import grpc, os, secrets, sys, threading
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
going = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), going.set()), daemon=True).start()
options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 100)]
stub = TraceServiceStub(grpc.insecure_channel("unix:" + os.environ["MESHWARDEN_AGENT_SOCKET"], options))
wanted, turn = 0, 0
while not going.is_set():
    if not wanted:
        turn, wanted = turn + 1, 1 if (turn + 1) % 5 else 2
        trace_id, request = secrets.token_bytes(16), ExportTraceServiceRequest()
        spans = request.resource_spans.add().scope_spans.add().spans
        for number in range(20):
            spans.add(trace_id=trace_id, span_id=(number + 1).to_bytes(8, "big"), name="work")
        for key, value in {"provider.name": "openai", "request.model": "gpt-4o"}.items():
            spans[0].attributes.add(key="gen_ai." + key).value.string_value = value
        for key, value in {"input_tokens": 5, "output_tokens": 2}.items():
            spans[0].attributes.add(key="gen_ai.usage." + key).value.int_value = value
        spans.add(trace_id=trace_id, span_id=b"bad")
    try:
        answer = stub.Export(request, timeout=60)
        assert answer.partial_success.rejected_spans == 1
        print("answered", trace_id.hex(), flush=True)
        wanted -= 1
    except grpc.RpcError as error:
        print(error.code().name, trace_id.hex(), flush=True)
    going.wait(0.02)
print("end", flush=True)
"""


class Backend(TraceServiceServicer):
    """An OTLP backend that counts for itself."""

    def __init__(self) -> None:
        self.port = free_port(random.SystemRandom())
        self.seen: dict[str, Counter[str]] = {tenant: Counter() for tenant in TENANTS}
        self._server: Any = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_TraceServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for spans in request.resource_spans:
            said = {pair.key: pair.value.string_value for pair in spans.resource.attributes}
            for scope in spans.scope_spans if said.get("mesh.tenant") in TENANTS else ():
                for span in scope.spans:
                    self.seen[said["mesh.tenant"]][f"{span.trace_id.hex()} {span.span_id.hex()}"] += 1
        return otlp.ExportTraceServiceResponse()


class Wire:
    """The way from the agent to the control plane, which can lose answers."""

    def __init__(self) -> None:
        self.port = self.to = self.lost = self.held = 0
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: Any = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold(self) -> None:
        """From now on no answer comes through."""
        self.held = 0
        self._open.clear()

    def cut(self) -> None:
        """Ends all connections, with what is held."""
        for writer in self._writers:
            writer.transport.abort()
        self._open.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:  # it is dead just now
            writer.close()
            return
        for end in (writer, far_writer):
            self._writers.add(end)
        for way in (self._pass(reader, far_writer), self._pass(far_reader, writer, is_answer=True)):
            task = asyncio.ensure_future(way)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool = False
    ) -> None:
        try:
            while data := await reader.read(65536):
                if is_answer and not self._open.is_set():
                    self.held += 1
                    await self._open.wait()
                    if writer.is_closing():
                        self.lost += 1
                        return
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


class Server:
    """A control plane's process."""

    def __init__(self, directory: Path, backend: Backend) -> None:
        self.directory, self.port = directory, free_port(random.SystemRandom())
        (directory / "passphrase").write_text("a passphrase of the tests")
        (directory / "passphrase").chmod(0o600)
        settings = {
            "trust_domain": "mesh.test",
            "region": "eu",
            "state_dir": str(directory / "server"),
            "listen": f"127.0.0.1:{self.port}",
            "metrics_listen": f"127.0.0.1:{free_port(random.SystemRandom())}",
            "operator_directory": str(directory / "operator"),
        }
        authority = f'kind = "disk"\npassphrase = "file:{directory}/passphrase"\ncreate = true\n'
        otlp_to = f'name = "one"\nendpoint = "http://127.0.0.1:{backend.port}"\n'
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        tail = "ratio = 1.0\ntenants = {globex = 0.5}\n"
        (directory / "server.toml").write_text(
            f"{text}[authority]\n{authority}[[otlp]]\n{otlp_to}[tail_sampling]\n{tail}"
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def said(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.directory / "server" / "server.json").read_text())
        return found

    async def start(self, until: Any) -> None:
        (self.directory / "server" / "server.json").unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            "meshwarden.controlplane",
            "server",
            "--config",
            str(self.directory / "server.toml"),
        ]
        self._process = await asyncio.to_thread(self._spawn, command)
        await until(self._serves, "the control plane serves", 60)

    def _spawn(self, command: list[str]) -> "subprocess.Popen[bytes]":
        with open(self.directory / "server.log", "ab") as log:
            return subprocess.Popen(command, stderr=log)

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "server.log").read_text()
        return (self.directory / "server" / "server.json").exists()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def channel(self) -> grpc.aio.Channel:
        operator = self.directory / "operator"
        chain, key = (operator / "tls.crt").read_bytes(), (operator / "tls.key").read_bytes()
        credentials = grpc.ssl_channel_credentials((operator / "ca.crt").read_bytes(), key, chain)
        options = [("grpc.ssl_target_name_override", "controlplane.mesh.test")]
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options=options)

    def counts(self) -> dict[tuple[str, ...], int]:
        """{(kind, stage, tenant, reason): spans}, of the tenants; and {(direction, tenant): tokens}."""
        with urllib.request.urlopen(self.said["metrics_url"], timeout=60) as response:  # noqa: S310 - our own server
            families = list(text_string_to_metric_families(response.read().decode()))
        found: dict[tuple[str, ...], int] = {}
        for sample in (sample for family in families for sample in family.samples):
            kind = sample.name.removeprefix("meshwarden_telemetry_").removesuffix("_total")
            labels = sample.labels
            if kind in ("received", "passed", "dropped") and labels["signal"] == "span" and labels["tenant"] in TENANTS:
                found[kind, labels["stage"], labels["tenant"], labels.get("reason", "")] = int(sample.value)
            elif sample.name == "meshwarden_llm_tokens_total":
                found[labels["direction"], labels["tenant"]] = int(sample.value)
        return found


class Sender:
    """A program of a tenant, and what it was told of what it sent."""

    def __init__(self, agent: Any, tenant: str) -> None:
        self.answered: list[str] = []
        self.attempted: list[str] = []
        self._program = agent.exec(f"{tenant}/web", sys.executable, "-c", SENDER)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self._program.stdout:
            word, _, trace_id = line.strip().partition(" ")
            if word == "end":
                return
            self.attempted.append(trace_id)
            if word == "answered":
                self.answered.append(trace_id)

    def end(self) -> None:
        self._program.stdin.write("\n")
        self._program.stdin.flush()
        self._reader.join(60)


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    found = Backend()
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    found = Wire()
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
def server(short_dir: Path, backend: Backend) -> Iterator[Server]:
    found = Server(short_dir, backend)
    yield found
    found.kill()


async def found_mesh(server: Server, entry: Any) -> str:
    """Applies what the mesh needs; returns a join token."""
    items = []
    for tenant in TENANTS:
        metadata = resources.Metadata(tenant=tenant, name="web")
        spec = resources.ServiceSpec(protocol=resources.ServiceSpec.GRPC)
        of_tenant = entry.of(tenant, "web", data_plane=resources.WorkloadEntrySpec.PROXYLESS)
        items += [
            resources.Resource(tenant=resources.Tenant(kind="Tenant", metadata=resources.Metadata(name=tenant))),
            resources.Resource(service=resources.Service(kind="Service", metadata=metadata, spec=spec)),
            resources.Resource(workload_entry=of_tenant),
        ]
    async with server.channel() as channel:
        await ResourceServiceStub(channel).Apply(resource_pb.ApplyRequest(resources=items), timeout=60)
        answer = await AdminServiceStub(channel).CreateJoinToken(
            admin_pb.CreateJoinTokenRequest(node="node-a"), timeout=60
        )
    return str(answer.token)


async def test_every_span_is_accounted_for_at_every_stage(
    short_dir: Path, server: Server, backend: Backend, wire: Wire, entry: Any, until: Any, agent_of: Any
) -> None:
    await server.start(until)
    wire.to = server.port
    token = await found_mesh(server, entry)
    roots = (short_dir / "server" / "ca.pem").read_bytes()
    agent = agent_of(SimpleNamespace(port=wire.port, bundle=SimpleNamespace(pem=lambda: roots)))
    (short_dir / "token").write_text(token)
    await agent.ready()
    senders = {tenant: Sender(agent, tenant) for tenant in TENANTS}

    async def more(count: int = 10) -> None:
        """Waits until each has been answered so many times more."""
        for sender in senders.values():
            before = len(sender.answered)
            await until(lambda sender=sender, before=before: len(sender.answered) >= before + count, "answered", 60)

    try:
        await more()
        await until(lambda: all(backend.seen.values()), "the backend has spans of both", 60)
        for _ in range(2):  # the control plane has taken batches, and its answers are lost
            await lose_answers(wire, server, more, until)
            await more()
        for _ in range(2):  # the control plane dies amid batches
            server.kill()
            await more()
            await server.start(until)
            await more()
        await backend.stop()
        await more()
        server.kill()
        await asyncio.to_thread(agent.stop, signal.SIGKILL)
        await agent.ready()
        await more()
        await server.start(until)
        for _ in range(2):  # the agent dies amid everything
            await asyncio.to_thread(agent.stop, signal.SIGKILL)
            await agent.ready()
            await more()
        await backend.start()
        await more()
    finally:
        for sender in senders.values():
            await asyncio.to_thread(sender.end)

    def settled() -> bool:
        counts = server.counts()
        return all(is_accounted_for(backend, counts, sender, tenant) for tenant, sender in senders.items())

    await until(lambda: asyncio.to_thread(settled), "every span is accounted for", 120)
    for tenant, sender in senders.items():
        assert set(backend.seen[tenant]) <= spans_of(sender.attempted, tenant)
    assert wire.lost
    assert os.listdir(short_dir / "state" / "spool")


def is_accounted_for(backend: Backend, counts: dict[tuple[str, ...], int], sender: Sender, tenant: str) -> bool:
    """Whether a tenant's spans have come to the backend, and the mesh counts at every stage what both ends do."""
    seen, answered = backend.seen[tenant], set(sender.answered)
    # One bad span a request tells how many were kept: also those that a dying agent could not answer any more.
    kept = counts.get(("dropped", "agent.receive", tenant, "malformed"), 0)
    stored = counts.get(("passed", "control.store", tenant, ""), 0)
    repeated = counts.get(("dropped", "control.store", tenant, "duplicate"), 0)
    sampled = counts.get(("dropped", "control.sample", tenant, "sampled"), 0)
    below = ("agent.receive", "agent.spool", "control.ingest")
    return (
        spans_of(sender.answered, tenant) <= set(seen)
        and len(sender.answered) <= kept <= len(sender.attempted)
        and counts.get(("received", "agent.receive", tenant, "")) == 21 * kept
        and all(counts.get(("passed", stage, tenant, "")) == 20 * kept for stage in below)
        and 20 * len(answered) <= stored <= 20 * len(set(sender.attempted))
        and repeated == 20 * kept - stored >= 20 * (len(sender.answered) - len(answered)) > 0
        and counts.get(("passed", "backend.one", tenant, "")) == 20 * kept - sampled <= seen.total()
        # Whatever is sampled, of each call once.
        and (counts.get(("input", tenant)), counts.get(("output", tenant))) == (stored // 4, stored // 10)
        and (sampled == 0, len(seen) == stored) == ((True, True) if tenant == "acme" else (False, False))
        and all(through(counts, stage, tenant) for stage in STAGES)
    )


async def lose_answers(wire: Wire, server: Server, more: Any, until: Any) -> None:
    """Has the control plane take batches of which the agent never hears that they were."""
    wire.hold()

    async def stands() -> bool:
        before = await asyncio.to_thread(server.counts)
        await more(5)  # there is more to send, but the agent waits for an answer
        return before == await asyncio.to_thread(server.counts)

    await until(lambda: wire.held, "an answer is held", 60)
    await until(stands, "all that was sent is taken", 60)
    wire.cut()


def through(counts: dict[tuple[str, ...], int], stage: str, tenant: str) -> bool:
    """Whether nothing of a tenant is in a stage: what came was passed on or dropped."""
    gone = sum(count for key, count in counts.items() if key[1:3] == (stage, tenant) and key[0] != "received")
    return counts.get(("received", stage, tenant, "")) == gone


def spans_of(trace_ids: list[str], tenant: str) -> set[str]:
    """The spans of traces that are to reach the backend: of globex those with the greater half of randomness."""
    found = [trace_id for trace_id in trace_ids if tenant == "acme" or int(trace_id[-14:], 16) >= 1 << 55]
    return {f"{trace_id} {number + 1:016x}" for trace_id in found for number in range(20)}
