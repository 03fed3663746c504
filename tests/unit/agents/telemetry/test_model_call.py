"""Calls of models in spans: what is read, what is refused, and what goes up with the spans that told of it."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status

from meshwarden.agents.telemetry.model_call import MAX_TOKENS, OTHER, call_of, framed
from meshwarden.agents.telemetry.model_call import read as read_calls
from meshwarden.agents.telemetry.pack import packed_spans, unpacked_bytes
from meshwarden.v1.report_pb2 import ExportRequest, ModelCall, ModelCalls

ASKED: dict[str, Any] = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o",
}
ANSWERED: dict[str, Any] = {
    **ASKED,
    "gen_ai.response.model": "gpt-4o-2024-08-06",
    "gen_ai.usage.input_tokens": 100,
    "gen_ai.usage.output_tokens": 20,
}


def put(span: Span, said: dict[str, Any]) -> Span:
    for key, value in said.items():
        into = span.attributes.add(key=key).value
        if isinstance(value, AnyValue):
            into.CopyFrom(value)
        else:
            kind = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}[type(value)]
            setattr(into, kind, value)
    return span


def span(said: dict[str, Any], **changes: Any) -> Span:
    values: dict[str, Any] = {
        "trace_id": b"\x01" * 16,
        "span_id": b"\x02" * 8,
        "name": "chat gpt-4o",
        "kind": Span.SPAN_KIND_CLIENT,
        **changes,
    }
    return put(Span(**values), said)


def read(said: dict[str, Any], **changes: Any) -> ModelCall:
    found = call_of(span(said, **changes))
    assert found is not None
    return found


def test_a_call_is_read_by_the_conventions() -> None:
    call = read({**ANSWERED, "gen_ai.usage.cache_read.input_tokens": 60, "gen_ai.usage.cache_write.input_tokens": 10})
    assert (call.provider, call.model) == ("openai", "gpt-4o-2024-08-06")
    counts = (call.input_tokens, call.cached_tokens, call.cache_write_tokens, call.output_tokens)
    assert counts == (100, 60, 10, 20)
    assert (call.unmetered, call.refused, call.parent_id) == (False, False, 0)
    assert call.id


@pytest.mark.parametrize(
    "said",
    [
        {"gen_ai.system": "openai", "gen_ai.usage.prompt_tokens": 7, "gen_ai.usage.completion_tokens": 3},
        {"gen_ai.provider.name": "openai", "gen_ai.usage.input_tokens": 7.0, "gen_ai.usage.output_tokens": 3},
        {"gen_ai.provider.name": "openai", "gen_ai.usage.input_tokens": 7, "gen_ai.usage.prompt_tokens": 9}
        | {"gen_ai.usage.output_tokens": 3, "gen_ai.operation.name": "chat"},
    ],
)
def test_earlier_names_are_read_too(said: dict[str, Any]) -> None:
    call = read({**said, "gen_ai.request.model": "gpt-4o"})
    assert (call.provider, call.model, call.input_tokens, call.output_tokens) == ("openai", "gpt-4o", 7, 3)


def test_what_is_cached_is_added_where_it_was_not_among_what_went_in() -> None:
    call = read(
        {**ANSWERED, "gen_ai.usage.cache_read_input_tokens": 900, "gen_ai.usage.cache_creation_input_tokens": 5}
    )
    assert (call.input_tokens, call.cached_tokens, call.cache_write_tokens) == (1005, 900, 5)


@pytest.mark.parametrize("kind", [Span.SPAN_KIND_SERVER, Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER])
def test_the_other_sides_spans_count_nothing(kind: Any) -> None:
    assert call_of(span(ANSWERED, kind=kind)) is None


@pytest.mark.parametrize("operation", ["invoke_agent", "create_agent", "execute_tool", "invoke_workflow", "nonsense"])
def test_sums_of_calls_count_nothing(operation: str) -> None:
    assert call_of(span({**ANSWERED, "gen_ai.operation.name": operation})) is None
    assert call_of(span({"gen_ai.request.model": "gpt-4o"})) is None, "nothing says that it was a call"


def test_a_call_without_tokens_is_told_of_unless_it_failed() -> None:
    call = read(ASKED)
    assert (call.model, call.unmetered) == ("gpt-4o", True)
    failed = Status(code=Status.STATUS_CODE_ERROR)
    assert call_of(span(ASKED, status=failed)) is None
    assert read(ANSWERED, status=failed).output_tokens == 20, "what it took before it failed"


HOSTILE = [-1, 2**63 - 1, -(2**63), MAX_TOKENS + 1, math.nan, math.inf, -math.inf, 0.5, 1e300, "12", True, AnyValue()]


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
@pytest.mark.parametrize(
    "name", ["gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.usage.cache_read.input_tokens"]
)
def test_numbers_that_cannot_be_are_refused_whole(name: str, value: Any) -> None:
    call = read({**ANSWERED, name: value})
    assert call.refused
    assert not any((call.input_tokens, call.output_tokens, call.cached_tokens, call.cache_write_tokens))


@pytest.mark.parametrize("name", ["x" * 129, "a\nb", "\x1b[2J", "ü", "a b", "-", "{}", "a\n"])
def test_names_that_can_be_none_are_other(name: str) -> None:
    call = read({**ANSWERED, "gen_ai.response.model": name, "gen_ai.provider.name": name})
    assert (call.model, call.provider) == (OTHER, OTHER)


@pytest.mark.parametrize(
    "name", ["@cf/meta/llama-3-8b", "anthropic.claude-3-5-sonnet-20240620-v1:0", "ft:gpt-4o:org::id", "o3", "x" * 128]
)
def test_names_of_models_are_taken_as_they_are(name: str) -> None:
    assert read({**ANSWERED, "gen_ai.response.model": name}).model == name


def scopes(*spans: Span) -> list[bytes]:
    """Each in a scope of its own."""
    return [ScopeSpans(spans=[one]).SerializeToString() for one in spans]


def test_spans_are_told_apart_by_their_ids() -> None:
    one, again, below = (
        span(ANSWERED),
        span(ANSWERED),
        span(ANSWERED, span_id=b"\x03" * 8, parent_span_id=b"\x02" * 8),
    )
    given = scopes(one, span({"a": "b"}), again, below)
    kept, (first, same, third), gone = read_calls(given, lambda: False)
    assert (kept, gone) == (given, 0)
    assert first.id == same.id == third.parent_id != third.id
    assert read(ANSWERED, trace_id=b"\x09" * 16).id != first.id


def test_what_is_not_read_in_time_counts_as_refused() -> None:
    assert read_calls(scopes(span({"a": "b"})), lambda: True).calls == []
    assert read_calls(scopes(span(ANSWERED)), lambda: True).calls == [ModelCall(refused=True)]


def test_a_span_that_was_made_for_its_tokens_goes_no_further() -> None:
    marked, other = span({**ANSWERED, "mesh.unsampled": True}), span({"a": "b"}, span_id=b"\x07" * 8)
    said = span({**ANSWERED, "mesh.unsampled": False, "x": "mesh.unsampled"}, span_id=b"\x08" * 8)
    scope = ScopeSpans(scope=InstrumentationScope(name="s"), schema_url="u", spans=[marked, other, said])
    (kept,), calls, gone = read_calls([scope.SerializeToString()], lambda: False)
    assert ScopeSpans.FromString(kept) == ScopeSpans(scope=scope.scope, schema_url="u", spans=[other, said])
    assert (len(calls), gone) == (2, 1)


def test_calls_go_up_in_bodies_of_bounded_size() -> None:
    name = "x" * 128
    calls = [ModelCall(provider=name, model=name, id=1, input_tokens=MAX_TOKENS)] * 4096
    request = ExportRequest.FromString(framed(calls, "web.acme", 60))
    assert all(len(one) < 1 << 20 for one in request.model_calls)
    told = [ModelCalls.FromString(one) for one in request.model_calls]
    assert {(one.reporter, one.time_s) for one in told} == {("web.acme", 60)}
    assert sum(len(one.calls) for one in told) == len(calls)
    assert framed([], "web.acme", 60) == b""
    # What a batch may hold is reckoned by what all of it unpacks to.
    spans = ExportRequest(resource_spans=[b"x" * 100_000]).SerializeToString()
    more = framed(calls[:100], "web.acme", 60)
    assert unpacked_bytes(packed_spans(spans, "web.acme", 1) + more) == len(spans) + len(more)


@given(st.binary(max_size=200), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=4))
def test_whatever_a_span_says_no_call_is_out_of_bounds(text: bytes, numbers: list[int]) -> None:
    names = [name for names in (["input_tokens"], ["output_tokens"], ["cache_read.input_tokens"]) for name in names]
    said: dict[str, Any] = {f"gen_ai.usage.{name}": number for name, number in zip(names, numbers, strict=False)}
    said["gen_ai.request.model"] = AnyValue(string_value=text.decode(errors="replace"))
    call = call_of(span(said))
    assert call is not None
    assert call.model in ("", OTHER) or call.model.isascii()
    counts = (call.input_tokens, call.cached_tokens, call.cache_write_tokens, call.output_tokens)
    assert max(counts) <= MAX_TOKENS
    assert call.cached_tokens + call.cache_write_tokens <= call.input_tokens
