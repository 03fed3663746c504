"""Tables of counts, as tests look at them."""

from collections.abc import Iterable

from meshwarden.sdk.red.call_table import rows_of
from meshwarden.sdk.red.histogram import to_proto
from meshwarden.v1.report_pb2 import CallStat, CallTable


def stats_of(tables: Iterable[CallTable]) -> list[CallStat]:
    """What is in tables, each row as a count of its own."""
    found = []
    for table in tables:
        for row in rows_of(table):
            stat = CallStat.FromString(row.kind)
            said = {field.name for field, _ in stat.ListFields()}
            assert said.isdisjoint({"minute", "count", "duration_sum_s", "durations", "exemplars"})
            stat.minute.seconds, stat.count, stat.duration_sum_s = table.minute_s, row.calls, row.duration_sum_s
            stat.durations.CopyFrom(to_proto(row.durations))
            stat.exemplars.extend(row.exemplars)
            found.append(stat)
    return found
