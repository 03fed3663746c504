"""OTLP over gRPC on the agent's socket: spans go up, Envoys' access logs become counts.

Who sends is known by its socket. The resource attributes that say so are set here, whatever the sender has written.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from meshwarden.agents.bootstrap import NodePlace
from meshwarden.agents.telemetry.access_log import attributes_of, call_of
from meshwarden.agents.telemetry.aggregate import Aggregator
from meshwarden.agents.telemetry.allowance import Allowance, Share
from meshwarden.agents.telemetry.outbox import Outbox
from meshwarden.agents.telemetry.span import bound_spans
from meshwarden.agents.workload import Workload

_MAX_ITEM_BYTES: Final = 1_048_576
_MAX_ITEMS: Final = 256
_MAX_SPANS: Final = 4096
_MAX_RECORDS: Final = 4096
# Reading a request longer than this would keep everybody else waiting; the rest of it is dropped.
_MAX_READING_S: Final = 0.1
_SPANS: Final = Share(part=0.1, burst_s=1.0)
# Ten thousand records a second. Each is a call that the ledger would miss.
_RECORDS: Final = Share(part=0.25, burst_s=2.0)
_OURS: Final = "mesh."
_NAME: Final = "service.name"
_Message = TypeVar("_Message", bound=Message)
_Context = grpc.aio.ServicerContext[Any, Any]


class CallerOf(Protocol):
    """Who is behind an RPC."""

    def __call__(self, peer: str, /) -> Workload | None:
        """The workload of a `context.peer()`; None if it is none."""


class Receiver:
    """The two OTLP services."""

    def __init__(
        self,
        caller: CallerOf,
        place: NodePlace,
        aggregator: Aggregator,
        outbox: Outbox,
        revision: Callable[[], int],
    ) -> None:
        """Serves nothing until `add_to`.

        Args:
            caller: tells who sends.
            place: of this node.
            aggregator: takes calls.
            outbox: takes spans and what is dropped.
            revision: of the policies in force.
        """
        self._caller = caller
        self._place = place
        self._aggregator = aggregator
        self._outbox = outbox
        self._revision = revision
        self._spans = Allowance(_SPANS)
        self._records = Allowance(_RECORDS)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves both on `server`."""
        # Requests come as bytes: reading them is part of what they cost.
        trace: Any = grpc.unary_unary_rpc_method_handler(
            self.export_spans, None, trace_pb.ExportTraceServiceResponse.SerializeToString
        )
        logs: Any = grpc.unary_unary_rpc_method_handler(
            self.export_logs, None, logs_pb.ExportLogsServiceResponse.SerializeToString
        )
        root = "opentelemetry.proto.collector"
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(f"{root}.trace.v1.TraceService", {"Export": trace}),
                grpc.method_handlers_generic_handler(f"{root}.logs.v1.LogsService", {"Export": logs}),
            )
        )

    async def export_spans(self, body: bytes, context: _Context) -> trace_pb.ExportTraceServiceResponse:
        """Takes spans; what is malformed or too much is dropped and counted, and the answer says how many."""
        tenant, workload = await self._identify(context, "span")
        await self._ration(self._spans, "span", workload, context)
        with self._spans.spend(workload.id) as used_s:
            request = _parse(trace_pb.ExportTraceServiceRequest, body)
            if request is not None:
                return self._take_spans(request, workload, tenant, lambda: used_s() > _MAX_READING_S)
        await self._refuse_malformed(context, "span", tenant)
        raise AssertionError("abort raises")

    def _take_spans(
        self,
        request: trace_pb.ExportTraceServiceRequest,
        workload: Workload,
        tenant: str,
        is_late: Callable[[], bool],
    ) -> trace_pb.ExportTraceServiceResponse:
        malformed = taken = 0
        too_large = max(0, len(request.resource_spans) - _MAX_ITEMS)
        for spans in request.resource_spans[:_MAX_ITEMS]:
            bounded = bound_spans(spans, _MAX_SPANS - taken, is_late)
            malformed += bounded.malformed
            too_large += bounded.too_many
            if not bounded.kept:
                continue
            self._stamp(spans, workload)
            item = spans.SerializeToString()
            if len(item) > _MAX_ITEM_BYTES:
                too_large += bounded.kept
            else:
                taken += bounded.kept
                self._outbox.put_spans(item, bounded.kept, tenant)
        for reason, count in (("malformed", malformed), ("too_large", too_large)):
            if count:
                self._outbox.drop("span", reason, tenant, count)
        answer = trace_pb.ExportTraceServiceResponse()
        if malformed or too_large:
            answer.partial_success.rejected_spans = malformed + too_large
            answer.partial_success.error_message = (
                f"{malformed} without valid ids; {too_large} beyond {_MAX_SPANS} spans in a request or "
                f"{_MAX_ITEM_BYTES} bytes in one resource_spans, or too slow to read"
            )
        return answer

    async def export_logs(self, body: bytes, context: _Context) -> logs_pb.ExportLogsServiceResponse:
        """Takes access log records of an Envoy; other records are not ours to keep and are let go."""
        tenant, workload = await self._identify(context, "call")
        await self._ration(self._records, "call", workload, context)
        with self._records.spend(workload.id):
            request = _parse(logs_pb.ExportLogsServiceRequest, body)
            if request is not None:
                return self._take_records(request, workload, tenant)
        await self._refuse_malformed(context, "call", tenant)
        raise AssertionError("abort raises")

    def _take_records(
        self, request: logs_pb.ExportLogsServiceRequest, workload: Workload, tenant: str
    ) -> logs_pb.ExportLogsServiceResponse:
        identity, revision = workload.spiffe_id, self._revision()
        service = f"{identity.tenant}/{identity.service}"
        left, rejected = _MAX_RECORDS, max(0, len(request.resource_logs) - _MAX_ITEMS)
        for logs in request.resource_logs[:_MAX_ITEMS]:
            rejected += max(0, len(logs.scope_logs) - _MAX_ITEMS)
            for scope in logs.scope_logs[:_MAX_ITEMS]:
                rejected += max(0, len(scope.log_records) - left)
                for record in scope.log_records[:left]:
                    self._count(record, str(identity), service, revision)
                left -= min(left, len(scope.log_records))
        answer = logs_pb.ExportLogsServiceResponse()
        if rejected:
            self._outbox.drop("call", "too_large", tenant, rejected)
            answer.partial_success.rejected_log_records = rejected
            answer.partial_success.error_message = f"more than {_MAX_RECORDS} records in a request"
        return answer

    def _count(self, record: logs_pb2.LogRecord, spiffe_id: str, service: str, revision: int) -> None:
        call = call_of(attributes_of(record.attributes), spiffe_id, service)
        if call is not None:
            self._aggregator.add_call(
                call.source,
                call.destination,
                call.method,
                call.status,
                call.decision,
                call.reporter,
                revision,
                call.duration_s,
            )

    async def _identify(self, context: _Context, signal: str) -> tuple[str, Workload]:
        workload = self._caller(context.peer())
        if workload is None:
            self._outbox.drop(signal, "unidentified", "", 1)
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                "not a workload of this node: start the program with `meshwarden-agent exec`",
            )
        return workload.spiffe_id.tenant or "", workload

    async def _ration(self, allowance: Allowance, signal: str, workload: Workload, context: _Context) -> None:
        if not allowance.has(workload.id):
            self._outbox.drop(signal, "rate_limited", workload.spiffe_id.tenant or "", 1)
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "this workload's telemetry takes more time than its share: send less",
            )

    async def _refuse_malformed(self, context: _Context, signal: str, tenant: str) -> None:
        self._outbox.drop(signal, "malformed", tenant, 1)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message can't be read")

    def _stamp(self, spans: trace_pb2.ResourceSpans, workload: Workload) -> None:
        identity = workload.spiffe_id
        ours = {
            _NAME: f"{identity.service}.{identity.tenant}",
            "mesh.tenant": identity.tenant or "",
            "mesh.service": identity.service or "",
            "mesh.node": self._place.node,
            "mesh.region": self._place.region,
        }
        kept = [pair for pair in spans.resource.attributes if pair.key != _NAME and not pair.key.startswith(_OURS)]
        stamped = [
            common_pb2.KeyValue(key=key, value=common_pb2.AnyValue(string_value=value)) for key, value in ours.items()
        ]
        resource = type(spans.resource)(attributes=[*kept, *stamped])
        spans.resource.CopyFrom(resource)


def _parse(kind: type[_Message], body: bytes) -> _Message | None:
    try:
        return kind.FromString(body)
    except DecodeError:  # UnicodeDecodeError's kin too: protobuf wraps them
        return None
