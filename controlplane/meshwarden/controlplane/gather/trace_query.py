"""What one asks recent traces: which there are, and what is in one of them; each asker sees some tenants' spans alone.

What one answer reads and holds is bounded; it says where to go on, or how much is left out.
"""

import heapq
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import apsw
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from meshwarden.controlplane.gather.trace_block import Row, ids_in, keys_of, read_rows, read_spans
from meshwarden.controlplane.gather.trace_part import MAX_NS, TRACE_ID_BYTES, Owner, Part, merged, owner_of
from meshwarden.v1 import admin_service_pb2 as v1

# Rows that one page looks at, bytes of blocks that are read for a trace, and of spans that are answered.
MAX_LOOKED_AT: Final = 100_000
MAX_READ_BYTES: Final = 64 << 20
MAX_ANSWER_BYTES: Final = 3 << 20
_KINDS: Final = {
    Span.SPAN_KIND_INTERNAL: "internal",
    Span.SPAN_KIND_SERVER: "server",
    Span.SPAN_KIND_CLIENT: "client",
    Span.SPAN_KIND_PRODUCER: "producer",
    Span.SPAN_KIND_CONSUMER: "consumer",
}
_TOKEN: Final = re.compile(r"(\d{1,19})\.(\d{1,19})\.([0-9a-f]{32})")
_OWNERS: Final = "SELECT id, tenant, service FROM trace_owners"
_BLOCKS: Final = """
SELECT id, newest_ns, parts FROM trace_blocks
WHERE newest_ns >= ? AND oldest_ns <= ? AND tenant IN (SELECT value FROM json_each(?)) ORDER BY newest_ns DESC
"""
_IDS: Final = "SELECT owner, block, ids FROM trace_ids WHERE trace = ?"
_ROWS: Final = "SELECT parts FROM trace_blocks WHERE id = ?"
_BODY: Final = "SELECT body FROM trace_blocks WHERE id = ?"
_ROWS_KEPT: Final = 64

Sees = Callable[[str], bool]
"""Whether the asker may see the spans of a tenant; the mesh's own have none: ""."""


class Place(NamedTuple):
    """Where a page ends: the last part that was looked at."""

    start_ns: int
    owner: int
    trace_id: bytes

    @classmethod
    def parse(cls, token: str) -> "Place":
        """Reads what `str` of a place says.

        Raises:
            ValueError: it is none.
        """
        start, owner, trace_id = found.groups() if (found := _TOKEN.fullmatch(token)) else ("-1", "-1", "")
        if not 0 <= int(start) < MAX_NS or not 0 <= int(owner) < MAX_NS:
            raise ValueError(f"{token!r} is no page token")
        return cls(int(start), int(owner), bytes.fromhex(trace_id))

    def __str__(self) -> str:
        return f"{self.start_ns}.{self.owner}.{self.trace_id.hex()}"


Page = tuple[list[v1.TraceSummary], Place | None]
"""Some traces, and where to go on."""


@dataclass(frozen=True)
class Question:
    """Which traces: those where one service's part is as all of this says.

    Attributes:
        service: "", "<service>" or "<tenant>/<service>".
        failed: whether a span of it must have failed.
        longest_ns: how long a span of it must have taken.
        start_ns: it began no earlier than this.
        end_ns: and no later.
    """

    service: str
    failed: bool
    longest_ns: int
    start_ns: int
    end_ns: int

    def is_of(self, owner: Owner) -> bool:
        """Whether a service's parts can be meant."""
        return self.service in ("", owner[1], titled(owner))

    def takes(self, start_ns: int, errors: int, longest_ns: int) -> bool:
        """Whether a part is meant."""
        is_within = self.start_ns <= start_ns <= self.end_ns
        return is_within and longest_ns >= self.longest_ns and (errors > 0 or not self.failed)


def nanoseconds(moment: datetime) -> int:
    """The nanoseconds from 1970 until then, as far as SQLite can hold them."""
    return min(max(0, int(moment.timestamp()) * 10**9 + moment.microsecond * 1000), MAX_NS - 1)


def titled(owner: Owner) -> str:
    """A service's name for people."""
    return "/".join(filter(None, owner))


