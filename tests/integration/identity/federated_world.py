"""Two whole meshes that know each other's trust domain, and a third authority that forges: what their tests share.

Each mesh is a real control plane in this process, a real agent with its Envoys, and programs of every kind.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import yaml
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from meshwarden.agents.channel import ControlPlane, open_channel
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.bundle_document import TrustBundle, format_document
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.certs.svid import X509Svid
from meshwarden.controlplane.app import serve
from meshwarden.controlplane.config.config import Config
from meshwarden.controlplane.local.port import free_port
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import admin_service_pb2 as admin
from meshwarden.v1 import resource_service_pb2 as resource_pb
from meshwarden.v1.admin_service_pb2_grpc import AdminServiceStub
from meshwarden.v1.resource_service_pb2_grpc import ResourceServiceStub

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "certs"))
from certs_build import Made, Plan, authority, uri

DEADLINE_S = 60.0
RNG = random.SystemRandom()
# Says who called, as its certificate has it.
XDS_SERVER = """
import grpc, os, sys
from concurrent.futures import ThreadPoolExecutor
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda _, context: context.auth_context()["peer_spiffe_id"][0])
server = grpc.server(ThreadPoolExecutor(2), xds=True)
server.add_generic_rpc_handlers((Echo(),))
server.add_secure_port("127.0.0.1:" + os.environ["MESHWARDEN_PORT"],
                       grpc.xds_server_credentials(grpc.insecure_server_credentials()))
server.start()
sys.stdin.read()
server.stop(0).wait()
"""
SDK_SERVER = """
import grpc, os, sys
from meshwarden import sdk
def answer(_, context):
    who = sdk.peer_identity(context)
    return f"{who} {who.tenant}".encode()
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(answer)
server = sdk.server(max_workers=2)
server.add_generic_rpc_handlers((Echo(),))
server.add_port("127.0.0.1:" + os.environ["MESHWARDEN_PORT"])
server.start()
sys.stdin.read()
server.stop(0).wait()
"""
AIO_SERVER = """
import asyncio, grpc, os, sys, tempfile
from pathlib import Path
from meshwarden import sdk
from meshwarden.certs.clock import utc_now
from meshwarden.certs.files import read
from meshwarden.certs.verify import PeerVerifier
from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor, Refused
from meshwarden.sdk.mtls.tls import server_context
def admit(peer, method):
    if peer is None or peer.spiffe_id.account(HOME) not in ("acme", "spiffe://a.test"):
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, "for acme, and for a.test")
async def answer(_, context):
    who = sdk.peer_identity(context)
    return f"{who} {who.tenant}".encode()
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(answer)
async def main(directory):
    global HOME
    link = AgentLink.of_process()
    HOME = (await asyncio.to_thread(link.wait)).spiffe_id.trust_domain
    front = Front(Path(directory) / "inner.sock")
    verifier = PeerVerifier(lambda: link.config.federated, utc_now, link.denied, home=HOME)
    def tls():
        chain, key = read(Path(os.environ["MESHWARDEN_CREDENTIALS"]), "tls.crt", "tls.key")
        return server_context(chain, key, link.config.roots_pem, require_client=True)
    server = grpc.aio.server(interceptors=[PeerInterceptor(front, verifier, admit), sdk.aio_server_interceptor()])
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(front.inner_target)
    await server.start()
    async with front:
        await front.serve_tls("127.0.0.1", int(os.environ["MESHWARDEN_PORT"]), tls)
        await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)
with tempfile.TemporaryDirectory() as directory:
    asyncio.run(main(directory))
"""
# Reads lines "HOW TARGET", answers each with a status and what was said.
CALLER = """
import grpc, grpc.experimental, json, sys
from meshwarden import sdk
channels = {}
def opened(how, target):
    if how == "sdk":
        return sdk.channel(target, throttled=False)
    return grpc.secure_channel(target, grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials()))
for line in sys.stdin:
    how, target = line.split()
    if (how, target) not in channels:
        channels[how, target] = opened(how, target)
    try:
        said = channels[how, target].unary_unary("/echo.Echo/Say")(b"", timeout=50)
        print(json.dumps(["OK", said.decode()]), flush=True)
    except grpc.RpcError as error:
        print(json.dumps([error.code().name, error.details()]), flush=True)
