"""Spans of calls, with OpenTelemetry.

`opentelemetry-instrumentation-grpc` leaves spans of cancelled calls open and says OK of handlers that failed. Here a
span ends when the call does, whatever its shape and its end, with the status that the other side saw.
"""

from typing import Final

import grpc
from opentelemetry import context, propagate, trace

from meshwarden.sdk.red.exemplar import TraceIds
from meshwarden.sdk.tracing.span import Headers, Metadata, Span, Tracer
from meshwarden.sdk.tracing.status import write_end

SCOPE: Final = "meshwarden.sdk"
"""Under which the tracer of calls is known."""


class _OtelSpan:
    ends = True

    def __init__(self, span: trace.Span, headers: Headers, kind: trace.SpanKind) -> None:
        self.headers = headers
        self._span = span
        self._kind = kind

    @property
    def sampled(self) -> TraceIds | None:
        """See `Span`."""
        found = self._span.get_span_context()
        if not found.is_valid or not found.trace_flags.sampled:
            return None
        return found.trace_id.to_bytes(16, "big"), found.span_id.to_bytes(8, "big")

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """See `Span`."""
        write_end(self._span, code, details, self._kind)


class OtelTracer:
    """The tracer that asks the process's tracer provider; without one it hands on the trace of others."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer(SCOPE)

    def client(self, method: str, destination: str) -> Span:
        """See `Tracer`."""
        recorder = self._find_recorder()
        if recorder is not None:
            return recorder.client(method, destination)
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name, "server.address": destination}
        span = self._tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, context=trace.set_span_in_context(span))
        return _OtelSpan(span, tuple(carrier.items()), trace.SpanKind.CLIENT)

    def server(self, method: str, metadata: Metadata, source: str) -> Span:
        """See `Tracer`."""
        recorder = self._find_recorder()
        if recorder is not None:
            return recorder.server(method, metadata, source)
        carrier = {name: value for name, value in metadata if isinstance(value, str)}
        # Below its caller or nothing: grpc.aio serves calls in the context in which the server was started.
        parent = propagate.extract(carrier, context.Context())
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        if source:
            attributes["mesh.source"] = source
        span = self._tracer.start_span(name, parent, kind=trace.SpanKind.SERVER, attributes=attributes)
        # Never detached: grpc gives each call a context of its own.
        context.attach(trace.set_span_in_context(span, parent))
        return _OtelSpan(span, (), trace.SpanKind.SERVER)

    def _find_recorder(self) -> Tracer | None:
        """The tracer of a provider that `telemetry` has installed; it knows a cheaper way and is asked from now on."""
        found: Tracer | None = getattr(trace.get_tracer_provider(), "recorder", None)
        if found is not None:
            self.client, self.server = found.client, found.server  # type: ignore[method-assign]
        return found
