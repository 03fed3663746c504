"""What a read by REST takes, beside the same by gRPC and beside a route of FastAPI that does nothing.

All of it over TLS on loopback, on one connection that stays, one request after the other. FastAPI runs under uvicorn in
the environment of `sovereign`.
"""

import asyncio
import random
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from benchmarks import console
from benchmarks.control_plane import RPC_S, TRUST_DOMAIN, ControlPlane, control_plane
from benchmarks.process import child
from benchmarks.push_sovereign import PYTHON
from benchmarks.result import Case
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate, control_plane_dns_name
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.local.port import free_port
from meshwarden.v1 import resource_service_pb2 as v1
from meshwarden.v1.resource_service_pb2_grpc import ResourceServiceStub
from meshwarden.v1.resources_pb2 import Metadata, Resource, Service, ServiceSpec, Tenant

NAME: Final = control_plane_dns_name(TRUST_DOMAIN)
SERVICES: Final = 1000
_GETS, _LISTS, _EMPTY = 300, 5, 300
_SERVE: Final = """
import sys, fastapi, uvicorn
app = fastapi.FastAPI()
@app.get("/empty")
async def empty() -> dict[str, str]:
    return {}
port, chain, key = sys.argv[1:]
uvicorn.run(app, port=int(port), access_log=False, ssl_certfile=chain, ssl_keyfile=key)
"""


async def run(_: int, rounds: int) -> AsyncIterator[Case]:
    """Yields the cases."""
    empty = "an empty route of FastAPI 0.139 under uvicorn, over TLS"
    get = Case("api", "REST get", empty, "µs a request")
    beside = Case("api", "REST get beside gRPC", "the same by gRPC", "µs a request")
    listed = Case("api", f"REST list {SERVICES}", "the same by gRPC", "µs a request")
    with tempfile.TemporaryDirectory(prefix="mw-", dir="/tmp") as scratch:
        directory = Path(scratch)
        async with control_plane(directory / "cp", rest=True) as server, _fastapi(directory) as (port, roots):
            await _fill(server)
            ours = _Connection(server.rest_port, tls(directory / "cp" / "state" / "ca.pem", server.operator))
            theirs = _Connection(port, tls(roots, None))
            stub = ResourceServiceStub(server.channel)
            one = v1.GetRequest(ref=v1.ResourceRef(kind="Service", tenant="bench", name="s1"))
            all_of_them = v1.ListRequest(kind="Service", tenant="bench", page_size=SERVICES)
            for _ in range(rounds):
                rest_us = await _took_us(lambda: ours.get("/v1/resources/Service/bench/s1"), _GETS)
                get.add(rest_us, await _took_us(lambda: theirs.get("/empty"), _EMPTY))
                beside.add(rest_us, await _rpc_us(lambda: stub.Get(one, timeout=RPC_S), _GETS))
                path = f"/v1/resources/Service/bench?pageSize={SERVICES}"
                list_us = await _took_us(lambda path=path: ours.get(path), _LISTS)
                listed.add(list_us, await _rpc_us(lambda: stub.List(all_of_them, timeout=RPC_S), _LISTS))
            ours.close()
            theirs.close()
    for case in (get, beside, listed):
        yield case
    async for case in console.cases(rounds):
        yield case


class _Connection:
    """One connection, and requests on it; blocking, so that the client costs next to nothing."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        raw = socket.create_connection(("127.0.0.1", port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(raw, server_hostname=NAME)

    def get(self, path: str) -> bytes:
        """The body of an answer."""
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nhost: {NAME}\r\n\r\n".encode())
        said = b""
        while b"\r\n\r\n" not in said:
            said += self._read()
        head, _, body = said.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), said
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        pieces = [body]
        missing = length - len(body)
        while missing > 0:
            pieces.append(self._read())
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def _read(self) -> bytes:
        data = self._socket.recv(1 << 20)
        assert data, "the connection has ended"
        return data

    def close(self) -> None:
        """Ends it."""
        self._socket.close()


async def _took_us(ask: Callable[[], object], times: int) -> float:
    def all_of_them() -> float:
        ask()
        begun_s = time.perf_counter()
        for _ in range(times):
            ask()
        return (time.perf_counter() - begun_s) / times * 1e6

    return await asyncio.to_thread(all_of_them)


async def _rpc_us(ask: Callable[[], object], times: int) -> float:
    await ask()  # type: ignore[misc]  # a call of grpc.aio
    begun_s = time.perf_counter()
    for _ in range(times):
        await ask()  # type: ignore[misc]
    return (time.perf_counter() - begun_s) / times * 1e6


async def _fill(server: ControlPlane) -> None:
    spec = ServiceSpec(protocol=ServiceSpec.GRPC, export_to=["*"])
    services = (
        Resource(service=Service(kind="Service", metadata=Metadata(tenant="bench", name=f"s{number}"), spec=spec))
        for number in range(SERVICES)
    )
    await server.apply(Resource(tenant=Tenant(kind="Tenant", metadata=Metadata(name="bench"))), *services)


def tls(roots: Path, svid: X509Svid | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(roots))
    if svid is not None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(svid.chain_pem() + svid.key_pem())
            file.flush()
            context.load_cert_chain(file.name)
    return context


@asynccontextmanager
async def _fastapi(directory: Path) -> AsyncIterator[tuple[int, Path]]:
    """Runs an app with one empty route; where it is, and what proves it."""
    authority, key = MemoryAuthority(TRUST_DOMAIN), new_key()
    template = LeafTemplate(SpiffeId.control_plane(TRUST_DOMAIN, "other"), timedelta(hours=1), (NAME,))
    svid = X509Svid.of(await authority.sign(template, key.public_key(), utc_now()), key)
    files = {"chain": svid.chain_pem(), "key": svid.key_pem(), "roots": (await authority.bundle()).pem()}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    port = free_port(random.SystemRandom())
    arguments = ["-c", _SERVE, str(port), str(directory / "chain"), str(directory / "key")]
    async with child("FastAPI", [str(PYTHON), *arguments], directory) as process:
        await process.until_port(port)
        yield port, directory / "roots"
