"""Spans of a program's own, where OpenTelemetry is installed; else nothing.

The SDK makes those of gRPC calls; a program that speaks HTTP says by itself what it serves and what it calls.
"""

import contextlib
from collections.abc import Iterator, Mapping

try:
    from opentelemetry import propagate, trace
except ImportError:
    HAS_SPANS = False
else:
    HAS_SPANS = True


@contextlib.contextmanager
def span(name: str, headers: Mapping[str, str] | None = None, server: bool = False) -> Iterator[None]:
    """A span around what is done inside: below the caller's if `headers` has a `traceparent`."""
    if not HAS_SPANS:
        yield
        return
    kind = trace.SpanKind.SERVER if server else trace.SpanKind.CLIENT
    parent = propagate.extract({key.lower(): value for key, value in headers.items()}) if headers else None
    with trace.get_tracer("meshwarden.examples").start_as_current_span(name, parent, kind=kind):
        yield


def headers() -> dict[str, str]:
    """The headers that carry the span of the moment on."""
    carrier: dict[str, str] = {}
    if HAS_SPANS:
        propagate.inject(carrier)
    return carrier


def trace_id() -> str:
    """The trace of the moment, 32 hexadecimal digits; empty where there is none."""
    context = trace.get_current_span().get_span_context() if HAS_SPANS else None
    return f"{context.trace_id:032x}" if context is not None and context.is_valid else ""