def search(db: apsw.Connection, question: Question, sees: Sees, most: int, after: Place | None) -> Page:
    """Returns traces, the newest first, and where to go on."""
    owners = _owners(db, sees)
    meant = {number for number, owner in owners.items() if question.is_of(owner)}
    blocks = _Blocks(db)
    found: list[v1.TraceSummary] = []
    tenants = {owners[number][0] for number in meant}
    newest = _newest(db, blocks, tenants, meant, question, after)
    for looked_at, place in enumerate(newest, 1):
        parts = blocks.parts(place.trace_id, owners)
        # A trace stands where the newest of what was asked for does.
        places = [
            (part.start_ns, of)
            for of, part in parts.items()
            if of in meant and question.takes(part.start_ns, part.errors, part.longest_ns)
        ]
        if (place.start_ns, place.owner) == max(places, default=None):
            found.append(_summary(place.trace_id, parts, owners))
        if len(found) == most or looked_at == MAX_LOOKED_AT:
            return found, place
    return found, None


def find(db: apsw.Connection, trace_id: bytes, sees: Sees) -> v1.GetTraceResponse | None:
    """Returns what the asker sees of a trace; None if that is nothing."""
    owners = _owners(db, sees)
    missing: dict[int, dict[Owner, set[bytes]]] = {}
    rows: list[Any] = db.execute(_IDS, tuple(keys_of([trace_id]))).fetchall()
    for number, block, ids in rows:
        if number in owners:
            missing.setdefault(block, {})[owners[number]] = set(ids_in(ids))
    if not missing:
        return None
    known = frozenset[bytes]().union(*(ids for of_block in missing.values() for ids in of_block.values()))
    count = sum(len(ids) for of_block in missing.values() for ids in of_block.values())
    found = sorted(_spans(db, trace_id, missing), key=lambda item: item[1].start_time_unix_nano)
    answer = v1.GetTraceResponse()
    size = 0
    for resource, span in found:
        shown = _shown(resource, span, known)
        size += shown.ByteSize()
        if size > MAX_ANSWER_BYTES:
            break
        answer.spans.append(shown)
    answer.omitted = count - len(answer.spans)
    answer.incomplete = answer.omitted > 0 or any(span.parent_missing for span in answer.spans)
    return answer


class _Blocks:
    """The parts in blocks, of which some are kept in memory while a question is answered."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self._kept: dict[int, list[Row]] = {}

    def keep(self, block: int, packed: bytes) -> list[Row]:
        """Reads a block's parts."""
        while len(self._kept) >= _ROWS_KEPT:
            del self._kept[next(iter(self._kept))]
        rows = self._kept[block] = read_rows(packed)
        return rows

    def parts(self, trace_id: bytes, owners: Collection[int]) -> dict[int, Part]:
        """The parts of a trace that some have in it, `{owner: part}`."""
        found: dict[int, list[Part]] = {}
        ids: list[Any] = self._db.execute(_IDS, tuple(keys_of([trace_id]))).fetchall()
        for block in sorted({block for number, block, _ in ids if number in owners}):
            for row in self._rows(block):
                if row.trace_id == trace_id and row.owner in owners:
                    found.setdefault(row.owner, []).append(row.part)
        return {number: merged(parts) for number, parts in found.items()}

    def _rows(self, block: int) -> list[Row]:
        if block in self._kept:
            return self._kept[block]
        packed: Any = self._db.execute(_ROWS, (block,)).fetchone()
        return self.keep(block, packed[0]) if packed is not None else []


def _owners(db: apsw.Connection, sees: Sees) -> dict[int, Owner]:
    rows: list[Any] = db.execute(_OWNERS).fetchall()
    return {number: (tenant, service) for number, tenant, service in rows if sees(tenant)}


