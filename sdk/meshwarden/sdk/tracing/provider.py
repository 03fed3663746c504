"""A tracer provider of OpenTelemetry's SDK with a cheaper way to record calls (`meshwarden.sdk.tracing.recorder`).

To the program it is what the SDK's is: it may start spans, write to those of calls, and add processors. From then on
calls have spans of the SDK from the start, for a processor wants to see them begin.
"""

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.environment_variables import OTEL_SDK_DISABLED
from opentelemetry.sdk.trace import SpanProcessor, SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from meshwarden.sdk.tracing.call_span import CallSpan
from meshwarden.sdk.tracing.call_span import trace_state as state_of
from meshwarden.sdk.tracing.loss import SPAN, Losses
from meshwarden.sdk.tracing.otel import SCOPE
from meshwarden.sdk.tracing.recorder import Recorder
from meshwarden.sdk.tracing.sampling import ModelSampler, PolicySampler, RevisionStamp
from meshwarden.sdk.tracing.span_queue import Carrier, Lost, SpanQueue

_SCOPE: Final = InstrumentationScope(SCOPE, "")


class Provider(TracerProvider):
    """Samples as its service's policy says, and sends in batches (`meshwarden.sdk.tracing.span_queue`).

    Attributes:
        recorder: the tracer of calls; None where OpenTelemetry is turned off.
    """

    def __init__(
        self,
        carrier: Carrier,
        ratio: Callable[[], float],
        revision: Callable[[], int] = lambda: 0,
        lost: Lost | None = None,
        delay_s: float = 1.0,
        shutdown_on_exit: bool = True,
    ) -> None:
        """Makes a provider.

        Args:
            carrier: what takes the spans.
            ratio: how many of the traces that begin here are to be recorded now, from 0 to 1.
            revision: the store revision of the policies in force; 0 is none.
            lost: is told of spans that nobody has taken; None: they are counted in the log.
            delay_s: how long spans may wait for others to go with.
            shutdown_on_exit: whether what is left goes when the program ends.
        """
        processors = _Processors()
        super().__init__(
            sampler=ModelSampler(ParentBased(PolicySampler(ratio))),
            active_span_processor=processors,
            shutdown_on_exit=shutdown_on_exit,
        )
        self._carrier = carrier
        queue = SpanQueue(carrier, lost or partial(Losses().add, SPAN), self._pack, delay_s)
        for one in (RevisionStamp(revision), queue):
            processors.add_own(one)
        start = _Start(self, processors)
        is_off = os.environ.get(OTEL_SDK_DISABLED, "").strip().lower() == "true"
        self.recorder = None if is_off else Recorder(ratio, revision, start, queue.keep, processors.has_others)

    def _pack(self, spans: Sequence[Any]) -> bytes:
        """Writes spans: ours as they are, and the SDK's."""
        calls = [span for span in spans if type(span) is CallSpan]
        others = [span for span in spans if type(span) is not CallSpan]
        written = self._carrier.pack_calls(calls, self.resource, _SCOPE) if calls else b""
        return written + self._carrier.pack(others) if others else written


class _Processors(SynchronousMultiSpanProcessor):
    """Ours, and those that the program adds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._others = False

    def add_own(self, processor: SpanProcessor) -> None:
        """Adds one of ours."""
        super().add_span_processor(processor)

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        """See SynchronousMultiSpanProcessor."""
        super().add_span_processor(span_processor)
        self._others = True

    def has_others(self) -> bool:
        """Whether somebody else looks at spans."""
        return self._others


class _Start(IdGenerator, Sampler):
    """Starts the SDK's span of one of ours, as it was decided and numbered when the call began."""

    def __init__(self, provider: TracerProvider, processors: _Processors) -> None:
        self._of_thread = threading.local()
        self._provider = provider
        self._made = TracerProvider(
            sampler=self,
            resource=provider.resource,
            active_span_processor=processors,
            id_generator=self,
            shutdown_on_exit=False,
        )

    def __call__(self, call: CallSpan) -> trace.Span:
        """Starts it."""
        self._of_thread.call = call
        parent = Context()
        if call.parent is not None:
            parent = trace.set_span_in_context(trace.NonRecordingSpan(call.parent.span_context), parent)
        name, tracer = call.attributes["rpc.method"], self._made.get_tracer(SCOPE)
        return tracer.start_span(name, parent, call.kind, call.attributes, start_time=call.begun_ns)

    def generate_trace_id(self) -> int:
        """See IdGenerator."""
        return int(self._of_thread.call.place.trace_id, 16)

    def generate_span_id(self) -> int:
        """See IdGenerator."""
        return int(self._of_thread.call.place.span_id, 16)

    def is_trace_id_random(self) -> bool:
        """See IdGenerator: it comes of as many random bits."""
        return True

    def should_sample(
        self,
        parent_context: Any,
        trace_id: int,
        name: str,
        kind: Any = None,
        attributes: Any = None,
        links: Any = None,
        trace_state: Any = None,
    ) -> SamplingResult:
        """See Sampler: it was."""
        state = self._of_thread.call.place.state
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, state_of(state))

    def get_description(self) -> str:
        """See Sampler."""
        return "decided"
