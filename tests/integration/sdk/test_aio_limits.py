"""A grpc.aio server under limits: certificates through a front, calls of all shapes, and callers that nobody knows."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from meshwarden import sdk
from meshwarden.certs.clock import utc_now
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.verify import PeerVerifier
from meshwarden.sdk.aio_handler import ServedInterceptor
from meshwarden.sdk.mtls.front import Front
from meshwarden.sdk.mtls.peer import PeerInterceptor
from meshwarden.sdk.mtls.tls import server_context
from meshwarden.sdk.quota import cost
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.quota_service_pb2 import Chunk, Share, ShareRequest, ShareResponse
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.v1.resources_pb2 import Adaptive, RateLimit, RatePolicySpec

sys.path.insert(0, str(Path(__file__).parent))

from instrumented import DEADLINE_S, Aio, Handlers, Link, certified, shown, soon
from tests.counted import stats_of

# One call each of them, and the next in a thousand seconds.
SHAPES = ["Echo", "Fan", "Write", "Gather", "Both", "Read"]
FEW = RateLimit(tenant="acme", requests=1, burst=2)
FEW.per.FromSeconds(1000)


def limits(*, scope: Any = RatePolicySpec.POINT, **fields: Any) -> ServerLimits:
    said = PolicyLimits(policy="platform/orders", spec=RatePolicySpec(limits=[FEW], scope=scope, **fields))
    return ServerLimits(policies=[said])


class Limited(Link):
    """A link whose limits change."""

    def __init__(self, bundles: dict[str, Any], told: ServerLimits | None = None) -> None:
        super().__init__(bundles)
        self.observed: list[Any] = []
        self.tell(told or ServerLimits())

    def observe(self, states: Any) -> None:
        self.observed.append(states)

    def unobserve(self, states: Any) -> None:
        self.observed.remove(states)

    def unlisten(self, listener: Any) -> None:
        pass

    def tell(self, told: ServerLimits) -> None:
        before = self.config
        self.config = replace(before, limits=told)


async def ended(channel: grpc.aio.Channel, method: str) -> grpc.aio.AioRpcError | None:
    """How a call of its shape ends."""
    path = f"/t.T/{method}"
    try:
        if method in ("Fan", "Write"):
            assert [one async for one in channel.unary_stream(path)(b"1", timeout=DEADLINE_S)]
        elif method == "Gather":
            await channel.stream_unary(path)(iter([b"a"]), timeout=DEADLINE_S)
        elif method in ("Both", "Read"):
            assert [one async for one in channel.stream_stream(path)(iter([b"a"]), timeout=DEADLINE_S)]
        else:
            await channel.unary_unary(path)(b"1", timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        return error
    return None


class Proved:
    """A server behind a front, whose callers show certificates."""

    def __init__(self, directory: Path, issuer: Any, link: Any) -> None:
        self.issuer, self.link, self.handlers = issuer, link, Handlers()
        self.own, self.web = certified(issuer)
        inner = directory / "inner"
        inner.mkdir(mode=0o700)
        self.front = Front(inner / "s")
        self.interceptor = ServedInterceptor(link)
        peers = PeerInterceptor(self.front, PeerVerifier(lambda: {"mesh.test": issuer.bundle}, utc_now))
        self.server = grpc.aio.server(interceptors=[peers, self.interceptor])
        self.server.add_generic_rpc_handlers((self.handlers.generic(),))
        self.server.add_insecure_port(self.front.inner_target)
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proved"]:
        own = self.own
        context = server_context(own.chain_pem(), own.key_pem(), self.issuer.bundle.pem(), require_client=True)
        await self.server.start()
        async with self.front:
            self.port = await self.front.serve_tls("127.0.0.1", 0, lambda: context)
            yield self
        await self.server.stop(None)
        await self.server.wait_for_termination()

    def channel(self, svid: Any = None) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", *shown(self.issuer, svid or self.web))


@pytest.mark.parametrize("method", SHAPES)
async def test_a_tenant_is_held_to_its_limit_whatever_the_shape(method: str, tmp_path: Path, authority: Any) -> None:
    issuer = authority()
    link = Limited({}, limits())
    async with Proved(tmp_path, issuer, link).running() as proved, proved.channel() as channel:
        assert [await ended(channel, method) for _ in range(2)] == [None, None]
        for _ in range(3):
            refused = await ended(channel, method)
            assert refused is not None
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "rate policy platform/orders limits tenant acme: try again in" in (refused.details() or "")
        headers, trailing = dict(refused.initial_metadata()), dict(refused.trailing_metadata())
        assert headers["ratelimit-policy"] == '"platform/orders tenant";q=1;w=1000;pk=:YWNtZQ==:'
        assert headers["ratelimit"].startswith('"platform/orders tenant";r=0;t=')
        assert trailing["x-meshwarden-policy"] == "RatePolicy platform/orders"
        assert trailing["mesh-decision"] == "limited"
        assert 1 <= int(trailing["retry-after"]) <= 1000
        assert b"RetryInfo" in trailing["grpc-status-details-bin"]
        globex = issuer.issue(SpiffeId.workload("mesh.test", "globex", "web"))
        async with proved.channel(globex) as other:
            assert [await ended(other, method) for _ in range(3)] == [None] * 3, "whom no limit names"
    stats = {(stat.source, stat.status, stat.decision): stat.count for stat in stats_of(link.counter.take())}
    assert stats == {
        (str(proved.web.spiffe_id), "OK", CallStat.ALLOWED): 2,
        (str(proved.web.spiffe_id), "RESOURCE_EXHAUSTED", CallStat.LIMITED): 3,
        (str(globex.spiffe_id), "OK", CallStat.ALLOWED): 3,
    }


class Answering(Limited):
    """A link whose agent gives all that is asked for."""

    def share(self, requests: Iterable[ShareRequest]) -> Iterator[ShareResponse]:
        for request in requests:
            answer = ShareResponse(answers=request.sequence, ttl=Duration(seconds=60))
            for usage in request.points[0].usages:
                chunk = Chunk(series=usage.chunks.series, turn=1, amount=2, until=Duration(seconds=99))
                answer.points.add(point="p", shares=[Share(bucket=usage.bucket, chunk=chunk)])
            yield answer


@pytest.mark.parametrize("method", SHAPES)
async def test_the_first_calls_of_a_day_wait_for_what_is_given(
    method: str, tmp_path: Path, authority: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("chunk", "limits"):
        monkeypatch.setattr(f"meshwarden.sdk.quota.{module}.WAIT_S", DEADLINE_S)
    day = RatePolicySpec(limits=[RateLimit(tenant="acme", requests=2)], period=RatePolicySpec.DAY)
    told = ServerLimits(policies=[PolicyLimits(policy="platform/orders", spec=day)])
    link = Answering({}, told)
    async with Proved(tmp_path, authority(), link).running() as proved, proved.channel() as channel:
        assert await asyncio.gather(ended(channel, method), ended(channel, method)) == [None, None]
        for module in ("chunk", "limits"):
            monkeypatch.setattr(f"meshwarden.sdk.quota.{module}.WAIT_S", 0.01)
        refused = await ended(channel, method)
        assert refused is not None
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        proved.interceptor.close()


async def test_a_header_is_not_a_tenant(tmp_path: Path, authority: Any) -> None:
    issuer = authority()
    async with Proved(tmp_path, issuer, Limited({}, limits())).running() as proved, proved.channel() as channel:
        codes = []
        for _ in range(3):
            claims = (("x-meshwarden-tenant", "globex"), ("x-tenant", "globex"))
            call = channel.unary_unary("/t.T/Echo")(b"", metadata=claims, timeout=DEADLINE_S)
            codes.append(await call.code())
    assert codes == [grpc.StatusCode.OK, grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED]


@pytest.mark.parametrize("method", [*SHAPES, "Sync"])
async def test_whom_nobody_has_proved_is_refused_under_a_policy_and_counts_for_nobody(
    method: str, tmp_path: Path
) -> None:
    link = Limited({}, limits())
    async with Aio(tmp_path, [ServedInterceptor(link)]) as aio:
        refused = await ended(aio.channel, method)
        assert refused is not None
        assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "RatePolicy platform/orders limits callers by their certificates" in (refused.details() or "")
        assert dict(refused.trailing_metadata())["mesh-decision"] == "denied"
        for told in (ServerLimits(), limits(shadow=True)):
            link.tell(told)
            assert await ended(aio.channel, method) is None
    assert link.counted() == {}


async def test_nobody_gets_round_limits_before_they_are_known(tmp_path: Path, authority: Any) -> None:
    issuer = authority()
    link: Any = Limited({})
    config, link.config = link.config, None
    link.listen = lambda _: None
    async with Proved(tmp_path, issuer, link).running() as proved, proved.channel() as channel:
        refused = await ended(channel, "Echo")
        assert refused is not None
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        link.config = config
        assert await ended(channel, "Echo") is None


async def test_a_server_that_an_envoy_guards_only_traces_and_counts(tmp_path: Path) -> None:
    async with Aio(tmp_path, [ServedInterceptor(Limited({}, limits()), enforce=False)]) as aio:
        for method in (*SHAPES, "Sync"):
            for _ in range(3):
                assert await ended(aio.channel, method) is None


class Costly:
    """Handlers whose calls cost what the request says."""

    async def unary(self, request: bytes, context: Any) -> bytes:
        if request:
            sdk.report_cost(int(request))
        return b""

    async def trailing(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata(((cost.KEY, request.decode()),))
        return b""

    async def fan(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(3):
            sdk.report_cost(int(request))
            yield b"x"

    async def fail(self, request: bytes, context: Any) -> bytes:
        sdk.report_cost(int(request))
        raise ValueError("boom")

    def generic(self) -> grpc.GenericRpcHandler:
        made: Any = grpc
        unary = made.unary_unary_rpc_method_handler
        handlers = {"Unary": unary(self.unary), "Trailing": unary(self.trailing), "Fail": unary(self.fail)}
        handlers["Fan"] = made.unary_stream_rpc_method_handler(self.fan)
        return made.method_handlers_generic_handler("c.C", handlers)


async def test_a_call_costs_what_it_says_and_is_settled_by_what_its_handler_says(
    tmp_path: Path, authority: Any
) -> None:
    limit = RateLimit(tenant="acme", cost=1, burst=1000)
    limit.per.FromSeconds(1000)
    spec = RatePolicySpec(limits=[limit], scope=RatePolicySpec.POINT, reserve=100)
    link = Limited({}, ServerLimits(policies=[PolicyLimits(policy="platform/orders", spec=spec)]))
    proved = Proved(tmp_path, authority(), link)
    proved.server.add_generic_rpc_handlers((Costly().generic(),))
    async with proved.running(), proved.channel() as channel:

        async def code(method: str, request: bytes, *said: str) -> grpc.StatusCode:
            metadata = tuple((cost.KEY, value) for value in said)
            if method == "Fan":
                stream = channel.unary_stream("/c.C/Fan")(request, metadata=metadata, timeout=DEADLINE_S)
                assert [message async for message in stream] == [b"x"] * 3
                return await stream.code()
            call = channel.unary_unary(f"/c.C/{method}")(request, metadata=metadata, timeout=DEADLINE_S)
            return await call.code()

        ok, refused = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await code("Unary", b"10", "900") is ok
        assert await code("Trailing", b"20", "900") is ok
        assert await code("Fan", b"10") is ok
        assert await code("Fail", b"40", "900") is grpc.StatusCode.UNKNOWN, "100 are gone"
        for hostile in (("-1",), ("many",), ("1", "2"), ("9" * 400,)):
            assert await code("Unary", b"", *hostile) is grpc.StatusCode.INVALID_ARGUMENT
        assert await code("Unary", b"", "902") is refused
        assert await code("Unary", b"5000") is ok, "what it costs is known too late for that"
        assert await code("Unary", b"", "0") is refused, "all of it is owed"


def room(least: int, most: int) -> ServerLimits:
    spec = RatePolicySpec(scope=RatePolicySpec.POINT, adaptive=Adaptive(min=least, max=most))
    return ServerLimits(policies=[PolicyLimits(policy="platform/room", spec=spec)])


def in_flight(link: Limited) -> int:
    """What the server would tell its agent."""
    ((state,),) = (states() for states in link.observed)
    found: int = state.in_flight
    return found


async def test_a_full_server_refuses_and_whoever_leaves_makes_room(tmp_path: Path, authority: Any) -> None:
    issuer = authority()
    link = Limited({}, room(1, 1))
    async with Proved(tmp_path, issuer, link).running() as proved, proved.channel() as channel:
        waiting = channel.unary_unary("/t.T/Wait")(b"", timeout=DEADLINE_S)
        await soon(lambda: proved.handlers.came == 1)
        for method in SHAPES:
            refused = await ended(channel, method)
            assert refused is not None
            assert refused.code() is grpc.StatusCode.UNAVAILABLE
            assert "this server has as many calls as it can do with" in (refused.details() or "")
            trailing = dict(refused.trailing_metadata())
            assert (trailing["retry-after"], trailing["grpc-retry-pushback-ms"]) == ("1", "1000")
            assert "mesh-decision" not in trailing, "it is the server's lack, not the caller's"
        waiting.cancel()
        await soon(lambda: in_flight(link) == 0)
        for method in SHAPES:
            assert await ended(channel, method) is None
            await soon(lambda: in_flight(link) == 0)
    stats = {(stat.status, stat.decision) for stat in stats_of(link.counter.take())}
    assert ("UNAVAILABLE", CallStat.ALLOWED) in stats
    assert CallStat.LIMITED not in {decision for _, decision in stats}
    proved.interceptor.close()
    assert link.observed == []


async def test_a_place_comes_back_whatever_the_end_of_the_call(tmp_path: Path, authority: Any) -> None:
    issuer = authority()
    link = Limited({}, room(100, 100))
    async with Proved(tmp_path, issuer, link).running() as proved:
        async with proved.channel() as channel:
            for method in ("Echo", "Fail", "Abort", "None", "Bad", "Code"):
                await ended(channel, method)
            for method in ("Wait", "Stubborn"):
                before = proved.handlers.came
                call = channel.unary_unary(f"/t.T/{method}")(b"", timeout=DEADLINE_S)
                await soon(lambda before=before: proved.handlers.came > before)
                call.cancel()
            with contextlib.suppress(grpc.aio.AioRpcError):
                await channel.unary_unary("/t.T/Wait")(b"", timeout=0.3)
            assert [one async for one in channel.unary_stream("/t.T/Fan")(b"3", timeout=DEADLINE_S)]
            broken = channel.unary_stream("/t.T/Fan")(b"1000000", timeout=DEADLINE_S)
            assert await broken.read() == b"x"
            broken.cancel()
            before = proved.handlers.came
            lost = channel.unary_unary("/t.T/Wait")(b"", timeout=DEADLINE_S)
            await soon(lambda: proved.handlers.came > before)
            assert in_flight(link) >= 1
            del lost
        await soon(lambda: in_flight(link) == 0)  # the caller has gone


async def test_an_open_stream_holds_no_place_and_one_without_an_answer_does(tmp_path: Path, authority: Any) -> None:
    issuer = authority()
    link = Limited({}, room(1, 1))
    async with Proved(tmp_path, issuer, link).running() as proved, proved.channel() as channel:
        silent = channel.stream_stream("/t.T/Both")(timeout=DEADLINE_S)
        await soon(lambda: in_flight(link) == 1)
        await silent.write(b"a")
        assert await silent.read() == b"a"
        assert in_flight(link) == 0
        assert await ended(channel, "Echo") is None
        silent.cancel()


def bytes_limited(per_s: int, burst: int) -> ServerLimits:
    limit = RateLimit(tenant="acme", bytes=per_s, burst=burst)
    limit.per.FromSeconds(3600 if per_s == 1 else 1)
    spec = RatePolicySpec(limits=[limit], scope=RatePolicySpec.POINT)
    return ServerLimits(policies=[PolicyLimits(policy="platform/orders", spec=spec)])


@pytest.mark.parametrize("method", ["Fan", "Write", "Gather", "Both", "Read", "Echo"])
async def test_the_bytes_of_every_shape_are_owed(method: str, tmp_path: Path, authority: Any) -> None:
    link = Limited({}, bytes_limited(1, 60))
    async with Proved(tmp_path, authority(), link).running() as proved, proved.channel() as channel:
        sent = b"a" * 50
        if method in ("Fan", "Write"):
            stream = channel.unary_stream(f"/t.T/{method}")(b"100" if method == "Fan" else sent, timeout=DEADLINE_S)
            for _ in range(50 if method == "Fan" else 1):
                assert await stream.read()
            await soon(lambda: not proved.interceptor._limits.admit("acme", "/t.T/Echo").decision.allowed)
            stream.cancel()
        elif method in ("Both", "Read"):
            both = channel.stream_stream(f"/t.T/{method}")(timeout=DEADLINE_S)
            await both.write(sent)
            assert await both.read() == sent
            both.cancel()
        elif method == "Gather":
            assert await channel.stream_unary("/t.T/Gather")(iter([sent]), timeout=DEADLINE_S) == sent
        else:
            assert await channel.unary_unary("/t.T/Echo")(sent, timeout=DEADLINE_S) == sent
        refused = await ended(channel, "Echo")
        assert refused is not None
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        if method == "Echo":
            quota = dict(refused.initial_metadata())["ratelimit-policy"]
            assert quota == '"platform/orders tenant";q=1;qu="content-bytes";w=3600;pk=:YWNtZQ==:'


@pytest.mark.parametrize("method", ["Fan", "Both", "Read"])
async def test_a_stream_waits_while_something_is_owed_and_goes_on_when_it_is_paid(
    method: str, tmp_path: Path, authority: Any
) -> None:
    link = Limited({}, bytes_limited(1, 20))
    async with Proved(tmp_path, authority(), link).running() as proved, proved.channel() as channel:
        got: list[bytes] = []

        async def requests() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"a"

        async def read() -> None:
            if method == "Fan":
                stream = channel.unary_stream("/t.T/Fan")(b"100", timeout=DEADLINE_S)
            else:
                stream = channel.stream_stream(f"/t.T/{method}")(requests(), timeout=DEADLINE_S)
            async for message in stream:
                got.append(message)

        reading = asyncio.ensure_future(read())
        await soon(lambda: len(got) >= 10)
        refused = await ended(channel, "Echo")
        assert refused is not None
        assert len(got) <= 21, "as much as was there, and what made it too much"
        link.tell(bytes_limited(1_000_000, 1_000_000))
        listener = proved.interceptor._configured
        listener(link.config)
        await reading
        assert len(got) == 100
