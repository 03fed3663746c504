"""The enforcement points of this node, and the one stream on which the control plane hears of them all.

Of several control planes it goes to the one that divides limits. Points report to `Points` (programs by
`WorkloadService.Share`); what they use goes up together, and shares come down to each. When the stream breaks off, the
next tells of every point anew, with all that it may use: a control plane that started again learns, and an agent
that did learns from its points.
"""

import asyncio
import contextlib
import itertools
import os
import random
from collections.abc import Callable, Container
from typing import Any, Final

import anyio
import grpc
import structlog

from meshwarden.agents.channel import Away
from meshwarden.agents.quota.point import Point
from meshwarden.agents.upstream import Upstream
from meshwarden.sdk.mtls.connection import ended
from meshwarden.v1 import quota_service_pb2 as pb

MAX_POINTS: Final = 1024
MAX_OF_WORKLOAD: Final = 64
_EVERY_S: Final = 1.0
_NEWS_S: Final = 0.5
_LEAST_S: Final = 0.1
_BACKOFF_S: Final = (0.1, 2.0)
_FORGET_S: Final = 30.0
_MAX_UNANSWERED: Final = 256
# The control plane takes 4 MiB; a point's report has no more than two.
_MAX_BYTES: Final = 3 << 19
_log = structlog.get_logger()


class TooMany(Exception):
    """A workload, or the node, has as many enforcement points as it may."""


