"""A block of spans as it lies in the file: the spans, and what each part in it is, column by column.

Columns compress better than rows, are written by a few calls whatever their number, and those that a question isn't
about need not be read.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, TracesData

from meshwarden.controlplane.gather.pack import pack, unpack
from meshwarden.controlplane.gather.trace_part import TRACE_ID_BYTES, Part

_COUNT: Final = struct.Struct("<I")
# Of the columns behind the trace ids and before the names: what each number of them takes.
_COLUMNS: Final = ("I", "q", "q", "q", "I", "I", "?")


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


def read_rows(packed: bytes) -> list[Row]:
    """The parts in a block."""
    content = unpack(packed)
    (count,) = _COUNT.unpack_from(content)
    at = _COUNT.size
    trace_ids = [content[start : start + TRACE_ID_BYTES] for start in range(at, at + count * TRACE_ID_BYTES, 16)]
    at += count * TRACE_ID_BYTES
    columns = []
    for kind in _COLUMNS:
        column = struct.Struct(f"<{count}{kind}")
        columns.append(column.unpack_from(content, at))
        at += column.size
    owners, *numbers = columns
    parts = map(Part, *numbers, json.loads(content[at:]))
    return list(map(Row, trace_ids, owners, parts))


def keys_of(trace_ids: Sequence[bytes]) -> list[int]:
    """What traces are looked up by: both halves of an id, since some fill one of them with zeros.

    Two traces may have one key: whoever makes such ids up mixes up spans of its own.
    """
    halves = struct.unpack(f"<{len(trace_ids) * 2}q", b"".join(trace_ids))
    return [left ^ right for left, right in zip(halves[::2], halves[1::2], strict=True)]


def ids_in(ids: bytes) -> Iterator[bytes]:
    """Span ids that lie one behind the other."""
    return (ids[at : at + 8] for at in range(0, len(ids), 8))