def _newest(
    db: apsw.Connection,
    blocks: _Blocks,
    tenants: Collection[str],
    owners: Collection[int],
    question: Question,
    after: Place | None,
) -> Iterator[Place]:
    """The parts of owners, the newest first; one that lies in several blocks comes where each of them has it."""
    end = Place(question.end_ns + 1, 0, b"")
    before = min(after, end) if after is not None else end
    waiting: list[tuple[int, int, int]] = []
    last: Place | None = None
    rows = db.execute(_BLOCKS, (question.start_ns, before.start_ns, json.dumps(sorted(tenants))))
    for block, newest_ns, packed in itertools.chain(rows, [(0, -1, b"")]):
        # What is newer than all that is to come.
        while waiting and -waiting[0][0] > newest_ns:
            place = _place(heapq.heappop(waiting))
            if place != last:
                yield place
            last = place
        for row in blocks.keep(block, packed) if packed else ():
            place = Place(row.part.start_ns, row.owner, row.trace_id)
            if row.owner in owners and place < before and row.part.start_ns >= question.start_ns:
                heapq.heappush(waiting, _turned(place))


def _turned(place: Place) -> tuple[int, int, int]:
    """In the other order."""
    return -place.start_ns, -place.owner, -int.from_bytes(place.trace_id, "big")


def _place(turned: tuple[int, int, int]) -> Place:
    start, owner, trace_id = turned
    return Place(-start, -owner, (-trace_id).to_bytes(TRACE_ID_BYTES, "big"))


def _summary(trace_id: bytes, parts: Mapping[int, Part], owners: Mapping[int, Owner]) -> v1.TraceSummary:
    number, first = min(parts.items(), key=lambda item: (not item[1].is_root, item[1].start_ns))
    start_ns = min(part.start_ns for part in parts.values())
    summary = v1.TraceSummary(
        trace_id=trace_id.hex(),
        service=titled(owners[number]),
        name=first.name,
        spans=sum(part.spans for part in parts.values()),
        errors=sum(part.errors for part in parts.values()),
        services=sorted(titled(owners[of]) for of in parts),
    )
    summary.start.FromNanoseconds(start_ns)
    summary.duration.FromNanoseconds(max(part.end_ns for part in parts.values()) - start_ns)
    return summary


def _spans(
    db: apsw.Connection, trace_id: bytes, missing: Mapping[int, Mapping[Owner, set[bytes]]]
) -> Iterator[tuple[ResourceSpans, Span]]:
    """The spans of a trace that are wanted of each block, each once."""
    left_bytes = MAX_READ_BYTES
    for block, of_block in sorted(missing.items()):
        row: Any = db.execute(_BODY, (block,)).fetchone()
        if row is None:  # forgotten
            continue
        for resource in read_spans(row[0]):
            ids = of_block.get(owner_of(resource), set())
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                if span.trace_id == trace_id and span.span_id in ids:
                    ids.remove(span.span_id)
                    left_bytes -= span.ByteSize()
                    yield resource, span
        if left_bytes <= 0:
            return


def _shown(resource: ResourceSpans, span: Span, known: Collection[bytes]) -> v1.TraceSpan:
    place = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    shown = v1.TraceSpan(
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        name=span.name,
        kind=_KINDS.get(span.kind, ""),
        service=titled(owner_of(resource)),
        node=place.get("mesh.node", ""),
        region=place.get("mesh.region", ""),
        status=v1.TraceSpan.Status.ValueType(span.status.code if span.status.code in (0, 1, 2) else 0),
        status_message=span.status.message,
        attributes=_texts(span.attributes),
        parent_missing=bool(span.parent_span_id) and span.parent_span_id not in known,
    )
    shown.start.FromNanoseconds(span.start_time_unix_nano)
    shown.duration.FromNanoseconds(max(0, span.end_time_unix_nano - span.start_time_unix_nano))
    for event in span.events:
        shown.events.add(name=event.name, attributes=_texts(event.attributes)).time.FromNanoseconds(
            event.time_unix_nano
        )
    for link in span.links:
        ids = {"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex()}
        shown.links.add(**ids, attributes=_texts(link.attributes))
    return shown


def _texts(pairs: Iterable[KeyValue]) -> dict[str, str]:
    return {pair.key: _text(_plain(pair.value)) for pair in pairs}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(value: AnyValue) -> Any:
    """The value as JSON has it; what protobuf has read is nested no deeper than 100 levels."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _plain(pair.value) for pair in value.kvlist_value.values}
    if kind == "bytes_value":
        return value.bytes_value.hex()
    return getattr(value, kind) if kind else None
