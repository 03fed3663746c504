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

from meshwarden.controlplane.gather.trace.block import Rows, ids_in, keys_of, read_spans
from meshwarden.controlplane.gather.trace.part import MAX_NS, TRACE_ID_BYTES, Owner, Part, merged, owner_of
from meshwarden.v1 import admin_service_pb2 as v1

# Blocks that one page reads and traces that it looks at, bytes of blocks that are read for a trace, and of spans that
# are answered.
MAX_BLOCKS: Final = 5_000
MAX_LOOKED_AT: Final = 20_000
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
# How much later than the beginning of a service's part in a trace a block may begin that tells what was asked for.
_SPREAD_NS: Final = 600 * 10**9

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

    @property
    def is_picky(self) -> bool:
        """Whether it asks more of a part than when it began."""
        return self.failed or self.longest_ns > 0

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
    return _Search(db, question, sees, after).page(most)


def summaries(db: apsw.Connection, trace_ids: Iterable[bytes], sees: Sees) -> list[v1.TraceSummary]:
    """Returns what the asker sees of each trace, in their order; those of which that is nothing are left out."""
    search = _Search(db, Question("", failed=False, longest_ns=0, start_ns=0, end_ns=MAX_NS - 1), sees, None)
    return [found for trace_id in trace_ids if (found := search.summary(trace_id)) is not None]


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
    wanted = {(block, owner): len(ids) for block, of_block in missing.items() for owner, ids in of_block.items()}
    read: set[int] = set()
    found = sorted(_spans(db, trace_id, missing, read), key=lambda item: item[1].start_time_unix_nano)
    # Of a block that was read, what has nothing of this trace is of another with the same key.
    count = sum(
        number for (block, owner), number in wanted.items() if block not in read or len(missing[block][owner]) < number
    )
    if not count:
        return None
    answer = v1.GetTraceResponse(trace_id=trace_id.hex())
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


