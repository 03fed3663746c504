"""A small OTLP receiver (gRPC, loopback): the backend that a mesh under check forwards its traces and metrics to."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics
from opentelemetry.proto.trace.v1.trace_pb2 import Span

MAX_SPANS = 50_000
MAX_METRICS = 2000
MAX_MESSAGE_BYTES = 16 << 20


@dataclass(frozen=True)
class KeptSpan:
    """A span and the attributes of the resource that made it: {key: text}."""

    resource: dict[str, str]
    span: Span

    @property
    def trace_id(self) -> str:
        """In hexadecimal."""
        return self.span.trace_id.hex()


class OtlpReceiver(TraceServiceServicer):
    """Keeps the newest spans and every `authorization` it was shown.

    Attributes:
        spans: the newest spans, oldest first.
        authorizations: the values of the `authorization` header seen so far; "" for a call without.
        endpoint: "http://127.0.0.1:PORT".
        metrics: the newest metrics, oldest first.
    """

    def __init__(self, max_spans: int = MAX_SPANS) -> None:
        self.spans: deque[KeptSpan] = deque(maxlen=max_spans)
        self.metrics: deque[ResourceMetrics] = deque(maxlen=MAX_METRICS)
        self.authorizations: set[str] = set()
        self.endpoint = ""

    async def Export(  # noqa: N802 - the schema's name
        self, request: ExportTraceServiceRequest, context: Any
    ) -> ExportTraceServiceResponse:
        """Takes spans."""
        metadata = dict(context.invocation_metadata() or ())
        self.authorizations.add(str(metadata.get("authorization", "")))
        for group in request.resource_spans:
            resource = {item.key: item.value.string_value for item in group.resource.attributes}
            self.spans.extend(KeptSpan(resource, span) for scope in group.scope_spans for span in scope.spans)
        return ExportTraceServiceResponse()


class _Metrics(MetricsServiceServicer):
    """The same receiver's other door."""

    def __init__(self, kept: OtlpReceiver) -> None:
        self._kept = kept

    async def Export(  # noqa: N802 - the schema's name
        self, request: ExportMetricsServiceRequest, context: Any
    ) -> ExportMetricsServiceResponse:
        """Takes metrics."""
        self._kept.metrics.extend(request.resource_metrics)
        return ExportMetricsServiceResponse()


@asynccontextmanager
async def receiver() -> AsyncIterator[OtlpReceiver]:
    """Serves a receiver on a free loopback port."""
    kept = OtlpReceiver()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
    add: Any = add_TraceServiceServicer_to_server  # generated without types
    add(kept, server)
    add_metrics: Any = add_MetricsServiceServicer_to_server
    add_metrics(_Metrics(kept), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    kept.endpoint = f"http://127.0.0.1:{port}"
    try:
        yield kept
    finally:
        await server.stop(0.2)
