"""A server with threads that finds how many calls it takes: whatever their end, their places come back."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshwarden.certs.clock import utc_now
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk.handler import IncomingInterceptor
from meshwarden.sdk.incoming import Incoming
from meshwarden.v1.node_service_pb2 import PolicyLimits, ServerLimits
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.v1.resources_pb2 import Adaptive, RateLimit, RatePolicySpec

sys.path.insert(0, str(Path(__file__).parent))

from instrumented import DEADLINE_S, SHORT_S, Link, Sync, shown
from tests.counted import stats_of

BUSY = grpc.StatusCode.UNAVAILABLE


class Roomy(Link):
    """A link that is told how it is with calls at once."""

    def __init__(self, issuer: Any, least: int, most: int, *limits: RateLimit) -> None:
        super().__init__({"mesh.test": issuer.bundle})
        spec = RatePolicySpec(scope=RatePolicySpec.POINT, adaptive=Adaptive(min=least, max=most), limits=limits)
        told = ServerLimits(policies=[PolicyLimits(policy="platform/room", spec=spec)])
        self.config = replace(self.config, limits=told)
        self.observed: list[Any] = []

    def observe(self, states: Any) -> None:
        self.observed.append(states)

    @property
    def in_flight(self) -> int:
        ((state,),) = (states() for states in self.observed)
        found: int = state.in_flight
        return found


class World:
    def __init__(self, issuer: Any, link: Roomy) -> None:
        self.link, self.issuer = link, issuer
        incoming: Any = IncomingInterceptor(Incoming(link, utc_now, most_calls=3))
        self.server = Sync(issuer, [incoming])

    def holding(self) -> Any:
        """A call that has a place, and keeps it."""
        self.server.came.clear()
        call = self.server.channel.unary_unary("/t.T/Wait").future(b"", timeout=DEADLINE_S)
        assert self.server.came.wait(DEADLINE_S)
        return call

    def code(self, tenant: str, method: str = "Fail") -> grpc.StatusCode:
        """How a call of a tenant ends."""
        svid = self.issuer.issue(SpiffeId.workload("mesh.test", tenant, "web"))
        port = self.server.port
        with grpc.secure_channel(f"127.0.0.1:{port}", *shown(self.issuer, svid)) as channel:
            try:
                channel.unary_unary(f"/t.T/{method}")(b"", timeout=DEADLINE_S)
            except grpc.RpcError as error:
                found: grpc.StatusCode = error.code()  # type: ignore[attr-defined]
                return found
        return grpc.StatusCode.OK


@pytest.fixture
def world(authority: Any, request: pytest.FixtureRequest) -> Iterator[World]:
    issuer = authority()
    made = World(issuer, Roomy(issuer, *getattr(request, "param", (1, 1))))
    with made.server:
        yield made


def test_a_full_server_refuses_and_counts_it_as_its_own_lack(world: World, until: Callable[..., Any]) -> None:
    held = world.holding()
    with pytest.raises(grpc.RpcError) as refused:
        world.server.channel.unary_unary("/t.T/Fail")(b"", timeout=DEADLINE_S)
    error: Any = refused.value
    assert error.code() is BUSY
    assert "rate policy platform/room: this server has as many calls as it can do with" in error.details()
    trailing = dict(error.trailing_metadata())
    assert (trailing["retry-after"], trailing["grpc-retry-pushback-ms"]) == ("1", "1000")
    assert "mesh-decision" not in trailing
    assert world.code("globex") is BUSY
    held.cancel()
    until(lambda: world.link.in_flight == 0, "the place comes back")
    assert world.code("globex") is grpc.StatusCode.UNKNOWN, "what its handler answers"
    decisions = {(stat.status, stat.decision) for stat in stats_of(world.link.counter.take())}
    assert ("UNAVAILABLE", CallStat.ALLOWED) in decisions
    assert CallStat.LIMITED not in {decision for _, decision in decisions}


@pytest.mark.parametrize("world", [(100, 1000)], indirect=True)
def test_one_thread_is_left_to_refuse(world: World, until: Callable[..., Any]) -> None:
    """The server of the test has four threads, whatever its policy says."""
    held = [world.holding() for _ in range(3)]
    assert world.code("globex") is BUSY
    for call in held:
        call.cancel()
    until(lambda: world.link.in_flight == 0, "all places come back")


@pytest.mark.parametrize("world", [(3, 3)], indirect=True)
def test_a_place_comes_back_whatever_the_end_of_the_call(world: World, until: Callable[..., Any]) -> None:
    channel = world.server.channel
    for _ in range(5):
        assert world.server.code("Fail") is grpc.StatusCode.UNKNOWN
        assert world.server.code("Missing") is grpc.StatusCode.UNIMPLEMENTED
        assert world.server.code("Wait", SHORT_S) is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: world.link.in_flight == 0, "the place of a call whose time was up")
        stream = channel.unary_stream("/t.T/Fan")(b"", timeout=DEADLINE_S)
        assert next(stream)
        until(lambda: world.link.in_flight == 0, "a stream that has its first answer has none")
        stream.cancel()
        world.holding().cancel()
        until(lambda: world.link.in_flight == 0, "the place of a call that was cancelled")
    with contextlib.suppress(grpc.RpcError), ThreadPoolExecutor(4) as callers:
        for future in [callers.submit(world.code, f"t{number}") for number in range(20)]:
            assert future.result() in (grpc.StatusCode.UNKNOWN, BUSY)
    until(lambda: world.link.in_flight == 0, "after many at once")
