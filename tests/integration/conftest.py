"""A control plane made of real parts (CA, TLS front, gRPC server) that tests tell what to do, and a real agent."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tests.counted import stats_of

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import InvalidCsr, parse_csr
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.certs.jwt_svid import JwtTemplate, sign_jwt_svid
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import PeerVerifier
from meshwarden.controlplane.api.report import parts
from meshwarden.sdk.mtls import peer
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.tls import server_context
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import node_service_pb2_grpc as node_grpc
from meshwarden.v1 import quota_service_pb2 as quota_pb
from meshwarden.v1 import quota_service_pb2_grpc as quota_grpc
from meshwarden.v1 import report_pb2 as report_pb
from meshwarden.v1 import report_pb2_grpc as report_grpc
from meshwarden.v1 import resources_pb2 as resources

TRUST_DOMAIN = "mesh.test"
TOKEN = "a-join-token-of-the-tests"
AGENT = [sys.executable, "-m", "meshwarden.agents.cli"]


def spread(request: report_pb.ExportRequest) -> report_pb.ExportRequest:
    """A batch with what was packed in it, and each row of its tables as a count of its own."""
    for part in list(parts(request)):
        request.MergeFrom(part)
    del request.packed[:], request.packed_spans[:]
    request.calls.extend(stats_of(request.call_tables))
    del request.call_tables[:]
    return request


async def until(condition: Callable[[], Any], what: str, deadline_s: float = 60.0) -> Any:
    """Waits for a condition; what it returned."""
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                found = condition()
                if isinstance(found, Awaitable):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"did not come true: {what}") from None


class ControlPlane(node_grpc.NodeServiceServicer, report_grpc.ReportServiceServicer, quota_grpc.QuotaServiceServicer):
    """The agent's other side. What agents said stands in `heard`; tests push with `push`."""

    def __init__(self, directory: Path) -> None:
        self.authority = MemoryAuthority(TRUST_DOMAIN)
        self.ttl = timedelta(hours=1)
        self.tokens = {TOKEN: "node-a"}
        self.heard: list[node_pb.SyncRequest] = []
        self.sessions: set[asyncio.Queue[node_pb.SyncResponse]] = set()
        self.state: dict[str, node_pb.SyncResponse] = {}
        self.sign_refusal = ""
        self.signed = 0
        self.signed_below: list[str] = []
        self.jwt_key = new_key()
        self.jwts = 0
        self.renewed = 0
        self.opened = 0
        self.exports: list[report_pb.ExportRequest] = []
        self.shared: list[quota_pb.ShareRequest] = []
        self.handlers: set[object] = set()
        self._directory = directory
        self.port = 0

    async def start(self) -> None:
        bundle = await self.authority.bundle()
        key = new_key()
        template = LeafTemplate(
            SpiffeId.control_plane(TRUST_DOMAIN, "eu"), timedelta(hours=1), (f"controlplane.{TRUST_DOMAIN}",)
        )
        svid = X509Svid.of(await self.authority.sign(template, key.public_key(), utc_now()), key)
        context = server_context(svid.chain_pem(), svid.key_pem(), bundle.pem())
        self.bundle = bundle
        inner = Path(tempfile.mkdtemp(dir=self._directory)) / "s"
        self.front = Front(inner)
        check = peer.PeerInterceptor(self.front, PeerVerifier(lambda: {TRUST_DOMAIN: bundle}, utc_now))
        self.server = grpc.aio.server(interceptors=[check])
        node_grpc.add_NodeServiceServicer_to_server(self, self.server)
        report_grpc.add_ReportServiceServicer_to_server(self, self.server)
        quota_grpc.add_QuotaServiceServicer_to_server(self, self.server)
        self.server.add_insecure_port(self.front.inner_target)
        await self.server.start()
        self.port = await self.front.serve_tls("127.0.0.1", self.port, lambda: context)

    async def stop(self) -> None:
        await self.server.stop(0)
        # Calls that are still ending would wake a loop that is closed by then: grpc.aio has one queue for all loops.
        await self.server.wait_for_termination()
        await self.front.aclose()
        await until(lambda: not self.handlers, "all handlers have ended")

    async def start_again(self) -> None:
        self.heard.clear()
        await self.start()

    def push(self, **message: Any) -> None:
        """Sends a message to all sessions, and first of all to those to come."""
        response = node_pb.SyncResponse(**message)
        if "renew_now" not in message:
            self.state[next(iter(message))] = response
        for queue in self.sessions:
            queue.put_nowait(response)

    def last(self, kind: str) -> Any:
        """What an agent last said of a kind; None if it never did."""
        return next((getattr(m, kind) for m in reversed(self.heard) if m.WhichOneof("message") == kind), None)

    def dropped(self) -> dict[tuple[str, str, str], int]:
        """{(signal, reason, tenant): count}, as agents have said."""
        found: dict[tuple[str, str, str], int] = {}
        for drop in (drop for export in self.exports for drop in export.drops):
            key = (drop.signal, drop.reason, drop.tenant)
            found[key] = found.get(key, 0) + drop.count
        return found

    async def _sign(self, spiffe_id: SpiffeId, csr: bytes) -> list[bytes]:
        chain = await self.authority.sign(LeafTemplate(spiffe_id, self.ttl), parse_csr(csr), utc_now())
        return _ders(chain)

    async def Attest(self, request: Any, context: Any) -> Any:  # noqa: N802
        node = self.tokens.pop(request.join_token, None)
        if node is None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "unknown or used")
        chain = await self._sign(SpiffeId.for_node(TRUST_DOMAIN, "eu", node), request.csr)
        return node_pb.AttestResponse(chain=chain, bundle=self.bundle.to_proto(), node=node, region="eu")

    async def Renew(self, request: Any, context: Any) -> Any:  # noqa: N802
        caller = await self._caller(context)
        self.renewed += 1
        return node_pb.RenewResponse(chain=await self._sign(caller, request.csr))

    @property
    def jwt_bundle(self) -> JwtBundle:
        return JwtBundle.of(TRUST_DOMAIN, [("k", self.jwt_key.public_key())])

    async def SignJwt(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._caller(context)
        if self.sign_refusal:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, self.sign_refusal)
        self.jwts += 1
        who = SpiffeId.workload(TRUST_DOMAIN, request.tenant, request.entry)
        svid = sign_jwt_svid(JwtTemplate(who, tuple(request.audience)), self.jwt_key, "k", utc_now())
        answer = node_pb.SignJwtResponse(token=svid.token)
        answer.expire_time.FromDatetime(svid.expire_time)
        return answer

    async def SignWorkload(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._caller(context)
        self.signed_below += [value for key, value in context.invocation_metadata() if key == "traceparent"]
        results = []
        for item in request.requests:
            entry = self._entry(item.tenant, item.entry)
            if entry is None or self.sign_refusal:
                results.append(node_pb.SignedWorkload(code=7, message=self.sign_refusal or "no such entry"))
                continue
            try:
                identity = SpiffeId.workload(TRUST_DOMAIN, item.tenant, entry.spec.service)
                results.append(node_pb.SignedWorkload(chain=await self._sign(identity, item.csr)))
                self.signed += 1
            except InvalidCsr as error:
                results.append(node_pb.SignedWorkload(code=3, message=str(error)))
        return node_pb.SignWorkloadResponse(results=results)

    async def Sync(self, requests: Any, context: Any) -> Any:  # noqa: N802
        await self._caller(context)
        queue: asyncio.Queue[node_pb.SyncResponse] = asyncio.Queue()
        self.handlers.add(queue)
        try:
            await self._session(queue, requests, context)
        finally:
            self.handlers.discard(queue)

    async def _session(self, queue: "asyncio.Queue[node_pb.SyncResponse]", requests: Any, context: Any) -> None:
        hello = await anext(aiter(requests))
        assert hello.WhichOneof("message") == "hello"
        await context.write(node_pb.SyncResponse(welcome=node_pb.Welcome()))
        # In one go: what is pushed while the state is written must come after it, and not be lost.
        state = list(self.state.values())
        self.sessions.add(queue)
        try:
            for response in state:
                await context.write(response)
        except BaseException:
            self.sessions.discard(queue)
            raise
        self.opened += 1
        writer = asyncio.ensure_future(self._write(queue, context))
        try:
            async for request in requests:
                self.heard.append(request)
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            self.sessions.discard(queue)

    async def _write(self, queue: "asyncio.Queue[node_pb.SyncResponse]", context: Any) -> None:
        while True:
            await context.write(await queue.get())

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._caller(context)
        self.exports.append(spread(request))
        return report_pb.ExportResponse(sequence=request.sequence)

    async def Share(self, requests: Any, context: Any) -> AsyncIterator[quota_pb.ShareResponse]:  # noqa: N802
        """Gives each bucket that a point speaks of seven calls a second."""
        await self._caller(context)
        self.handlers.add(requests)
        try:
            number = 0
            async for request in requests:
                self.shared.append(request)
                answer = quota_pb.ShareResponse(answers=request.sequence)
                answer.ttl.FromSeconds(3)
                yield answer
                number += 1
                given = quota_pb.ShareResponse(sequence=number)
                for report in request.points:
                    shares = [quota_pb.Share(bucket=usage.bucket, rate=7, burst=7) for usage in report.usages]
                    given.points.add(point=report.point, shares=shares)
                yield given
        finally:
            self.handlers.discard(requests)

    async def _caller(self, context: Any) -> SpiffeId:
        verified = peer.current()
        if verified is None or verified.spiffe_id.node is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "show a node's certificate")
            raise AssertionError
        return verified.spiffe_id

    def _entry(self, tenant: str, name: str) -> Any:
        entries = self.state["entries"].entries.entries if "entries" in self.state else ()
        return next((e for e in entries if (e.metadata.tenant, e.metadata.name) == (tenant, name)), None)


