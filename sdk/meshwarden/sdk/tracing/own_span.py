"""Spans of the mesh's own parts, the control plane and the agents: of their unary calls to each other.

    provider = own_provider("meshwarden-agent", send)
    grpc.aio.server(interceptors=[server_interceptor(provider, methods)])

opentelemetry-instrumentation-grpc makes them. It is right for unary calls of grpc.aio; handlers that write to their
context it breaks, spans of streams it may never end, and one span as long as a session says nothing.
"""

from collections import deque
from collections.abc import Callable, Collection, MutableMapping, Sequence
from typing import Any, Final, TypeAlias

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.instrumentation.grpc import aio_client_interceptors, aio_server_interceptor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Provider: TypeAlias = TracerProvider
Send = Callable[[bytes, int], None]
"""Takes a serialised ResourceSpans and how many spans are in it."""
MAX_KEPT: Final = 64


class Kept:
    """A `Send` for before there is anybody to send to: of what ends until then the newest is kept."""

    def __init__(self) -> None:
        self._kept: deque[tuple[bytes, int]] = deque(maxlen=MAX_KEPT)
        self._send: Send | None = None

    def __call__(self, body: bytes, count: int) -> None:
        """See `Send`."""
        if self._send is None:
            self._kept.append((body, count))
        else:
            self._send(body, count)

    def pass_to(self, send: Send) -> None:
        """All goes there from now on, what was kept first."""
        self._send = send
        while self._kept:
            send(*self._kept.popleft())


class _Sender(SpanExporter):
    """An exporter that hands over what it gets."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        """Hands over spans."""
        for resource_spans in encode_spans(spans).resource_spans:
            count = sum(len(scope.spans) for scope in resource_spans.scope_spans)
            self._send(resource_spans.SerializeToString(), count)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is kept."""

    def force_flush(self, timeout_millis: int = 0) -> bool:
        """Nothing is kept."""
        return True


def add_trace(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Puts the trace id of the current span into a line of a log; a processor of structlog."""
    context = get_current_span().get_span_context()
    if context.is_valid:
        event.setdefault("trace_id", format_trace_id(context.trace_id))
    return event


def own_provider(service: str, send: Send) -> Provider:
    """Makes a tracer provider whose spans go to `send` when they end, on the thread where they do."""
    provider = TracerProvider(resource=Resource({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(_Sender(send)))
    return provider


def note_revision(revision: int, change: str) -> None:
    """The present span has made a revision of the store by a change, "JOINED node node-a"."""
    here = trace.get_current_span()
    here.set_attribute("mesh.revision", revision)
    here.set_attribute("mesh.changes", [change])


def present_trace_id() -> str:
    """The trace that is being recorded here, in hexadecimal; "" if none is."""
    here = trace.get_current_span()
    return format(here.get_span_context().trace_id, "032x") if here.is_recording() else ""


def present_parent() -> str:
    """The W3C traceparent of the span that is being recorded here; "" if none is."""
    here, headers = trace.get_current_span(), dict[str, str]()
    if here.is_recording():
        TraceContextTextMapPropagator().inject(headers)
    return headers.get("traceparent", "")


def server_interceptor(provider: Provider, methods: Collection[str]) -> grpc.aio.ServerInterceptor:
    """Makes spans of the calls of these methods, "/package.Service/Method", which must be unary."""
    make: Any = aio_server_interceptor
    made: grpc.aio.ServerInterceptor = make(provider, lambda details: details.method in methods)
    return made


def client_interceptor(provider: Provider, methods: Collection[str]) -> grpc.aio.ClientInterceptor:
    """Makes spans of the calls made of these methods, "/package.Service/Method", which must be unary."""

    def is_one(details: Any) -> bool:
        method = details.method
        return (method.decode() if isinstance(method, bytes) else method) in methods

    make: Any = aio_client_interceptors
    made: grpc.aio.ClientInterceptor = make(provider, is_one)[0]  # the one for unary calls
    return made
