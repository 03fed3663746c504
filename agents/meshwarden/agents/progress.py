"""Configuration on its way to the node's data planes, as spans below that of the change that has made it."""

from collections import deque
from typing import Final

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meshwarden.sdk.own_span import Provider
from meshwarden.v1 import node_service_pb2 as node_pb

MAX_OPEN: Final = 64


class Progress:
    """A span `configure` for each revision that somebody traces, from when it comes until all data planes have it."""

    def __init__(self, provider: Provider) -> None:
        self._tracer = provider.get_tracer("meshwarden.agents")
        self._open: deque[tuple[int, trace.Span]] = deque()

    def begin(self, update: node_pb.ConfigUpdate) -> None:
        """Configuration has come."""
        if not update.trace_parent:
            return
        above = TraceContextTextMapPropagator().extract({"traceparent": update.trace_parent})
        about = {"mesh.revision": update.revision, "mesh.scopes": len(update.scopes)}
        self._open.append((update.revision, self._tracer.start_span("configure", above, attributes=about)))
        if len(self._open) > MAX_OPEN:
            self._end(self._open.popleft()[1], "given up: newer configuration came")

    def end(self, ack: node_pb.ConfigAck) -> None:
        """All data planes have taken or refused a revision, and what came before."""
        while self._open and self._open[0][0] <= ack.revision:
            refused = ", ".join(nack.data_plane for nack in ack.nacks[:16])
            self._end(self._open.popleft()[1], f"refused by {refused}" if refused else "")

    @staticmethod
    def _end(span: trace.Span, fault: str) -> None:
        if fault:
            span.set_status(trace.Status(trace.StatusCode.ERROR, fault))
        span.end()
