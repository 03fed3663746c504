"""The node's part in limits of the whole mesh: what goes up, what comes down, and what is made of nonsense."""

import asyncio
import contextlib
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from meshwarden.agents.channel import Away
from meshwarden.agents.quota import points as points_module
from meshwarden.agents.quota.envoy import Envoy
from meshwarden.agents.quota.point import MAX_BYTES, MAX_COUNT, Amount, Key, Point
from meshwarden.agents.quota.points import Points, TooMany
from meshwarden.agents.quota.stream import Ended, converse
from meshwarden.sdk.backpressure.allowance import Allowance, Share
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.v1.node_service_pb2 import ServerLimits

POLICY = "platform/orders"
ACME = Key(POLICY, "acme", "")
TTL = Duration(seconds=3)


def share(key: Key, rate: float, burst: float = 1.0) -> pb.Share:
    return pb.Share(bucket=key.to_proto(), rate=rate, burst=burst)


def used(key: Key, allowed: int, denied: int = 0, shadowed: int = 0) -> pb.BucketUsage:
    return pb.BucketUsage(bucket=key.to_proto(), allowed=allowed, denied=denied, shadowed=shadowed)


def point() -> Point:
    """A point that the control plane knows."""
    made = Point("web#1/7", "platform/orders", lambda: {POLICY})
    made.report(1)
    made.prolong(0, TTL)
    return made


def test_usage_adds_up_until_it_is_told() -> None:
    made = point()
    assert made.take(1, pb.PointReport(usages=[used(ACME, 2)]), 0.0), "a bucket without a share presses"
    made.take(2, pb.PointReport(usages=[used(ACME, 3, 1)]), 0.0)
    number, report = made.report(1)
    assert (number, list(report.usages)) == (2, [used(ACME, 5, 1)])
    assert not made.news
    assert not made.report(1)[1].usages


async def test_what_may_be_used_is_the_most_until_the_point_has_obeyed() -> None:
    made = point()
    made.take(1, pb.PointReport(held=[share(ACME, 8)]), 0.0)
    await made.next()
    made.grant(1, 5, [share(ACME, 2)], 0.0)
    assert made.held()[ACME].rate == 8, "it may not know yet"
    response = await made.next()
    assert [item.rate for item in response.points[0].shares] == [2]
    assert made.held()[ACME].rate == 8
    assert made.take(2, pb.PointReport(acknowledged=response.sequence), 0.0), "an acknowledgement should go up soon"
    assert made.held() == {ACME: Amount(2, 1)}
    assert made.report(1)[1].acknowledged == 5


async def test_an_acknowledgement_does_not_pass_from_one_stream_to_the_next() -> None:
    made = point()
    made.grant(1, 500, [share(ACME, 2)], 0.0)
    response = await made.next()
    made.take(1, pb.PointReport(acknowledged=response.sequence), 0.0)
    assert made.report(1)[1].acknowledged == 500
    assert made.report(2)[1].acknowledged == 0, "a new control plane counts anew"
    made.grant(2, 3, [share(ACME, 4)], 0.0)
    response = await made.next()
    made.take(2, pb.PointReport(acknowledged=response.sequence), 0.0)
    assert made.report(2)[1].acknowledged == 3


async def test_shares_from_before_it_was_heard_what_a_point_holds_are_let_go() -> None:
    made = point()
    made.take(1, pb.PointReport(held=[share(ACME, 8)]), 0.0)
    made.begin()
    made.grant(1, 5, [share(ACME, 100)], 0.0)
    assert made.held()[ACME].rate == 8
    report = made.report(2)[1]
    assert (report.begins, [item.rate for item in report.held]) == (True, [8])
    made.prolong(1, TTL)
    made.grant(2, 6, [share(ACME, 9)], 0.0)
    assert made.held()[ACME].rate == 9


async def test_a_slow_point_is_told_the_newest_of_each_bucket_in_one_message() -> None:
    made = point()
    other = Key(POLICY, "globex", "")
    for rate in (1, 2, 3):
        made.grant(1, rate, [share(ACME, rate)], 0.0)
    made.grant(1, 4, [share(other, 9)], 0.0)
    made.prolong(7, TTL)
    response = await made.next()
    assert {item.bucket.tenant: item.rate for item in response.points[0].shares} == {"acme": 3, "globex": 9}
    assert (response.answers, response.ttl) == (7, TTL)
    made.take(8, pb.PointReport(acknowledged=response.sequence), 0.0)
    assert made.report(1)[1].acknowledged == 4


