"""Sends the program's spans and metrics to its node agent."""

import importlib.util
import os
from typing import Any, Final

from meshwarden.sdk.agent import AgentLink
from meshwarden.sdk.error import NotStarted
from meshwarden.sdk.tracing.loss import SPAN, Losses

ENDPOINT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
INTERVAL_VARIABLE: Final = "OTEL_METRIC_EXPORT_INTERVAL"
_TIMEOUT_S: Final = 2
# OpenTelemetry's own is a minute: too long for Prometheus, which asks every 15 seconds.
_INTERVAL_MS: Final = 10_000
_untold: Final = Losses()


def ratio() -> float:
    """How many of the traces that begin here are to be recorded; all, as long as the agent has not said."""
    try:
        link = AgentLink.made or AgentLink.of_process()  # it is asked at each call
    except NotStarted:
        return 1.0
    return 1.0 if link.last_config is None else link.last_config.trace_ratio


def revision() -> int:
    """The store revision of the policies that this program runs under; 0 as long as the agent has not said."""
    try:
        config = AgentLink.of_process().last_config
    except NotStarted:
        return 0
    return 0 if config is None else config.revision


def _lost(reason: str, count: int) -> None:
    """Has the agent told of spans that it did not get."""
    try:
        losses = AgentLink.of_process().losses
    except NotStarted:
        losses = _untold
    losses.add(SPAN, reason, count)


def configure() -> bool:
    """Installs providers of traces and metrics that export by OTLP to the environment's endpoint, the agent's socket.

    Call it once, before the first channel or server. Traces that begin here are recorded as its service's
    `traceSampling` says; metrics go every 10 seconds, or every `OTEL_METRIC_EXPORT_INTERVAL` milliseconds. A program
    with providers of its own doesn't need it: the SDK's spans go to whichever provider is installed.

    Returns:
        Whether they are exported: False without an endpoint in the environment or without the packages
        opentelemetry-sdk and opentelemetry-exporter-otlp-proto-grpc. Traces of others are handed on either way.
    """
    endpoint = os.environ.get(ENDPOINT_VARIABLE)
    if not endpoint or importlib.util.find_spec("opentelemetry") is None:
        return False
    try:
        from opentelemetry import metrics, trace
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        from meshwarden.sdk.tracing.otlp import OtlpCarrier
        from meshwarden.sdk.tracing.provider import Provider
    except ImportError:
        return False
    # Plain text: the socket is local and the kernel says who calls. The providers flush at exit.
    trace.set_tracer_provider(Provider(OtlpCarrier(endpoint), ratio, revision, _lost))
    way: dict[str, Any] = {"endpoint": endpoint, "insecure": not endpoint.startswith("https://"), "timeout": _TIMEOUT_S}
    interval_ms = None if os.environ.get(INTERVAL_VARIABLE) else _INTERVAL_MS
    metrics.set_meter_provider(
        MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(**way), export_interval_millis=interval_ms)])
    )
    return True
