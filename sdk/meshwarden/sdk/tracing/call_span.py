"""Spans of calls that cost little, for a provider of ours (`meshwarden.sdk.tracing.recorder`).

OpenTelemetry's SDK takes most of what it costs to trace a call to make a span that anybody may write to. Of most calls
nobody does: their spans are their ids, two times and a status until they are exported. One that is written to becomes
a span of the SDK, with the same ids.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import grpc
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, TraceState

from meshwarden.sdk.red.exemplar import TraceIds
from meshwarden.sdk.tracing.span import Headers
from meshwarden.sdk.tracing.status import ERROR, STATUS, failure_of, write_end


class Place(NamedTuple):
    """Where in a trace something is, as the headers of W3C Trace Context say it.

    Attributes:
        trace_id: 32 digits.
        span_id: 16 digits.
        flags: of `TraceFlags`.
        state: what `tracestate` says; empty where it says nothing.
        is_remote: whether another process has said so.
    """

    trace_id: str
    span_id: str
    flags: int
    state: str
    is_remote: bool

    @property
    def said(self) -> str:
        """The `traceparent` that says so."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    @property
    def headers(self) -> Headers:
        """What says so to the next."""
        parent = ("traceparent", self.said)
        return (parent, ("tracestate", self.state)) if self.state else (parent,)

    @property
    def span_context(self) -> SpanContext:
        """The same in OpenTelemetry's words."""
        flags, state = TraceFlags(self.flags), trace_state(self.state)
        return SpanContext(int(self.trace_id, 16), int(self.span_id, 16), self.is_remote, flags, state)

    @classmethod
    def read(cls, said: str, state: str, is_remote: bool) -> "Place":
        """Reads well-formed headers."""
        return cls(said[3:35], said[36:52], int(said[53:], 16), state, is_remote)

    @classmethod
    def of(cls, known: SpanContext) -> "Place":
        """Reads OpenTelemetry's words."""
        state = known.trace_state.to_header() if known.trace_state else ""
        return cls(f"{known.trace_id:032x}", f"{known.span_id:016x}", known.trace_flags, state, known.is_remote)


class Above(NamedTuple):
    """What a call is below.

    Attributes:
        said: the `traceparent` that says where that is.
        is_remote: whether another process has said so.
    """

    said: str
    is_remote: bool


@functools.lru_cache(256)
def trace_state(header: str) -> TraceState | None:
    """Reads a `tracestate`; what is none is left out."""
    return TraceState.from_header([header]) if header else None


class Said(dict[str, Any]):
    """The attributes of all calls of a method, which are not to be changed.

    Attributes:
        written: what `meshwarden.sdk.tracing.call_otlp` has made of them.
    """

    written = b""