async def test_what_ran_over_goes_up_and_what_is_given_once_comes_down_as_sums() -> None:
    def ran_over(amount: float) -> pb.PointReport:
        return pb.PointReport(usages=[pb.BucketUsage(bucket=ACME.to_proto(), allowed=1, spilled=amount)])

    made = point()
    for number, amount in enumerate((0.5, 2.0, float("nan"), -3.0), start=1):
        made.take(number, ran_over(amount), 0.0)
    assert [usage.spilled for usage in made.report(1)[1].usages] == [2.5]
    made.take(5, ran_over(float("inf")), 0.0)
    assert [usage.spilled for usage in made.report(1)[1].usages] == [MAX_COUNT]
    made.take(6, pb.PointReport(usages=[used(ACME, 1)]), 0.0)
    (usage,) = made.report(1)[1].usages
    assert not usage.HasField("spilled"), "who doesn't say so is not taken to"
    given = pb.Share(bucket=ACME.to_proto(), rate=3, burst=4, more=1.5)
    made.grant(1, 1, [given], 0.0)
    made.grant(1, 2, [given, share(ACME, 5)], 0.0)
    ((told,),) = [list(points.shares) for points in (await made.next()).points]
    assert (told.rate, told.more) == (5, 3.0)
    made.grant(1, 3, [share(ACME, 5)], 0.0)
    ((told,),) = [list(points.shares) for points in (await made.next()).points]
    assert told.more == 0, "once"


async def test_acknowledging_what_was_never_said_means_nothing() -> None:
    made = point()
    made.grant(1, 5, [share(ACME, 2)], 0.0)
    made.take(1, pb.PointReport(acknowledged=2**64 - 1), 0.0)
    assert made.report(1)[1].acknowledged == 0
    assert made.held()[ACME].rate == 2


@pytest.mark.parametrize("rate", [float("nan"), float("-inf"), -1.0])
def test_a_held_rate_that_is_none_is_nothing(rate: float) -> None:
    made = point()
    made.take(1, pb.PointReport(held=[share(ACME, rate, rate)]), 0.0)
    assert made.held()[ACME] == Amount(0.0, 0.0)


def test_how_many_calls_run_is_told_as_the_most_and_again_when_a_stream_begins() -> None:
    def run(key: Key, in_use: int) -> pb.BucketUsage:
        return pb.BucketUsage(bucket=key.to_proto(), in_use=in_use)

    made, globex = point(), Key(POLICY, "globex", "")
    made.take(1, pb.PointReport(usages=[run(ACME, 4), run(globex, 2**64 - 1)]), 0.0)
    made.take(2, pb.PointReport(usages=[run(ACME, 3), run(globex, 0)]), 0.0)
    assert list(made.report(1)[1].usages) == [run(ACME, 4), run(globex, MAX_COUNT)]
    assert not made.report(1)[1].usages
    made.begin()
    assert list(made.report(2)[1].usages) == [run(ACME, 4)], "what has ended is not"


def test_absurd_numbers_are_clamped() -> None:
    made = point()
    made.take(
        1, pb.PointReport(usages=[used(ACME, 2**64 - 1, 2**64 - 1)], held=[share(ACME, float("inf"), 1e300)]), 0.0
    )
    made.take(2, pb.PointReport(usages=[used(ACME, 2**64 - 1)]), 0.0)
    (usage,) = made.report(1)[1].usages
    assert (usage.allowed, usage.denied) == (MAX_COUNT, MAX_COUNT)
    assert made.held()[ACME] == Amount(MAX_COUNT, MAX_COUNT)


@pytest.mark.parametrize(
    "key",
    [Key("acme/theirs", "acme", ""), Key("", "acme", ""), Key(POLICY, "a" * 265, ""), Key(POLICY, "acme", "/" * 513)],
)
def test_buckets_of_others_are_counted_and_ignored(key: Key) -> None:
    made = point()
    assert not made.take(1, pb.PointReport(usages=[used(key, 1, 1)], held=[share(key, 1)]), 0.0)
    assert made.foreign == 2
    assert not made.report(1)[1].usages
    assert not made.held()


