"""The tracer of calls that goes with a provider of ours (`meshwarden.sdk.provider`), which it knows to sample so.

What is decided, and what is said of it, is the same as OpenTelemetry's SDK has with `ParentBased` around
`PolicySampler`. But whether a call is recorded is asked first, and of one that is not no span is made: what its caller
said goes on to the calls below it.
"""

import random
from collections.abc import Callable
from typing import Any, Final

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagate import get_global_textmap
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, TraceFlags

from meshwarden.sdk.call_span import CallSpan, Passed, Place, Shown, trace_state
from meshwarden.sdk.sampling import BITS, KEY, threshold_of, word_of
from meshwarden.sdk.span import Headers, Metadata, Span
from meshwarden.sdk.trace import MAX_STATE, PARENT, STATE, TRACEPARENT

_BAGGAGE: Final = "baggage"
_FIELDS: Final = {PARENT, STATE, _BAGGAGE}
_SAMPLED: Final = int(TraceFlags.SAMPLED)
_NOT_SAMPLED: Final = "02468ace"
"""How the flags in a `traceparent` end without `_SAMPLED`."""
_RANDOM: Final = int(TraceFlags.RANDOM_TRACE_ID)
_MASK: Final = (1 << BITS) - 1
_NOWHERE: Final = Context()
_KEY: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, _NOWHERE)))
"""Under which a context has its span."""
_MAX_METHODS: Final = 1024


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
        self._sampling = (1.0, 0, "")  # a ratio, its threshold, and what is said of it
        self._attributes: dict[tuple[str, str, SpanKind, int], dict[str, Any]] = {}
        self._propagator: TextMapPropagator | None = None
        self._is_plain = False

    def client(self, method: str, destination: str) -> Span:
        """See `Tracer`."""
        propagator = get_global_textmap()
        is_plain = self._is_plain if propagator is self._propagator else self._look(propagator)
        here = context.get_current()
        above = here.get(_KEY) if here else None
        made: Passed | CallSpan
        if above is None:
            made = self._made(None, SpanKind.CLIENT, method, destination)
        elif type(above) is Passed:
            made = above
        else:
            parent = above.call.place if type(above) is Shown else _place_of(trace.get_current_span(here))
            made = self._made(parent, SpanKind.CLIENT, method, destination)
        if not is_plain or len(here) > (above is not None):
            # Baggage, perhaps, or headers of another kind.
            return self._with_headers(made, here)
        return made

    def server(self, method: str, metadata: Metadata, source: str) -> Span:
        """See `Tracer`."""
        propagator = get_global_textmap()
        is_plain = self._is_plain if propagator is self._propagator else self._look(propagator)
        said = state = ""
        for name, value in metadata:
            if name == PARENT and isinstance(value, str):
                said = value
            elif name == STATE and isinstance(value, str):
                state = value
            elif name == _BAGGAGE:
                is_plain = False
        below = _NOWHERE
        parent: Place | None = None
        made: Passed | CallSpan
        if not is_plain or (said and TRACEPARENT.fullmatch(said) is None):
            carrier = {name: value for name, value in metadata if isinstance(value, str)}
            below = propagate.extract(carrier, _NOWHERE)
            parent = _place_of(trace.get_current_span(below))
        elif said:
            if state:
                known = trace_state(state) if len(state) <= MAX_STATE else None
                state = known.to_header() if known else ""
            if said[-1] in _NOT_SAMPLED:
                ours = (PARENT, f"00{said[2:]}")
                made = Passed((ours, (STATE, state)) if state else (ours,), is_remote=True)
                context.attach(Context({_KEY: made}))
                return made
            parent = Place(said[3:35], said[36:52], int(said[53:], 16), state, True)
        made = self._made(parent, SpanKind.SERVER, method, source)
        shown = made if type(made) is Passed else Shown(made)  # type: ignore[arg-type]  # it is one of the two
        # Never detached: grpc gives each call a context of its own.
        context.attach(trace.set_span_in_context(shown, below))
        return made

    def _made(self, parent: Place | None, kind: SpanKind, method: str, other: str) -> Passed | CallSpan:
        """Decides on a call; `other` is at its other end, if it is known."""
        if parent is None:
            trace_id = self._random_bits(128) or 1
            ratio, threshold, said = self._sampling
            if ratio != (now := self._ratio()):
                threshold = threshold_of(now)
                word = word_of(threshold)
                said = f"{KEY}={word}" if word else ""
                self._sampling = (now, threshold, said)
            if trace_id & _MASK < threshold:
                said_of_it = f"00-{trace_id:032x}-{self._random_bits(64) or 1:016x}-{_RANDOM:02x}"
                return Passed(((PARENT, said_of_it),), is_remote=False)
            place = Place(f"{trace_id:032x}", self._span_id(), _RANDOM | _SAMPLED, said, False)
        elif parent.flags & _SAMPLED:
            flags = _SAMPLED | (parent.flags & _RANDOM)
            place = Place(parent.trace_id, self._span_id(), flags, parent.state, False)
        else:
            return Passed(parent.headers, parent.is_remote)
        made = CallSpan(place, parent, kind, self._written(kind, method, other), self._start, self._keep)
        if self._is_watched():
            made.real()
        return made

    def _written(self, kind: SpanKind, method: str, other: str) -> dict[str, Any]:
        """The attributes of a call, which are not to be changed."""
        revision = self._revision()
        key = (method, other, kind, revision)
        found = self._attributes.get(key)
        if found is None:
            if len(self._attributes) >= _MAX_METHODS:
                self._attributes.clear()
            found = {"rpc.system.name": "grpc", "rpc.method": method.removeprefix("/")}
            if other:
                found["server.address" if kind is SpanKind.CLIENT else "mesh.source"] = other
            if revision:
                found["mesh.revision"] = revision
            self._attributes[key] = found
        return found

    def _span_id(self) -> str:
        return f"{self._random_bits(64) or 1:016x}"

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
        if isinstance(made, Passed):
            return Passed(headers, is_remote=False)
        made.headers = headers
        return made


def _place_of(span: OtelSpan) -> Place | None:
    known = span.get_span_context()
    return Place.of(known) if known.is_valid else None
