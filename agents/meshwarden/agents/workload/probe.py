"""Asks a gRPC server for its health, in the clear or as the workload itself.

A few frames of HTTP/2 of our own, because gRPC's TLS client insists on a DNS name in the server's certificate, and an
SVID has none as a rule; and nothing less than a handshake with the workload's own certificate shows that a proxyless
server has its listener from us and its files from the agent.

What counts: the peer shows the workload's own identity; it answers the preface, which with TLS 1.3 is also the first
sign that it took our certificate; and it answers `grpc.health.v1.Health/Check`. A status without a message counts as
alive, whatever it is: the policies let nobody ask (PERMISSION_DENIED), there is no health service (UNIMPLEMENTED), the
caller's rate is used up (RESOURCE_EXHAUSTED): the server answers, and says nothing of its health. A message other than
SERVING is a no.

Source: RFC 9113 §3.4 (preface), §4.1 (frames); RFC 7541 §5.2, §6.2.2 (literals); gRPC over HTTP/2; gRPC health
checking.
"""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.svid import X509Svid
from meshwarden.certs.verify import PeerRefused, verify_chain
from meshwarden.sdk.mtls.connection import presented_chain

_TIMEOUT_S: Final = 2.0
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GO_AWAY = 0, 1, 3, 4, 6, 7
_END_STREAM: Final = 0x1
_ACK: Final = 0x1
_END_HEADERS: Final = 0x4
_MAX_FRAME: Final = 16_384
_MAX_FRAMES: Final = 64
_SERVING: Final = b"\x08\x01"  # HealthCheckResponse{status: SERVING}


@dataclass(frozen=True)
class Self:
    """Who asks, and who must answer: the workload itself."""

    svid: X509Svid
    bundle: Bundle
    clock: Callable[[], datetime]


class _NotServing(OSError):
    """The server was reached and is not to be called."""


async def check_grpc(host: str, port: int, service: str, identity: Self | None) -> bool:
    """Whether a server says that it serves, or at least refuses in good order.

    Args:
        host: the IP address where it listens.
        port: and its port.
        service: of grpc.health.v1; "" is the server as a whole.
        identity: for mutual TLS; None asks in the clear.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S), _connected(host, port, identity) as (reader, writer):
            writer.write(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + _question(f"{host}:{port}", service))
            await writer.drain()
            await _answer(reader, writer)
    # An SSLError is an OSError, but for those of certificates, which are ValueErrors; an early end is an EOFError.
    except (OSError, ValueError, EOFError):
        return False
    return True


@contextlib.asynccontextmanager
async def _connected(
    host: str, port: int, identity: Self | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    context = None if identity is None else _context(identity)
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        if identity is not None:
            _require_self(presented_chain(writer.get_extra_info("ssl_object")), identity)
        yield reader, writer
    finally:
        writer.transport.abort()


def _require_self(chain_der: tuple[bytes, ...], identity: Self) -> None:
    try:
        peer = verify_chain(chain_der, {identity.bundle.trust_domain: identity.bundle}, identity.clock())
    except PeerRefused as error:
        raise _NotServing(str(error)) from None
    if peer.spiffe_id != identity.svid.spiffe_id:
        raise _NotServing(f"{peer.spiffe_id} answers for {identity.svid.spiffe_id}")


def _context(identity: Self) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # OpenSSL would look for a DNS name; `_require_self` verifies the chain and compares the SPIFFE ID, before anything
    # is said.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    # OpenSSL reads a key from files only. This one lives in memory, and is gone with its descriptor.
    descriptor = os.memfd_create("meshwarden", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(identity.svid.key_pem() + identity.svid.chain_pem())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _question(authority: str, service: str) -> bytes:
    """`grpc.health.v1.Health/Check` on stream 1."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "meshwarden-agent",
    }
    block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers.items())
    name = service.encode()
    message = b"\x0a" + _base128(len(name)) + name if name else b""
    body = b"\x00" + len(message).to_bytes(4, "big") + message
    return _frame(_HEADERS, _END_HEADERS, 1, block) + _frame(_DATA, _END_STREAM, 1, body)


def _text(value: str) -> bytes:
    body = value.encode("ascii")
    return (bytes([len(body)]) if len(body) < 127 else b"\x7f" + _base128(len(body) - 127)) + body


def _base128(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


async def _read(reader: asyncio.StreamReader) -> tuple[int, int, int, bytes]:
    """One frame: kind, flags, stream, payload."""
    head = await reader.readexactly(9)
    length = int.from_bytes(head[:3], "big")
    if length > _MAX_FRAME:
        raise _NotServing("it speaks no HTTP/2")
    return head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, await reader.readexactly(length)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    kind, flags, stream, _ = await _read(reader)
    if kind != _SETTINGS or flags & _ACK or stream != 0:
        raise _NotServing("it speaks no HTTP/2")
    writer.write(_frame(_SETTINGS, _ACK, 0, b""))
    body = b""
    for _ in range(_MAX_FRAMES):
        kind, flags, stream, payload = await _read(reader)
        if kind == _PING and not flags & _ACK:
            writer.write(_frame(_PING, _ACK, 0, payload))
        elif kind in (_RESET, _GO_AWAY):
            raise _NotServing("it ends the connection")
        elif stream == 1 and kind == _DATA:
            body += payload
        if stream == 1 and kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            # Without a message it was a status alone.
            if body and not body[5:].startswith(_SERVING):
                raise _NotServing("it says that it does not serve")
            return
    raise _NotServing("it does not come to an end")
