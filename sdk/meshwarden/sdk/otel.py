"""Spans of calls, with OpenTelemetry.

`opentelemetry-instrumentation-grpc` leaves spans of cancelled calls open and says OK of handlers that failed. Here a
span ends when the call does, whatever its shape and its end, with the status that the other side saw.

Source: OpenTelemetry semantic conventions for RPC, 1.44.
"""

from typing import Final

import grpc
from opentelemetry import context, propagate, trace

from meshwarden.sdk.exemplar import TraceIds
from meshwarden.sdk.span import Headers, Metadata, Span

_SCOPE: Final = "meshwarden.sdk"
# A server's failures; the other codes say something of the request.
_SERVER_ERRORS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class _OtelSpan:
    def __init__(self, span: trace.Span, headers: Headers, server: bool) -> None:
        self.headers = headers
        self._span = span
        self._server = server

    @property
    def sampled(self) -> TraceIds | None:
        """See `Span`."""
        found = self._span.get_span_context()
        if not found.is_valid or not found.trace_flags.sampled:
            return None
        return found.trace_id.to_bytes(16, "big"), found.span_id.to_bytes(8, "big")

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """See `Span`."""
        self._span.set_attribute("rpc.response.status_code", code.name)
        if code in _SERVER_ERRORS if self._server else code is not grpc.StatusCode.OK:
            self._span.set_attribute("error.type", code.name)
            self._span.set_status(trace.Status(trace.StatusCode.ERROR, details))
        self._span.end()


class OtelTracer:
    """The tracer that asks the process's tracer provider; without one it hands on the trace of others."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer(_SCOPE)

    def client(self, method: str, destination: str) -> Span:
        """See `Tracer`."""
        name = method.removeprefix("/")
        attributes = {"rpc.system.name": "grpc", "rpc.method": name, "server.address": destination}
        span = self._tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, context=trace.set_span_in_context(span))
        return _OtelSpan(span, tuple(carrier.items()), server=False)

    def server(self, method: str, metadata: Metadata, source: str) -> Span:
        """See `Tracer`."""
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
        return _OtelSpan(span, (), server=True)