class _Search:
    """The traces that a question is about, from the newest on.

    A trace stands where the newest of what is asked for does: a service's part, with all that blocks have of it. What a
    block says of its own tells which parts may be meant; of others no more is read.
    """

    def __init__(self, db: apsw.Connection, question: Question, sees: Sees, after: Place | None) -> None:
        self._db, self._question = db, question
        self._owners = _owners(db, sees)
        self._meant = {number for number, owner in self._owners.items() if question.is_of(owner)}
        end = Place(question.end_ns + 1, 0, b"")
        self._before = min(after, end) if after is not None else end
        self._kept: dict[int, Rows] = {}
        # Where a trace may stand or, if so, does; the newest first.
        self._waiting: list[tuple[tuple[int, int, int], bool]] = []
        self._looked_at: set[bytes] = set()
        self._found: dict[bytes, dict[int, Part]] = {}

    def page(self, most: int) -> Page:
        """Returns traces, the newest first, and where to go on."""
        found: list[v1.TraceSummary] = []
        read = looked_at = 0
        last = self._before
        for block, newest_ns, packed in itertools.chain(self._blocks(), [(0, -1, b"")]):
            # What is newer than all that is to come.
            while self._waiting and -self._waiting[0][0][0] > newest_ns:
                turned, stands = heapq.heappop(self._waiting)
                place = _place(turned)
                if stands:
                    found.append(_summary(place.trace_id, self._found.pop(place.trace_id), self._owners))
                    if len(found) == most:
                        return found, place
                elif looked_at == MAX_LOOKED_AT:
                    return found, last
                elif place < self._before:
                    looked_at, last = looked_at + 1, place
                    self._look_at(place.trace_id)
                elif self._is_split(place):
                    self._look_at(place.trace_id)
            read += newest_ns < self._before.start_ns
            if read > MAX_BLOCKS:
                return found, Place(newest_ns + 1, 0, bytes(TRACE_ID_BYTES))
            if packed:
                self._take(self._keep(block, packed))
        return found, None

    def summary(self, trace_id: bytes) -> v1.TraceSummary | None:
        """Returns what the asker sees of a trace; None if that is nothing."""
        parts = self._parts(trace_id)
        return _summary(trace_id, parts, self._owners) if parts else None

    def _blocks(self) -> Iterator[tuple[int, int, bytes]]:
        tenants = sorted({self._owners[number][0] for number in self._meant})
        until_ns = min(self._before.start_ns + (_SPREAD_NS if self._question.is_picky else 0), MAX_NS)
        rows: Any = self._db.execute(_BLOCKS, (self._question.start_ns, until_ns, json.dumps(tenants)))
        yield from rows

    def _take(self, rows: Rows) -> None:
        """Keeps in mind which traces a block knows of."""
        question = self._question
        for place in map(Place._make, rows.places(question.failed, question.longest_ns)):
            # What has been asked for may be newer than the rest of its part, which stands further back.
            is_open = place < self._before or question.is_picky
            if place.owner in self._meant and is_open and place.start_ns >= question.start_ns:
                heapq.heappush(self._waiting, (_turned(place), False))

    def _is_split(self, place: Place) -> bool:
        """Whether other blocks have more of a part."""
        rows: list[Any] = self._db.execute(_IDS, tuple(keys_of([place.trace_id]))).fetchall()
        return [owner for owner, _, _ in rows].count(place.owner) > 1

    def _look_at(self, trace_id: bytes) -> None:
        """Keeps in mind where a trace stands, if it is on this page or a later one."""
        if trace_id in self._looked_at:
            return
        self._looked_at.add(trace_id)
        parts = self._parts(trace_id)
        places = [
            Place(part.start_ns, of, trace_id)
            for of, part in parts.items()
            if of in self._meant and self._question.takes(part.start_ns, part.errors, part.longest_ns)
        ]
        if places and max(places) < self._before:
            self._found[trace_id] = parts
            heapq.heappush(self._waiting, (_turned(max(places)), True))

    def _parts(self, trace_id: bytes) -> dict[int, Part]:
        """The parts of a trace that the asker may see, `{owner: part}`."""
        found: dict[int, list[Part]] = {}
        ids: list[Any] = self._db.execute(_IDS, tuple(keys_of([trace_id]))).fetchall()
        for block in sorted({block for number, block, _ in ids if number in self._owners}):
            rows = self._rows(block)
            for row in rows.of(trace_id) if rows is not None else ():
                if row.owner in self._owners:
                    found.setdefault(row.owner, []).append(row.part)
        return {number: merged(parts) for number, parts in found.items()}

    def _rows(self, block: int) -> Rows | None:
        if block in self._kept:
            return self._kept[block]
        packed: Any = self._db.execute(_ROWS, (block,)).fetchone()
        return self._keep(block, packed[0]) if packed is not None else None

    def _keep(self, block: int, packed: bytes) -> Rows:
        while len(self._kept) >= _ROWS_KEPT:
            del self._kept[next(iter(self._kept))]
        rows = self._kept[block] = Rows(packed)
        return rows


def _owners(db: apsw.Connection, sees: Sees) -> dict[int, Owner]:
    rows: list[Any] = db.execute(_OWNERS).fetchall()
    return {number: (tenant, service) for number, tenant, service in rows if sees(tenant)}


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
        incomplete=not any(part.is_root for part in parts.values()),
    )
    summary.start.FromNanoseconds(start_ns)
    summary.duration.FromNanoseconds(max(part.end_ns for part in parts.values()) - start_ns)
    return summary


def _spans(
    db: apsw.Connection, trace_id: bytes, missing: Mapping[int, Mapping[Owner, set[bytes]]], read: set[int]
) -> Iterator[tuple[ResourceSpans, Span]]:
    """The spans of a trace that are wanted of each block, each once; takes them out of `missing`, and notes blocks."""
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
        read.add(block)
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
