"""The rate limit quota service for this node's Envoys: each is an enforcement point, for which the agent speaks.

An Envoy reports each 5 s, whatever it is told, and a new bucket at once; it acknowledges nothing. So the agent reports
each second that its point lives, and takes an assignment for obeyed half a second after it was written. An Envoy that
was held up for longer, and still took calls, used its former share meanwhile.
"""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeAlias

import anyio
import grpc
from google.protobuf.message import Message

from meshwarden.agents.quota.assignment import Assignments
from meshwarden.agents.quota.point import MAX_COUNT, Key, Point
from meshwarden.agents.quota.points import Points, TooMany
from meshwarden.agents.workload.attest import Attestor, Unidentified
from meshwarden.sdk.backpressure.allowance import Allowance, Share
from meshwarden.v1 import node_service_pb2
from meshwarden.v1 import quota_service_pb2 as pb
from meshwarden.xds import api
from meshwarden.xds import quota_names as names

SERVICE: Final = "envoy.service.rate_limit_quota.v3.RateLimitQuotaService"
_REPORTS: Final = "envoy.service.rate_limit_quota.v3.RateLimitQuotaUsageReports"
_RESPONSE: Final = "envoy.service.rate_limit_quota.v3.RateLimitQuotaResponse"
_EVERY_S: Final = 1.0
_STEP_S: Final = 0.25
_OBEYED_S: Final = 0.5
_LONGEST_TTL_S: Final = 60.0
_MAX_UNANSWERED: Final = 64
_SHARE: Final = Share(part=0.1, burst_s=1.0)
"""Of a processor, for the reports of one service's Envoys, or of programs that speak as such."""

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Limits: TypeAlias = "Callable[[str], node_service_pb2.ServerLimits | None]"
"""What a data plane lets each tenant call, by its id."""
_Write: TypeAlias = "Callable[[Message], Awaitable[None]]"


class EnvoyQuotas:
    """The service."""

    def __init__(self, attestor: Attestor, points: Points, limits: Limits) -> None:
        """Puts together who knows callers, what tells the control plane, and what is limited."""
        self._attestor, self._points, self._limits = attestor, points, limits
        self._allowance = Allowance(_SHARE)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service."""
        method: Any = grpc.stream_stream_rpc_method_handler(
            self._stream, api.message_class(_REPORTS).FromString, lambda message: message.SerializeToString()
        )
        handler = grpc.method_handlers_generic_handler(SERVICE, {"StreamRateLimitQuotas": method})
        server.add_generic_rpc_handlers((handler,))

    async def _stream(self, requests: AsyncIterator[Message], context: _Context) -> None:
        point, said = await self._open(context)
        try:
            await Envoy(self._points, point, said, self._allowance).converse(requests, context.write)
        finally:
            self._points.close(point, has_left=False)

    async def _open(self, context: _Context) -> tuple[Point, Callable[[], node_service_pb2.ServerLimits]]:
        try:
            workload = await self._attestor.registered(context)
            connection = self._attestor.connection(context.peer())
        except Unidentified as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        nothing, plane = node_service_pb2.ServerLimits(), f"{workload.id}/envoy"

        def said() -> node_service_pb2.ServerLimits:
            return self._limits(plane) or nothing

        def policies() -> list[str]:
            return [limits.policy for limits in said().policies]

        if connection.pid is None or connection.pidfd is None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the kernel does not say who is calling")
        try:
            process = connection.pid, connection.pidfd
            return self._points.open(workload.id, workload.service_name, process, policies), said
        except TooMany as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        raise AssertionError("abort raises")


class Envoy:
    """One Envoy's stream."""

    def __init__(
        self,
        points: Points,
        point: Point,
        limits: Callable[[], node_service_pb2.ServerLimits],
        allowance: Allowance,
    ) -> None:
        """Speaks for one enforcement point.

        Args:
            points: whose point it is.
            point: the point.
            limits: says what holds at present.
            allowance: how much of our time reports of a service's Envoys may take; what comes beyond it waits.
        """
        self._points, self._point, self._limits, self._allowance = points, point, limits, allowance
        self._assignments = Assignments()
        self._sequence, self._obeyed = 0, 0
        self._sent_s: OrderedDict[int, float] = OrderedDict()
        # (when it is taken for obeyed, number)
        self._written: deque[tuple[float, int]] = deque()
        self._writes = asyncio.Lock()

    async def converse(self, requests: AsyncIterator[Message], write: _Write) -> None:
        """Takes reports and assigns until the Envoy ends the stream."""
        async with anyio.create_task_group() as group:

            async def speak(part: Callable[[_Write], Awaitable[None]]) -> None:
                with contextlib.suppress(grpc.aio.BaseError):  # the stream ended while we wrote
                    await part(write)
                group.cancel_scope.cancel()

            group.start_soon(speak, self._obey)
            group.start_soon(speak, self._keep)
            async for reports in requests:
                await self._allowance.wait(self._point.service)
                with self._allowance.spend(self._point.service):
                    self._take(reports)
            group.cancel_scope.cancel()

    def _take(self, reports: Any) -> None:
        """Takes what an Envoy has used; what it says of time is its own clock's, and not read."""
        now_s, report = self._points.now_s, pb.PointReport()
        policies = {limits.policy for limits in self._limits().policies}
        for usage in reports.bucket_quota_usages:
            named = dict(usage.bucket_id.bucket)
            key = Key(*(named.get(name, "") for name in (names.POLICY, names.TENANT, names.METHOD)))
            allowed, denied = min(usage.num_requests_allowed, MAX_COUNT), min(usage.num_requests_denied, MAX_COUNT)
            spilled = self._assignments.report(key, allowed, denied, now_s) if key.policy in policies else 0.0
            if spilled is not None:
                report.usages.add(bucket=key.to_proto(), allowed=allowed, denied=denied, spilled=spilled)
        self._report(report)

    def _report(self, report: pb.PointReport) -> None:
        now_s = self._points.now_s
        while self._written and self._written[0][0] <= now_s:
            self._obeyed = self._written.popleft()[1]
        self._sequence += 1
        self._sent_s[self._sequence] = now_s
        if len(self._sent_s) > _MAX_UNANSWERED:
            self._sent_s.popitem(last=False)
        report.acknowledged = self._obeyed
        self._points.take(self._point, self._sequence, report)

    async def _obey(self, write: _Write) -> None:
        while True:
            response = await self._point.next()
            for shares in response.points:
                self._assignments.grant(shares.shares, self._points.now_s)
            sent_s = self._sent_s.get(response.answers)
            if sent_s is not None:
                ttl_s = response.ttl.seconds + response.ttl.nanos / 1e9
                self._assignments.prolong(sent_s + min(ttl_s, _LONGEST_TTL_S))
                while self._sent_s and next(iter(self._sent_s)) <= response.answers:
                    self._sent_s.popitem(last=False)
            await self._assign(write)
            self._written.append((self._points.now_s + _OBEYED_S, response.sequence))

    async def _keep(self, write: _Write) -> None:
        """Reports that the Envoy lives, and what it has obeyed; renews what it was told, and ends what has ended."""
        reported_s = self._points.now_s
        while True:
            await asyncio.sleep(_STEP_S)
            now_s = self._points.now_s
            if now_s - reported_s >= _EVERY_S or (self._written and self._written[0][0] <= now_s):
                reported_s = now_s
                self._report(pb.PointReport())
            await self._assign(write)

    async def _assign(self, write: _Write) -> None:
        async with self._writes:
            actions = self._assignments.due(self._limits(), self._points.now_s)
            if actions:
                await write(api.build(_RESPONSE, {"bucket_action": actions}))
