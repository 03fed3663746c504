"""What changes between a node and the mesh, as spans.

Configuration on its way to the node's data planes stands below the change that has made it; a report of other endpoints
begins a trace, which goes on with what the control plane makes of it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from meshwarden.sdk.tracing.own_span import Provider
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1.resources_pb2 import EndpointSpec

MAX_OPEN: Final = 64
_MAX_NAMED: Final = 16


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


class Reports:
    """A span `report` for each change of the node's endpoints."""

    def __init__(
        self, provider: Provider, above: Callable[[], Context | None], tell: Callable[[node_pb.EndpointReport], None]
    ) -> None:
        """Puts it together.

        Args:
            provider: where spans go.
            above: below what it is changed; None for nothing.
            tell: takes the report.
        """
        self._tracer, self._above, self._tell = provider.get_tracer("meshwarden.agents"), above, tell
        self._last: list[node_pb.NodeEndpoint] = []
        self._parent = ""

    def __call__(self, endpoints: list[node_pb.NodeEndpoint]) -> None:
        """Takes the whole set of endpoints."""
        report, headers = node_pb.EndpointReport(endpoints=endpoints), dict[str, str]()
        changes = list(_changes(self._last, endpoints))
        if changes:
            about = {"mesh.endpoints": changes[:_MAX_NAMED]}
            span = self._tracer.start_span("report", self._above() or Context(), attributes=about)
            TraceContextTextMapPropagator().inject(headers, trace.set_span_in_context(span, Context()))
            self._last, self._parent = list(endpoints), headers.get("traceparent", "")
            span.end()
        report.trace_parent = self._parent
        self._tell(report)


def _changes(before: Sequence[node_pb.NodeEndpoint], now: Sequence[node_pb.NodeEndpoint]) -> Iterator[str]:
    old, new = ({f"{item.tenant}/{item.id}": item for item in items} for items in (before, now))
    for name, item in new.items():
        if old.get(name) != item:
            yield f"{name} {EndpointSpec.Health.Name(item.health)} at {item.address}:{item.port}"
    yield from (f"{name} gone" for name in old if name not in new)
