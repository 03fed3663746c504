"""Asks a gRPC server for its health, in the clear or as the workload itself.

gRPC's own TLS client insists on a DNS name in the server's certificate, and an SVID has none as a rule. So the TLS
session is ours, and gRPC speaks in the clear to a private socket that leads there.
"""

import asyncio
import contextlib
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import grpc

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.svid import X509Svid
from meshwarden.certs.verify import PeerRefused, verify_chain

_CHECK: Final = "/grpc.health.v1.Health/Check"
_SERVING: Final = b"\x08\x01"  # HealthCheckResponse{status: SERVING}
_TIMEOUT_S: Final = 1.0
# Who answers so has its certificate, its listener and its policies: an AccessPolicy does not let its own identity ask,
# or it offers no health service.
_ALIVE: Final = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)


@dataclass(frozen=True)
class Self:
    """Who asks, and who must answer: the workload itself."""

    svid: X509Svid
    bundle: Bundle
    clock: Callable[[], datetime]


async def check_grpc(host: str, port: int, service: str, identity: Self | None) -> bool:
    """Whether a server says that it serves, or at least refuses in good order.

    Args:
        host: the IP address where it listens.
        port: and its port.
        service: of grpc.health.v1; "" is the server as a whole.
        identity: for mutual TLS; None asks in the clear.
    """
    if identity is None:
        return await _ask(f"{f'[{host}]' if ':' in host else host}:{port}", service)
    try:
        async with _relay(host, port, identity) as target:
            return await _ask(target, service)
    except OSError:
        return False


async def _ask(target: str, service: str) -> bool:
    name = service.encode()
    request = b"\x0a" + _varint(len(name)) + name if name else b""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        ask: Any = channel.unary_unary(_CHECK)
        try:
            answer = await ask(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return error.code() in _ALIVE
    return bytes(answer).startswith(_SERVING)


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7])


@contextlib.asynccontextmanager
async def _relay(host: str, port: int, identity: Self) -> AsyncIterator[str]:
    """A private socket that leads to the server through mutual TLS; gives its gRPC target.

    Raises:
        OSError: the server is not there, does not speak TLS, or is somebody else.
    """
    async with asyncio.timeout(_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(host, port, ssl=_context(identity), server_hostname="")
    try:
        tls = writer.get_extra_info("ssl_object")
        chain = [tls.getpeercert(binary_form=True), *(issuer for issuer in identity.svid.chain_der()[1:])]
        try:
            peer = verify_chain(chain, {identity.bundle.trust_domain: identity.bundle}, identity.clock())
        except PeerRefused as error:
            raise OSError(str(error)) from None
        if peer.spiffe_id != identity.svid.spiffe_id:
            raise OSError(f"{peer.spiffe_id} answers at port {port}")
        with tempfile.TemporaryDirectory(prefix="mw-") as directory:
            path = f"{directory}/s"
            server = await asyncio.start_unix_server(lambda r, w: _splice(r, w, reader, writer), path)
            try:
                yield f"unix:{path}"
            finally:
                server.close()
    finally:
        writer.transport.abort()


async def _splice(
    near_reader: asyncio.StreamReader,
    near_writer: asyncio.StreamWriter,
    far_reader: asyncio.StreamReader,
    far_writer: asyncio.StreamWriter,
) -> None:
    ways = [
        asyncio.ensure_future(_pump(near_reader, far_writer)),
        asyncio.ensure_future(_pump(far_reader, near_writer)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        near_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()


def _context(identity: Self) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # the SPIFFE ID is compared instead, above
    context.set_alpn_protocols(["h2"])
    # OpenSSL reads a key from files only. These live in memory, and are gone with their descriptors.
    with _in_memory(identity.svid.chain_pem()) as chain, _in_memory(identity.svid.key_pem()) as key:
        context.load_cert_chain(chain, key)
    context.load_verify_locations(cadata=identity.bundle.pem().decode("ascii"))
    return context


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("meshwarden", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
