"""Counts in bounded memory."""

import threading
from datetime import UTC, datetime, timedelta

from tests.counted import stats_of

from meshwarden.sdk.red.count import MAX_METHODS, MAX_STATS, OTHER, Call, Counter
from meshwarden.sdk.red.histogram import BOUNDS_S, folded, from_proto
from meshwarden.v1.report_pb2 import CallStat

START = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC)


def call(method: str = "/a/B", status: str = "OK") -> Call:
    return Call("spiffe://m/x", "platform/orders", method, status, CallStat.ALLOWED, CallStat.SOURCE, 7)


def counter() -> Counter:
    """One whose calls end at 0 by its clock, so that those that began at -0.1 took 0.1 s."""
    return Counter(lambda: START, lambda: 0.0)


def test_calls_add_up_by_key_minute_and_bucket() -> None:
    counts = counter()
    for duration_s in (0.005, 0.0051, 11.0):
        counts.add(call(), -duration_s)
    counts.add(call(status="UNKNOWN"), -0.1)
    ok, unknown = stats_of(counts.take())
    assert (ok.count, ok.status, ok.revision, ok.destination) == (3, "OK", 7, "platform/orders")
    assert ok.minute.ToDatetime(tzinfo=UTC) == START.replace(second=0)
    assert folded(from_proto(ok.durations)) == [1, 1, *[0] * (len(BOUNDS_S) - 2), 1]
    assert round(ok.duration_sum_s, 4) == 11.0101
    assert unknown.count == 1
    assert stats_of(counts.take()) == []


def test_another_minute_is_another_count() -> None:
    now_s = [0.0]
    counts = Counter(lambda: START + timedelta(seconds=now_s[0]), lambda: now_s[0])
    for now_s[0] in (29.0, 29.9, 30.1, 90.1):  # what began before a minute ends in it
        counts.add(call(), now_s[0] - 0.5)
    now_s[0] = 200.0
    assert [(stat.minute.seconds - START.timestamp(), stat.count) for stat in stats_of(counts.take())] == [
        (-30, 2), (30, 1), (90, 1)
    ]  # fmt: skip


def test_a_clock_that_is_set_is_believed_from_the_next_look_on() -> None:
    now = [START]
    counts = Counter(lambda: now[0], lambda: 0.0)
    counts.add(call(), -0.1)
    now[0] += timedelta(days=1)
    (stat,) = stats_of(counts.take())
    assert stat.minute.ToDatetime(tzinfo=UTC) == now[0].replace(second=0)


def test_methods_without_end_become_one() -> None:
    counts = counter()
    for number in range(MAX_METHODS + 50):
        counts.add(call(f"/a/{number}"), -0.1)
    counts.add(call("/" + "x" * 1000), -0.1)
    stats = {stat.method: stat.count for stat in stats_of(counts.take())}
    assert len(stats) == MAX_METHODS + 1
    assert stats[OTHER] == 51


def test_what_there_is_no_room_for_is_dropped_and_counted() -> None:
    counts = counter()
    for number in range(MAX_STATS + 3):
        counts.add(call(status=str(number)), -0.1)
    assert counts.dropped == 3
    assert len(stats_of(counts.take())) == MAX_STATS


def test_threads_lose_no_call() -> None:
    counts = counter()

    def work() -> None:
        for _ in range(2000):
            counts.add(call(), -0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(stat.count for stat in stats_of(counts.take())) == 8000


def test_tables_stay_below_what_an_agent_takes() -> None:
    counts = counter()
    for number in range(MAX_STATS):
        counts.add(call("/" + "x" * 500, status=str(number)), -0.1)
    tables = counts.take()
    assert len(tables) > 2
    assert all(table.ByteSize() < 600_000 for table in tables)
    assert sum(len(table.kinds) for table in tables) == MAX_STATS
