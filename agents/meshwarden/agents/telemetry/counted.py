"""Tables of counts that programs report: checked, stamped with whose they are, and passed on column by column.

What is counted comes again with each report and is known by its bytes; what its numbers say is asked of all rows at
once. Nobody's own side is the sender's word, nor is the minute.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, count, repeat
from operator import sub
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from meshwarden.agents.telemetry.aggregate import MAX_COUNT, MAX_DURATION_S, TABLE_BYTES, Aggregator, Said, tenant_of
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.sdk.red.call_table import Table, exemplars_of
from meshwarden.sdk.red.exemplar import is_sound
from meshwarden.sdk.red.histogram import LIMITS_S
from meshwarden.sdk.tracing.wire import framed
from meshwarden.v1 import report_pb2 as pb

_MAX_ROWS: Final = 4096
_LENGTHS: Final = {"source": 2048, "destination": 127, "method": 512, "status": 32, "dry_run": 144}
_FIELD: Final = pb.ExportRequest.DESCRIPTOR.fields_by_name["call_tables"].number
_MAX_KNOWN: Final = 4096
# Longer ones are read each time: who makes them up takes no more memory than others.
_KIND_BYTES: Final = 512


class InvalidTable(Exception):
    """A table is not taken; the message names the column."""


class Counted(NamedTuple):
    """A table as it goes into the spool.

    Attributes:
        payload: part of a serialised `ExportRequest`.
        calls: how many there are in all rows.
        rows: how many.
    """

    payload: bytes
    calls: int
    rows: int

    @classmethod
    def of(cls, table: Table) -> "Counted":
        """A table that the agent has made."""
        return cls(framed(_FIELD, table.message().SerializeToString()), table.calls, table.rows)


class Counts:
    """Takes the tables of programs of this node."""

    def __init__(self, aggregator: Aggregator) -> None:
        """`aggregator` knows what may be counted by which words."""
        self._aggregator = aggregator
        # {who reports: {a row's kind, as it says it: (what that says, the reporter's tenant)}}
        self._known: dict[SpiffeId, dict[bytes, tuple[Said, str]]] = {}
        self._size = 0

    def stamp(self, tables: Sequence[pb.CallTable], identity: SpiffeId) -> list[Counted]:
        """The tables of a report, with the reporter's own side filled in from who it is; they are changed.

        Raises:
            InvalidTable: something in one of them is out of bounds; then none is taken.
        """
        if len(tables) > _MAX_ROWS or sum(len(table.kinds) for table in tables) > _MAX_ROWS:
            raise InvalidTable(f"call_tables: more than {_MAX_ROWS} rows in a report")
        minute_s = self._aggregator.minute()
        return [self._stamped(table, identity, minute_s) for table in tables if table.kinds]

    def _stamped(self, table: pb.CallTable, identity: SpiffeId, minute_s: int) -> Counted:
        if table.ByteSize() > TABLE_BYTES:
            raise InvalidTable(f"call_tables: one of more than {TABLE_BYTES} bytes")
        said = table.kinds[:]
        calls = _check(table, len(said))
        known, kind = self._known.setdefault(identity, {}), self._aggregator.kind
        kinds = [kind(*(known.get(one) or self._read(one, identity, known))) for one in said]
        del table.kinds[:]
        table.kinds.extend(kinds)
        table.minute_s = minute_s
        table.DiscardUnknownFields()
        return Counted(framed(_FIELD, table.SerializeToString()), calls, len(kinds))

    def _read(self, kind: bytes, identity: SpiffeId, known: dict[bytes, tuple[Said, str]]) -> tuple[Said, str]:
        said = _said(kind, identity)
        tenant = tenant_of(said)
        if not tenant:
            raise InvalidTable("call_tables.kinds: there can be no such calls")
        if len(kind) <= _KIND_BYTES:
            if self._size >= _MAX_KNOWN:
                self._known.clear()
                known.clear()
                self._known[identity], self._size = known, 0
            known[kind] = (said, tenant)
            self._size += 1
        return said, tenant


def _said(kind: bytes, identity: SpiffeId) -> Said:
    try:
        stat = pb.CallStat.FromString(kind)
    except DecodeError:
        raise InvalidTable("call_tables.kinds: one that can't be read") from None
    for name, most in _LENGTHS.items():
        if len(getattr(stat, name)) > most:
            raise InvalidTable(f"call_tables.kinds: {name} longer than {most}")
    source, destination = stat.source, stat.destination
    if stat.reporter == pb.CallStat.SOURCE:
        source = str(identity)
    else:
        destination = f"{identity.tenant}/{identity.service}"
    return (source, destination, stat.method, stat.status, stat.decision, stat.reporter, stat.revision, stat.dry_run)


def _check(table: pb.CallTable, rows: int) -> int:
    """How many calls there are in a table of so many rows whose columns fit together.

    Raises:
        InvalidTable: they don't, or there can be no such numbers.
    """
    # Sliced: protobuf makes a list of a column at once, and takes several times as long to hand it out one by one.
    counts, sums, sizes = table.counts[:], table.duration_sums_s[:], table.sizes[:]
    buckets, bucket_counts = table.buckets[:], table.bucket_counts[:]
    if {len(column) for column in (counts, sums, sizes)} != {rows}:
        raise InvalidTable("call_tables: columns of different lengths")
    if not 0 < min(counts) <= max(counts) <= MAX_COUNT:
        raise InvalidTable(f"call_tables.counts: 1 to {MAX_COUNT}")
    # NaN is nowhere in between.
    if not all(0 <= sum_s <= calls * MAX_DURATION_S for sum_s, calls in zip(sums, counts, strict=True)):
        raise InvalidTable("call_tables.duration_sums_s: no such durations")
    if not sum(sizes) == len(buckets) == len(bucket_counts):
        raise InvalidTable("call_tables.sizes: they don't add up")
    if not buckets or max(buckets) > len(LIMITS_S) or min(bucket_counts) < 1:
        raise InvalidTable(f"call_tables.buckets: numbered 0 to {len(LIMITS_S)}, and none is empty")
    ends = [0, *accumulate(sizes)]
    before = list(map([0, *accumulate(bucket_counts)].__getitem__, ends))
    if list(map(sub, before[1:], before)) != counts:
        raise InvalidTable("call_tables.bucket_counts: not those of all calls of a row")
    if len(buckets) != rows and _repeat(sizes, buckets):  # as many as rows: one of each
        raise InvalidTable("call_tables.buckets: one is there twice")
    _check_exemplars(table, rows)
    return sum(counts)


def _repeat(sizes: Iterable[int], buckets: Sequence[int]) -> bool:
    """Whether a row has a bucket twice."""
    rows = chain.from_iterable(map(repeat, count(), sizes))
    return len(set(zip(rows, buckets, strict=True))) != len(buckets)


def _check_exemplars(table: Any, rows: int) -> None:
    try:
        exemplars_of(table, rows)
    except ValueError as error:
        raise InvalidTable(f"call_tables.exemplars: {error}") from None
    if not all(map(is_sound, table.exemplars)):
        raise InvalidTable("call_tables.exemplars: one that can't be")
