"""The tracer of calls that goes with a provider of ours (`sdk.tracing.provider`), which it knows to sample so.

What is decided, and what is said of it, is the same as OpenTelemetry's SDK has with `ParentBased` around
`PolicySampler`. But whether a call is recorded is asked first, and of one that is not no span is made: what its caller
said goes on to the calls below it.
"""

import os
import random
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagate import get_global_textmap
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind

from meshwarden.sdk.tracing.call_span import Above, CallSpan, Passed, Place, Said, Shown, trace_state
from meshwarden.sdk.tracing.sampling import BITS, KEY, threshold_of, word_of
from meshwarden.sdk.tracing.span import Headers, Metadata, Span, Unrecorded
from meshwarden.sdk.tracing.trace import MAX_STATE, PARENT, STATE, is_parent

_BAGGAGE: Final = "baggage"
_FIELDS: Final = {PARENT, STATE, _BAGGAGE}
# How a `traceparent` ends: the flags of `TraceFlags`, of which two are known.
_SAMPLED: Final = "01"
_RANDOM: Final = "02"
_RANDOM_SAMPLED: Final = "03"
_NOT_SAMPLED: Final = "02468ace"
_OF_RANDOM: Final = "2367abef"
_MASK: Final = (1 << BITS) - 1
_SPAN: Final = (1 << 64) - 1
_DRAWN: Final = 64
_NOWHERE: Final = Context()
_KEY: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, _NOWHERE)))
"""Under which a context has its span."""
# What the module's own functions come to, if that can be had.
_runtime: Final[Any] = getattr(context, "_RUNTIME_CONTEXT", context)
_variable: Final[Any] = getattr(_runtime, "_current_context", None)
_plain: Final = isinstance(_variable, ContextVar)
_attach: Final[Callable[[Context], object]] = _variable.set if _plain else _runtime.attach
_current: Final[Callable[[], Context]] = _variable.get if _plain else _runtime.get_current
_MAX_METHODS: Final = 1024
# Looked up once: what hangs on an enumeration is found by way of its class.
_CLIENT: Final = SpanKind.CLIENT
_SERVER: Final = SpanKind.SERVER


