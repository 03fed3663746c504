"""WorkloadService: what the agent offers to the programs of its node, over its Unix socket.

Requests are bounded here, field by field; what is refused is named. Identities in a report are never its sender's word.
"""

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc

from meshwarden.agents.api.secret_stream import SecretStream
from meshwarden.agents.attend import Attendants, SidecarMissing
from meshwarden.agents.attestation.caller import is_own_user
from meshwarden.agents.identity.credentials import CredentialMissing, Credentials
from meshwarden.agents.identity.denied import DenyKeeper
from meshwarden.agents.quota.points import Points, TooMany
from meshwarden.agents.quota.stream import Ended, converse
from meshwarden.agents.report.concurrency import Concurrencies, InvalidState
from meshwarden.agents.telemetry.account import SDK, Drops
from meshwarden.agents.telemetry.counted import InvalidTable
from meshwarden.agents.telemetry.intake import Intake, IntakeRefused
from meshwarden.agents.telemetry.repeat import Repeats
from meshwarden.agents.workload.attest import Attestor, Unidentified
from meshwarden.agents.workload.entry import Refusal, RegistrationRefused
from meshwarden.agents.workload.leaving import LeaveStream
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.workload import Workload
from meshwarden.agents.xds.dial import names
from meshwarden.agents.xds.scopes import ScopeStore
from meshwarden.sdk.backpressure.allowance import Allowance, Share
from meshwarden.sdk.mtls.connection import Connection
from meshwarden.sdk.red import histogram
from meshwarden.sdk.tracing import loss, numbered
from meshwarden.v1 import quota_service_pb2 as quota_pb
from meshwarden.v1 import report_pb2 as report_pb
from meshwarden.v1 import workload_service_pb2 as pb
from meshwarden.v1 import workload_service_pb2_grpc as pb_grpc

_CREDENTIAL_S: Final = 15.0
_READY_S: Final = 5.0
_MAX_CALLS: Final = 4096
_MAX_STATES: Final = 8
_REPORTS: Final = Share(part=0.25, burst_s=2.0)
_SHARES: Final = Share(part=0.1, burst_s=1.0)
_MAX_COUNT: Final = 1_000_000_000
_MAX_DROPS: Final = 32
_OTHER: Final = "other"
_LENGTHS: Final = {"source": 2048, "destination": 127, "method": 512, "status": 32, "dry_run": 144}
_CODES: Final = {
    Refusal.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.UNKNOWN: grpc.StatusCode.NOT_FOUND,
    Refusal.TAKEN: grpc.StatusCode.ALREADY_EXISTS,
    Refusal.UNFIT: grpc.StatusCode.PERMISSION_DENIED,
    Refusal.FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Refusal.USER_SHARED: grpc.StatusCode.FAILED_PRECONDITION,
}
_Context = grpc.aio.ServicerContext[Any, Any]


class InvalidReport(Exception):
    """A report is not taken; the message names the field."""


@dataclass(frozen=True)
class Parts:
    """What the service works with."""

    attestor: Attestor
    registry: Registry
    credentials: Credentials
    attendants: Attendants
    scopes: ScopeStore
    denied: DenyKeeper
    intake: Intake
    points: Points
    concurrencies: Concurrencies
    otlp_environment: Callable[[Workload], dict[str, str]]
    status: Callable[[], pb.AgentStatusResponse]
    wanting: Callable[[str], contextlib.AbstractContextManager[None]]
    secrets: SecretStream
    leaving: LeaveStream
    attend: Callable[[Workload], None]
    region: str


