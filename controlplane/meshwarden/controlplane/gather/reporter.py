"""Who reports, and what is believed of it: counts of calls of the node's own workloads, each kind of them added up."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Final

from google.protobuf.message import DecodeError

from meshwarden.controlplane.gather.call import (
    MAX_COUNT,
    NEWEST,
    OLDEST,
    Call,
    Kind,
    Owns,
    Refused,
    Sum,
    read_kind,
    read_sum,
)
from meshwarden.controlplane.resources.validate import rule_faults
from meshwarden.sdk.red.call_table import rows_of
from meshwarden.v1.report_pb2 import CallStat, CallTable, ExportRequest

MAX_ROWS: Final = 8192
"""How many counts a batch has at most in its tables."""
_KINDS_KEPT: Final = 16_384
# Longer ones are read each time: who makes them up takes no more memory than others.
_KIND_BYTES: Final = 512
_MOST_REFUSED: Final = 2**31

# What calls are of, as the agent says it, their minute, and whether it is said how their durations are spread: what is
# known of some calls is not known of all.
_Key = tuple[bytes | Kind, int, bool]


@dataclass(frozen=True, slots=True)
class Reporter:
    """Who reports, and when.

    Attributes:
        node: from its certificate.
        owns: tells whether a node has a workload entry of (node, tenant, service), with "" of any service.
        trust_domain: ours.
        region: the node's, which is ours.
        now: the time, aware.
    """

    node: str
    owns: Owns
    trust_domain: str
    region: str
    now: datetime


@dataclass(slots=True)
class Found:
    """The counts of a batch, as far as they may be told, those of one kind and minute together.

    Attributes:
        reporter: whose the batch is.
        refused: `{reason: calls}`.
    """

    reporter: Reporter
    refused: Counter[str] = field(default_factory=Counter)
    _sums: dict[_Key, tuple[Kind, Sum]] = field(default_factory=dict)
    _rows: int = 0

    def add(self, part: ExportRequest) -> None:
        """Takes in a part of the batch."""
        for table in part.call_tables:
            self._rows += len(table.kinds)
            self._add_table(table, is_bounded=self._rows <= MAX_ROWS)
        for stat in part.calls:
            self._add_stat(stat)

    def calls(self) -> list[Call]:
        """What is believed."""
        return [of.call(kind, minute_s) for (_, minute_s, _), (kind, of) in self._sums.items()]

    def _add_table(self, table: CallTable, *, is_bounded: bool) -> None:
        try:
            if not is_bounded:
                raise ValueError(f"more than {MAX_ROWS} counts")
            rows = list(rows_of(table))
        except ValueError:
            for count in table.counts[:]:
                self._refuse("malformed", count)
            return
        domain, region, minute_s = self.reporter.trust_domain, self.reporter.region, table.minute_s
        for serialised, count, sum_s, durations, exemplars in rows:
            key = (serialised, minute_s, bool(durations))
            more = Sum(count, sum_s, durations, exemplars)
            try:
                more.check(MAX_COUNT, is_whole=True)
                known = self._sums.get(key)
                if known is not None:  # as most are: they come with each report
                    known[1].add(more)
                    continue
                kind = (_known if len(serialised) <= _KIND_BYTES else _read)(serialised, domain, region)
                if isinstance(kind, str):
                    raise Refused(kind)
                self._add(key, kind, more)
            except Refused as refused:
                self._refuse(refused.reason, count)

    def _add_stat(self, stat: CallStat) -> None:
        try:
            more = read_sum(stat, MAX_COUNT)
            more.check(MAX_COUNT, is_whole=True)
            kind = read_kind(stat, self.reporter.trust_domain, self.reporter.region)
            key = (kind, stat.minute.seconds, bool(more.durations))
            known = self._sums.get(key)
            if known is None:
                self._add(key, kind, more)
            else:
                known[1].add(more)
        except Refused as refused:
            self._refuse(refused.reason, stat.count)

    def _add(self, key: _Key, kind: Kind, more: Sum) -> None:
        if not self.reporter.owns(self.reporter.node, *kind.own):
            raise Refused("not_owned")
        minute_s = key[1] - key[1] % 60
        if not -OLDEST.total_seconds() <= minute_s - self.reporter.now.timestamp() <= NEWEST.total_seconds():
            raise Refused("out_of_time")
        self._sums[key] = (kind, more)

    def _refuse(self, reason: str, count: int) -> None:
        self.refused[reason] += max(1, min(count, _MOST_REFUSED))


def _read(serialised: bytes, trust_domain: str, region: str) -> Kind | str:
    """Reads a kind of a table; or says why it is refused."""
    try:
        stat = CallStat.FromString(serialised)
        return "malformed" if rule_faults(stat) else read_kind(stat, trust_domain, region)
    except DecodeError:
        return "malformed"
    except Refused as refused:
        return refused.reason


# They come again with each batch.
_known = lru_cache(_KINDS_KEPT)(_read)
