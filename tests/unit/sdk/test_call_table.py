"""Tables of calls: what was written is read, and what cannot be a table is refused as a whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.sdk.red.call_table import Row, Table, rows_of
from meshwarden.sdk.red.histogram import LIMITS_S
from meshwarden.v1.report_pb2 import CallTable, Exemplar

exemplars = st.builds(Exemplar, trace_id=st.just(b"t" * 16), span_id=st.just(b"s" * 8), duration_s=st.floats(0, 10))
rows = st.builds(
    Row,
    kind=st.binary(max_size=20),
    calls=st.integers(1, 2**64 - 1),
    duration_sum_s=st.floats(0, 1e9),
    durations=st.dictionaries(st.integers(0, len(LIMITS_S)), st.integers(1, 2**40), max_size=6),
    exemplars=st.lists(exemplars, max_size=4).map(tuple),
)


@given(st.lists(rows, max_size=8), st.integers(0, 2**40))
def test_what_was_written_is_read(written: list[Row], minute_s: int) -> None:
    table = Table(minute_s)
    for row in written:
        table.add(row)
    message = CallTable.FromString(table.message().SerializeToString())
    assert message.minute_s == minute_s
    assert list(rows_of(message)) == written
    assert (table.rows, table.calls) == (len(written), sum(row.calls for row in written))


def test_its_size_is_about_that_of_the_message() -> None:
    table = Table(1_790_000_000)
    for number in range(1000):
        table.add(Row(b"k" * 100, 10**6, 123.0, dict.fromkeys(range(number % 80), 1000)))
    assert table.message().ByteSize() <= table.size_bytes <= table.message().ByteSize() * 1.3


FITS = {
    "kinds": [b"k"],
    "counts": [3],
    "duration_sums_s": [0.1],
    "sizes": [2],
    "buckets": [1, 2],
    "bucket_counts": [1, 2],
}


@pytest.mark.parametrize(
    "changes",
    [
        {"kinds": []},
        {"counts": [3, 3]},
        {"duration_sums_s": []},
        {"sizes": [1]},
        {"sizes": [2, 0]},
        {"sizes": [2**32 - 1]},
        {"buckets": [1]},
        {"buckets": [1, 1]},
        {"buckets": [1, len(LIMITS_S) + 1]},
        {"bucket_counts": [1, 0]},
        {"bucket_counts": [1, 2, 3]},
        {"exemplars": [Exemplar()]},
        {"exemplar_rows": [0]},
        {"exemplars": [Exemplar()], "exemplar_rows": [1]},
        {"exemplars": [Exemplar()] * 5, "exemplar_rows": [0] * 5},
    ],
)
def test_columns_that_do_not_fit_together_are_no_table(changes: dict[str, list[object]]) -> None:
    assert len(list(rows_of(CallTable(**FITS)))) == 1  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"."):
        rows_of(CallTable(**{**FITS, **changes}))  # type: ignore[arg-type]


numbers = st.lists(st.sampled_from([0, 1, 2, 3, 1000, 2**32 - 1]), max_size=4)


@given(numbers, numbers, numbers, numbers, numbers, st.lists(st.floats(), max_size=4))
def test_no_columns_break_it(
    counts: list[int],
    sizes: list[int],
    buckets: list[int],
    bucket_counts: list[int],
    exemplar_rows: list[int],
    sums_s: list[float],
) -> None:
    table = CallTable(
        kinds=[b"k"] * len(counts),
        counts=counts,
        duration_sums_s=sums_s,
        sizes=sizes,
        buckets=buckets,
        bucket_counts=bucket_counts,
        exemplars=[Exemplar()] * len(exemplar_rows),
        exemplar_rows=exemplar_rows,
    )
    try:
        found = list(rows_of(table))
    except ValueError:
        return
    assert [row.calls for row in found] == counts
    assert sum(len(row.durations) for row in found) == len(buckets)