class WorkloadService(pb_grpc.WorkloadServiceServicer):
    """The service."""

    def __init__(self, parts: Parts) -> None:
        """Serves what `parts` hold."""
        self._parts = parts
        self._changed = asyncio.Event()
        self._allowance, self._shares = Allowance(_REPORTS), Allowance(_SHARES)
        self._repeats = Repeats()
        parts.registry.listen(self._notify)
        parts.credentials.listen(self._notify)
        parts.scopes.listen(self._notify)
        parts.denied.listen(self._notify)

    async def Register(self, request: pb.RegisterRequest, context: _Context) -> pb.RegisterResponse:
        """Takes the caller as an instance of an entry, and returns when its program can start."""
        parts = self._parts
        try:
            connection = parts.attestor.connection(context.peer())
            _check_reach(connection)
            await parts.registry.learn(connection)
            workload = parts.registry.register(connection, request.entry, request.port, request.instance)
        except Unidentified as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except RegistrationRefused as refusal:
            await context.abort(_CODES[refusal.kind], str(refusal))
        try:
            with parts.wanting(workload.entry_name):
                await parts.credentials.ensure(workload, _CREDENTIAL_S)
            await parts.attendants.ready(workload, _READY_S)
        except CredentialMissing as error:
            parts.registry.end(workload.id, "no certificate")
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except SidecarMissing as error:
            parts.registry.end(workload.id, "no sidecar")
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        environment = {**parts.attendants.environment(workload), **parts.otlp_environment(workload)}
        return pb.RegisterResponse(environment=environment, spiffe_id=str(workload.spiffe_id), id=workload.id)

    async def Watch(self, request: pb.WatchConfigRequest, context: _Context) -> AsyncIterator[pb.WorkloadConfig]:
        """Streams what the caller's SDK needs, all of it at each change."""
        workload = await self._registered(context)
        self._parts.attend(workload)
        sent: bytes | None = None
        while True:
            changed = self._changed
            if self._parts.registry.workloads.get(workload.id) is not workload:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the workload's registration has ended")
            message = self._config(workload)
            serialised = message.SerializeToString(deterministic=True)
            if serialised != sent:
                yield message
                sent = serialised
                continue  # it may have changed while a slow reader took this one
            await changed.wait()

    async def Report(self, request: pb.ReportCallsRequest, context: _Context) -> pb.ReportCallsResponse:
        """Takes counts of the caller's own calls, and of what it has lost."""
        workload = await self._registered(context)
        number, tenant = numbered.find(context.invocation_metadata()), workload.spiffe_id.tenant or ""
        if self._repeats.has(workload.id, number):
            return pb.ReportCallsResponse()
        if not self._allowance.has(workload.id):
            if number is None:
                self._parts.intake.drop_calls("rate_limited", tenant, _calls_in(request))
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "this workload's reports take more time than its share: report less"
            )
        with self._allowance.spend(workload.id):
            try:
                stats, lost = stamped(request, workload), lost_of(request, tenant)
                tables = self._parts.intake.counts.stamp(request.call_tables, workload.spiffe_id)
                self._take_concurrency(request, workload, context.peer())
            except (InvalidReport, InvalidTable, InvalidState) as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            try:
                self._parts.intake.take_calls(stats, tenant, lost, tables=tables, is_numbered=number is not None)
            except IntakeRefused as refusal:
                await context.abort(refusal.code, str(refusal))
        self._repeats.add(workload.id, number)
        return pb.ReportCallsResponse()

    async def Share(  # type: ignore[override]  # it writes by itself, which the stubs don't know
        self, request_iterator: AsyncIterator[quota_pb.ShareRequest], context: _Context
    ) -> None:
        """Takes usage of the caller's limits, and tells it its shares."""
        workload = await self._registered(context)
        parts, connection = self._parts, self._parts.attestor.connection(context.peer())

        def policies() -> list[str]:
            return self._policies(workload)

        @contextlib.contextmanager
        def allow() -> Iterator[None]:
            if parts.registry.workloads.get(workload.id) is not workload:
                raise Ended(grpc.StatusCode.PERMISSION_DENIED, "the workload's registration has ended")
            if not self._shares.has(workload.id):
                text = "this workload's reports take more time than its share: report less"
                raise Ended(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            with self._shares.spend(workload.id):
                yield

        try:
            if connection.pid is None or connection.pidfd is None:
                raise Ended(grpc.StatusCode.PERMISSION_DENIED, "the calling process has ended")
            point = parts.points.open(workload.id, workload.service_name, (connection.pid, connection.pidfd), policies)
            await converse(parts.points, point, request_iterator, context.write, allow)
        except TooMany as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        except Ended as ended:
            await context.abort(ended.code, str(ended))

    async def Secrets(self, request: pb.SecretsRequest, context: _Context) -> AsyncIterator[pb.SecretsResponse]:
        """Streams the secrets of the caller's entry, all of them at each change."""
        async for response in self._parts.secrets.stream(context):
            yield response

    async def Leave(self, request: pb.LeaveRequest, context: _Context) -> AsyncIterator[pb.LeaveResponse]:
        """Takes the caller's server out of the mesh for as long as the stream lasts."""
        async for response in self._parts.leaving.stream(context):
            yield response

    async def AgentStatus(self, request: pb.AgentStatusRequest, context: _Context) -> pb.AgentStatusResponse:
        """Says how the agent does, to its own user and root."""
        try:
            connection = self._parts.attestor.connection(context.peer())
        except Unidentified as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        if not is_own_user(connection):
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"the agent's status is for uid {os.geteuid()} and root; you are uid {connection.uid}",
            )
        return self._parts.status()

    def _policies(self, workload: Workload) -> list[str]:
        """The rate policies of a workload's service."""
        limits = self._parts.scopes.limits(f"{workload.id}/grpc")
        return [said.policy for said in limits.policies] if limits is not None else []

    def _take_concurrency(self, request: pb.ReportCallsRequest, workload: Workload, peer: str) -> None:
        """Takes what the calling process says of calls at once at its server.

        Raises:
            InvalidReport: it says it of too many policies.
            InvalidState: what it says is out of bounds.
        """
        if len(request.concurrency) > _MAX_STATES:
            raise InvalidReport(f"concurrency: {len(request.concurrency)} of them; at most {_MAX_STATES} in a report")
        process = self._parts.attestor.connection(peer).pid or 0
        self._parts.concurrencies.take(workload.id, process, request.concurrency, self._policies(workload))

    async def _registered(self, context: _Context) -> Workload:
        try:
            return await self._parts.attestor.registered(context)
        except Unidentified as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
            raise AssertionError("abort raises") from None

    def _config(self, workload: Workload) -> pb.WorkloadConfig:
        parts = self._parts
        return pb.WorkloadConfig(
            spiffe_id=str(workload.spiffe_id),
            region=parts.region,
            bundle=parts.credentials.bundle().to_proto(),
            limits=parts.scopes.limits(f"{workload.id}/grpc"),
            access=parts.scopes.access(f"{workload.id}/grpc"),
            revision=parts.scopes.revision,
            credential_directory=str(workload.credentials),
            names=names(parts.scopes.snapshot(f"{workload.id}/grpc")),
            trace_ratio=parts.registry.trace_ratio(workload),
            deny_list=parts.denied.message,
            foreign=[bundle.to_proto() for bundle in parts.credentials.foreign().values()],
        )

    def _notify(self) -> None:
        # Who waits holds the old event; whoever comes next waits for the next change.
        event, self._changed = self._changed, asyncio.Event()
        event.set()


