"""A real grpc.aio server behind the front, and clients of many kinds."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import NamedTemporaryFile

import grpc
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import IssuerKey, LeafTemplate, issue_leaf, self_signed_root
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import PeerVerifier, VerifiedPeer
from meshwarden.sdk.mtls.front import Front, FrontLimits
from meshwarden.sdk.mtls.peer import PeerInterceptor, Refused, current, current_connection
from meshwarden.sdk.mtls.tls import server_context

DOMAIN = "mesh.test"
SERVER_NAME = "controlplane.mesh.test"


class Authority:
    """A trust domain's root."""

    def __init__(self, domain: str = DOMAIN) -> None:
        self.key = new_key()
        self.domain = domain
        self.root = self_signed_root(domain, self.key, utc_now() - timedelta(days=1))
        self.bundle = Bundle.of(domain, [self.root])

    def svid(self, service: str, dns: tuple[str, ...] = (), at: datetime | None = None) -> X509Svid:
        key = new_key()
        template = LeafTemplate(SpiffeId.workload(self.domain, "acme", service), timedelta(hours=1), dns)
        chain = issue_leaf(template, key.public_key(), IssuerKey(self.key, (self.root,)), at or utc_now())
        return X509Svid.of(chain, key)


AUTHORITY = Authority()
SERVER = AUTHORITY.svid("server", (SERVER_NAME,))


@dataclass
class World:
    """A server behind a front, and what the test may turn."""

    front: Front
    directory: Path
    interceptor: PeerInterceptor
    bans: set[str] = field(default_factory=set)
    # What `admit` lets nobody into.
    closed: set[str] = field(default_factory=set)
    refusals: list[tuple[str, str, str]] = field(default_factory=list)
    context: ssl.SSLContext = field(
        default_factory=lambda: server_context(SERVER.chain_pem(), SERVER.key_pem(), AUTHORITY.bundle.pem())
    )
    port: int = 0

    @property
    def unix(self) -> str:
        return str(self.directory / "front.sock")


async def who(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
    peer, connection = current(), current_connection()
    assert connection is not None
    return f"{peer.spiffe_id if peer else '-'} {connection.pid} {connection.uid}".encode()


async def echo(requests, context: grpc.aio.ServicerContext):
    async for request in requests:
        yield request


async def wait(requests, context: grpc.aio.ServicerContext) -> bytes:
    async for _ in requests:
        pass
    return b"done"


@asynccontextmanager
async def world(directory: Path, limits: FrontLimits | None = None) -> AsyncIterator[World]:
    inner = directory / "inner"
    inner.mkdir(mode=0o700)
    refusals: list[tuple[str, str, str]] = []
    front = Front(inner / "grpc.sock", limits, lambda remote, reason: refusals.append((remote, "TLS", reason)))

    def admit(peer: VerifiedPeer | None, method: str) -> None:
        if method == "/test.Test/Secret" and (peer is None or peer.spiffe_id.service != "web"):
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, "Secret is for web")
        if method in made.closed:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, f"{method} is closed")

    made = World(front, directory, None, refusals=refusals)
    verifier = PeerVerifier(
        lambda: {DOMAIN: AUTHORITY.bundle},
        utc_now,
        denied=lambda peer: "banned" if peer.spiffe_id.service in made.bans else None,
    )
    made.interceptor = PeerInterceptor(front, verifier, admit, lambda *refusal: made.refusals.append(refusal))
    server = grpc.aio.server(interceptors=[made.interceptor])
    handlers = {
        "Who": grpc.unary_unary_rpc_method_handler(who),
        "Secret": grpc.unary_unary_rpc_method_handler(who),
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
        "Wait": grpc.stream_unary_rpc_method_handler(wait),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    server.add_insecure_port(front.inner_target)
    await server.start()
    try:
        async with front:
            made.port = await front.serve_tls("127.0.0.1", 0, lambda: made.context)
            await front.serve_unix(made.unix)
            yield made
    finally:
        await server.stop(None)
        # Calls that are still ending would wake a loop that is closed by then: grpc.aio has one queue for all loops.
        await server.wait_for_termination()


def tls_channel(port: int, svid: X509Svid | None) -> grpc.aio.Channel:
    chain, key = (svid.chain_pem(), svid.key_pem()) if svid else (None, None)
    credentials = grpc.ssl_channel_credentials(AUTHORITY.bundle.pem(), key, chain)
    options = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options)


async def call(channel: grpc.aio.Channel, method: str = "Who") -> str:
    return (await channel.unary_unary(f"/test.Test/{method}")(b"", timeout=60)).decode()


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # what is waited for tells nobody
            await asyncio.sleep(0.01)
    assert condition(), what


def client_context(svid: X509Svid | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=AUTHORITY.root.public_bytes(Encoding.PEM).decode())
    context.set_alpn_protocols(["h2"])
    if svid is not None:
        with NamedTemporaryFile() as file:
            file.write(svid.chain_pem() + svid.key_pem())
            file.flush()
            context.load_cert_chain(file.name)
    return context


async def raw_tls(made: World, svid: X509Svid | None) -> asyncio.StreamWriter:
    """A connection that begins HTTP/2 and says no more; it reads, and so learns of its end."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", made.port, ssl=client_context(svid), server_hostname=SERVER_NAME
    )
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
    await reader.read(1)  # the server's answer: it is in, or refused
    return writer
