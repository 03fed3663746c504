"""Which traces that begin in this program are recorded, and under which policies its spans were made.

As many are recorded as its service's policy says, by the trace id. A trace that is recorded bears in `tracestate` how
likely that was, so that whoever counts its spans can count what was not recorded as well. Counts of calls are taken of
all calls, recorded or not.

Source: OpenTelemetry specification 1.50, "TraceState: Probability Sampling" (`ot=th:…`, 56 bits of randomness).
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import TraceState

from meshwarden.sdk.tracing.unsampled import MODEL, UNSAMPLED

BITS: Final = 56
"""How many bits of a trace id, its last, are compared with the threshold."""
KEY: Final = "ot"
"""Under which a `tracestate` says how likely it was that the trace is recorded."""


def threshold_of(ratio: float) -> int:
    """Returns below which number the last bits of the trace ids are that are not recorded."""
    return round((1 - ratio) * (1 << BITS))


def word_of(threshold: int) -> str:
    """Returns what is said of a recorded trace under `KEY`; empty where all are recorded."""
    return f"th:{threshold:014x}".rstrip("0") if threshold else ""


class PolicySampler(Sampler):
    """Decides on traces that begin here; put a `ParentBased` around it, which follows those who have decided before."""

    def __init__(self, ratio: Callable[[], float]) -> None:
        """`ratio` tells, from 0 to 1, how many of all traces are to be recorded now."""
        self._ratio = ratio

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: trace.SpanKind | None = None,
        attributes: Any = None,
        links: Sequence[trace.Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """See `Sampler`."""
        threshold = threshold_of(self._ratio())
        if trace_id & ((1 << BITS) - 1) < threshold:
            return SamplingResult(Decision.DROP)
        if not threshold:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, trace_state)
        state = (trace_state or TraceState()).add(KEY, word_of(threshold))
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, state)

    def get_description(self) -> str:
        """See `Sampler`."""
        return f"PolicySampler{{{self._ratio()}}}"


class ModelSampler(Sampler):
    """Has spans of calls of models made though another sampler drops them, so that their tokens are counted.

    They are no part of a trace that is recorded: what is below them is dropped, and so are they, by the agent.
    """

    def __init__(self, inner: Sampler) -> None:
        """`inner` decides on all spans."""
        self._inner = inner

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: trace.SpanKind | None = None,
        attributes: Any = None,
        links: Sequence[trace.Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """See `Sampler`."""
        found = self._inner.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if found.decision is not Decision.DROP or not attributes or MODEL not in attributes:
            return found
        return SamplingResult(Decision.RECORD_ONLY, {**attributes, UNSAMPLED: True}, found.trace_state)

    def get_description(self) -> str:
        """See `Sampler`."""
        return f"ModelSampler{{{self._inner.get_description()}}}"


class RevisionStamp(SpanProcessor):
    """Writes into each span the store revision of the policies in force, which the trace of a change bears too."""

    def __init__(self, revision: Callable[[], int]) -> None:
        """`revision` is the one now; 0 is none."""
        self._revision = revision

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """See `SpanProcessor`."""
        if revision := self._revision():
            span.set_attribute("mesh.revision", revision)
