"""Counts of calls as a table, which is how programs and agents send them up: written row by row, read column by column.

Errors: ValueError, for a table that another has sent.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from meshwarden.sdk.red.exemplar import MOST
from meshwarden.sdk.red.histogram import LIMITS_S
from meshwarden.v1 import report_pb2 as pb

_ROW_BYTES: Final = 16
_BUCKET_BYTES: Final = 4
_EXEMPLAR_BYTES: Final = 64


class Row(NamedTuple):
    """Calls of one kind within the minute of their table.

    Attributes:
        kind: a serialised `CallStat` without minute, numbers and exemplars.
        calls: how many.
        duration_sum_s: how long they took together, in seconds.
        durations: how that is spread, `{bucket: calls}`, as `histogram` numbers them.
        exemplars: some of them.
    """

    kind: bytes
    calls: int
    duration_sum_s: float
    durations: dict[int, int]
    exemplars: tuple[pb.Exemplar, ...] = ()


class Table:
    """A table that is being written."""

    def __init__(self, minute_s: int) -> None:
        """Starts without rows; `minute_s` is the beginning of the minute, in seconds since 1970."""
        self._minute_s = minute_s
        self._rows: list[Row] = []
        self.size_bytes = 0
        """How large the message is, about."""
        self.calls = 0
        """How many there are in all rows."""

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self._rows)

    def add(self, row: Row) -> None:
        """Adds a row."""
        self._rows.append(row)
        self.calls += row.calls
        self.size_bytes += _ROW_BYTES + len(row.kind) + _BUCKET_BYTES * len(row.durations)
        self.size_bytes += _EXEMPLAR_BYTES * len(row.exemplars)

    def message(self) -> pb.CallTable:
        """Returns it as a message."""
        kinds, counts, sums, durations, _ = zip(*self._rows, strict=True) if self._rows else ((),) * 5
        table = pb.CallTable(
            minute_s=self._minute_s,
            kinds=kinds,
            counts=counts,
            duration_sums_s=sums,
            sizes=list(map(len, durations)),
            buckets=[bucket for of_row in durations for bucket in of_row],
            bucket_counts=[count for of_row in durations for count in of_row.values()],
        )
        for number, row in enumerate(self._rows):
            for exemplar in row.exemplars:
                table.exemplars.append(exemplar)
                table.exemplar_rows.append(number)
        return table


def rows_of(table: pb.CallTable) -> Iterator[Row]:
    """Returns the rows of a table.

    Raises:
        ValueError: its columns don't fit together, or what they say of durations isn't how durations are spread.
    """
    # Sliced: protobuf makes a list of a column at once, and takes several times as long to hand it out one by one.
    sizes, buckets, bucket_counts = table.sizes[:], table.buckets[:], table.bucket_counts[:]
    columns = (table.kinds[:], table.counts[:], table.duration_sums_s[:])
    if {len(column) for column in columns} != {len(sizes)}:
        raise ValueError("columns of different lengths")
    if not sum(sizes) == len(buckets) == len(bucket_counts):
        raise ValueError("sizes that don't add up")
    if buckets and (max(buckets) > len(LIMITS_S) or min(bucket_counts) < 1):
        raise ValueError(f"buckets are numbered 0 to {len(LIMITS_S)} and counts are positive")
    durations = list(_durations(sizes, buckets, bucket_counts))
    if sum(map(len, durations)) != len(buckets):
        raise ValueError("a bucket is there twice")
    return map(Row, *columns, durations, exemplars_of(table, len(sizes)))


def _durations(sizes: list[int], buckets: list[int], counts: list[int]) -> Iterator[dict[int, int]]:
    start = 0
    for size in sizes:
        if size == 1:
            yield {buckets[start]: counts[start]}
        else:
            yield dict(zip(buckets[start : start + size], counts[start : start + size], strict=True))
        start += size


def exemplars_of(table: pb.CallTable, rows: int) -> Sequence[tuple[pb.Exemplar, ...]]:
    """Returns those of each row of a table of so many.

    Raises:
        ValueError: one is of no row, or a row has too many.
    """
    found: list[tuple[pb.Exemplar, ...]] = [()] * rows
    if len(table.exemplars) != len(table.exemplar_rows):
        raise ValueError("exemplars without rows")
    for number, exemplar in zip(table.exemplar_rows, table.exemplars, strict=True):
        if number >= rows or len(found[number]) >= MOST:
            raise ValueError(f"an exemplar of no row, or of one that has {MOST}")
        found[number] = (*found[number], exemplar)
    return found