def _ders(chain: Any) -> list[bytes]:
    from cryptography.hazmat.primitives.serialization import Encoding

    return [certificate.public_bytes(Encoding.DER) for certificate in chain]


def entry_of(tenant: str, name: str, **spec: Any) -> resources.WorkloadEntry:
    selectors = spec.pop("selectors", None) or resources.Selectors(uid=os.geteuid())
    return resources.WorkloadEntry(
        kind="WorkloadEntry",
        metadata=resources.Metadata(tenant=tenant, name=name),
        spec=resources.WorkloadEntrySpec(
            service=spec.pop("service", name),
            nodes=["node-a"],
            selectors=selectors,
            insecure_same_user=spec.pop("insecure_same_user", True),
            **spec,
        ),
    )


def entry_set(*entries: resources.WorkloadEntry) -> node_pb.EntrySet:
    services = {
        (e.metadata.tenant, e.spec.service): resources.Service(
            kind="Service",
            metadata=resources.Metadata(tenant=e.metadata.tenant, name=e.spec.service),
            spec=resources.ServiceSpec(protocol=resources.ServiceSpec.GRPC),
        )
        for e in entries
    }
    return node_pb.EntrySet(entries=entries, services=list(services.values()), revision=1)


class Agent:
    """A `meshwarden-agent run`, and programs run by its `exec`."""

    def __init__(self, directory: Path, control_plane: ControlPlane) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        self.socket = self.state_dir / "run" / "agent.sock"
        self.workload_api = self.state_dir / "run" / "workload-api.sock"
        self.config = directory / "agent.toml"
        self.log = directory / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.program = AGENT
        self.programs: list[subprocess.Popen[str]] = []
        (directory / "token").write_text(TOKEN + "\n")
        (directory / "ca.pem").write_bytes(control_plane.bundle.pem())
        self.config.write_text(
            f'node = "node-a"\ncontrol_plane = "127.0.0.1:{control_plane.port}"\ntrust_domain = "{TRUST_DOMAIN}"\n'
            f'ca_file = "{directory}/ca.pem"\njoin_token_file = "{directory}/token"\nstate_dir = "{self.state_dir}"\n'
        )

    def start(self) -> "subprocess.Popen[bytes]":
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen([*self.program, "run", "--config", str(self.config)], stderr=log)
        return self._process

    async def ready(self) -> "Agent":
        self.start()
        # To start takes a process long where many others do.
        await until(self.answers, f"the agent is ready: {self.log.read_text()}", 120)
        return self

    async def answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the agent ended: {self.log.read_text()}")
        return (await self.status()) is not None

    async def status(self) -> Any:
        done = await self.command("status", "--socket", str(self.socket), "-o", "json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    async def command(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        return await asyncio.to_thread(
            subprocess.run, [*AGENT, *arguments], capture_output=True, text=True, timeout=60, check=False, **options
        )

    def exec(self, entry: str, *command: str, flags: tuple[str, ...] = (), **options: Any) -> "subprocess.Popen[str]":
        arguments = ["exec", "--socket", str(self.socket), "--entry", entry, *flags, "--", *command]
        process = subprocess.Popen(
            [*AGENT, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.programs.append(process)
        return process

    def send(self, number: int = signal.SIGTERM) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        self._process.send_signal(number)
        return self._process

    def stop(self, number: int = signal.SIGTERM) -> int:
        return self.send(number).wait(60)

    def close(self) -> None:
        for process in [*self.programs, *([self._process] if self._process else [])]:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@pytest.fixture(name="until")
def _until() -> Callable[..., Awaitable[Any]]:
    return until


@pytest.fixture
def entry() -> SimpleNamespace:
    """Makes entries: `entry.of(tenant, name, **spec)`, `entry.set(*entries)`."""
    return SimpleNamespace(of=entry_of, set=entry_set)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets below it, and that other users may pass."""
    directory = Path(tempfile.mkdtemp(prefix="mw-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def control_plane(short_dir: Path) -> AsyncIterator[ControlPlane]:
    plane = ControlPlane(short_dir)
    await plane.start()
    plane.push(entries=entry_set(entry_of("acme", "web")))
    plane.push(bundle=plane.bundle.to_proto())
    plane.push(trust_bundles=node_pb.TrustBundles(jwt_keys=plane.jwt_bundle.to_proto()))
    yield plane
    await plane.stop()


@pytest.fixture
def agent_of(short_dir: Path) -> Iterator[Callable[[Any], Agent]]:
    """Makes the agent of a control plane: of whatever has a `port` and a `bundle`."""
    made: list[Agent] = []

    def make(control_plane: Any, directory: Path | None = None) -> Agent:
        made.append(Agent(directory or short_dir, control_plane))
        return made[-1]

    yield make
    for running in made:
        running.close()


@pytest.fixture
async def agent(short_dir: Path, control_plane: ControlPlane) -> AsyncIterator[Agent]:
    running = Agent(short_dir, control_plane)
    yield running
    running.close()
