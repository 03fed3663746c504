"""Whoever calls the REST API: with a certificate or without, by HTTP as a library speaks it, or byte by byte."""

import asyncio
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from meshwarden.certs.svid import X509Svid

SERVER_NAME = "controlplane.mesh.test"
DEADLINE_S = 60.0


def tls(ca_file: Path, svid: X509Svid | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca_file))
    context.set_alpn_protocols(["http/1.1"])
    if svid is not None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(svid.chain_pem() + svid.key_pem())
            file.flush()
            context.load_cert_chain(file.name)
    return context


class Rest:
    """One caller."""

    def __init__(self, url: str, ca_file: Path, svid: X509Svid | None) -> None:
        self.port = int(url.rpartition(":")[2])
        self.context = tls(ca_file, svid)
        self.client = httpx.AsyncClient(base_url=url, verify=self.context, timeout=DEADLINE_S)

    async def ask(self, verb: str, path: str, **more: Any) -> httpx.Response:
        return await self.client.request(verb, path, extensions={"sni_hostname": SERVER_NAME}, **more)

    async def get(self, path: str, **more: Any) -> Any:
        """The JSON of an answer that is one."""
        answer = await self.ask("GET", path, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @asynccontextmanager
    async def events(self, path: str, **headers: str) -> AsyncIterator["Events"]:
        """An open event stream."""
        request = self.client.build_request("GET", path, headers=headers, extensions={"sni_hostname": SERVER_NAME})
        answer = await self.client.send(request, stream=True)
        try:
            yield Events(answer)
        finally:
            await answer.aclose()

    async def raw(self, sent: bytes) -> bytes:
        """What is answered to bytes, until the connection ends."""
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=self.context, server_hostname=SERVER_NAME
            )
            try:
                writer.write(sent)
                return await reader.read()
            finally:
                writer.close()


class Events:
    """The events of a stream, one after the other."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def next(self) -> tuple[str, str, Any]:
        """The next event: its kind, its id, its data."""
        kind, number, data = "message", "", ""
        async with asyncio.timeout(DEADLINE_S):
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "id":
                    number = value
                elif name == "data":
                    data += value
                elif not line and data:
                    return kind, number, json.loads(data)
        raise AssertionError("the stream has ended")