def test_what_a_point_can_have_told_is_bounded() -> None:
    made = point()
    keys = [Key(POLICY, "t", f"/{number:06}" + "x" * 500) for number in range(20_000)]
    made.take(1, pb.PointReport(usages=[used(key, 1) for key in keys[:10_000]]), 0.0)
    made.take(
        2, pb.PointReport(usages=[used(key, 1) for key in keys[10_000:]], held=[share(key, 1) for key in keys]), 0.0
    )
    made.begin()
    report = made.report(1)[1]
    assert 1000 < len(report.usages) < 2000
    assert report.ByteSize() < 2 << 20
    assert made.foreign > 30_000


async def test_no_message_is_larger_than_the_control_plane_takes(process: Any) -> None:
    popen, pidfd = process
    async with running() as (points, upstream):
        usages = [used(Key(POLICY, "t", f"/{number:06}" + "x" * 500), 1) for number in range(3000)]
        opened = [points.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY}) for _ in range(5)]
        for made in opened:
            points.take(made, 1, pb.PointReport(usages=usages))
        call, heard = await upstream.calls.get(), set()
        while len(heard) < 5:
            request = await call.heard(lambda request: request.points)
            assert request.ByteSize() < 4 << 20
            heard |= {report.point for report in request.points}


class Call:
    """A stream to a control plane that a test plays."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[pb.ShareRequest] = asyncio.Queue()
        self.responses: asyncio.Queue[pb.ShareResponse | None] = asyncio.Queue()

    async def write(self, request: pb.ShareRequest) -> None:
        copy = pb.ShareRequest()
        copy.CopyFrom(request)
        await self.requests.put(copy)

    async def __aiter__(self) -> AsyncIterator[pb.ShareResponse]:
        while (response := await self.responses.get()) is not None:
            yield response

    async def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    async def details(self) -> str:
        return "gone"

    async def heard(self, what: Callable[[pb.ShareRequest], Any]) -> pb.ShareRequest:
        """The first request of which that is true."""
        async with asyncio.timeout(20):
            while not what(request := await self.requests.get()):
                pass
        return request


class Upstream:
    """A control plane that is there, or away."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[Call] = asyncio.Queue()
        self.away = 0
        self.asked: list[str] = []
        self.replaced = asyncio.Event()

    async def wait_connected(self) -> None:
        pass

    def share_addresses(self) -> list[str]:
        return ["one:1", "two:2"]

    @contextlib.asynccontextmanager
    async def share(self, address: str) -> AsyncIterator[tuple[Call, asyncio.Event]]:
        self.asked.append(address)
        if self.away:
            self.away -= 1
            raise Away("not there")
        call = Call()
        await self.calls.put(call)
        yield call, self.replaced


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[Points, Upstream]]:
    upstream = Upstream()
    made = Points(upstream, asyncio.get_running_loop().time, random.Random(1))  # type: ignore[arg-type]
    task = asyncio.ensure_future(made.run())
    try:
        yield made, upstream
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def process() -> Any:
    """A process that lives until it is killed: (popen, pidfd)."""
    popen = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(popen.pid)
    yield popen, pidfd
    popen.kill()
    popen.communicate()
    os.close(pidfd)


async def test_points_go_up_in_one_stream_and_shares_come_to_each(process: Any) -> None:
    popen, pidfd = process
    async with running() as (points, upstream):
        one = points.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY})
        two = points.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY})
        assert one.name != two.name
        points.take(one, 4, pb.PointReport(usages=[used(ACME, 1)], held=[share(ACME, 3)]))
        points.take(two, 9, pb.PointReport(usages=[used(ACME, 2)]))
        call = await upstream.calls.get()
        request = await call.heard(lambda request: len(request.points) == 2)
        assert {report.point: report.usages[0].allowed for report in request.points} == {one.name: 1, two.name: 2}
        assert [item.rate for report in request.points for item in report.held] == [3]
        shares = [pb.PointShares(point=two.name, shares=[share(ACME, 5)]), pb.PointShares(point="nobody", shares=[])]
        answer = pb.ShareResponse(sequence=1, answers=request.sequence, ttl=TTL, points=shares)
        await call.responses.put(answer)
        told = await asyncio.wait_for(two.next(), 20)
        assert (told.answers, [item.rate for item in told.points[0].shares]) == (9, [5])
        told = await asyncio.wait_for(one.next(), 20)
        assert (told.answers, list(told.points)) == (4, [])


