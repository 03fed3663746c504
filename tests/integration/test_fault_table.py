"""Every wrong certificate of the table, shown over real TLS to both stacks that we serve on.

A TLS stack refuses some by itself. What it lets through, our check must refuse: those rows fail if it doesn't.
"""

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import anyio
import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "certs"))

from certs_build import Made, Plan, uri
from certs_fault import ACCEPTED, BUNDLES, FAULTS, ISSUING

from meshwarden.certs.clock import utc_now
from meshwarden.certs.verify import PeerVerifier
from meshwarden.sdk.handler import IncomingInterceptor
from meshwarden.sdk.incoming import Incoming
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.mtls.splice import End
from meshwarden.sdk.mtls.tls import server_context
from meshwarden.sdk.red.count import Counter

METHOD, STREAM = "/test.Test/Hello", "/test.Test/Hellos"
SERVER = Plan(names=(uri("spiffe://a.test/region/eu/controlplane"),))(ISSUING)
ROOTS = b"".join(bundle.pem() for bundle in BUNDLES.values())
# What both stacks refuse in the handshake; of the rest, each row that isn't in EITHER is left to our check by both.
HANDSHAKE = {
    "an intermediate with an ID as leaf",
    "critical unknown extension",
    "expired",
    "expired intermediate",
    "forged intermediate",
    "forged root",
    "intermediate not valid yet",
    "issuer CA:FALSE with keyCertSign",
    "issuer is a leaf",
    "issuer without keyCertSign",
    "missing intermediate",
    "no clientAuth",
    "no digitalSignature",
    "not valid yet",
    "path length",
    "unknown root",
}
# Keys and signatures: what a stack takes depends on its library and on how strict the system made it.
EITHER = {
    "Ed25519",
    "P-521",
    "RSA-1024",
    "SHA-1 on the intermediate",
    "SHA-1 on the leaf",
    "intermediate with RSA-1024",
}
# TLS 1.3 has no signature by such keys: no certificate ever arrives.
UNSHOWN = {"P-224", "secp256k1"}


def pem(made: Made) -> tuple[bytes, bytes]:
    """The chain and the key."""
    shown = (made, *(each for each in made.above if each.above))
    chain = b"".join(each.certificate.public_bytes(Encoding.PEM) for each in shown)
    return chain, made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@asynccontextmanager
async def tunnel(directory: Path, port: int, shown: Made) -> AsyncIterator[str]:
    """Where a plain gRPC client has TLS that shows whatever certificate; gRPC's own client wouldn't take them all."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the server isn't under test
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    (directory / "peer.pem").write_bytes(b"".join(pem(shown)))
    context.load_cert_chain(directory / "peer.pem")

    loop, ends = asyncio.get_running_loop(), []
    path = directory / "tunnel.sock"
    path.unlink(missing_ok=True)

    async def splice(listener: socket.socket) -> None:
        while True:
            sock, _ = await loop.sock_accept(listener)
            near, far = (End(lambda: None, lambda: None, flush_s=1.0) for _ in range(2))
            ends.extend((near, far))
            await loop.connect_accepted_socket(lambda end=near: end, sock)
            with suppress(OSError):  # refused; joining then ends the other side
                await loop.create_connection(lambda end=far: end, "127.0.0.1", port, ssl=context)
            near.join(far)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        async with anyio.create_task_group() as group:
            group.start_soon(splice, listener)
            yield f"unix:{path}"
            group.cancel_scope.cancel()
    for end in ends:
        end.abort()


async def hello(_: bytes, __: grpc.aio.ServicerContext) -> bytes:
    return b"hello"


async def hellos(_: bytes, __: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    yield b"hello"


@asynccontextmanager
async def front(directory: Path, refusals: list[str]) -> AsyncIterator[int]:
    """Our TLS front, OpenSSL."""
    async with AsyncExitStack() as stack:
        inner = directory / "inner"
        inner.mkdir(mode=0o700)
        made = Front(inner / "grpc.sock", on_refused=lambda _, reason: refusals.append(reason))
        verifier = PeerVerifier(lambda: BUNDLES, utc_now)
        check = PeerInterceptor(made, verifier, on_refused=lambda *refusal: refusals.append(refusal[-1]))
        server = grpc.aio.server(interceptors=[check])
        handlers = {
            "Hello": grpc.unary_unary_rpc_method_handler(hello),
            "Hellos": grpc.unary_stream_rpc_method_handler(hellos),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
        server.add_insecure_port(made.inner_target)
        await server.start()
        stack.push_async_callback(server.stop, None)
        await stack.enter_async_context(made)
        context = server_context(*pem(SERVER), ROOTS, require_client=True)
        yield await made.serve_tls("127.0.0.1", 0, lambda: context)


@asynccontextmanager
async def own(_: Path, __: list[str]) -> AsyncIterator[int]:
    """GRPC's own TLS, BoringSSL, under the SDK's check."""
    link = SimpleNamespace(
        config=SimpleNamespace(bundles=BUNDLES, service="a/test", revision=1),
        counter=Counter(utc_now),
        listen=lambda _: None,
        unlisten=lambda _: None,
    )
    incoming = Incoming(link, utc_now)
    incoming._limiter = SimpleNamespace(take=lambda *_: SimpleNamespace(allowed=True))
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[IncomingInterceptor(incoming)])
    handlers = {
        "Hello": grpc.unary_unary_rpc_method_handler(lambda _, __: b"hello"),
        "Hellos": grpc.unary_stream_rpc_method_handler(lambda _, __: iter([b"hello"])),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    chain, key = pem(SERVER)
    credentials = grpc.ssl_server_credentials([(key, chain)], ROOTS, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        await asyncio.to_thread(server.stop(None).wait)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("stack", [front, own])
async def test_the_fault_table(tmp_path: Path, stack: Callable[..., object]) -> None:
    refusals: list[str] = []
    async with stack(tmp_path, refusals) as port:

        async def call(shown: Made) -> str:
            # Each row has a connection of its own, though all of them dial the same path.
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with tunnel(tmp_path, port, shown) as target, grpc.aio.insecure_channel(target, options) as channel:
                try:
                    said = (await channel.unary_unary(METHOD)(b"", timeout=60)).decode()
                except grpc.aio.AioRpcError as error:
                    said = error.code().name
                if said == "UNAVAILABLE":
                    return said  # no connection, so no stream either
                try:
                    streamed = [part.decode() async for part in channel.unary_stream(STREAM)(b"", timeout=60)]
                except grpc.aio.AioRpcError as error:
                    streamed = [error.code().name]
                assert streamed == [said], "a stream is held to the same"
                return said

        found, audited = {}, set()
        # The good ones come last: whatever came before, the server goes on.
        for name, make in (FAULTS | ACCEPTED).items():
            made = make()
            if isinstance(made, Made):
                refusals.clear()
                found[name] = await call(made)
                if refusals:
                    audited.add(name)
    assert {name for name in found if found[name] == "hello"} == set(ACCEPTED)
    assert {name for name in found if found[name] == "UNAVAILABLE"} - EITHER == HANDSHAKE | UNSHOWN
    assert {name for name in found if found[name] == "UNAUTHENTICATED"} >= set(found) - set(ACCEPTED) - HANDSHAKE - (
        UNSHOWN | EITHER
    )
    if stack is front:
        assert audited == set(found) - set(ACCEPTED) - UNSHOWN
