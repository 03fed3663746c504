"""What a real browser makes of the root that `meshwarden console` has it trust: Chromium, with its own store."""

import asyncio
import os
import ssl
import subprocess
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from browser import CHROMIUM
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from playwright.async_api import Browser, Error, async_playwright

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


async def serve(authority: MemoryAuthority, name: str, directory: Path) -> asyncio.Server:
    """A server whose certificate has a DNS name, as a `WorkloadEntry` may have one put into a workload's."""
    key = new_key()
    template = LeafTemplate(SpiffeId.workload("mesh.test", "acme", "web"), timedelta(hours=1), (name,))
    svid = X509Svid.of(await authority.sign(template, key.public_key(), utc_now()), key)
    file = directory / f"{name}.pem"
    file.write_bytes(svid.chain_pem() + svid.key_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass  # it is not believed
        finally:
            writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)


async def opened(browser: Browser, name: str, server: asyncio.Server) -> str:
    """What comes of an address in a new page: its status, or why not."""
    page = await browser.new_page()
    try:
        answer = await page.goto(f"https://{name}:{server.sockets[0].getsockname()[1]}/", timeout=60_000)
        return str(answer.status if answer is not None else None)
    except Error as error:
        return error.message
    finally:
        await page.close()


def trusting(home: Path, root: x509.Certificate) -> dict[str, str]:
    """The environment of a browser that trusts a root."""
    command = [sys.executable, str(Path(__file__).with_name("nss.py")), str(home / ".pki/nssdb")]
    subprocess.run(command, input=root.public_bytes(Encoding.PEM), check=True, timeout=60)
    return {**os.environ, "HOME": str(home)}


async def test_a_browser_that_trusts_it_believes_its_names_and_no_others(directory: Path) -> None:
    authority = MemoryAuthority("mesh.test")
    names = ("mesh.example", "localhost", "bank.example")
    root = await authority.browser_root(names[:2])
    assert root is not None
    (whole,) = (await authority.bundle()).roots
    found = {}
    async with AsyncExitStack() as stack:
        servers = {name: await stack.enter_async_context(await serve(authority, name, directory)) for name in names}
        playwright = await stack.enter_async_context(async_playwright())
        for what, trusted in (("names", root), ("any", whole)):
            browser = await playwright.chromium.launch(
                executable_path=CHROMIUM,
                args=["--no-sandbox", "--host-resolver-rules=MAP * 127.0.0.1"],
                env=trusting(directory / what, trusted),
            )
            found[what] = {name: await opened(browser, name, server) for name, server in servers.items()}
            await browser.close()
    assert found["any"] == dict.fromkeys(names, "200"), "the mesh's own root proves whatever a workload is named"
    refused = found["names"].pop("bank.example")
    assert found["names"] == dict.fromkeys(names[:2], "200")
    assert "ERR_CERT_INVALID" in refused
