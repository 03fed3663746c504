"""Calls that the SDK makes again: real servers that refuse for a while, sync and by grpc.aio, and the budget."""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshwarden.sdk.aio_counted import CountedAioChannel
from meshwarden.sdk.backpressure.retry import RESERVE
from meshwarden.sdk.backpressure.throttle import LEAST
from meshwarden.sdk.counted import CountedChannel
from meshwarden.sdk.outgoing import Outgoing
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.quota_service_pb2 import Bucket, Share
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

sys.path.insert(0, str(Path(__file__).parent))

from instrumented import DEADLINE_S, Link, soon
from tests.counted import stats_of

ECHO = "/t.T/Echo"
EXHAUSTED, AWAY = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE
LIMITED = (("mesh-decision", "limited"), ("grpc-retry-pushback-ms", "1"))


class Flaky:
    """A server that ends so many calls badly before it takes one."""

    def __init__(self) -> None:
        self.ends: list[tuple[grpc.StatusCode, Any]] = []
        self.came = 0
        made: Any = grpc
        handler = made.method_handlers_generic_handler("t.T", {"Echo": made.unary_unary_rpc_method_handler(self._echo)})
        self.server = grpc.server(ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers((handler,))
        self.target = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def _echo(self, request: bytes, context: Any) -> bytes:
        self.came += 1
        if self.ends:
            code, trailing = self.ends.pop(0)
            context.set_trailing_metadata(trailing)
            context.abort(code, "not now")
        return request


@pytest.fixture
def flaky() -> Iterator[Flaky]:
    made = Flaky()
    made.server.start()
    yield made
    made.server.stop(None).wait()


def outgoing(link: Any, retries: int = 3) -> Outgoing:
    return Outgoing(link, "orders", throttled=False, retries=retries)


def statuses(link: Link) -> dict[str, int]:
    found = Counter[str]()
    for stat in stats_of(link.counter.take()):
        found[stat.status] += stat.count
    return dict(found)


@pytest.mark.parametrize("way", ["__call__", "with_call"])
def test_a_channel_with_threads(flaky: Flaky, way: str) -> None:
    link = Link()
    with CountedChannel(grpc.insecure_channel(flaky.target), outgoing(link)) as channel:
        call = getattr(channel.unary_unary(ECHO), way)
        flaky.ends = [(EXHAUSTED, LIMITED), (AWAY, ()), (EXHAUSTED, LIMITED)]
        answer = call(b"a", timeout=DEADLINE_S)
        assert (answer[0] if way == "with_call" else answer) == b"a"
        assert flaky.came == 4
        flaky.came = 0
        flaky.ends = [(AWAY, ())] * 9
        with pytest.raises(grpc.RpcError) as raised:
            call(b"a", DEADLINE_S)
        error: Any = raised.value
        assert (error.code(), error.details(), len(flaky.ends)) == (AWAY, "not now", 5)
        flaky.ends = [(EXHAUSTED, LIMITED)]
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(ECHO).future(b"a", timeout=DEADLINE_S).result()
    assert statuses(link) == {"RESOURCE_EXHAUSTED": 3, "UNAVAILABLE": 5, "OK": 1}, "each attempt is a call"


def test_a_destination_that_is_down_gets_a_tenth_more_calls_and_no_storm(flaky: Flaky) -> None:
    link = Link()
    flaky.ends = [(EXHAUSTED, LIMITED)] * 10_000
    with CountedChannel(grpc.insecure_channel(flaky.target), outgoing(link)) as channel:
        for _ in range(200):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(ECHO)(b"a", timeout=DEADLINE_S)
    assert 200 + 15 <= flaky.came <= 200 + RESERVE + 20


def held_back(link: Link) -> Outgoing:
    """What refuses each call that it may."""
    return Outgoing(link, "orders", retries=3, now_s=lambda: 100.0, chance=lambda: 0.0)


def test_a_retry_that_the_server_asked_for_is_not_refused_here(flaky: Flaky) -> None:
    flaky.ends = [(EXHAUSTED, LIMITED)] * 10_000
    with CountedChannel(grpc.insecure_channel(flaky.target), held_back(Link())) as channel:
        call = channel.unary_unary(ECHO)
        while "SDK itself" not in refused(lambda: call(b"a", timeout=DEADLINE_S)):
            pass
        came = flaky.came
        assert "SDK itself" in refused(lambda: call(b"a", timeout=DEADLINE_S))
        assert flaky.came == came >= LEAST
        flaky.ends = []
    flaky.ends = [(EXHAUSTED, LIMITED)] * LEAST
    with CountedChannel(grpc.insecure_channel(flaky.target), held_back(Link())) as channel:
        call = channel.unary_unary(ECHO)
        assert "not now" in refused(lambda: call(b"a", timeout=DEADLINE_S)), "four attempts"
        assert "not now" in refused(lambda: call(b"a", timeout=DEADLINE_S))
        assert call(b"a", timeout=DEADLINE_S) == b"a", "its second attempt was asked for"


async def test_nor_by_grpc_aio(flaky: Flaky) -> None:
    flaky.ends = [(EXHAUSTED, LIMITED)] * LEAST
    async with CountedAioChannel(grpc.aio.insecure_channel(flaky.target), held_back(Link())) as channel:
        ask = channel.unary_unary(ECHO)
        for _ in range(2):
            assert await ask(b"a", timeout=DEADLINE_S).code() is EXHAUSTED
        assert await ask(b"a", timeout=DEADLINE_S) == b"a"
        assert flaky.came == LEAST + 1


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    error: Any = raised.value
    return str(error.details())


def test_what_would_wait_past_its_deadline_fails_at_once(flaky: Flaky) -> None:
    flaky.ends = [(EXHAUSTED, (("retry-after", "9"),))]
    with CountedChannel(grpc.insecure_channel(flaky.target), outgoing(Link())) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(ECHO)(b"a", timeout=5)
    assert flaky.came == 1


async def test_a_channel_of_aio(flaky: Flaky) -> None:
    link = Link()
    async with CountedAioChannel(grpc.aio.insecure_channel(flaky.target), outgoing(link)) as channel:
        ask = channel.unary_unary(ECHO)
        flaky.ends = [(EXHAUSTED, LIMITED), (AWAY, ()), (EXHAUSTED, LIMITED)]
        call, heard = ask(b"a", timeout=DEADLINE_S), []
        call.add_done_callback(heard.append)
        assert isinstance(call, grpc.aio.UnaryUnaryCall)
        assert not call.done()
        await call.wait_for_connection()
        assert (await call, await call.code(), call.done()) == (b"a", grpc.StatusCode.OK, True)
        await soon(lambda: heard)
        assert heard == [call]
        assert flaky.came == 4
        flaky.ends = [(AWAY, (("why", "down"),))] * 9
        call = ask(b"a", timeout=DEADLINE_S)
        assert (await call.code(), await call.details(), len(flaky.ends)) == (AWAY, "not now", 5)
        assert dict(await call.trailing_metadata())["why"] == "down"
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    assert statuses(link) == {"RESOURCE_EXHAUSTED": 2, "UNAVAILABLE": 5, "OK": 1}


@pytest.mark.parametrize("how", ["call", "task"])
async def test_a_call_of_aio_that_is_cancelled_is_made_no_more(flaky: Flaky, how: str) -> None:
    async with CountedAioChannel(grpc.aio.insecure_channel(flaky.target), outgoing(Link())) as channel:
        flaky.ends = [(EXHAUSTED, (("retry-after", "7"),))] * 9
        call = channel.unary_unary(ECHO)(b"a")
        await soon(lambda: len(flaky.ends) == 8)
        if how == "call":
            assert call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await call
        await soon(call.done)
        assert call.cancelled()
        assert flaky.came == 1


async def test_a_channel_of_aio_that_is_closed_meanwhile(flaky: Flaky) -> None:
    async with CountedAioChannel(grpc.aio.insecure_channel(flaky.target), outgoing(Link())) as channel:
        flaky.ends = [(AWAY, (("grpc-retry-pushback-ms", "500"),))] * 9
        call = channel.unary_unary(ECHO)(b"a", timeout=DEADLINE_S)
        await soon(lambda: flaky.came)
    assert await call.code() in (AWAY, grpc.StatusCode.CANCELLED)


CALLER = """
from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc
with sdk.channel("xds:///orders", retries=3) as channel:
    orders = orders_pb2_grpc.OrdersStub(channel)
    print([orders.Get(orders_pb2.GetRequest(id="1"), timeout=60).tenant for _ in range(8)])
"""


def test_under_a_limit_of_the_mesh_calls_come_when_there_is_more(mesh: Any, until: Callable[..., Any]) -> None:
    serving, _ = mesh.orders()
    acme = RateLimit(tenant="acme", requests=1000, burst=1000)
    bucket = Bucket(policy="platform/orders", tenant="acme")
    serving.agent.shares = [Share(bucket=bucket, rate=5.0, burst=1.0)]
    serving.tell(ServerLimits(policies=[PolicyLimits(policy=bucket.policy, spec=RatePolicySpec(limits=[acme]))]))
    calling, probe = mesh.probe()
    until(lambda: probe.ask("grpc", count=3)["codes"].get("RESOURCE_EXHAUSTED"), "the limit")
    program = calling.start("-c", CALLER)
    assert program.popen.stdout.readline() == f"{['acme'] * 8}\n", "".join(program.log)
