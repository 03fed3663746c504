"""OTLP's services by what they take."""

from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb


@dataclass(frozen=True)
class OtlpKind:
    """How things of a signal are sent: the repeated field bears one name in OTLP's request and in ours."""

    request: Any
    response: Any
    field: str
    rejected: str


KINDS: Final = {
    "span": OtlpKind(
        trace_pb.ExportTraceServiceRequest, trace_pb.ExportTraceServiceResponse, "resource_spans", "rejected_spans"
    ),
    "point": OtlpKind(
        metrics_pb.ExportMetricsServiceRequest,
        metrics_pb.ExportMetricsServiceResponse,
        "resource_metrics",
        "rejected_data_points",
    ),
    "log": OtlpKind(
        logs_pb.ExportLogsServiceRequest, logs_pb.ExportLogsServiceResponse, "resource_logs", "rejected_log_records"
    ),
}
"""`{signal: …}`"""