class Recorder:
    """Makes spans of calls."""

    def __init__(
        self,
        ratio: Callable[[], float],
        revision: Callable[[], int],
        start: Callable[[CallSpan], OtelSpan],
        keep: Callable[[CallSpan], None],
        is_watched: Callable[[], bool],
        random_bits: Callable[[int], int] = random.getrandbits,
    ) -> None:
        """Makes a tracer.

        Args:
            ratio: how many of the traces that begin here are to be recorded now, from 0 to 1.
            revision: the store revision of the policies in force; 0 is none.
            start: makes a span of the SDK, with the same ids, of one of ours.
            keep: takes a span that has ended.
            is_watched: whether somebody wants to see spans of the SDK in any case.
            random_bits: returns a number of so many bits.
        """
        self._ratio = ratio
        self._revision = revision
        self._start = start
        self._keep = keep
        self._is_watched = is_watched
        self._random_bits = random_bits
        # Bits of a trace id that tell whether it is recorded, its `traceparent` but for the flags, and it if it is not.
        self._drawn: list[tuple[int, str, Unrecorded]] = []
        forget = weakref.WeakMethod(self._forget_drawn)
        os.register_at_fork(after_in_child=lambda: (found := forget()) and found())
        # A ratio, its threshold, and the state of traces that are recorded.
        self._sampling = (1.0, 0, "")
        # {(method, who is at the other end, revision): what is said of a call}, for each side
        self._client: dict[tuple[str, str, int], Said] = {}
        self._server: dict[tuple[str, str, int], Said] = {}
        self._propagator: TextMapPropagator | None = None
        self._is_plain = False

    def client(self, method: str, destination: str) -> Span:
        """See `Tracer`."""
        propagator = get_global_textmap()
        is_plain = self._is_plain if propagator is self._propagator else self._look(propagator)
        here = _current()
        if not here and is_plain:
            return self._begun(_CLIENT, method, destination)
        shown = here.get(_KEY)
        made: Passed | CallSpan
        if type(shown) is Passed:
            made = shown
        elif type(shown) is Shown:
            made = self._below(shown.call.said, shown.call.state, False, _CLIENT, method, destination)
        else:
            place = _place_of(trace.get_current_span(here))
            if place is None:
                made = _passed(self._begun(_CLIENT, method, destination))
            elif place.flags & 1:
                made = self._below(place.said, place.state, place.is_remote, _CLIENT, method, destination)
            else:
                made = Passed(place.said, place.state, place.is_remote)
        if not is_plain or len(here) > (shown is not None):
            # Baggage, perhaps, or headers of another kind.
            return self._with_headers(made, here)
        return made

    def server(self, method: str, metadata: Metadata, source: str) -> Span:
        """See `Tracer`."""
        propagator = get_global_textmap()
        is_plain = self._is_plain if propagator is self._propagator else self._look(propagator)
        said = state = ""
        for pair in metadata:  # grpc's are of a class of its own, of which both at once are three times as dear
            name = pair[0]
            if name == PARENT and isinstance(value := pair[1], str):
                said = value
            elif name == STATE and isinstance(value := pair[1], str):
                state = value
            elif name == _BAGGAGE:
                is_plain = False
        below, is_below, is_remote = _NOWHERE, False, True
        if not is_plain or (said and not is_parent(said)):
            carrier = {name: value for name, value in metadata if isinstance(value, str)}
            below = propagate.extract(carrier, _NOWHERE)
            place = _place_of(trace.get_current_span(below))
            if place is not None:
                said, state, is_remote, is_below = place.said, place.state, place.is_remote, True
        elif said:
            is_below = True
            if state:
                known = trace_state(state) if len(state) <= MAX_STATE else None
                state = known.to_header() if known else ""
        made: Passed | CallSpan
        if not is_below:
            made = _passed(self._begun(_SERVER, method, source))
        elif said[-1] in _NOT_SAMPLED:
            made = Passed(said, state, is_remote)
        else:
            made = self._below(said, state, is_remote, _SERVER, method, source)
        shown = made if type(made) is Passed else Shown(made)  # type: ignore[arg-type]  # it is one of the two
        # Never detached: grpc gives each call a context of its own.
        _attach(Context({_KEY: shown}) if below is _NOWHERE else trace.set_span_in_context(shown, below))
        return made

    def _begun(self, kind: SpanKind, method: str, other: str) -> Unrecorded | CallSpan:
        """Begins a trace; `other` is at the other end of the call, if it is known."""
        try:
            low_bits, said, unrecorded = self._drawn.pop()
        except IndexError:
            low_bits, said, unrecorded = self._draw()
        ratio, threshold, state = self._sampling
        if ratio != (now := self._ratio()):
            threshold = threshold_of(now)
            word = word_of(threshold)
            state = f"{KEY}={word}" if word else ""
            self._sampling = (now, threshold, state)
        if low_bits < threshold:
            return unrecorded
        return self._recorded(said + _RANDOM_SAMPLED, state, None, kind, method, other)

    def _below(self, said: str, state: str, is_remote: bool, kind: SpanKind, method: str, other: str) -> CallSpan:
        """Goes on below what `said` and `state` tell of, which is recorded."""
        try:
            _, drawn, _ = self._drawn.pop()
        except IndexError:
            _, drawn, _ = self._draw()
        own = f"00{said[2:36]}{drawn[36:]}{_RANDOM_SAMPLED if said[-1] in _OF_RANDOM else _SAMPLED}"
        return self._recorded(own, state, Above(said, is_remote), kind, method, other)

    def _recorded(
        self, said: str, state: str, above: Above | None, kind: SpanKind, method: str, other: str
    ) -> CallSpan:
        revision = self._revision()
        key = (method, other, revision)
        known = self._client if kind is _CLIENT else self._server
        attributes = known.get(key)
        if attributes is None:
            if len(known) >= _MAX_METHODS:
                known.clear()
            attributes = known[key] = _attributes(kind, *key)
        made = CallSpan(said, state, above, kind, attributes, self._start, self._keep)
        if self._is_watched():
            made.real()
        return made

    def _draw(self) -> tuple[int, str, Unrecorded]:
        """Draws ids for some calls and returns the first: many at a time are a fifth of what they are one by one."""
        drawn: list[tuple[int, str, Unrecorded]] = []
        while len(drawn) < _DRAWN:
            bits = self._random_bits(192)
            if bits >> 64 and bits & _SPAN:
                text = f"{bits:048x}"
                said = f"00-{text[:32]}-{text[32:]}-"
                drawn.append((bits >> 64 & _MASK, said, Unrecorded(((PARENT, said + _RANDOM),))))
        self._drawn.extend(drawn[1:])
        return drawn[0]

    def _forget_drawn(self) -> None:
        """A process made by fork draws others than its parent."""
        self._drawn.clear()

    def _look(self, propagator: TextMapPropagator) -> bool:
        """Whether the process hands on W3C's headers and no others, as it does unless told otherwise."""
        is_plain = propagator.fields == _FIELDS
        self._is_plain, self._propagator = is_plain, propagator
        return is_plain

    def _with_headers(self, made: Passed | CallSpan, here: Context) -> Span:
        shown = made if type(made) is Passed else Shown(made)  # type: ignore[arg-type]  # it is one of the two
        carrier: dict[str, str] = {}
        propagate.inject(carrier, context=trace.set_span_in_context(shown, here))
        headers: Headers = tuple(carrier.items())
        if not isinstance(made, CallSpan):
            return Unrecorded(headers)
        made.headers = headers
        return made


def _passed(begun: Unrecorded | CallSpan) -> Passed | CallSpan:
    return Passed(begun.headers[0][1], "", is_remote=False) if isinstance(begun, Unrecorded) else begun


def _place_of(span: OtelSpan) -> Place | None:
    known = span.get_span_context()
    return Place.of(known) if known.is_valid else None


def _attributes(kind: SpanKind, method: str, other: str, revision: int) -> Said:
    found = Said({"rpc.system.name": "grpc", "rpc.method": method.removeprefix("/")})
    if other:
        found["server.address" if kind is _CLIENT else "mesh.source"] = other
    if revision:
        found["mesh.revision"] = revision
    return found