"""


@dataclass
class World:
    """A mesh."""

    domain: str
    directory: Path
    new_agent: Callable[[Any], Any]
    agent: Any = None
    bundle: Any = None
    port: int = 0
    admin: Any = None
    resources: Any = None
    endpoint: int = field(default_factory=lambda: free_port(RNG))
    ports: dict[str, int] = field(default_factory=dict)
    channel: Any = None

    async def begin(self, group: anyio.abc.TaskGroup) -> None:
        """Starts its control plane."""
        state, operator = self.directory / "cp", self.directory / "operator"
        config = Config(
            trust_domain=self.domain,
            region="eu",
            state_dir=state,
            listen="127.0.0.1:0",
            metrics_listen="127.0.0.1:0",
            authority={"kind": "memory"},
            operator_directory=operator,
            spiffe_endpoint={"listen": f"127.0.0.1:{self.endpoint}"},
        )
        group.start_soon(serve, config)
        said = state / "server.json"
        async with asyncio.timeout(DEADLINE_S):
            while not said.exists():  # noqa: ASYNC110 - a file tells nobody
                await anyio.sleep(0.02)
        self.port = int(json.loads(said.read_text())["address"].rpartition(":")[2])
        self.bundle = Bundle.parse_pem(self.domain, (state / "ca.pem").read_bytes())
        svid = X509Svid.load((operator / "tls.crt").read_bytes(), (operator / "tls.key").read_bytes())
        self.channel = open_channel(ControlPlane(f"127.0.0.1:{self.port}", self.domain), self.bundle, svid)
        self.admin, self.resources = AdminServiceStub(self.channel), ResourceServiceStub(self.channel)

    async def join(self) -> None:
        """Starts its agent."""
        token = (await self.admin.CreateJoinToken(admin.CreateJoinTokenRequest(node="node-a"), timeout=60)).token
        self.agent = self.new_agent(self)
        (self.directory / "token").write_text(token + "\n")
        self.agent.config.write_text(self.agent.config.read_text().replace("mesh.test", self.domain))
        await self.agent.ready()

    async def apply(self, *resources: dict[str, Any]) -> Any:
        """Applies resources."""
        manifest = parse(yaml.safe_dump_all(resources), "test")
        request = resource_pb.ApplyRequest(resources=[item.resource for item in manifest])
        return await self.resources.Apply(request, timeout=60)

    async def delete(self, kind: str, tenant: str, name: str) -> None:
        """Deletes a resource."""
        ref = resource_pb.ResourceRef(kind=kind, tenant=tenant, name=name)
        await self.resources.Delete(resource_pb.DeleteRequest(refs=[ref]), timeout=60)

    def trusts(self, name: str, port: int, bundle: Bundle) -> dict[str, Any]:
        """Another trust domain."""
        pinned = format_document(TrustBundle(bundle.trust_domain, bundle, JwtBundle(bundle.trust_domain))).decode()
        endpoint = {
            "url": f"https://127.0.0.1:{port}/bundle.json",
            "profile": "HTTPS_SPIFFE",
            "spiffeId": f"spiffe://{bundle.trust_domain}/region/eu/controlplane",
        }
        return made(
            "TrustDomain",
            "platform",
            name,
            trustDomain=bundle.trust_domain,
            bundleEndpoint=endpoint,
            bundle=pinned,
        )

    def serves(self, name: str, protocol: str, envoy: bool = False) -> list[dict[str, Any]]:
        """A service with its entry."""
        port = self.ports[name] = free_port(RNG)
        more: dict[str, Any] = {"port": port}
        if envoy:
            inbound = self.ports[name] = free_port(RNG)
            more |= {"dataPlane": "ENVOY", "inboundPort": inbound}
        return [
            made("Service", "platform", name, protocol=protocol, exportTo=["*"], healthCheck={"interval": "0.1s"}),
            entry("platform", name, **more),
        ]


def made(kind: str, tenant: str, name: str, **spec: Any) -> dict[str, Any]:
    """A resource as a manifest has it."""
    metadata = {"name": name} if kind == "Tenant" else {"tenant": tenant, "name": name}
    return {"kind": kind, "metadata": metadata, "spec": spec}


def entry(tenant: str, name: str, **more: Any) -> dict[str, Any]:
    """A workload entry on the one node, for whoever runs the tests."""
    spec = {"service": name, "nodes": ["node-a"], "selectors": {"uid": os.geteuid()}, "insecureSameUser": True, **more}
    return made("WorkloadEntry", tenant, name, **spec)


class Program:
    """A program of `CALLER`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    async def call(self, how: str, target: str) -> tuple[str, str]:
        """Calls; the status, and what was said."""

        def ask() -> str:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(f"{how} xds:///{target}\n")
            self._process.stdin.flush()
            return self._process.stdout.readline()

        code, said = json.loads(await asyncio.wait_for(asyncio.to_thread(ask), DEADLINE_S))
        return code, said