def stamped(request: pb.ReportCallsRequest, workload: Workload) -> list[report_pb.CallStat]:
    """The counts of a report, with the reporter's own side filled in from who it is.

    Raises:
        InvalidReport: one of them is out of bounds; then none is taken.
    """
    if len(request.calls) > _MAX_CALLS:
        raise InvalidReport(f"calls: {len(request.calls)} of them; at most {_MAX_CALLS} in a report")
    identity = workload.spiffe_id
    stats = []
    for index, call in enumerate(request.calls):
        _check_call(call, f"calls[{index}]")
        stat = report_pb.CallStat()
        stat.CopyFrom(call)
        if call.reporter == report_pb.CallStat.SOURCE:
            stat.source = str(identity)
        else:
            stat.destination = f"{identity.tenant}/{identity.service}"
        stats.append(stat)
    return stats


def _calls_in(request: pb.ReportCallsRequest) -> int:
    counts = (stat.count for stat in request.calls)
    more = (count for table in request.call_tables for count in table.counts)
    return sum(min(count, _MAX_COUNT) for count in (*counts, *more))


def lost_of(request: pb.ReportCallsRequest, tenant: str) -> Drops:
    """What a program of a tenant says that it has lost, in words that we know.

    Raises:
        InvalidReport: there are too many of them.
    """
    if len(request.drops) > _MAX_DROPS:
        raise InvalidReport(f"drops: {len(request.drops)} of them; at most {_MAX_DROPS} in a report")
    found = Drops()
    for drop in request.drops:
        signal = drop.signal if drop.signal in loss.SIGNALS else _OTHER
        reason = drop.reason if drop.reason in loss.REASONS else _OTHER
        found[SDK, signal, reason, tenant] += min(drop.count, _MAX_COUNT)
    return found


def _check_call(call: report_pb.CallStat, where: str) -> None:
    for name, most in _LENGTHS.items():
        if len(getattr(call, name)) > most:
            raise InvalidReport(f"{where}.{name}: longer than {most}")
    if call.reporter not in (report_pb.CallStat.SOURCE, report_pb.CallStat.DESTINATION):
        raise InvalidReport(f"{where}.reporter: say SOURCE or DESTINATION")
    if call.decision not in report_pb.CallStat.Decision.values():
        raise InvalidReport(f"{where}.decision: unknown")
    if call.count > _MAX_COUNT or any(count > _MAX_COUNT for count in call.durations.counts):
        raise InvalidReport(f"{where}.count: more than {_MAX_COUNT}")
    try:
        histogram.from_proto(call.durations)
    except ValueError as error:
        raise InvalidReport(f"{where}.durations: {error}") from None
    if not math.isfinite(call.duration_sum_s) or call.duration_sum_s < 0:
        raise InvalidReport(f"{where}.duration_sum_s: not a duration")


def _check_reach(connection: Connection) -> None:
    """An agent that is not root can give files to its own user alone."""
    if os.geteuid() != 0 and connection.uid != os.geteuid():
        raise RegistrationRefused(
            Refusal.UNFIT,
            f"this agent runs as uid {os.geteuid()} and can hand credentials to that user alone; you are uid "
            f"{connection.uid}: run the agent as root, or the program as the agent's user",
        )
