"""Every wrong certificate of the table, shown over real TLS to all stacks that we serve on, by calls of all shapes.

A TLS stack refuses some by itself. What it lets through, our check must refuse: the same server without it takes each
of those rows.
"""

import asyncio
import functools
import random
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "certs"))

from certs_build import WEB, Made, Plan, uri
from certs_fault import ACCEPTED, BUNDLES, FAULTS, ISSUING

from meshwarden.certs import files
from meshwarden.certs.clock import utc_now
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.verify import PeerVerifier
from meshwarden.controlplane.local.port import free_port
from meshwarden.sdk.aio_server import AioServer
from meshwarden.sdk.config import Config
from meshwarden.sdk.handler import IncomingInterceptor
from meshwarden.sdk.incoming import Incoming
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.mtls.splice import End
from meshwarden.sdk.mtls.tls import server_context
from meshwarden.sdk.red.count import Counter
from meshwarden.v1.node_service_pb2 import PolicyAccess, ServerAccess, ServerLimits
from meshwarden.v1.resources_pb2 import AccessPolicySpec, AccessRule, Caller

UNARY, DOWN, UP, BOTH = (f"/test.Test/{name}" for name in ("Unary", "Down", "Up", "Both"))
SERVER = Plan(names=(uri("spiffe://a.test/region/eu/controlplane"),))(ISSUING)
OWN = SpiffeId.workload("a.test", "a", "test")
ROOTS = b"".join(bundle.pem() for bundle in BUNDLES.values())
# What both stacks refuse in the handshake; of the rest, each that isn't in EITHER is taken by both without our check.
HANDSHAKE = {
    "an intermediate with an ID as leaf",
    "DNS name constraint",
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
    "MD5",
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


async def word(_: object, __: grpc.aio.ServicerContext) -> bytes:
    return b"hello"


async def words(_: object, __: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    yield b"hello"


def handlers(unary: Any, streaming: Any) -> grpc.GenericRpcHandler:
    """A method of each shape."""
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Down": grpc.unary_stream_rpc_method_handler(streaming),
        "Up": grpc.stream_unary_rpc_method_handler(unary),
        "Both": grpc.stream_stream_rpc_method_handler(streaming),
    }
    return grpc.method_handlers_generic_handler("test.Test", methods)


@asynccontextmanager
async def front(directory: Path, refusals: list[str], *, checked: bool) -> AsyncIterator[int]:
    """Our TLS front, OpenSSL, before a grpc.aio server."""
    async with AsyncExitStack() as stack:
        inner = directory / f"inner-{checked}"
        inner.mkdir(mode=0o700)
        made = Front(inner / "grpc.sock", on_refused=lambda _, reason: refusals.append(reason))
        verifier = PeerVerifier(lambda: BUNDLES, utc_now)
        check = PeerInterceptor(made, verifier, on_refused=lambda *refusal: refusals.append(refusal[-1]))
        server = grpc.aio.server(interceptors=[check] if checked else [])
        server.add_generic_rpc_handlers((handlers(word, words),))
        server.add_insecure_port(made.inner_target)
        await server.start()
        stack.push_async_callback(server.stop, None)
        await stack.enter_async_context(made)
        context = server_context(*pem(SERVER), ROOTS, require_client=True)
        yield await made.serve_tls("127.0.0.1", 0, lambda: context)


@asynccontextmanager
async def aio(directory: Path, refusals: list[str], *, checked: bool) -> AsyncIterator[int]:
    """`sdk.aio_server`, which has the front in it, with a policy that lets in whoever may prove itself."""
    if not checked:
        async with front(directory, refusals, checked=False) as bare:
            yield bare
        return
    chain, key = pem(SERVER)
    files.publish(directory / "credentials", {"tls.crt": chain, "tls.key": key, "ca.crt": ROOTS})
    web = SpiffeId.parse(WEB)
    rule = AccessRule(**{"from": [Caller(tenant=web.tenant, service=web.service), Caller(trust_domain="b.test")]})
    access = ServerAccess(policies=[PolicyAccess(policy="a/test", spec=AccessPolicySpec(allow=[rule]))])
    config = Config(OWN, BUNDLES, ServerLimits(), 1, directory / "credentials", {}, federated=BUNDLES, access=access)
    link: Any = SimpleNamespace(
        config=config,
        last_config=config,
        counter=Counter(utc_now),
        denied=lambda _: None,
        listen=lambda listener: listener(config),
        unlisten=lambda _: None,
    )
    server = AioServer(link)
    server.add_generic_rpc_handlers((handlers(word, words),))
    port = free_port(random.SystemRandom())
    server.add_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@asynccontextmanager
async def own(_: Path, __: list[str], *, checked: bool) -> AsyncIterator[int]:
    """GRPC's own TLS, BoringSSL, in a server of threads, under the SDK's check."""
    link = SimpleNamespace(
        config=Config(OWN, BUNDLES, ServerLimits(), 1, Path(), {}, federated=BUNDLES),
        counter=Counter(utc_now),
        listen=lambda _: None,
        unlisten=lambda _: None,
    )
    incoming = Incoming(link, utc_now)
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[IncomingInterceptor(incoming)] if checked else [])
    server.add_generic_rpc_handlers((handlers(lambda _, __: b"hello", lambda _, __: iter([b"hello"])),))
    chain, key = pem(SERVER)
    credentials = grpc.ssl_server_credentials([(key, chain)], ROOTS, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        await asyncio.to_thread(server.stop(None).wait)


@functools.cache
def shown() -> dict[str, Made]:
    """{row: what is shown}; the good ones come last: whatever came before, the server goes on."""
    rows = {name: make() for name, make in (FAULTS | ACCEPTED).items()}
    return {name: made for name, made in rows.items() if isinstance(made, Made)}


async def said(call: Any) -> str:
    """What a call of any shape ended with: a status, or the word."""
    try:
        if hasattr(call, "__aiter__"):
            return ",".join([part.decode() async for part in call])
        return (await call).decode()
    except grpc.aio.AioRpcError as error:
        return error.code().name


async def outcomes(directory: Path, port: int, made: Made) -> dict[str, str]:
    """{method: what a call of it ended with}, all on one connection; `UNARY` alone where there is none."""
    # Each row has a connection of its own, though all of them dial the same path.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with tunnel(directory, port, made) as target, grpc.aio.insecure_channel(target, options) as channel:
        found = {UNARY: await said(channel.unary_unary(UNARY)(b"", timeout=60))}
        if found[UNARY] != "UNAVAILABLE":
            # Nothing is sent up: grpc.aio's client takes a message that came too late for an error of its own.
            found[DOWN] = await said(channel.unary_stream(DOWN)(b"", timeout=60))
            found[UP] = await said(channel.stream_unary(UP)(timeout=60))
            found[BOTH] = await said(channel.stream_stream(BOTH)(timeout=60))
        return found


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("stack", [front, aio, own])
async def test_the_fault_table(tmp_path: Path, stack: Callable[..., Any]) -> None:
    refusals: list[str] = []
    found, unchecked, audited = {}, {}, set()
    async with stack(tmp_path, refusals, checked=True) as port, stack(tmp_path, [], checked=False) as bare:
        for name, made in shown().items():
            refusals.clear()
            by_method = await outcomes(tmp_path, port, made)
            assert len(set(by_method.values())) == 1, f"{name}: calls of all shapes are held to the same: {by_method}"
            found[name] = by_method[UNARY]
            if refusals:
                audited.add(name)
            if found[name] == "UNAUTHENTICATED":
                unchecked[name] = set((await outcomes(tmp_path, bare, made)).values())
    assert {name for name in found if found[name] == "hello"} == set(ACCEPTED)
    assert {name for name in found if found[name] == "UNAVAILABLE"} - EITHER == HANDSHAKE | UNSHOWN
    assert unchecked.keys() >= set(found) - set(ACCEPTED) - HANDSHAKE - UNSHOWN - EITHER
    assert {name: ends for name, ends in unchecked.items() if ends != {"hello"}} == {}, "the check alone refuses them"
    if stack is front:
        assert audited == set(found) - set(ACCEPTED) - UNSHOWN
