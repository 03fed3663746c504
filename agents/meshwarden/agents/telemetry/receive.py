"""OTLP over gRPC on the agent's socket: spans go up, Envoys' access logs become counts.

Who sends is known by its socket. The resource attributes that say so are set here, whatever the sender has written.
"""

from collections.abc import Callable
from typing import Final, Protocol

import grpc
from meshwarden.agents.workload import Workload
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from meshwarden.agents.bootstrap import NodePlace
from meshwarden.agents.telemetry.access_log import attributes_of, call_of
from meshwarden.agents.telemetry.aggregate import Aggregator
from meshwarden.agents.telemetry.outbox import Outbox

_MAX_ATTRIBUTES: Final = 128
_MAX_ITEM_BYTES: Final = 1_048_576
_OURS: Final = "mesh."


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
        self, request: trace_pb.ExportTraceServiceRequest, context: grpc.aio.ServicerContext
    ) -> trace_pb.ExportTraceServiceResponse:
        """Takes spans; what is too large is dropped and counted, and the answer says how many."""
        workload = await self._identify(context)
        rejected = 0
        for spans in request.resource_spans:
            count = sum(len(scope.spans) for scope in spans.scope_spans)
            self._stamp(spans, workload)
            body = spans.SerializeToString()
            if len(body) > _MAX_ITEM_BYTES:
                self._outbox.drop("span", "too_large", workload.spiffe_id.tenant or "", count)
                rejected += count
            else:
                self._outbox.put_spans(body, count, workload.spiffe_id.tenant or "")
        answer = trace_pb.ExportTraceServiceResponse()
        if rejected:
            answer.partial_success.rejected_spans = rejected
            answer.partial_success.error_message = f"more than {_MAX_ITEM_BYTES} bytes in one resource_spans"
        return answer

    async def export_logs(
        self, request: logs_pb.ExportLogsServiceRequest, context: grpc.aio.ServicerContext
    ) -> logs_pb.ExportLogsServiceResponse:
        """Takes access log records of an Envoy; other records are not ours to keep and are let go."""
        workload = await self._identify(context)
        identity, revision = workload.spiffe_id, self._revision()
        service = f"{identity.tenant}/{identity.service}"
        for resource_logs in request.resource_logs:
            for scope in resource_logs.scope_logs:
                for record in scope.log_records:
                    call = call_of(attributes_of(record.attributes), str(identity), service)
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
        return logs_pb.ExportLogsServiceResponse()

    async def _identify(self, context: grpc.aio.ServicerContext) -> Workload:
        workload = self._caller(context.peer())
        if workload is None:
            self._outbox.drop("span", "unidentified", "", 1)
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                "not a workload of this node: start the program with `meshwarden-agent exec`",
            )
        assert workload is not None  # noqa: S101 - abort raises
        return workload

    def _stamp(self, spans: trace_pb2.ResourceSpans, workload: Workload) -> None:
        kept = [pair for pair in spans.resource.attributes if not pair.key.startswith(_OURS)][:_MAX_ATTRIBUTES]
        identity = workload.spiffe_id
        ours = {
            "mesh.tenant": identity.tenant or "",
            "mesh.service": identity.service or "",
            "mesh.node": self._place.node,
            "mesh.region": self._place.region,
        }
        stamped = [
            common_pb2.KeyValue(key=key, value=common_pb2.AnyValue(string_value=value)) for key, value in ours.items()
        ]
        resource = type(spans.resource)(attributes=[*kept, *stamped])
        spans.resource.CopyFrom(resource)
