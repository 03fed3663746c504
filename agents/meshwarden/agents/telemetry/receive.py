"""OTLP over gRPC on the agent's socket: spans go up, Envoys' access logs become counts.

Who sends is known by its socket. The resource attributes that say so are set here, whatever the sender has written.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from meshwarden.agents.bootstrap import NodePlace
from meshwarden.agents.telemetry.access_log import attributes_of, call_of
from meshwarden.agents.telemetry.aggregate import Aggregator
from meshwarden.agents.telemetry.outbox import Outbox
from meshwarden.agents.telemetry.span import bound_spans, count_spans
from meshwarden.agents.workload import Workload

_MAX_ITEM_BYTES: Final = 1_048_576
_MAX_SPANS: Final = 8192
_MAX_RECORDS: Final = 16_384
_OURS: Final = "mesh."
_NAME: Final = "service.name"
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

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves both on `server`."""
        trace = grpc.unary_unary_rpc_method_handler(
            self.export_spans,
            trace_pb.ExportTraceServiceRequest.FromString,
            trace_pb.ExportTraceServiceResponse.SerializeToString,
        )
        logs = grpc.unary_unary_rpc_method_handler(
            self.export_logs,
            logs_pb.ExportLogsServiceRequest.FromString,
            logs_pb.ExportLogsServiceResponse.SerializeToString,
        )
        root = "opentelemetry.proto.collector"
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(f"{root}.trace.v1.TraceService", {"Export": trace}),
                grpc.method_handlers_generic_handler(f"{root}.logs.v1.LogsService", {"Export": logs}),
            )
        )

    async def export_spans(
        self, request: trace_pb.ExportTraceServiceRequest, context: _Context
    ) -> trace_pb.ExportTraceServiceResponse:
        """Takes spans; what is malformed or too much is dropped and counted, and the answer says how many."""
        tenant, workload = await self._identify(context, "span")
        malformed = too_large = taken = 0
        for spans in request.resource_spans:
            malformed += bound_spans(spans)
            count = count_spans(spans)
            if not count:
                continue
            self._stamp(spans, workload)
            body = spans.SerializeToString()
            if len(body) > _MAX_ITEM_BYTES or taken + count > _MAX_SPANS:
                too_large += count
            else:
                taken += count
                self._outbox.put_spans(body, count, tenant)
        for reason, count in (("malformed", malformed), ("too_large", too_large)):
            if count:
                self._outbox.drop("span", reason, tenant, count)
        answer = trace_pb.ExportTraceServiceResponse()
        if malformed or too_large:
            answer.partial_success.rejected_spans = malformed + too_large
            answer.partial_success.error_message = (
                f"{malformed} without valid ids; {too_large} beyond {_MAX_SPANS} spans in a request or "
                f"{_MAX_ITEM_BYTES} bytes in one resource_spans"
            )
        return answer

    async def export_logs(
        self, request: logs_pb.ExportLogsServiceRequest, context: _Context
    ) -> logs_pb.ExportLogsServiceResponse:
        """Takes access log records of an Envoy; other records are not ours to keep and are let go."""
        tenant, workload = await self._identify(context, "call")
        identity, revision = workload.spiffe_id, self._revision()
        service = f"{identity.tenant}/{identity.service}"
        records = [
            record for logs in request.resource_logs for scope in logs.scope_logs for record in scope.log_records
        ]
        for record in records[:_MAX_RECORDS]:
            self._count(record, str(identity), service, revision)
        rejected = max(0, len(records) - _MAX_RECORDS)
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
