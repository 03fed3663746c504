"""Fetches another trust domain's bundle from the one URL that an operator has named; follows nothing from there.

Everything is bounded: the answer in size, the whole in time. `FetchFailed` says what went wrong, and shows nothing of
the answer: whoever names a URL of ours shall not read by it what only we can reach.

Source: SPIFFE Federation §5.2 (https_web, https_spiffe). Redirects are refused, which §7.5.1 leaves to the client.
"""

import asyncio
import http.client
import io
import ssl
from collections.abc import Mapping
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.bundle_document import MAX_SIZE_BYTES
from meshwarden.certs.error import CertsError
from meshwarden.certs.verify import PeerRefused, verify_chain
from meshwarden.sdk.mtls.connection import presented_chain
from meshwarden.v1.resources_pb2 import BundleEndpoint

TIMEOUT_S: Final = 15.0
_MAX_HEAD: Final = 64 * 1024


class FetchFailed(CertsError):
    """The bundle can't be had now."""


class _Answer(io.BytesIO):
    """An answer that was read whole, as `http.client` wants it: like a socket."""

    def makefile(self, *_: object) -> "_Answer":
        return self


async def fetch(
    endpoint: BundleEndpoint, bundles: Mapping[str, Bundle], now: datetime, web_roots: str | None = None
) -> bytes:
    """Returns what the endpoint serves.

    Args:
        endpoint: the URL, and how its server proves who it is.
        bundles: with https_spiffe, what that is proved by, {trust domain: bundle}.
        now: the present, aware.
        web_roots: with https_web, a file of the authorities to trust in place of the system's.

    Raises:
        FetchFailed: it isn't reached or proved in time, or answers anything but 200 with at most a MiB.
    """
    where = f"{endpoint.url}: "
    try:
        async with asyncio.timeout(TIMEOUT_S):
            answer = await _ask(endpoint, bundles, now, web_roots)
    except TimeoutError:
        raise FetchFailed(f"{where}no whole answer within {TIMEOUT_S:g} s") from None
    except (OSError, asyncio.IncompleteReadError) as error:
        raise FetchFailed(f"{where}{error}"[:500]) from None
    try:
        response = http.client.HTTPResponse(_Answer(answer), method="GET")  # type: ignore[arg-type]
        response.begin()
        if response.status != http.HTTPStatus.OK:
            raise FetchFailed(f"{where}answers {response.status}; only 200 is taken, and no redirect")
        body = response.read()  # all of it is here, and one that was cut short is an error
    except (http.client.HTTPException, ValueError):
        raise FetchFailed(f"{where}answers what is no HTTP") from None
    if len(body) > MAX_SIZE_BYTES:
        raise FetchFailed(f"{where}answers more than {MAX_SIZE_BYTES} bytes")
    return body


async def _ask(endpoint: BundleEndpoint, bundles: Mapping[str, Bundle], now: datetime, web_roots: str | None) -> bytes:
    url = urlsplit(endpoint.url)
    host, port = url.hostname or "", url.port or 443
    is_spiffe = endpoint.profile == BundleEndpoint.HTTPS_SPIFFE
    if is_spiffe:
        # What it shows is judged by us, below: against one trust domain, and for one identity.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        context = ssl.create_default_context(cafile=web_roots)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    reader, writer = await asyncio.open_connection(host, port, ssl=context, limit=_MAX_HEAD)
    try:
        if is_spiffe:
            _prove(writer, endpoint, bundles, now)
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        head = f"GET {target} HTTP/1.1\r\nHost: {url.netloc}\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
        writer.write(head.encode("ascii"))
        await writer.drain()
        # Chunks take some bytes more than what they hold.
        most = _MAX_HEAD + 2 * MAX_SIZE_BYTES
        found = bytearray()
        while (part := await reader.read(_MAX_HEAD)) and len(found) <= most:
            found += part
        return bytes(found)
    finally:
        writer.transport.abort()


def _prove(
    writer: asyncio.StreamWriter, endpoint: BundleEndpoint, bundles: Mapping[str, Bundle], now: datetime
) -> None:
    """Holds what the server shows against who it must be, before anything is said to it."""
    try:
        peer = verify_chain(presented_chain(writer.get_extra_info("ssl_object")), bundles, now)
    except PeerRefused as error:
        raise FetchFailed(f"{endpoint.url}: its server is not proved: {error}") from None
    if str(peer.spiffe_id) != endpoint.spiffe_id:
        raise FetchFailed(f"{endpoint.url}: its server is {peer.spiffe_id}, not {endpoint.spiffe_id}")
