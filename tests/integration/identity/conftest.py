"""A whole control plane in this process, as `meshwarden server` makes it, and a PKI of machines beside it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from meshwarden.agents.channel import ControlPlane, open_channel
from meshwarden.agents.proof.x509pop import PossessionProof
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import make_csr
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.app import serve
from meshwarden.controlplane.config.config import Config
from meshwarden.v1 import admin_service_pb2 as admin
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1.admin_service_pb2_grpc import AdminServiceStub
from meshwarden.v1.audit_service_pb2_grpc import AuditServiceStub
from meshwarden.v1.node_service_pb2_grpc import NodeServiceStub
from meshwarden.v1.operator_service_pb2_grpc import OperatorServiceStub
from meshwarden.v1.resource_service_pb2_grpc import ResourceServiceStub

DOMAIN = "mesh.test"
DEADLINE_S = 60.0
sys.path[:0] = [str(Path(__file__).parents[2] / "contract"), str(Path(__file__).parent)]


@dataclass
class Machines:
    """The PKI of the machines: it signs certificates that are not ours."""

    directory: Path
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.ca = self._certify("machines", self.key, None)
        self.ca_file = self.directory / "machines.pem"
        self.ca_file.write_bytes(self.ca.public_bytes(Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """The files of a machine's certificate and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, key_file = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        certificate.write_bytes(self._certify(name, key, self.ca).public_bytes(Encoding.PEM))
        key_file.touch(0o600)
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key_file

    def _certify(self, name: str, key: Any, issuer: x509.Certificate | None) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        is_ca = issuer is None
        usage = x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(utc_now() - timedelta(hours=1))
            .not_valid_after(utc_now() + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(is_ca, None), True)
            .add_extension(usage, True)
            .sign(self.key, hashes.SHA256())
        )


@dataclass
class Mesh:
    """A control plane that serves, and its operator."""

    directory: Path
    machines: Machines
    port: int
    channels: list[grpc.aio.Channel]
    bundle: Bundle = field(init=False)
    operator: X509Svid = field(init=False)
    admin: Any = field(init=False)
    resources: Any = field(init=False)
    operators: Any = field(init=False)
    audit: Any = field(init=False)
    name: str = "cp"

    def connect(self) -> None:
        """Connects the operator by the certificate that it has now."""
        self.bundle = Bundle.parse_pem(DOMAIN, (self.directory / self.name / "ca.pem").read_bytes())
        files = self.directory / f"operator-{self.name}"
        self.operator = X509Svid.load((files / "tls.crt").read_bytes(), (files / "tls.key").read_bytes())
        channel = self.channel(self.operator)
        self.channels.append(channel)
        self.admin, self.resources = AdminServiceStub(channel), ResourceServiceStub(channel)
        self.operators, self.audit = OperatorServiceStub(channel), AuditServiceStub(channel)

    @property
    def way(self) -> ControlPlane:
        return ControlPlane(f"127.0.0.1:{self.port}", DOMAIN)

    def anonymous(self) -> grpc.aio.Channel:
        """A channel of whoever has no certificate."""
        return open_channel(self.way, self.bundle, None)

    def channel(self, svid: X509Svid) -> grpc.aio.Channel:
        return open_channel(self.way, self.bundle, svid)

    async def token(self, node: str) -> str:
        answer = await self.admin.CreateJoinToken(admin.CreateJoinTokenRequest(node=node), timeout=DEADLINE_S)
        return str(answer.token)

    async def attest(self, request: v1.AttestRequest, proof: Any = None) -> X509Svid:
        """The identity of whoever proves it so."""
        key = new_key()
        request.csr = make_csr(key)
        async with self.anonymous() as channel:
            stub: Any = NodeServiceStub(channel)
            answer = await stub.Attest(request, timeout=DEADLINE_S)
            if answer.HasField("challenge"):
                request.answer.state = answer.challenge.state
                request.answer.answer = await proof.answer(answer.challenge.data, request.csr)
                answer = await stub.Attest(request, timeout=DEADLINE_S)
        return X509Svid.of([x509.load_der_x509_certificate(der) for der in answer.chain], key)

    async def attest_by_token(self, token: str) -> X509Svid:
        return await self.attest(v1.AttestRequest(join_token=token))

    async def attest_by_certificate(self, certificate: Path, key: Path) -> X509Svid:
        proof = PossessionProof(certificate, key)
        return await self.attest(await proof.request(), proof)

    async def renew(self, svid: X509Svid) -> X509Svid:
        key = new_key()
        async with self.channel(svid) as channel:
            stub: Any = NodeServiceStub(channel)
            answer = await stub.Renew(v1.RenewRequest(csr=make_csr(key)), timeout=DEADLINE_S)
        return X509Svid.of([x509.load_der_x509_certificate(der) for der in answer.chain], key)


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str, str]:
    """How a call is refused: the status, the message, and the word for programs."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    words = [value for key, value in caught.value.trailing_metadata() or () if key == "meshwarden-refusal"]
    return caught.value.code(), caught.value.details() or "", str(words[0]) if words else ""


@pytest.fixture(name="refusal")
def _refusal() -> Any:
    return refusal


@pytest.fixture
async def start(short_dir: Path) -> AsyncIterator[Callable[..., Awaitable[Mesh]]]:
    """Starts a control plane, with more settings."""
    machines = Machines(short_dir)
    async with anyio.create_task_group() as group:
        channels: list[grpc.aio.Channel] = []

        async def begin(name: str = "cp", **settings: Any) -> Mesh:
            state, operator = short_dir / name, short_dir / f"operator-{name}"
            config = Config(
                trust_domain=DOMAIN,
                region="eu",
                state_dir=state,
                listen="127.0.0.1:0",
                metrics_listen="127.0.0.1:0",
                operator_directory=operator,
                **{"authority": {"kind": "memory"}, **settings},
            )
            group.start_soon(serve, config)
            said = state / "server.json"
            async with asyncio.timeout(DEADLINE_S):
                while not said.exists():  # noqa: ASYNC110 - a file tells nobody
                    await anyio.sleep(0.02)
            port = int(json.loads(said.read_text())["address"].rpartition(":")[2])
            mesh = Mesh(short_dir, machines, port, channels, name)
            mesh.connect()
            return mesh

        yield begin
        for channel in channels:
            await channel.close()
        group.cancel_scope.cancel()


@pytest.fixture
async def connect(short_dir: Path) -> AsyncIterator[Callable[[int], Mesh]]:
    """Connects the operator of a control plane that runs elsewhere, below `short_dir`."""
    machines, channels = Machines(short_dir), list[grpc.aio.Channel]()

    def begin(port: int) -> Mesh:
        mesh = Mesh(short_dir, machines, port, channels)
        mesh.connect()
        return mesh

    yield begin
    for channel in channels:
        await channel.close()


@pytest.fixture
async def mesh(start: Any, short_dir: Path) -> Mesh:
    """A control plane that takes join tokens and the machines' certificates."""
    made: Mesh = await start(attestor=({"kind": "x509pop", "ca_file": short_dir / "machines.pem"},))
    return made
