"""The server's side of TLS: one context a generation of the certificate, and the handshake on an accepted socket."""

import asyncio
import contextlib
import os
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Iterator
from typing import Final

from meshwarden.sdk.mtls.splice import End

READ_BYTES: Final = 32 * 1024  # two records of TLS


class _Tls(SSLProtocol):
    """asyncio's TLS with a small buffer: each connection keeps one of this size, 256 KiB by default.

    It is handed to the loop as any protocol is; `ssl=` would make the loop take its own.
    """

    max_size = READ_BYTES


def server_context(
    svid_chain_pem: bytes, key_pem: bytes, roots_pem: bytes, require_client: bool = False, protocol: str = "h2"
) -> ssl.SSLContext:
    """One generation of a TLS server: TLS 1.3 and one protocol only, no session tickets.

    A client certificate is asked for, and one that does not chain to `roots_pem` fails the handshake; one must be shown
    only if `require_client`. Which trust domain's root it was is for `meshwarden.sdk.mtls.peer` to check.

    Raises:
        ssl.SSLError: if key and certificate do not match, or something is not PEM.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # a resumed session would not show its certificate anew
    context.set_alpn_protocols([protocol])
    # OpenSSL reads a key from files only. These live in memory, and are gone with their descriptors.
    with _in_memory(svid_chain_pem) as chain, _in_memory(key_pem) as key:
        context.load_cert_chain(chain, key)
    context.load_verify_locations(cadata=roots_pem.decode("ascii"))
    context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
    return context


def web_context() -> ssl.SSLContext:
    """A TLS server for HTTP/1.1 without a certificate yet: `load_identity` gives it one, again at each renewal."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def load_identity(context: ssl.SSLContext, chain_pem: bytes, key_pem: bytes) -> None:
    """Has a server show a certificate from its next handshake on.

    Raises:
        ssl.SSLError: if key and certificate do not match, or something is not PEM; then the one before stays.
    """
    # OpenSSL puts the two into the context one after the other: what is no pair is found out in one that nobody uses.
    for checked in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
        with _in_memory(chain_pem) as chain, _in_memory(key_pem) as key:
            checked.load_cert_chain(chain, key)


async def accept_tls(
    sock: socket.socket, end: End, context: ssl.SSLContext, *, handshake_s: float, shutdown_s: float
) -> asyncio.Transport:
    """Shakes hands on an accepted socket; returns the transport of `end`, on which bytes are in the clear.

    Args:
        sock: belongs to the transport from now on, and is closed if there will be none.
        end: what is to be connected.
        context: the server's.
        handshake_s: the time that the handshake may take.
        shutdown_s: the time that TLS gets for its end.

    Raises:
        OSError: the peer left or took too long; `ssl.SSLError` is one, and says what was wrong with what it sent.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    try:
        tls = _Tls(
            loop,
            end,
            context,
            done,
            server_side=True,
            ssl_handshake_timeout=handshake_s,  # type: ignore[arg-type]  # seconds, as `ssl_handshake_timeout=` of the loop
            ssl_shutdown_timeout=shutdown_s,
        )
        raw, _ = await loop.connect_accepted_socket(lambda: tls, sock)
    except BaseException:
        sock.close()
        raise
    try:
        await done
    except BaseException:
        raw.abort()  # nobody would own it
        raise
    if end.transport is None:
        raise ConnectionAbortedError("the connection ended during its handshake")
    return end.transport


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    descriptor = os.memfd_create("meshwarden", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