async def get(outbound: str, host: str, path: str, **headers: str) -> tuple[int, str]:
    """What a program's Envoy answers."""
    transport = httpx.AsyncHTTPTransport(uds=outbound)
    async with httpx.AsyncClient(transport=transport, timeout=DEADLINE_S) as client:
        answer = await client.get(f"http://{host}{path}", headers=headers)
        return answer.status_code, answer.text


class Forger:
    """Another authority, whose keys the tests have."""

    def __init__(self, domain: str, directory: Path) -> None:
        self.domain, self._directory = domain, directory
        self.root = authority(domain)()
        self.bundle = Bundle.of(domain, [self.root.certificate])
        self._empty = directory / "empty"
        self._empty.write_bytes(bytes(5))

    def leaf(self, *names: str) -> Made:
        """A certificate that says what it likes."""
        return Plan(names=tuple(uri(name) for name in names))(self.root)

    def files(self, leaf: Made) -> tuple[Path, Path]:
        """Its chain and its key."""
        chain, key = self._directory / "forged.pem", self._directory / "forged.key"
        chain.write_bytes(leaf.certificate.public_bytes(Encoding.PEM))
        key.write_bytes(leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return chain, key

    async def calls(self, port: int, leaf: Made, path: str = "") -> str:
        """How a server answers whoever shows a certificate: the statuses of HTTP and gRPC, or "refused" by TLS.

        Args:
            port: the server's.
            leaf: the certificate.
            path: of a GET; empty for a gRPC call.
        """
        chain, key = self.files(leaf)
        call = ("-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", f"@{self._empty}")
        process = await asyncio.create_subprocess_exec(
            *("curl", "-s", "-k", "--http2", "--max-time", "50", "-D", "-", "-o", "/dev/null"),
            *("--cert", str(chain), "--key", str(key), *(() if path else call)),
            f"https://127.0.0.1:{port}{path or '/echo.Echo/Say'}",
            stdout=subprocess.PIPE,
        )
        said = (await process.communicate())[0].decode()
        status = re.findall(r"^HTTP/2 (\d+)|^grpc-status: ?(\d+)", said, re.MULTILINE)
        return " ".join(http or f"grpc {code}" for http, code in status) or "refused"

    def serving(self, leaf: Made) -> "Impostor":
        """A TLS server that shows a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(*self.files(leaf))
        return Impostor(context)


class Impostor:
    """A server of gRPC's that shows what it likes."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.asked, self.taken = 0, 0
        """How many came, and how many of them said something: they have taken it for what it says it is."""
        self.port = 0

    async def __aenter__(self) -> "Impostor":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        # In TLS 1.3 the server is done before the client has judged it: what it says then shows that it has.
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.start_tls(self._context)
            if await reader.read(1):
                self.taken += 1
        writer.close()


async def ends(code: Callable[[], Awaitable[Any]], wanted: Any, what: str) -> Any:
    """Waits until a call gives what is wanted."""
    found = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            while (found := await code()) != wanted:  # noqa: ASYNC110 - nothing signals it
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what}: {wanted} never came; last {found!r}") from None
    return found


def is_open(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
