"""Calls of generative models, read off the spans that tell of them: before any is dropped, and before any is sampled.

A program with our SDK sends the spans of such calls though their traces are not recorded, marked as UNSAMPLED: they are
read, and go no further.

One call has one span: of the client, or within a program that runs the model itself. What a server, an agent as a whole
or a tool says of tokens is the sum of what those spans say, and is left out.

Source: OpenTelemetry semantic conventions for generative AI 1.44 (development), and the names of earlier versions.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status

from meshwarden.sdk.tracing import wire
from meshwarden.sdk.tracing.unsampled import UNSAMPLED
from meshwarden.v1 import report_pb2 as pb

MAX_TOKENS: Final = 20_000_000
"""More than any model takes or gives in one call."""
OTHER: Final = "other"
"""Stands for a name that can be none."""
_PREFIX: Final = "gen_ai."
_MARK, _UNSAMPLED = _PREFIX.encode(), UNSAMPLED.encode()
_FIELD: Final = pb.ExportRequest.DESCRIPTOR.fields_by_name["model_calls"].number
# So many are less than a body may have.
_CALLS: Final = 1024
_KINDS: Final = frozenset({Span.SPAN_KIND_UNSPECIFIED, Span.SPAN_KIND_INTERNAL, Span.SPAN_KIND_CLIENT})
_OPERATION: Final = "gen_ai.operation.name"
_OPERATIONS: Final = frozenset({"chat", "text_completion", "generate_content", "embeddings"})
_PROVIDER: Final = ("gen_ai.provider.name", "gen_ai.system")
_MODEL: Final = ("gen_ai.response.model", "gen_ai.request.model")
_NAME: Final = re.compile(r"[A-Za-z0-9@~][A-Za-z0-9@~._:/+-]{0,127}")


class _Tokens(NamedTuple):
    """Where numbers of tokens stand, the newest name first."""

    input: tuple[str, ...] = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
    cached: tuple[str, ...] = (
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.cache_read_input_tokens",
        "gen_ai.usage.details.cache_read_tokens",
    )
    cache_write: tuple[str, ...] = (
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_creation_input_tokens",
        "gen_ai.usage.details.cache_write_tokens",
    )
    output: tuple[str, ...] = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")


_TOKENS: Final = _Tokens()


class Read(NamedTuple):
    """What was read of spans.

    Attributes:
        scopes: those that go on, without the spans that were made for their tokens alone.
        calls: what they tell of.
        gone: how many spans don't go on.
    """

    scopes: list[bytes]
    calls: list[pb.ModelCall]
    gone: int


class _Refused(Exception):
    """A number that can't be."""


def read(scopes: Sequence[bytes], is_late: Callable[[], bool]) -> Read:
    """Reads the calls that spans tell of.

    Args:
        scopes: serialised `ScopeSpans`, which protobuf can read.
        is_late: asked before each span that is read; those that are left then count as refused.
    """
    kept, calls, gone = list[bytes](), list[pb.ModelCall](), 0
    for scope in scopes:
        if _MARK not in scope:
            kept.append(scope)
            continue
        spans = wire.Scope.FromString(scope).spans[:]
        telling = [span for span in spans if _MARK in span]
        calls += _calls(telling, is_late)
        unsampled = {span for span in telling if _UNSAMPLED in span and _is_unsampled(Span.FromString(span))}
        left = [span for span in spans if span not in unsampled]
        gone += len(spans) - len(left)
        kept.append(_with_spans(scope, left) if unsampled else scope)
    return Read(kept, calls, gone)


def framed(calls: Sequence[pb.ModelCall], reporter: str, time_s: int) -> bytes:
    """The calls of a program as part of a serialised `ExportRequest`.

    Args:
        calls: the calls.
        reporter: what its telemetry says as `service.name`.
        time_s: the time, in seconds since 1970.
    """
    parts = (calls[start : start + _CALLS] for start in range(0, len(calls), _CALLS))
    bodies = (pb.ModelCalls(reporter=reporter, time_s=time_s, calls=part).SerializeToString() for part in parts)
    return wire.all_framed(_FIELD, bodies)


def _calls(spans: Iterable[bytes], is_late: Callable[[], bool]) -> Iterator[pb.ModelCall]:
    for span in spans:
        call = pb.ModelCall(refused=True) if is_late() else call_of(Span.FromString(span))
        if call is not None:
            yield call


def _is_unsampled(span: Span) -> bool:
    return any(pair.key == UNSAMPLED and pair.value.bool_value for pair in span.attributes)


def _with_spans(scope: bytes, spans: Sequence[bytes]) -> bytes:
    """A serialised `ScopeSpans` with these spans instead of its own."""
    about = ScopeSpans.FromString(scope)
    del about.spans[:]
    return bytes(about.SerializeToString()) + wire.all_framed(2, spans)


def call_of(span: Span) -> pb.ModelCall | None:
    """The call that a span tells of; None if it is of none, or of one that failed and took nothing."""
    if span.kind not in _KINDS:
        return None
    said = {pair.key: pair.value for pair in span.attributes if pair.key.startswith(_PREFIX)}
    operation = said[_OPERATION].string_value if _OPERATION in said else ""
    is_metered = any(name in said for names in (_TOKENS.input, _TOKENS.output) for name in names)
    if operation not in _OPERATIONS and (operation or not is_metered):
        return None
    if not is_metered and span.status.code == Status.STATUS_CODE_ERROR:
        return None
    call = pb.ModelCall(
        provider=_name(said, _PROVIDER),
        model=_name(said, _MODEL),
        id=_id(span.trace_id, span.span_id),
        parent_id=_id(span.trace_id, span.parent_span_id) if span.parent_span_id else 0,
        unmetered=not is_metered,
    )
    if is_metered:
        try:
            _put_tokens(call, said)
        except _Refused:
            call.refused = True
    return call


def _put_tokens(call: pb.ModelCall, said: dict[str, AnyValue]) -> None:
    whole, cached, written, output = (_count(said, names) for names in _TOKENS)
    if cached + written > whole:
        # What goes in includes what is cached, by the conventions; so it didn't for whoever wrote this.
        whole += cached + written
    if whole > MAX_TOKENS:
        raise _Refused
    call.input_tokens, call.cached_tokens, call.cache_write_tokens, call.output_tokens = whole, cached, written, output


def _count(said: dict[str, AnyValue], names: Sequence[str]) -> int:
    value: Any = next((said[name] for name in names if name in said), None)
    if value is None:
        return 0
    kind = value.WhichOneof("value")
    if kind == "double_value" and value.double_value.is_integer():  # NaN and infinity are none
        found = int(value.double_value)
    elif kind == "int_value":
        found = value.int_value
    else:
        raise _Refused
    if not 0 <= found <= MAX_TOKENS:
        raise _Refused
    return found


def _name(said: dict[str, AnyValue], names: Sequence[str]) -> str:
    text = next((text for name in names if name in said and (text := said[name].string_value)), "")
    return text if not text or _NAME.fullmatch(text) else OTHER


def _id(trace_id: bytes, span_id: bytes) -> int:
    return int.from_bytes(blake2b(trace_id + span_id, digest_size=8).digest(), "big")
