"""What tail sampling knows of traces that nobody has decided on, and how what goes on is cut out of messages."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from meshwarden.controlplane.gather.trace.part import is_sound
from meshwarden.controlplane.gather.trace.state import passed, says_randomness

SPAN_BYTES: Final = 1024
"""What a span that waits takes beside its bytes, about, if it is alone in its trace."""


@dataclass(slots=True, eq=False)
class Row:
    """A message with spans that wait.

    Attributes:
        id: its number in the file.
        tenant: whose it is.
        body: a serialised `ResourceSpans`.
        size: what it takes, about.
        generation: of decisions, in which it came.
        waiting: how many spans of each trace wait.
    """

    id: int
    tenant: str
    body: bytes
    size: int
    generation: int
    waiting: Counter[bytes]


@dataclass(slots=True)
class Cut:
    """What is to be cut out of a message: `{trace id: whether it is kept as a whole}`, and how many spans they have."""

    settled: dict[bytes, bool] = field(default_factory=dict)
    count: int = 0


@dataclass(slots=True)
class Trace:
    """A trace that nobody has decided on.

    Attributes:
        since_s: when the first of it came.
        rows: the messages that it lies in.
        ids: its spans'.
        missing: ids of parents that are not there.
        has_root: whether a span without a parent is.
        has_randomness: whether a span may say what decides on it.
    """

    since_s: float
    rows: list[Row] = field(default_factory=list)
    ids: set[bytes] = field(default_factory=set)
    missing: set[bytes] = field(default_factory=set)
    has_root: bool = False
    has_randomness: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether the root is there and no span lacks its parent."""
        return self.has_root and not self.missing

    def add(self, span: Span) -> None:
        """Takes note of a span."""
        self.ids.add(span.span_id)
        self.missing.discard(span.span_id)
        parent = span.parent_span_id
        if not parent:
            self.has_root = True
        elif parent not in self.ids:
            self.missing.add(parent)
        if span.trace_state and says_randomness(span.trace_state):
            self.has_randomness = True


def cut_out(spans: ResourceSpans, settled: Mapping[bytes, bool], threshold: int) -> tuple[ResourceSpans, int]:
    """Copies what passes of some traces' spans, each with how likely it was to.

    Args:
        spans: all spans of a message; read only.
        settled: `{trace id: whether it is kept as a whole}`.
        threshold: what spans of the others must pass.

    Returns:
        The message, and how many spans are in it.
    """
    going = ResourceSpans(resource=spans.resource, schema_url=spans.schema_url)
    kept = 0
    for scope in spans.scope_spans:
        found = []
        for span in scope.spans:
            is_kept = settled.get(span.trace_id)
            if is_kept is None or not is_sound(span.trace_id, span.span_id):
                continue
            state = passed(span.trace_state, span.trace_id, 0 if is_kept else threshold)
            if state is not None:
                copy = Span()
                copy.CopyFrom(span)
                copy.trace_state = state
                found.append(copy)
        if found:
            kept += len(found)
            going.scope_spans.add(scope=scope.scope, schema_url=scope.schema_url, spans=found)
    return going, kept
