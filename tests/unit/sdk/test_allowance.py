"""Processor time is rationed by caller: who floods is read later, and nobody else is."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from meshwarden.agents.quota.envoy import Envoy
from meshwarden.agents.quota.point import Point
from meshwarden.agents.quota.points import Points
from meshwarden.controlplane.api.quota import _converse
from meshwarden.sdk.backpressure.allowance import Allowance, Share
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.v1.node_service_pb2 import ServerLimits
from meshwarden.xds import api

REPORTS = "envoy.service.rate_limit_quota.v3.RateLimitQuotaUsageReports"


class Flood:
    """Messages of which each takes two seconds of a processor, where a second and a tenth of one are allowed."""

    def __init__(self, message: Any) -> None:
        self.message, self.said, self.now_s = message, 0, 0.0
        looks = itertools.count(step=2)
        self.allowance = Allowance(Share(0.1, 1.0), lambda: self.now_s, lambda: float(next(looks)))

    async def requests(self) -> AsyncIterator[Any]:
        while True:
            self.said += 1
            yield self.message

    async def is_held_back(self, taken: Callable[[], int]) -> None:
        """The second message is there and waits, until the first is paid for."""
        await until(lambda: self.said == 2)
        assert taken() == 1
        assert self.allowance.has("somebody else")
        self.now_s += 10.5
        await until(lambda: self.said == 3)
        assert taken() == 2


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nobody says when
            await asyncio.sleep(0.01)


class Stream:
    """A node's stream."""

    node, ended = "n1", ""

    def __init__(self) -> None:
        self.taken = 0

    def take(self, request: pb.ShareRequest) -> None:
        self.taken += 1

    async def next(self) -> list[pb.ShareResponse]:
        await asyncio.Event().wait()
        return []


async def run(call: Any, flood: Flood, taken: Callable[[], int]) -> None:
    task = asyncio.ensure_future(call)
    try:
        await flood.is_held_back(taken)
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_node_that_floods_is_read_later() -> None:
    flood, stream = Flood(pb.ShareRequest()), Stream()
    await run(_converse(stream, flood.requests(), None, flood.allowance), flood, lambda: stream.taken)  # type: ignore[arg-type]


async def test_an_envoy_or_who_speaks_as_one_is_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    flood, taken = Flood(api.build(REPORTS, {"domain": "meshwarden"})), list[int]()
    points = Points(None, lambda: 0.0, random.Random(1))  # type: ignore[arg-type]  # no stream is run
    monkeypatch.setattr(points, "take", lambda point, sequence, report: taken.append(sequence))
    envoy = Envoy(points, Point("p", "platform/billing", lambda: set()), ServerLimits, flood.allowance)

    async def write(message: Any) -> None:
        raise AssertionError("there is nothing to tell")

    await run(envoy.converse(flood.requests(), write), flood, lambda: len(taken))
