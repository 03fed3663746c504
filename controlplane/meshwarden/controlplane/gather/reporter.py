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

    def believed(self, batch: ExportRequest) -> tuple[list[Call], Counter[str]]:
        """Takes the counts of a batch as far as they may be told.

        Returns:
            The calls, those of one kind and minute together, and how many others were refused: `{reason: calls}`.
        """
        found, rows = _Found(self, self.now.timestamp()), 0
        for table in batch.call_tables:
            rows += len(table.kinds)
            found.add_table(table, is_bounded=rows <= MAX_ROWS)
        for stat in batch.calls:
            found.add_stat(stat)
        return [of.call(kind, minute_s) for (_, minute_s, _), (kind, of) in found.sums.items()], found.refused


@dataclass(slots=True)
class _Found:
    """What is found in a batch so far."""

    reporter: Reporter
    now_s: float
    sums: dict[_Key, tuple[Kind, Sum]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)

    def add_table(self, table: CallTable, *, is_bounded: bool) -> None:
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
            try:
                kind = (_known if len(serialised) <= _KIND_BYTES else _read)(serialised, domain, region)
                if isinstance(kind, str):
                    raise Refused(kind)
                more = Sum(count, sum_s, durations, exemplars)
                more.check(MAX_COUNT)
                self._add((serialised, minute_s, bool(durations)), kind, more)
            except Refused as refused:
                self._refuse(refused.reason, count)

    def add_stat(self, stat: CallStat) -> None:
        try:
            more = read_sum(stat, MAX_COUNT)
            kind = read_kind(stat, self.reporter.trust_domain, self.reporter.region)
            self._add((kind, stat.minute.seconds, bool(more.durations)), kind, more)
        except Refused as refused:
            self._refuse(refused.reason, stat.count)

    def _add(self, key: _Key, kind: Kind, more: Sum) -> None:
        if more.durations and sum(more.durations.values()) != more.count:
            raise Refused("malformed")
        known = self.sums.get(key)
        if known is not None:
            known[1].add(more)
            return
        if not self.reporter.owns(self.reporter.node, *kind.own):
            raise Refused("not_owned")
        minute_s = key[1] - key[1] % 60
        if not -OLDEST.total_seconds() <= minute_s - self.now_s <= NEWEST.total_seconds():
            raise Refused("out_of_time")
        self.sums[key] = (kind, more)

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