async def test_a_new_stream_tells_all_that_may_be_used(process: Any) -> None:
    popen, pidfd = process
    async with running() as (points, upstream):
        made = points.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY})
        points.take(made, 1, pb.PointReport(usages=[used(ACME, 1)]))
        call = await upstream.calls.get()
        request = await call.heard(lambda request: request.points)
        await call.responses.put(pb.ShareResponse(answers=request.sequence, ttl=TTL))
        assert (await asyncio.wait_for(made.next(), 20)).answers == 1
        given = [pb.PointShares(point=made.name, shares=[share(ACME, 5)])]
        await call.responses.put(pb.ShareResponse(sequence=1, points=given))
        assert (await asyncio.wait_for(made.next(), 20)).answers == 0, "what answers nothing prolongs nothing"
        upstream.away = 2
        await call.responses.put(None)
        call = await asyncio.wait_for(upstream.calls.get(), 20)
        points.take(made, 2, pb.PointReport())
        (report,) = (await call.heard(lambda request: request.points)).points
        assert [(item.rate, report.acknowledged, report.begins) for item in report.held] == [(5, 0, True)]


async def test_who_has_answered_is_asked_first(process: Any) -> None:
    popen, pidfd = process
    async with running() as (points, upstream):
        upstream.away = 1
        made = points.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY})
        points.take(made, 1, pb.PointReport(usages=[used(ACME, 1)]))
        for asked in (["one:1", "two:2"], ["two:2"]):
            call = await asyncio.wait_for(upstream.calls.get(), 20)
            assert upstream.asked == asked
            upstream.asked.clear()
            request = await call.heard(lambda request: request.sequence)
            await call.responses.put(pb.ShareResponse(answers=request.sequence, ttl=TTL))
            await call.responses.put(None)


async def test_a_stream_moves_with_the_nodes_certificate(process: Any) -> None:
    popen, pidfd = process
    async with running() as (points, upstream):
        points.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY})
        await upstream.calls.get()
        before, upstream.replaced = upstream.replaced, asyncio.Event()
        before.set()
        await asyncio.wait_for(upstream.calls.get(), 20)


async def test_a_point_has_left_when_it_says_so_or_when_its_process_has_ended(process: Any) -> None:
    popen, pidfd = process
    async with running() as (points, upstream):
        gone, cut = (points.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY}) for _ in range(2))
        call = await upstream.calls.get()
        points.close(gone, has_left=True)
        points.close(cut, has_left=False)
        request = await call.heard(lambda request: request.left)
        assert list(request.left) == [gone.name], "a process whose stream broke off may go on with what it has"
        popen.kill()
        request = await call.heard(lambda request: request.left)
        assert list(request.left) == [cut.name]


def test_points_are_bounded(process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points_module, "MAX_OF_WORKLOAD", 3)
    popen, pidfd = process
    made = Points(Upstream(), lambda: 0.0, random.Random(1))  # type: ignore[arg-type]
    opened = [made.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY}) for _ in range(3)]
    with pytest.raises(TooMany, match="web#1 has 3 enforcement points"):
        made.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY})
    made.open("web#11", "platform/orders", (popen.pid, pidfd), lambda: {POLICY})
    made.close(opened[0], has_left=True)
    made.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY})


async def _said(*requests: pb.ShareRequest) -> AsyncIterator[pb.ShareRequest]:
    for request in requests:
        yield request


async def test_a_program_speaks_for_itself_alone_and_says_goodbye(process: Any) -> None:
    popen, pidfd = process
    async with running() as (points, upstream):
        made = points.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY})
        reports = [pb.PointReport(point="other", usages=[used(ACME, count)]) for count in (1, 100)]
        write = asyncio.Queue[pb.ShareResponse]().put
        await converse(points, made, _said(pb.ShareRequest(points=reports, left=["x"])), write, contextlib.nullcontext)
        call = await upstream.calls.get()
        request = await call.heard(lambda request: request.left)
        assert list(request.left) == [made.name]
        assert len(points) == 0


@pytest.mark.parametrize("error", [grpc.aio.UsageError, grpc.aio.InternalError])
@pytest.mark.parametrize("is_envoy", [False, True])
async def test_a_stream_that_ends_while_it_is_told_something_ends_in_good_order(
    process: Any, error: type[Exception], is_envoy: bool
) -> None:
    popen, pidfd = process

    async def write(_: Any) -> None:
        raise error("it has ended")

    async def silent() -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    async with running() as (points, _):
        made = points.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY})
        made.report(1)
        made.prolong(0, TTL)
        if is_envoy:
            envoy = Envoy(points, made, ServerLimits, Allowance(Share(part=1.0, burst_s=1.0)))
            envoy._assignments.report(ACME, 0, 0, 0.0)  # whose policy has ended: it is let go
            ended = envoy.converse(silent(), write)
        else:
            ended = converse(points, made, silent(), write, contextlib.nullcontext)
        await asyncio.wait_for(ended, 20)


