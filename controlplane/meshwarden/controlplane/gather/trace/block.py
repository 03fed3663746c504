"""A block of spans as it lies in the file: the spans, and what each part in it is, column by column.

Columns compress better than rows, are written by a few calls whatever their number, and those that a question isn't
about need not be read.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, TracesData

from meshwarden.controlplane.gather.pack import pack, unpack
from meshwarden.controlplane.gather.trace.part import TRACE_ID_BYTES, Part

_COUNT: Final = struct.Struct("<I")
# Of the columns behind the trace ids and before the names: what each number of them takes.
_COLUMNS: Final = ("I", "q", "q", "q", "I", "I", "?")
_OWNER, _START, _LONGEST, _ERRORS = 0, 1, 3, 5


class Row(NamedTuple):
    """A part in a block; `owner` is the number of the one whose it is."""

    trace_id: bytes
    owner: int
    part: Part


def read_spans(body: bytes) -> Sequence[ResourceSpans]:
    """The spans in a block."""
    return TracesData.FromString(unpack(body)).resource_spans


def pack_rows(rows: Sequence[Row]) -> bytes:
    """The parts in a block, at least one, as they lie in the file."""
    trace_ids, owners, parts = zip(*rows, strict=True)
    *numbers, names = zip(*parts, strict=True)
    columns = [owners, *numbers]
    numbered = [struct.pack(f"<{len(rows)}{kind}", *column) for kind, column in zip(_COLUMNS, columns, strict=True)]
    said = json.dumps(names, ensure_ascii=False).encode()
    return pack(b"".join((_COUNT.pack(len(rows)), *trace_ids, *numbered, said)))


class Rows:
    """The parts in a block, as they lie in the file: a column is read when it is asked for."""

    def __init__(self, packed: bytes) -> None:
        """Takes what `pack_rows` has made."""
        self._content = unpack(packed)
        self._count: int = _COUNT.unpack_from(self._content)[0]
        self._ids_end: int = _COUNT.size + self._count * TRACE_ID_BYTES
        self._columns: dict[int, tuple[Any, ...]] = {}
        self._names: list[str] | None = None

    def __iter__(self) -> Iterator[Row]:
        return map(self.row, range(self._count))

    def row(self, number: int) -> Row:
        """One of them."""
        owner, *numbers = [self._column(at)[number] for at in range(len(_COLUMNS))]
        if self._names is None:
            self._names = json.loads(self._content[self._start(len(_COLUMNS)) :])
        return Row(self._trace_id(number), owner, Part._make([*numbers, self._names[number]]))

    def of(self, trace_id: bytes) -> Iterator[Row]:
        """Those of a trace."""
        at = self._content.find(trace_id, _COUNT.size, self._ids_end)
        while at >= 0:
            number, rest = divmod(at - _COUNT.size, TRACE_ID_BYTES)
            if not rest:
                yield self.row(number)
            at = self._content.find(trace_id, at + 1, self._ids_end)

    def places(self, failed: bool, longest_ns: int) -> Iterator[tuple[int, int, bytes]]:
        """When and whose they are, and of which trace: those that have one of what is asked for, or all.

        Args:
            failed: with a span that failed.
            longest_ns: with a span that took so long.
        """
        numbers: Iterable[int] = range(self._count)
        if failed or longest_ns:
            errors, longest = self._column(_ERRORS), self._column(_LONGEST)
            numbers = [
                number
                for number in numbers
                if (failed and errors[number]) or (longest_ns and longest[number] >= longest_ns)
            ]
        owners, starts = self._column(_OWNER), self._column(_START)
        return ((starts[number], owners[number], self._trace_id(number)) for number in numbers)

    def _trace_id(self, number: int) -> bytes:
        at = _COUNT.size + number * TRACE_ID_BYTES
        return self._content[at : at + TRACE_ID_BYTES]

    def _column(self, at: int) -> tuple[Any, ...]:
        if at not in self._columns:
            self._columns[at] = struct.unpack_from(f"<{self._count}{_COLUMNS[at]}", self._content, self._start(at))
        return self._columns[at]

    def _start(self, column: int) -> int:
        width = struct.calcsize(f"<{''.join(_COLUMNS[:column])}")
        return self._ids_end + self._count * width


def keys_of(trace_ids: Sequence[bytes]) -> list[int]:
    """What traces are looked up by: both halves of an id, since some fill one of them with zeros.

    Two traces may have one key: whoever makes such ids up mixes up spans of its own.
    """
    halves = struct.unpack(f"<{len(trace_ids) * 2}q", b"".join(trace_ids))
    return [left ^ right for left, right in zip(halves[::2], halves[1::2], strict=True)]


def ids_in(ids: bytes) -> Iterator[bytes]:
    """Span ids that lie one behind the other."""
    return (ids[at : at + 8] for at in range(0, len(ids), 8))
