"""Trace context from the calls that a program serves to the calls that it makes.

Where OpenTelemetry's API is installed its context and its spans are used (`meshwarden.sdk.otel`). Where it isn't, the
W3C headers of a call being served are handed on unchanged to the calls made for it.

Source: W3C Trace Context (Level 2) §3.2, §3.3.
"""

import contextvars
import functools
import importlib.util
import re
from collections.abc import Sequence
from typing import Final

import grpc

from meshwarden.sdk.exemplar import TraceIds
from meshwarden.sdk.span import Headers, Metadata, Span, Tracer

_PARENT: Final = "traceparent"
_STATE: Final = "tracestate"
_MAX_STATE: Final = 512
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_incoming: contextvars.ContextVar[Headers] = contextvars.ContextVar("meshwarden_trace", default=())


class _Carried:
    def __init__(self, headers: Headers) -> None:
        self.headers = headers

    @property
    def sampled(self) -> TraceIds | None:
        """See `Span`."""
        return sampled_ids(dict(self.headers).get(_PARENT, ""))

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """Nothing to keep."""


class Carrier:
    """The tracer that makes no spans and hands on those of others."""

    def client(self, method: str, destination: str) -> Span:
        """See `Tracer`."""
        return _Carried(_incoming.get())

    def server(self, method: str, metadata: Metadata, source: str) -> Span:
        """See `Tracer`."""
        headers = _headers(metadata)
        _incoming.set(headers)
        return _Carried(headers)


@functools.cache
def tracer() -> Tracer:
    """Returns the tracer of this process."""
    if importlib.util.find_spec("opentelemetry") is None:
        return Carrier()
    try:
        from meshwarden.sdk.otel import OtelTracer
    except ImportError:  # another package of the namespace, without the API
        return Carrier()
    return OtelTracer()


def with_headers(metadata: Sequence[tuple[str, str | bytes]] | None, headers: Headers) -> list[tuple[str, str | bytes]]:
    """Returns a call's metadata with the trace's headers; a traceparent that the program has set itself stands."""
    given = list(metadata or ())
    if any(name == _PARENT for name, _ in given):
        return given
    return [*given, *headers]


def sampled_ids(traceparent: str) -> TraceIds | None:
    """Returns the ids in a traceparent whose caller says that it records the trace; None in any other."""
    if _TRACEPARENT.fullmatch(traceparent) is None:
        return None
    _, trace_id, span_id, flags = traceparent.split("-")
    return (bytes.fromhex(trace_id), bytes.fromhex(span_id)) if int(flags, 16) & 1 else None


def _headers(metadata: Metadata) -> Headers:
    found = {name: value for name, value in metadata if name in (_PARENT, _STATE)}
    parent, state = found.get(_PARENT), found.get(_STATE)
    if not isinstance(parent, str) or _TRACEPARENT.fullmatch(parent) is None:
        return ()
    if isinstance(state, str) and len(state) <= _MAX_STATE:
        return ((_PARENT, parent), (_STATE, state))
    return ((_PARENT, parent),)