class CallSpan:
    """One side of a call that is recorded.

    Where it is in its trace is kept as the headers say it, and read by who wants to know.

    Attributes:
        said: the `traceparent` that says where it is.
        state: the `tracestate` with it, which is its parent's too.
        above: whose it is below.
        kind: which side.
        attributes: those that are known from the start; "rpc.method" is its name too.
        begun_ns: when it began, in nanoseconds since 1970.
        ended: its status, what is said of that, and when it ended; None before that.
    """

    ends = True
    # Of most calls these stay as they are.
    _context: SpanContext | None = None
    ended: tuple[grpc.StatusCode, str, int] | None = None
    _headers: Headers | None = None
    _real: trace.Span | None = None

    def __init__(
        self,
        said: str,
        state: str,
        above: "Above | None",
        kind: SpanKind,
        attributes: Said,
        start: "Callable[[CallSpan], trace.Span]",
        keep: "Callable[[CallSpan], None]",
    ) -> None:
        """Begins.

        Args:
            said: see the attributes, as for the next four.
            state: see above.
            above: see above.
            kind: see above.
            attributes: see above.
            start: makes a span of the SDK of it.
            keep: takes it when it has ended.
        """
        self.said = said
        self.state = state
        self.kind = kind
        self.attributes = attributes
        self.above = above
        self._start = start
        self._keep = keep
        self.begun_ns = time.time_ns()

    @property
    def headers(self) -> Headers:
        """See `Span`."""
        if self._headers is not None:
            return self._headers
        parent = ("traceparent", self.said)
        return (parent, ("tracestate", self.state)) if self.state else (parent,)

    @headers.setter
    def headers(self, headers: Headers) -> None:
        self._headers = headers

    @property
    def sampled(self) -> TraceIds | None:
        """See `Span`."""
        return bytes.fromhex(self.said[3:35]), bytes.fromhex(self.said[36:52])

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place.read(self.said, self.state, is_remote=False)

    @property
    def parent(self) -> Place | None:
        """Where what it is below is."""
        return Place.read(self.above.said, self.state, self.above.is_remote) if self.above is not None else None

    @property
    def context(self) -> SpanContext:
        """Its place, in OpenTelemetry's words."""
        if self._context is None:
            self._context = self.place.span_context
        return self._context

    @property
    def is_over(self) -> bool:
        """Whether the call has ended."""
        return self.ended is not None

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """See `Span`."""
        self.ended = (code, details, time.time_ns())
        if self._real is None:
            self._keep(self)
        else:
            write_end(self._real, code, details, self.kind)

    def real(self) -> trace.Span:
        """Returns it as a span of the SDK, which anybody may write to; one that takes nothing if the call is over."""
        if self._real is None:
            if self.ended is not None:
                return trace.INVALID_SPAN
            self._real = self._start(self)
        return self._real

    def readable(self, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
        """Returns it as exporters want it; to be called when it has ended."""
        assert self.ended is not None  # noqa: S101  # `keep` takes those that have
        code, details, ended_ns = self.ended
        attributes = {**self.attributes, STATUS: code.name}
        failure = failure_of(code, details, self.kind)
        if failure is not None:
            attributes[ERROR] = code.name
        return ReadableSpan(
            name=self.attributes["rpc.method"],
            context=self.context,
            parent=self.parent.span_context if self.parent is not None else None,
            resource=resource,
            attributes=attributes,
            kind=self.kind,
            status=failure or trace.Status(trace.StatusCode.UNSET),
            start_time=self.begun_ns,
            end_time=ended_ns,
            instrumentation_scope=scope,
        )


class Shown(trace.Span):
    """The span of a call being served, as its handler sees it."""

    def __init__(self, call: CallSpan) -> None:
        self.call = call

    def get_span_context(self) -> SpanContext:
        """See opentelemetry.trace.Span, as for the others."""
        return self.call.context

    def is_recording(self) -> bool:
        """Until the call is over."""
        return not self.call.is_over

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Makes a span of the SDK of it, as do the others."""
        self.call.real().set_attributes(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        """See above."""
        self.call.real().set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """See above."""
        self.call.real().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        """See above."""
        self.call.real().add_link(context, attributes)

    def update_name(self, name: str) -> None:
        """See above."""
        self.call.real().update_name(name)

    def set_status(self, status: Any, description: str | None = None) -> None:
        """See above."""
        self.call.real().set_status(status, description)

    def record_exception(
        self, exception: BaseException, attributes: Any = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        """See above."""
        self.call.real().record_exception(exception, attributes, timestamp, escaped)

    def end(self, end_time: int | None = None) -> None:
        """See above."""
        self.call.real().end(end_time)


class Passed(trace.Span):
    """A call that is not recorded: where it is in a trace goes on as it came.

    Attributes:
        said: the `traceparent` that says where it is.
        state: the `tracestate` with it.
        is_remote: whether another process has said so.
    """

    ends = False
    sampled: Final = None

    def __init__(self, said: str, state: str, is_remote: bool) -> None:
        self.said = said
        self.state = state
        self.is_remote = is_remote

    @property
    def headers(self) -> Headers:
        """See `Span`."""
        parent = ("traceparent", f"00{self.said[2:]}")
        return (parent, ("tracestate", self.state)) if self.state else (parent,)

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place.read(self.said, self.state, self.is_remote)

    def get_span_context(self) -> SpanContext:
        """See opentelemetry.trace.Span."""
        return self.place.span_context

    def is_recording(self) -> bool:
        """Never."""
        return False

    def _nothing(self, *_: Any, **__: Any) -> None:
        """Takes what there is no place for."""

    end: Any = _nothing
    set_attributes: Any = _nothing
    set_attribute: Any = _nothing
    add_event: Any = _nothing
    add_link: Any = _nothing
    update_name: Any = _nothing
    set_status: Any = _nothing
    record_exception: Any = _nothing
