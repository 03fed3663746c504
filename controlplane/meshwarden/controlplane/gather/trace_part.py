"""A part of a trace: what one service has in it, told from its spans.

A span is known by trace, service and span id: the ids in a trace are known to all whom it passes, so one service may
not use up another's.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status, TracesData

# One service's share of one trace; more would make the trace unreadable.
MAX_SPANS: Final = 10_000
MAX_BLOCKS: Final = 512
ID_BYTES: Final = 8
_TRACE_ID_BYTES: Final = 16
_NAME_CHARS: Final = 256
MAX_NS: Final = 2**63 - 1  # SQLite has no greater integers

Owner = tuple[str, str]
"""(tenant, service); the mesh's own parts have no tenant."""
PartKey = tuple[bytes, Owner]


class Part(NamedTuple):
    """What one service has in one trace; `ids` are its spans', `blocks` the numbers of the blocks that hold them."""

    start_ns: int
    end_ns: int
    longest_ns: int
    errors: int
    is_root: int
    name: str
    ids: bytes
    blocks: bytes


def owner_of(spans: ResourceSpans) -> Owner:
    """Whose spans these are, by what the control plane has written into them."""
    said = {pair.key: pair.value.string_value for pair in spans.resource.attributes}
    tenant = said.get("mesh.tenant", "")
    return tenant, said.get("mesh.service" if tenant else "service.name", "")


def by_part(items: Iterable[ResourceSpans]) -> dict[PartKey, list[Span]]:
    """The sound spans, by trace and owner. One without a trace id or an id of its own can't be found by anybody."""
    parts: dict[PartKey, list[Span]] = {}
    for item in items:
        owner = owner_of(item)
        for scope in item.scope_spans:
            for span in scope.spans:
                if is_sound(span.trace_id, span.span_id):
                    parts.setdefault((span.trace_id, owner), []).append(span)
    return parts


def is_sound(trace_id: bytes, span_id: bytes) -> bool:
    """Whether these are ids. Source: W3C Trace Context §3.2.2."""
    return len(trace_id) == _TRACE_ID_BYTES and len(span_id) == ID_BYTES and any(trace_id) and any(span_id)


def read_block(body: bytes) -> Sequence[ResourceSpans]:
    """The spans in a block."""
    return TracesData.FromString(zlib.decompress(body)).resource_spans


def span_ids(part: Part) -> frozenset[bytes]:
    """The ids of a part's spans."""
    return frozenset(part.ids[at : at + ID_BYTES] for at in range(0, len(part.ids), ID_BYTES))


def block_numbers(part: Part) -> tuple[int, ...]:
    """The numbers of the blocks in which a part's spans lie."""
    return struct.unpack(f">{len(part.blocks) // 8}Q", part.blocks)


def grown(old: Part | None, spans: Sequence[Span], block: int, now_ns: int) -> tuple[Part | None, int, int]:
    """A part with spans added to it.

    Args:
        old: what there is of it.
        spans: what is to be added.
        block: where they lie.
        now_ns: the present: a clock that is ahead doesn't put a span before others for ever.

    Returns:
        The part; how many spans were there already, and how many it had no room for.
    """
    known = set(span_ids(old)) if old is not None else set()
    fresh: list[Span] = []
    repeated = too_many = 0
    has_room = old is None or len(old.blocks) // 8 < MAX_BLOCKS
    for span in spans:
        if span.span_id in known:
            repeated += 1
        elif not has_room or len(known) >= MAX_SPANS:
            too_many += 1
        else:
            known.add(span.span_id)
            fresh.append(span)
    if not fresh:
        return old, repeated, too_many
    return _merged(old, _summed(fresh, block, now_ns)), repeated, too_many


def _summed(spans: Sequence[Span], block: int, now_ns: int) -> Part:
    first = min(spans, key=lambda span: (bool(span.parent_span_id), span.start_time_unix_nano))
    starts = [min(span.start_time_unix_nano, now_ns) for span in spans]
    lengths = [min(max(0, span.end_time_unix_nano - span.start_time_unix_nano), MAX_NS) for span in spans]
    return Part(
        start_ns=min(starts),
        end_ns=min(max(map(sum, zip(starts, lengths, strict=True))), MAX_NS),
        longest_ns=max(lengths),
        errors=sum(span.status.code == Status.STATUS_CODE_ERROR for span in spans),
        is_root=int(not first.parent_span_id),
        name=first.name[:_NAME_CHARS],
        ids=b"".join(span.span_id for span in spans),
        blocks=struct.pack(">Q", block),
    )


def _merged(old: Part | None, new: Part) -> Part:
    if old is None:
        return new
    # What has no parent names the part; else what began first.
    named = min(old, new, key=lambda part: (not part.is_root, part.start_ns))
    return Part(
        start_ns=min(old.start_ns, new.start_ns),
        end_ns=max(old.end_ns, new.end_ns),
        longest_ns=max(old.longest_ns, new.longest_ns),
        errors=old.errors + new.errors,
        is_root=max(old.is_root, new.is_root),
        name=named.name,
        ids=old.ids + new.ids,
        blocks=old.blocks if old.blocks.endswith(new.blocks) else old.blocks + new.blocks,
    )
