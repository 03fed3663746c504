"""Trace context from the calls that a program serves to the calls that it makes.

Where OpenTelemetry's API is installed its context and its spans are used (`sdk.tracing.otel`). Where it isn't,
the W3C headers of a call being served are handed on unchanged to the calls made for it.

Source: W3C Trace Context (Level 2) §3.2, §3.3.
"""

import contextvars
import functools
import importlib.util
from collections.abc import Sequence
from typing import Any, Final

import grpc

from meshwarden.sdk.red.exemplar import TraceIds
from meshwarden.sdk.tracing.span import Headers, Metadata, Span, Tracer

PARENT: Final = "traceparent"
STATE: Final = "tracestate"
MAX_STATE: Final = 512
_OF_TRACE: Final = {PARENT, STATE, "baggage"}
METADATA_PLACE: Final = 2
# Digits of a `traceparent` to zeros, and what it is then.
_TO_ZEROS: Final = bytes.maketrans(b"123456789abcdef", b"0" * 15)
_ZEROS: Final = f"00-{'0' * 32}-{'0' * 16}-00"
_SHAPE: Final = _ZEROS.encode()
_NO_TRACE, _NO_SPAN = _ZEROS[3:35], _ZEROS[36:52]
_incoming: contextvars.ContextVar[Headers] = contextvars.ContextVar("meshwarden_trace", default=())


class _Carried:
    ends = False

    def __init__(self, headers: Headers) -> None:
        self.headers = headers

    @property
    def sampled(self) -> TraceIds | None:
        """See `Span`."""
        return sampled_ids(dict(self.headers).get(PARENT, ""))

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
        from meshwarden.sdk.tracing.otel import OtelTracer
    except ImportError:  # another package of the namespace, without the API
        return Carrier()
    return OtelTracer()


def with_headers(metadata: Sequence[tuple[str, str | bytes]] | None, headers: Headers) -> list[tuple[str, str | bytes]]:
    """Returns a call's metadata with headers of ours; what the program has set itself stands.

    A traceparent of its own is another trace, with which nothing goes that is said of ours.
    """
    given = list(metadata or ())
    own = {name for name, _ in given}
    if PARENT in own:
        own |= _OF_TRACE
    return [*given, *(header for header in headers if header[0] not in own)]


def add_headers(args: tuple[Any, ...], kwargs: dict[str, Any], headers: Headers) -> tuple[Any, ...]:
    """Puts headers of ours into the arguments of a call: a request, timeout, metadata and so on, as grpc has them.

    Returns:
        The arguments by place; those by name are changed where they are.
    """
    if len(args) > METADATA_PLACE:
        before, metadata, after = args[:METADATA_PLACE], args[METADATA_PLACE], args[METADATA_PLACE + 1 :]
        return (*before, with_headers(metadata, headers), *after)
    metadata = kwargs.get("metadata")
    if metadata:
        kwargs["metadata"] = with_headers(metadata, headers)
    elif headers:
        kwargs["metadata"] = headers
    return args


def is_parent(text: str) -> bool:
    """Whether that is a `traceparent`. It is asked at each call, where a regular expression would take longer."""
    return (
        text.isascii()
        and text.encode().translate(_TO_ZEROS) == _SHAPE
        and (_NO_SPAN not in text or (text[3:35] != _NO_TRACE and text[36:52] != _NO_SPAN))
        and (text[0] != "f" or text[1] != "f")
    )


def sampled_ids(traceparent: str) -> TraceIds | None:
    """Returns the ids in a traceparent whose caller says that it records the trace; None in any other."""
    if not is_parent(traceparent):
        return None
    _, trace_id, span_id, flags = traceparent.split("-")
    return (bytes.fromhex(trace_id), bytes.fromhex(span_id)) if int(flags, 16) & 1 else None


def _headers(metadata: Metadata) -> Headers:
    found = {name: value for name, value in metadata if name in (PARENT, STATE)}
    parent, state = found.get(PARENT), found.get(STATE)
    if not isinstance(parent, str) or not is_parent(parent):
        return ()
    if isinstance(state, str) and len(state) <= MAX_STATE:
        return ((PARENT, parent), (STATE, state))
    return ((PARENT, parent),)
