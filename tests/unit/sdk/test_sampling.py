"""Which traces are recorded, what is said of them, and that calls are counted in any case."""

from collections import Counter

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased
from opentelemetry.trace import TraceState
from tests.counted import stats_of

from meshwarden.certs.clock import utc_now
from meshwarden.sdk import outgoing
from meshwarden.sdk.denial import Denials
from meshwarden.sdk.outgoing import Outgoing
from meshwarden.sdk.red.count import Counter as CallCounter
from meshwarden.sdk.tracing.otel import OtelTracer
from meshwarden.sdk.tracing.sampling import ModelSampler, PolicySampler, RevisionStamp
from meshwarden.sdk.tracing.unsampled import MODEL, UNSAMPLED

CALLS = 400


def decided(ratio: float, trace_id: int, state: TraceState | None = None) -> str | None:
    """What is said of a trace in `tracestate`; None if it is not recorded, "" if nothing is."""
    result = PolicySampler(lambda: ratio).should_sample(None, trace_id, "x", trace_state=state)
    if result.decision is Decision.DROP:
        return None
    return (result.trace_state or {}).get("ot", "")


@pytest.mark.parametrize(
    ("ratio", "randomness", "said"),
    [
        (1.0, 0, ""),
        (0.0, 2**56 - 1, None),
        (0.5, 2**55, "th:8"),
        (0.5, 2**55 - 1, None),
        (0.25, 2**56 - 1, "th:c"),
        (0.1, 2**56 - 1, "th:e6666666666668"),
    ],
)
def test_the_threshold_is_that_of_the_specification(ratio: float, randomness: int, said: str | None) -> None:
    assert decided(ratio, (0xABCD << 64) | randomness) == said


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 2**128 - 1))
def test_what_is_recorded_at_a_ratio_is_recorded_at_each_higher_one(one: float, other: float, trace_id: int) -> None:
    low, high = sorted((one, other))
    assert decided(low, trace_id) is None or decided(high, trace_id) is not None


def test_what_others_say_in_the_state_stays() -> None:
    result = PolicySampler(lambda: 0.5).should_sample(None, 2**56 - 1, "x", trace_state=TraceState([("a", "b")]))
    assert dict(result.trace_state or {}) == {"a": "b", "ot": "th:8"}


class Link:
    last_config = None

    def __init__(self) -> None:
        self.counter, self.denials = CallCounter(utc_now), Denials()


def test_calls_are_counted_whether_they_are_recorded_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(PolicySampler(lambda: 0.25)), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = OtelTracer()
    monkeypatch.setattr(tracer, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(outgoing, "tracer", lambda: tracer)
    link = Link()
    for _ in range(CALLS):
        Outgoing(link, "orders").begin("/o.Orders/Get").end(grpc.StatusCode.OK, "", ())  # type: ignore[arg-type]
    assert sum(stat.count for stat in stats_of(link.counter.take())) == CALLS
    spans = exporter.get_finished_spans()
    assert 0 < len(spans) < CALLS
    assert Counter(span.context.trace_state.get("ot") for span in spans) == {"th:c": len(spans)}


def test_calls_of_models_are_made_known_though_their_traces_are_not_recorded() -> None:
    for ratio, wanted in ((0.0, Decision.RECORD_ONLY), (1.0, Decision.RECORD_AND_SAMPLE)):
        sampler = ModelSampler(ParentBased(PolicySampler(lambda ratio=ratio: ratio)))  # type: ignore[misc]
        made = sampler.should_sample(None, 2**100, "chat", attributes={MODEL: "o3"})
        assert (made.decision, UNSAMPLED in (made.attributes or {})) == (wanted, ratio == 0)
        assert sampler.should_sample(None, 2**100, "x", attributes={"a": "b"}).decision in (wanted, Decision.DROP)
    quiet = ModelSampler(ParentBased(PolicySampler(lambda: 0.0)))
    assert quiet.should_sample(None, 2**100, "x", attributes={"a": "b"}).decision is Decision.DROP
    assert quiet.should_sample(None, 2**100, "x").decision is Decision.DROP


def test_what_is_below_such_a_call_is_not_recorded() -> None:
    exporter = InMemorySpanExporter()
    sampler = ModelSampler(ParentBased(PolicySampler(lambda: 0.0)))
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("chat", attributes={MODEL: "o3"}) as call:
        assert call.is_recording()
        assert not call.get_span_context().trace_flags.sampled
        with tracer.start_as_current_span("below") as below:
            assert not below.is_recording()
    assert exporter.get_finished_spans() == (), "nobody else's processors export it"


def test_a_decision_of_others_stands() -> None:
    sampler = ParentBased(PolicySampler(lambda: 0.0))
    context = trace.SpanContext(2**100, 7, is_remote=True, trace_flags=trace.TraceFlags(1))
    above = trace.set_span_in_context(trace.NonRecordingSpan(context))
    assert sampler.should_sample(above, 2**100, "x").decision is Decision.RECORD_AND_SAMPLE


def test_spans_bear_the_revision_of_the_policies_in_force() -> None:
    exporter, revision = InMemorySpanExporter(), iter((0, 7, 8))
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(RevisionStamp(lambda: next(revision)))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for _ in range(3):
        provider.get_tracer("test").start_span("x").end()
    assert [dict(span.attributes or {}) for span in exporter.get_finished_spans()] == [
        {},
        {"mesh.revision": 7},
        {"mesh.revision": 8},
    ]
