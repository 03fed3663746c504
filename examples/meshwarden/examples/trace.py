"""Spans of a program's own, where OpenTelemetry is installed; else nothing.

The SDK makes those of gRPC calls; a program that speaks HTTP says by itself what it serves and what it calls.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

try:
    from opentelemetry import context, propagate, trace
except ImportError:
    HAS_SPANS = False
else:
    HAS_SPANS = True

Value = str | int | float | bool | Sequence[str]


class Open:
    """A span that goes on; without OpenTelemetry it keeps nothing."""

    def __init__(self, inner: Any = None) -> None:
        self._inner = inner

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Says more about what is done."""
        if self._inner is not None:
            self._inner.set_attributes(attributes)


@contextlib.contextmanager
def span(
    name: str,
    headers: Mapping[str, str] | None = None,
    kind: str = "client",
    attributes: Mapping[str, Value] | None = None,
    link: str = "",
) -> Iterator[Open]:
    """A span around what is done inside.

    Args:
        name: what is done.
        headers: of the caller; with a `traceparent` among them the span is below the caller's.
        kind: "client", "server", "internal", "producer" or "consumer".
        attributes: what is known of it from the beginning.
        link: the `traceparent` of a span that led to this one and is not above it; may be empty.
    """
    if not HAS_SPANS:
        yield Open()
        return
    links = [trace.Link(linked)] if (linked := _linked(link)).is_valid else []
    parent = propagate.extract({key.lower(): value for key, value in headers.items()}) if headers else None
    with trace.get_tracer("meshwarden.examples").start_as_current_span(
        name, parent, kind=trace.SpanKind[kind.upper()], attributes=attributes, links=links
    ) as made:
        yield Open(made)


def headers() -> dict[str, str]:
    """The headers that carry the span of the moment on."""
    carrier: dict[str, str] = {}
    if HAS_SPANS:
        propagate.inject(carrier)
    return carrier


def trace_id() -> str:
    """The trace of the moment, 32 hexadecimal digits; empty where there is none."""
    current = trace.get_current_span().get_span_context() if HAS_SPANS else None
    return f"{current.trace_id:032x}" if current is not None and current.is_valid else ""


def _linked(traceparent: str) -> Any:
    # From an empty context: else what can't be read would stand for the span of the moment.
    found = propagate.extract({"traceparent": traceparent}, context.Context())
    return trace.get_current_span(found).get_span_context()
