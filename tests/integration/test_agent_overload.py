"""Telemetry that the agent has too much to do to let in: counted by whose it is, unless its sender counts."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from meshwarden.agents.api.overload import overload
from meshwarden.agents.telemetry.receive import EXPORTS
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk.tracing.numbered import Numbers

REPORT = "/meshwarden.v1.WorkloadService/Report"
WEB = SimpleNamespace(id="acme/web#1", spiffe_id=SpiffeId.workload("mesh.test", "acme", "web"))
Seen = Counter[tuple[str, str]]


@asynccontextmanager
async def full(directory: Path, workload: Any) -> AsyncIterator[tuple[grpc.aio.Channel, Seen]]:
    """An agent's server whose places are all taken by one workload, or by a user's program that is none."""
    seen: Seen = Counter()
    intake: Any = SimpleNamespace(shed=lambda signal, tenant: seen.update([(signal, tenant)]))
    attestor: Any = SimpleNamespace(find=lambda peer: workload, owner=lambda peer: "uid 7")
    bound, go = overload(attestor, intake, lambda: 0.5), asyncio.Event()

    async def hold(request: bytes, context: Any) -> bytes:
        await go.wait()
        return b""

    server = grpc.aio.server(interceptors=[bound])
    for method in ("/t.T/Hold", *EXPORTS, REPORT):
        service, name = method.strip("/").split("/")
        handlers = {name: grpc.unary_unary_rpc_method_handler(hold)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"unix:{directory}/s")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{directory}/s") as channel:
            held = [channel.unary_unary("/t.T/Hold")(b"") for _ in range(bound.now[0] + 8)]
            async with asyncio.timeout(60):
                while sum(bound.shed.values()) < 8:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
            yield channel, seen
            go.set()
            await asyncio.gather(*held, return_exceptions=True)
    finally:
        await server.stop(None)


async def code(channel: grpc.aio.Channel, method: str, metadata: Any = ()) -> grpc.StatusCode:
    found: grpc.StatusCode = await channel.unary_unary(method)(b"", metadata=metadata, timeout=60).code()
    return found


@pytest.mark.parametrize(("workload", "tenant"), [(WEB, "acme"), (None, "")])
async def test_what_is_not_let_in_is_seen(short_dir: Path, workload: Any, tenant: str) -> None:
    async with full(short_dir, workload) as (channel, seen):
        for method in (*EXPORTS, *EXPORTS, REPORT, "/t.T/Hold"):
            assert await code(channel, method) is grpc.StatusCode.UNAVAILABLE
    assert seen == {("span", tenant): 2, ("point", tenant): 2, ("log", tenant): 2, ("call", tenant): 1}


async def test_who_numbers_its_requests_has_them_still(short_dir: Path) -> None:
    async with full(short_dir, WEB) as (channel, seen):
        number = Numbers().next()
        for method in (*EXPORTS, REPORT):
            assert await code(channel, method, number.metadata) is grpc.StatusCode.UNAVAILABLE
    assert not seen


@pytest.mark.parametrize("value", ["", "x" * 4000, "0123456789abcdef-", "-1", "0123456789ABCDEF-1"])
async def test_a_number_that_is_none_hides_nothing(short_dir: Path, value: str) -> None:
    async with full(short_dir, WEB) as (channel, seen):
        assert await code(channel, next(iter(EXPORTS)), (("meshwarden-number", value),)) is grpc.StatusCode.UNAVAILABLE
    assert seen.total() == 1
