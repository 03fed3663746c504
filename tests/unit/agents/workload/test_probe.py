"""The health check, against real servers of both kinds of TLS stack, and against peers that mean no good."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from meshwarden.agents.workload.endpoint import Health, check_http, endpoint_id, is_listening
from meshwarden.agents.workload.probe import Self, check_grpc
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.clock import utc_now
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.v1 import resources_pb2 as pb

DOMAIN = "mesh.test"


async def issue(authority: MemoryAuthority, service: str) -> X509Svid:
    key = new_key()
    template = LeafTemplate(SpiffeId.workload(DOMAIN, "platform", service), timedelta(hours=1))
    return X509Svid.of(await authority.sign(template, key.public_key(), utc_now()), key)


async def self_of(authority: MemoryAuthority, service: str = "orders") -> Self:
    return Self(await issue(authority, service), await authority.bundle(), utc_now)


@asynccontextmanager
async def serving(who: Self | None, answer: Callable[[grpc.aio.Server], None]) -> AsyncIterator[int]:
    server = grpc.aio.server()
    answer(server)
    if who is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = [(who.svid.key_pem(), who.svid.chain_pem())]
        credentials = grpc.ssl_server_credentials(pair, who.bundle.pem(), require_client_auth=True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield port
    await server.stop(0)


def says(status: Any, service: str = "") -> Callable[[grpc.aio.Server], None]:
    def add(server: grpc.aio.Server) -> None:
        servicer = health.aio.HealthServicer()
        servicer._server_status[service] = status
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)

    return add


def refuses(code: grpc.StatusCode) -> Callable[[grpc.aio.Server], None]:
    class Refusing(health_pb2_grpc.HealthServicer):
        async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
            await context.abort(code, "no")

    return lambda server: health_pb2_grpc.add_HealthServicer_to_server(Refusing(), server)


STATUS = health_pb2.HealthCheckResponse


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    ("answer", "alive"),
    [
        (says(STATUS.SERVING), True),
        (says(STATUS.NOT_SERVING), False),
        (says(STATUS.SERVICE_UNKNOWN), False),
        (lambda server: None, True),  # no health service at all
        (refuses(grpc.StatusCode.PERMISSION_DENIED), True),
        (refuses(grpc.StatusCode.RESOURCE_EXHAUSTED), True),
    ],
)
async def test_what_a_server_says(answer: Callable[[grpc.aio.Server], None], alive: bool, plain: bool) -> None:
    who = await self_of(MemoryAuthority(DOMAIN))
    async with serving(None if plain else who, answer) as port:
        assert await check_grpc("127.0.0.1", port, "", None if plain else who) is alive


async def test_one_of_its_services_is_asked_by_name() -> None:
    name = "shop." + "v" * 200  # longer than one byte of a length says
    async with serving(None, says(STATUS.NOT_SERVING, name)) as port:
        assert not await check_grpc("127.0.0.1", port, name, None)
    async with serving(None, says(STATUS.SERVING, name)) as port:
        assert await check_grpc("127.0.0.1", port, name, None)


async def test_a_server_that_is_somebody_else_is_not_it() -> None:
    authority = MemoryAuthority(DOMAIN)
    who = await self_of(authority)
    async with serving(await self_of(authority, "billing"), says(STATUS.SERVING)) as port:
        assert not await check_grpc("127.0.0.1", port, "", who)


async def test_a_server_of_another_authority_is_not_it() -> None:
    who, forged = await self_of(MemoryAuthority(DOMAIN)), await self_of(MemoryAuthority(DOMAIN))
    async with serving(forged, says(STATUS.SERVING)) as port:
        assert not await check_grpc("127.0.0.1", port, "", who)


async def test_a_server_that_does_not_take_our_certificate_is_not_up() -> None:
    ours, theirs = MemoryAuthority(DOMAIN), MemoryAuthority(DOMAIN)
    who = await self_of(ours)
    # It shows our own certificate, and trusts another authority.
    async with serving(Self(who.svid, await theirs.bundle(), utc_now), says(STATUS.SERVING)) as port:
        assert not await check_grpc("127.0.0.1", port, "", who)


async def test_plain_text_where_tls_is_due_is_not_up() -> None:
    who = await self_of(MemoryAuthority(DOMAIN))
    async with serving(None, says(STATUS.SERVING)) as port:
        assert not await check_grpc("127.0.0.1", port, "", who)


async def test_nobody_there() -> None:
    assert not await check_grpc("127.0.0.1", 1, "", None)
    assert not await check_http(1, "/")
    assert not await is_listening("127.0.0.1", 1)


@asynccontextmanager
async def talking(
    script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
            await writer.drain()
            await reader.read()
        except OSError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
HOSTILE = {
    "closes": b"",
    "speaks HTTP/1.1": b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 4000,
    "a frame of 16 MiB": b"\xff\xff\xff\x04\x00\x00\x00\x00\x00" + bytes(65536),
    "acknowledges first": b"\x00\x00\x00\x04\x01\x00\x00\x00\x00" * 2,
    "frames without end": SETTINGS + b"\x00\x00\x00\x63\x00\x00\x00\x00\x01" * 500,
    "goes away": SETTINGS + b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + bytes(8),
    "resets": SETTINGS + b"\x00\x00\x04\x03\x00\x00\x00\x00\x01" + bytes(4),
    "a message of nothing": SETTINGS + b"\x00\x00\x01\x00\x01\x00\x00\x00\x01\x00",
    "random": os.urandom(4096),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_peer_that_means_no_good_is_not_up(name: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HOSTILE[name])
        if not HOSTILE[name]:
            writer.close()

    async with talking(script) as port:
        assert not await check_grpc("127.0.0.1", port, "", None)
        if "HTTP/1.1" not in name:
            assert not await check_http(port, "/")


@pytest.mark.parametrize(
    ("line", "alive"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.0 204\r\n", True),
        (b"HTTP/1.1 302 Found\r\n", False),
        (b"HTTP/1.1 503 No\r\n", False),
        (b"HTTP/1.1 2000 OK\r\n", False),
        (b"200\r\n", False),
        (b"\r\n", False),
        (b"x" * 100_000, False),
    ],
)
async def test_http(line: bytes, alive: bool) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"GET /ok HTTP/1.1\r\n")
        writer.write(line)

    async with talking(script) as port:
        assert await check_http(port, "/ok") is alive


def test_health_begins_with_a_success_and_ends_with_failures_in_a_row() -> None:
    one = Health(threshold=2)
    assert not one.saw(False)
    assert one.state is None
    assert one.saw(True)
    assert not one.saw(False)
    assert not one.saw(True)
    assert not one.saw(False)
    assert one.saw(False)
    assert one.state == pb.EndpointSpec.UNHEALTHY
    assert one.saw(True)
    assert one.state == pb.EndpointSpec.HEALTHY


@pytest.mark.parametrize("name", ["acme/web#1", "acme/" + "x" * 63, "a" * 63 + "/" + "b" * 63 + "#256", "-/#", "ö/ß"])
def test_an_endpoints_id_is_a_dns_label(name: str) -> None:
    import re

    found = endpoint_id(name)
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", found)
    assert found == endpoint_id(name)
    assert found != endpoint_id(name + "x")
