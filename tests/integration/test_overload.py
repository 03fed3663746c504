"""A real grpc.aio server that has less to give than it is asked for."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshwarden.sdk.backpressure.concurrency import Concurrency
from meshwarden.sdk.backpressure.criticality import Criticality
from meshwarden.sdk.backpressure.overload import PUSHBACK_KEY, OverloadInterceptor, by_name

DEADLINE_S = 60.0


@dataclass
class World:
    """A server whose calls end when the test says so, and who calls is what they say."""

    places: Concurrency
    interceptor: OverloadInterceptor
    begun: Counter[str] = field(default_factory=Counter)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    target: str = ""

    async def hold(self, request: bytes, context: Any) -> bytes:
        self.begun[request.decode()] += 1
        await self.go.wait()
        return b""

    async def fail(self, request: bytes, context: Any) -> bytes:
        raise ValueError("boom")

    async def abort(self, request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no")
        raise AssertionError

    async def stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        await self.go.wait()

    def in_flight(self) -> int:
        return self.interceptor.now[1]


@asynccontextmanager
async def serving(directory: Path, least: int = 4, most: int = 4) -> AsyncIterator[World]:
    places = Concurrency(least, most, 0.0, lambda: 0.5)
    caller = lambda context: dict(context.invocation_metadata()).get("caller", "")  # noqa: E731
    levels = by_name({"Read": Criticality.SHEDDABLE, "Renew": Criticality.CRITICAL_PLUS}, Criticality.CRITICAL)
    interceptor = OverloadInterceptor(places, caller, levels)
    world = World(places, interceptor, target=f"unix:{directory}/s")
    server = grpc.aio.server(interceptors=[interceptor])
    unary = {name: grpc.unary_unary_rpc_method_handler(world.hold) for name in ("Read", "Renew", "Apply")}
    unary |= {"Fail": grpc.unary_unary_rpc_method_handler(world.fail)}
    unary |= {"Abort": grpc.unary_unary_rpc_method_handler(world.abort)}
    handlers = {**unary, "Stream": grpc.unary_stream_rpc_method_handler(world.stream)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    server.add_insecure_port(world.target)
    await server.start()
    try:
        yield world
    finally:
        world.go.set()
        await server.stop(None)


async def until(look: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not look():  # noqa: ASYNC110  # what is waited for tells nobody
            await asyncio.sleep(0.01)


def call(channel: grpc.aio.Channel, method: str, caller: str) -> Any:
    return channel.unary_unary(f"/t.T/{method}")(caller.encode(), metadata=(("caller", caller),), timeout=DEADLINE_S)


async def code(asked: Any) -> grpc.StatusCode:
    found: grpc.StatusCode = await asked.code()
    return found


@pytest.mark.anyio
async def test_a_flood_of_reads_leaves_room_for_what_matters_more_and_for_others(tmp_path: Path) -> None:
    async with serving(tmp_path, least=8, most=8) as world, grpc.aio.insecure_channel(world.target) as channel:
        reads = [call(channel, "Read", "operator") for _ in range(50)]
        await until(lambda: world.interceptor.shed[Criticality.SHEDDABLE] == 46)
        renewals = [call(channel, "Renew", f"node {number}") for number in range(4)]
        await until(lambda: sum(world.begun[f"node {number}"] for number in range(4)) == 4)
        world.go.set()
        assert [await code(one) for one in renewals] == [grpc.StatusCode.OK] * 4
        counted = Counter([await code(one) for one in reads])
        assert counted == {grpc.StatusCode.OK: 4, grpc.StatusCode.UNAVAILABLE: 46}
        assert world.in_flight() == 0


@pytest.mark.anyio
async def test_who_is_not_let_in_is_told_when_to_try_again(tmp_path: Path) -> None:
    async with serving(tmp_path, 1, 1) as world, grpc.aio.insecure_channel(world.target) as channel:
        held = call(channel, "Apply", "a")
        await until(lambda: world.begun["a"])
        refused = call(channel, "Apply", "b")
        assert await code(refused) is grpc.StatusCode.UNAVAILABLE
        assert "try again in 1 s" in await refused.details()
        assert dict(await refused.trailing_metadata()) == {"retry-after": "1", PUSHBACK_KEY: "1000"}
        world.go.set()
        assert await code(held) is grpc.StatusCode.OK


@pytest.mark.anyio
async def test_a_place_comes_back_whatever_the_end_of_the_call(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        async with grpc.aio.insecure_channel(world.target) as channel:
            for _ in range(10):
                assert await code(call(channel, "Fail", "a")) is grpc.StatusCode.UNKNOWN
                assert await code(call(channel, "Abort", "a")) is grpc.StatusCode.NOT_FOUND
            cancelled = call(channel, "Apply", "a")
            await until(lambda: world.begun["a"] == 1)
            cancelled.cancel()
            late = channel.unary_unary("/t.T/Apply")(b"a", timeout=0.2)
            assert await code(late) is grpc.StatusCode.DEADLINE_EXCEEDED
            lost = call(channel, "Apply", "lost")
            await until(lambda: world.begun["lost"])
            del lost
        await until(lambda: world.in_flight() == 0)  # the client has gone
        async with grpc.aio.insecure_channel(world.target) as channel:
            world.go.set()
            assert await code(call(channel, "Apply", "a")) is grpc.StatusCode.OK


@pytest.mark.anyio
async def test_streams_come_in_and_hold_no_place(tmp_path: Path) -> None:
    async with serving(tmp_path, 1, 1) as world, grpc.aio.insecure_channel(world.target) as channel:
        streams = [channel.unary_stream("/t.T/Stream")(b"") for _ in range(5)]
        assert [await stream.read() for stream in streams] == [b"first"] * 5
        assert world.in_flight() == 0
        world.go.set()
        assert await code(call(channel, "Apply", "a")) is grpc.StatusCode.OK