class Points:
    """The points and their stream. Used on the event loop's thread alone."""

    def __init__(self, upstream: Upstream, now_s: Callable[[], float], rng: random.Random) -> None:
        self._upstream, self._now_s, self._rng = upstream, now_s, rng
        self._points: dict[str, Point] = {}
        # {point: a descriptor of its process}
        self._processes: dict[str, int] = {}
        # Those whose stream broke off: their process, and when to forget it.
        self._lost: dict[str, tuple[int, float]] = {}
        self._left: list[str] = []
        # The last reports of points that have ended in good order, with the message that has told of them; 0: none yet.
        self._last: dict[str, tuple[int, pb.PointReport]] = {}
        self._work, self._some = asyncio.Event(), asyncio.Event()
        self._presses = False
        self._stream, self._sequence = 0, 0
        # When each message was sent, and the points in it with the numbers of their reports.
        self._sent: dict[int, tuple[float, list[tuple[Point, int]]]] = {}
        self._base_s = 0.0
        # Which control plane has answered last.
        self._holder = ""
        self.answered_s: float | None = None
        """When the control plane answered last, on `now_s`; None if it has not."""
        self.foreign = 0
        """Buckets that points spoke of and that are none of theirs."""

    def __len__(self) -> int:
        return len(self._points)

    @property
    def now_s(self) -> float:
        """The present, on the clock of `answered_s`."""
        return self._now_s()

    def open(self, owner: str, service: str, process: tuple[int, int], policies: Callable[[], Container[str]]) -> Point:
        """A new point; `close` ends it.

        Args:
            owner: the workload's id.
            service: what the workload serves, "platform/orders".
            process: its pid, and a pidfd, which stays the caller's.
            policies: whose buckets it may speak of.

        Raises:
            TooMany: it, or the node, has as many as it may.
        """
        of_owner = sum(name.startswith(f"{owner}/") for name in self._points)
        if len(self._points) >= MAX_POINTS or of_owner >= MAX_OF_WORKLOAD:
            raise TooMany(f"{owner} has {of_owner} enforcement points, the node {len(self._points)}: no more are taken")
        pid, pidfd = process
        names = itertools.chain([f"{owner}/{pid}"], (f"{owner}/{pid}-{number}" for number in itertools.count(2)))
        name = next(name for name in names if name not in self._points)
        if (lost := self._lost.pop(name, None)) is not None:
            os.close(lost[0])
        self._processes[name] = os.dup(pidfd)
        point = self._points[name] = Point(name, service, policies)
        self._some.set()
        return point

    def take(self, point: Point, sequence: int, report: pb.PointReport) -> None:
        """Takes a point's report."""
        before = point.foreign
        presses = point.take(sequence, report, self._now_s())
        self.foreign += point.foreign - before
        self._presses = self._presses or presses
        self._work.set()

    def close(self, point: Point, *, has_left: bool) -> None:
        """The point reports no more: it says that it uses nothing any more, or we shall see its process end."""
        del self._points[point.name]
        process = self._processes.pop(point.name)
        if has_left:
            os.close(process)
            if len(self._last) < MAX_POINTS:
                self._last[point.name] = 0, point.report(self._stream)[1]
            self._leave(point.name)
        else:
            # Its socket is closed a moment before the process has ended for others to see.
            self._lost[point.name] = (process, self._now_s() + _FORGET_S)

    async def run(self) -> None:
        """Keeps the stream up until it is cancelled."""
        least_s, most_s = _BACKOFF_S
        pause_s, told = least_s, ""
        try:
            while True:
                before = self.answered_s
                reason = await self._try()
                if self.answered_s != before:
                    pause_s, told = least_s, ""
                if reason:
                    if reason != told:
                        _log.info("no shares of limits", reason=reason)
                    told = reason
                    await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))
                    pause_s = min(pause_s * 2, most_s)
        finally:
            for process, _ in self._lost.values():
                os.close(process)
            self._lost.clear()

    async def _try(self) -> str:
        """One stream, from its beginning to its end; why it ended, empty where the next may follow at once."""
        await self._some.wait()  # a node without limits to share needs no stream
        await self._upstream.wait_connected()
        try:
            return await self._talk()
        except asyncio.CancelledError:
            # A cancelled call of grpc.aio raises one of its own making, which nobody has asked for.
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            return "cancelled"

    async def _talk(self) -> str:
        """Asks each control plane that the node knows, until one gives shares out; that one first the next time."""
        reasons: list[str] = []
        for address in sorted(self._upstream.share_addresses(), key=lambda address: address != self._holder):
            before = self.answered_s
            reasons.append(await self._talk_to(address))
            if self.answered_s != before:
                self._holder = address
            if self.answered_s != before or not reasons[-1]:
                return reasons[-1]
        return "; ".join(dict.fromkeys(reasons))

    async def _talk_to(self, address: str) -> str:
        reason = ""
        try:
            async with self._upstream.share(address) as (call, replaced):
                reason = await self._use(call, replaced)
        except* Away as group:
            reason = str(group.exceptions[0])
        except* grpc.aio.AioRpcError as group:
            error = group.exceptions[0]
            reason = str(error.details()) if isinstance(error, grpc.aio.AioRpcError) else str(error)
        return reason

    async def _use(self, call: Any, replaced: asyncio.Event) -> str:
        self._stream, self._sequence, self._sent = self._stream + 1, 0, {}
        for point in self._points.values():
            point.begin()
        self._last = {name: (0, report) for name, (_, report) in self._last.items()}
        reason = ""
        async with anyio.create_task_group() as group:

            async def until_replaced() -> None:
                await replaced.wait()
                group.cancel_scope.cancel()

            group.start_soon(until_replaced)
            group.start_soon(self._write, call)
            async for response in call:
                self._obey(response)
            if await call.code() is not grpc.StatusCode.OK:
                reason = str(await call.details())
            reason = reason or "the control plane ended it"
            group.cancel_scope.cancel()
        return reason

    async def _write(self, call: Any) -> None:
        # A write to a call that has just ended fails in one of these ways; why it ended is the reader's to see.
        with contextlib.suppress(asyncio.InvalidStateError, grpc.RpcError):
            while True:
                self._work.clear()
                await call.write(self._request())
                await self._pause()

    async def _pause(self) -> None:
        """Waits for the next message's time: soon if something presses, at the latest after a second."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        await asyncio.sleep(_LEAST_S)
        while not self._presses:
            news = any(point.news for point in self._points.values())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(begun_s + (_NEWS_S if news else _EVERY_S)):
                    await self._work.wait()
                    self._work.clear()
                    continue
            return

    def _request(self) -> pb.ShareRequest:
        self._presses = False
        self._look_for_ends()
        self._sequence += 1
        request = pb.ShareRequest(sequence=self._sequence, left=self._left)
        self._left = []
        told: list[tuple[Point, int]] = []
        self._sent[self._sequence] = self._now_s(), told
        size_bytes = 0
        for name, (sequence, report) in self._last.items():
            if not sequence and size_bytes < _MAX_BYTES:
                request.last.append(report)
                self._last[name] = self._sequence, report
                size_bytes += report.ByteSize()
        for point in [point for point in self._points.values() if point.news]:
            if size_bytes >= _MAX_BYTES:
                self._presses = True  # the others come with the next
                break
            number, report = point.report(self._stream)
            request.points.append(report)
            told.append((point, number))
            size_bytes += report.ByteSize()
            self._points[point.name] = self._points.pop(point.name)  # who has waited comes first
        if len(self._sent) > _MAX_UNANSWERED:
            del self._sent[next(iter(self._sent))]
        return request

    def _obey(self, response: pb.ShareResponse) -> None:
        self.answered_s = self._now_s()
        for sequence in [number for number in self._sent if number <= response.answers]:
            self._base_s, told = self._sent.pop(sequence)
            for point, number in told:
                point.prolong(number, response.ttl)
        if response.answers:
            self._last = {name: said for name, said in self._last.items() if not 0 < said[0] <= response.answers}
        for shares in response.points:
            if (granted := self._points.get(shares.point)) is not None:
                granted.grant(self._stream, response.sequence, shares.shares, self._base_s)

    def _look_for_ends(self) -> None:
        now_s = self._now_s()
        for name, (process, until_s) in list(self._lost.items()):
            has_ended = ended(process)
            if has_ended or now_s >= until_s:
                os.close(process)
                del self._lost[name]
                if has_ended:
                    self._leave(name)

    def _leave(self, name: str) -> None:
        self._left.append(name)
        self._presses = True
        self._work.set()