async def test_a_program_that_says_too_much_is_cut_off(process: Any) -> None:
    popen, pidfd = process

    @contextlib.contextmanager
    def never() -> Any:
        raise Ended(grpc.StatusCode.RESOURCE_EXHAUSTED, "report less")
        yield

    async with running() as (points, _):
        made = points.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY})
        write = asyncio.Queue[pb.ShareResponse]().put
        with pytest.raises(Ended, match="report less"):
            await converse(points, made, _said(pb.ShareRequest()), write, never)
        assert len(points) == 0


def chunks(key: Key, **fields: Any) -> pb.BucketUsage:
    return pb.BucketUsage(bucket=key.to_proto(), chunks=pb.Chunks(series=3, turn=1, **fields))


async def test_what_a_point_has_of_a_period_goes_up_as_it_last_said_and_anew_with_each_stream() -> None:
    made = point()
    assert not made.take(1, pb.PointReport(usages=[chunks(ACME, amount=9, left=9)]), 0.0)
    assert made.take(2, pb.PointReport(usages=[chunks(ACME, amount=9, left=4, asks=True)]), 1.0), "it asks for more"
    (usage,) = made.report(1)[1].usages
    assert (usage.chunks.amount, usage.chunks.left) == (9, 4)
    assert not made.report(1)[1].usages, "it has said nothing since"
    made.begin()
    (usage,) = made.report(2)[1].usages
    assert (usage.allowed, usage.chunks.left) == (0, 4)
    assert not made.report(2)[1].held


async def test_a_chunk_comes_down_with_its_end_counted_from_the_points_own_report() -> None:
    made = point()
    made.take(5, pb.PointReport(usages=[chunks(ACME)]), 100.0)
    share = pb.Share(bucket=ACME.to_proto(), chunk=pb.Chunk(series=3, turn=1, amount=7))
    share.chunk.until.FromSeconds(60)
    made.grant(1, 1, [share], 100.5)
    made.prolong(5, Duration(seconds=3))
    made.grant(1, 2, [share], 100.5)
    (told,) = (await made.next()).points[0].shares
    assert (told.chunk.amount, told.chunk.until.ToTimedelta().total_seconds()) == (7, 60.5)
    assert not made.held(), "it is no rate"


async def test_the_last_word_of_a_point_that_ends_in_order_is_said_until_it_is_answered(process: Any) -> None:
    popen, pidfd = process
    async with running() as (points, upstream):
        made = points.open("web#1", "platform/orders", (popen.pid, pidfd), lambda: {POLICY})
        points.take(made, 1, pb.PointReport(usages=[chunks(ACME, amount=9, returned=4)]))
        points.close(made, has_left=True)
        for answer in (0, 0, 1, None):
            call = await upstream.calls.get()
            request = await call.requests.get()
            assert [report.point for report in request.last] == ([made.name] if answer is not None else [])
            if answer is not None:
                assert request.last[0].usages[0].chunks.returned == 4
                assert request.last[0].service == "platform/orders"
                await call.responses.put(pb.ShareResponse(answers=answer))
                await call.responses.put(None)


def test_amounts_of_made_up_buckets_are_no_more_than_can_be_told() -> None:
    made = point()
    for number in range(15):
        usages = [chunks(Key(POLICY, f"{number}-{tenant}", ""), amount=9, left=9) for tenant in range(1000)]
        made.take(number + 1, pb.PointReport(usages=usages), float(number))
        made.report(1)
    assert made.foreign > 0
    made.begin()
    assert made.report(2)[1].ByteSize() < 2 * MAX_BYTES


def test_amounts_that_are_used_up_make_room() -> None:
    made = point()
    for number in range(15):
        usages = [chunks(Key(POLICY, f"{number}-{tenant}", ""), amount=9) for tenant in range(1000)]
        made.take(number + 1, pb.PointReport(usages=usages), float(number))
        made.report(1)
    assert made.foreign == 0
    made.begin()
    assert made.report(2)[1].ByteSize() < 2 * MAX_BYTES
