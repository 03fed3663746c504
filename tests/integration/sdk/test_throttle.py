"""Callers that the SDK itself holds back: real servers that refuse, calls of every shape, sync and by grpc.aio."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshwarden.controlplane.policy.neutral import Caller
from meshwarden.sdk.aio_counted import CountedAioChannel
from meshwarden.sdk.counted import CountedChannel
from meshwarden.sdk.outgoing import Outgoing
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.quota_service_pb2 import Bucket, Share
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.v1.resources_pb2 import RateLimit, RatePolicySpec

sys.path.insert(0, str(Path(__file__).parent))

from instrumented import DEADLINE_S, Link
from tests.counted import stats_of

GET = "/meshwarden.examples.v1.Orders/Get"
POLICY = "platform/orders"
SHAPES = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
WORDS = "the SDK itself refuses this call, since platform/orders refused 10 of the last 10 calls of "


class Refusing:
    """A server that takes calls of every shape, or says not now."""

    def __init__(self) -> None:
        self.refuses, self.came = True, Counter[str]()
        made: Any = grpc
        handlers = {
            "unary_unary": made.unary_unary_rpc_method_handler(self._single),
            "unary_stream": made.unary_stream_rpc_method_handler(self._stream),
            "stream_unary": made.stream_unary_rpc_method_handler(self._single),
            "stream_stream": made.stream_stream_rpc_method_handler(self._stream),
            "other": made.unary_unary_rpc_method_handler(lambda request, context: request),
        }
        self.server = grpc.server(ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers((made.method_handlers_generic_handler("t.T", handlers),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def _single(self, request: Any, context: Any) -> bytes:
        self._take(context)
        return b"a"

    def _stream(self, request: Any, context: Any) -> Iterator[bytes]:
        self._take(context)
        yield b"a"

    def _take(self, context: Any) -> None:
        self.came["calls"] += 1
        if self.refuses:
            context.set_trailing_metadata((("mesh-decision", "limited"), ("retry-after", "1")))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    made = Refusing()
    made.server.start()
    yield made
    made.server.stop(None).wait()


def outgoing(link: Any, chance: list[float], **more: Any) -> Outgoing:
    """What holds a channel back; no time passes, so that none goes since it has been a second."""
    return Outgoing(link, "orders.platform", now_s=lambda: 100.0, chance=lambda: chance[0], **more)


def request(shape: str) -> Any:
    # A message that is written when the call has ended gives grpc.aio another status for a moment.
    return b"a" if shape.startswith("unary") else iter([])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_channel_with_threads(refusing: Refusing, shape: str) -> None:
    link, chance = Link(), [0.95]
    with CountedChannel(grpc.insecure_channel(f"127.0.0.1:{refusing.port}"), outgoing(link, chance)) as channel:
        call = getattr(channel, shape)(f"/t.T/{shape}")

        def make() -> Any:
            answer = call(request(shape), timeout=DEADLINE_S)
            return list(answer) if shape.endswith("stream") else answer

        def code(way: Callable[[], Any] = make) -> tuple[grpc.StatusCode, str]:
            with pytest.raises(grpc.RpcError) as raised:
                way()
            error: Any = raised.value
            return error.code(), error.details()

        exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
        assert [code() for _ in range(10)] == [(exhausted, "too much")] * 10
        chance[0] = 0.5
        came = refusing.came["calls"]
        said, text = code()
        assert said is exhausted
        assert text.startswith(WORDS)
        if not shape.endswith("stream"):
            assert code(lambda: call.with_call(request(shape))) == (said, text)
            future = call.future(request(shape))
            assert (future.done(), future.code(), future.exception().details()) == (True, exhausted, text)
            assert code(future.result) == (said, text)
        else:
            ended = call(request(shape))
            assert (ended.done(), ended.code(), ended.is_active(), ended.add_callback(print)) == (
                *(True, exhausted),
                *(False, False),
            )
            assert dict(ended.trailing_metadata()) == {"mesh-decision": "throttled", "retry-after": "1"}
        assert refusing.came["calls"] == came, "the server hears of none of them"
        # Another method of the same service is another matter.
        assert channel.unary_unary("/t.T/other")(b"a", timeout=DEADLINE_S) == b"a"
        refusing.refuses, chance[0] = False, 0.95
        assert [make() for _ in range(10)]
        chance[0] = 0.0
        assert [make() for _ in range(100)], "ten in a row, and all go"
    decisions = Counter[Any]()
    for stat in stats_of(link.counter.take()):
        decisions[stat.method, stat.status, stat.decision] += stat.count
    held = 2 if shape.endswith("stream") else 3
    path = f"/t.T/{shape}"
    assert decisions == {
        (path, "RESOURCE_EXHAUSTED", CallStat.LIMITED): 10,
        (path, "RESOURCE_EXHAUSTED", CallStat.THROTTLED): held,
        (path, "OK", CallStat.ALLOWED): 110,
        ("/t.T/other", "OK", CallStat.ALLOWED): 1,
    }


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_channel_of_aio(refusing: Refusing, shape: str) -> None:
    link, chance = Link(), [0.95]
    inner = grpc.aio.insecure_channel(f"127.0.0.1:{refusing.port}")
    async with CountedAioChannel(inner, outgoing(link, chance)) as channel:
        call = getattr(channel, shape)(f"/t.T/{shape}")

        async def make() -> Any:
            made = call(request(shape), timeout=DEADLINE_S)
            return [one async for one in made] if shape.endswith("stream") else await made

        async def error(what: Any) -> grpc.aio.AioRpcError:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await what
            return raised.value

        assert [(await error(make())).details() for _ in range(10)] == ["too much"] * 10
        chance[0] = 0.5
        came = refusing.came["calls"]
        refusal = await error(make())
        assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (refusal.details() or "").startswith(WORDS)
        assert dict(refusal.trailing_metadata()) == {"mesh-decision": "throttled", "retry-after": "1"}
        ended, heard = call(request(shape)), []
        ended.add_done_callback(heard.append)
        assert heard == [ended]
        assert (ended.done(), ended.cancelled(), ended.cancel()) == (True, False, False)
        assert (await ended.code(), await ended.details()) == (refusal.code(), refusal.details())
        for use in (ended.wait_for_connection(), ended.read(), ended.write(b"a")):
            await error(use)
        assert refusing.came["calls"] == came
        refusing.refuses, chance[0] = False, 0.95
        assert [await make() for _ in range(10)]
        chance[0] = 0.0
        assert [await make() for _ in range(100)]
    counted = Counter[Any]()
    for stat in stats_of(link.counter.take()):
        counted[stat.decision] += stat.count
    assert counted == {CallStat.LIMITED: 10, CallStat.THROTTLED: 2, CallStat.ALLOWED: 110}


def test_it_can_be_left_out(refusing: Refusing) -> None:
    link = Link()
    held = outgoing(link, [0.0], throttled=False)
    with CountedChannel(grpc.insecure_channel(f"127.0.0.1:{refusing.port}"), held) as channel:
        for _ in range(50):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary("/t.T/unary_unary")(b"a", timeout=DEADLINE_S)
    assert refusing.came["calls"] == 50


def limits() -> ServerLimits:
    acme = RateLimit(tenant="acme", requests=100_000, burst=100_000)
    return ServerLimits(policies=[PolicyLimits(policy=POLICY, spec=RatePolicySpec(limits=[acme]))])


def share(rate: float) -> Share:
    return Share(bucket=Bucket(policy=POLICY, tenant="acme"), rate=rate, burst=max(1.0, rate))


def test_under_a_limit_of_the_mesh_a_program_spares_the_server_and_takes_all_again(
    mesh: Any, until: Callable[..., Any]
) -> None:
    mesh.callers = {Caller("acme", "web")}
    serving, _ = mesh.orders()
    calling, probe = mesh.probe("acme", "web")
    serving.agent.shares = [share(1e-6)]
    serving.tell(limits())
    ask: dict[str, Any] = {"throttled": True, "channel": "held"}
    until(lambda: probe.ask("grpc", **ask)["codes"] == {"RESOURCE_EXHAUSTED": 1}, "its first calls, and no more")
    answer = probe.ask("grpc", count=500, **ask)
    assert answer["codes"] == {"RESOURCE_EXHAUSTED": 500}
    assert any("the SDK itself refuses this call, since platform/orders refused" in one for one in answer["errors"])

    def told(decision: int) -> int:
        return int(calling.agent.counted(CallStat.SOURCE)[GET, "RESOURCE_EXHAUSTED", decision])

    until(lambda: told(CallStat.THROTTLED) + told(CallStat.LIMITED) >= 501, "counted")
    assert told(CallStat.THROTTLED) > 250
    until(lambda: serving.agent.used["acme", "", "denied"] == told(CallStat.LIMITED), "the server saw the others alone")
    serving.agent.shares = [share(100_000.0)]
    until(lambda: probe.ask("grpc", count=50, **ask)["codes"] == {"OK": 50}, "all of them again")
    assert probe.ask("grpc", count=200, **ask)["codes"] == {"OK": 200}
