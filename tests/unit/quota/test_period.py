"""When an hour, a day and a month begin, whatever the clocks of a zone do."""

import itertools
import zoneinfo
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.quota.period import Kind, Period, period_of

KINDS: list[Kind] = ["HOUR", "DAY", "MONTH"]
# Clocks that move at midnight, by half an hour, over a whole day, twice a year or never.
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "America/Sao_Paulo",
    "Africa/Cairo",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Asia/Beirut",
    "Asia/Damascus",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Antarctica/Troll",
]


def said(kind: Kind, zone: str, at: str) -> tuple[str, float]:
    """When the period of a local time begins there, and how many hours it has."""
    period = period_of(kind, zone, datetime.fromisoformat(at).replace(tzinfo=ZoneInfo(zone)).timestamp())
    start = datetime.fromtimestamp(period.start_s, ZoneInfo(zone))
    return start.isoformat(timespec="minutes"), (period.end_s - period.start_s) / 3600


@pytest.mark.parametrize(
    ("kind", "zone", "at", "start", "hours"),
    [
        ("HOUR", "UTC", "2026-11-26T10:59:59", "2026-11-26T10:00+00:00", 1),
        ("HOUR", "Asia/Kolkata", "2026-11-26T10:10", "2026-11-26T10:00+05:30", 1),
        ("HOUR", "Australia/Lord_Howe", "2026-04-05T01:10", "2026-04-05T01:00+11:00", 1),
        ("DAY", "Europe/Berlin", "2026-03-29T12:00", "2026-03-29T00:00+01:00", 23),
        ("DAY", "Europe/Berlin", "2026-10-25T12:00", "2026-10-25T00:00+02:00", 25),
        ("DAY", "Africa/Cairo", "2026-04-24T12:00", "2026-04-24T01:00+03:00", 23),
        ("DAY", "Australia/Lord_Howe", "2026-04-05T12:00", "2026-04-05T00:00+11:00", 24.5),
        ("DAY", "Pacific/Apia", "2011-12-29T12:00", "2011-12-29T00:00-10:00", 24),
        ("MONTH", "UTC", "2028-02-29T12:00", "2028-02-01T00:00+00:00", 29 * 24),
        ("MONTH", "UTC", "2026-02-28T12:00", "2026-02-01T00:00+00:00", 28 * 24),
        ("MONTH", "UTC", "2100-02-28T12:00", "2100-02-01T00:00+00:00", 28 * 24),
        ("MONTH", "Europe/Berlin", "2026-03-31T12:00", "2026-03-01T00:00+01:00", 31 * 24 - 1),
        ("MONTH", "America/New_York", "2026-12-31T23:59", "2026-12-01T00:00-05:00", 31 * 24),
    ],
)
def test_periods_of_local_times(kind: Kind, zone: str, at: str, start: str, hours: float) -> None:
    assert said(kind, zone, at) == (start, hours)


@given(st.sampled_from(KINDS), st.sampled_from(ZONES), st.integers(0, 4_000_000_000), st.floats(0, 0.999))
def test_periods_follow_each_other_without_a_gap(kind: Kind, zone: str, second: int, part: float) -> None:
    at_s = second + part
    period = period_of(kind, zone, at_s)
    assert period.start_s <= at_s < period.end_s
    assert period_of(kind, zone, period.start_s) == period
    assert period_of(kind, zone, period.end_s - 0.5) == period
    assert period_of(kind, zone, period.end_s).start_s == period.end_s
    assert period_of(kind, zone, period.start_s - 0.5).end_s == period.start_s


@pytest.mark.parametrize("zone", ZONES)
def test_so_they_do_about_each_move_of_the_clocks(zone: str) -> None:
    place = ZoneInfo(zone)
    hours = [datetime(2010, 1, 1, tzinfo=UTC) + timedelta(hours=number) for number in range(0, 24 * 365 * 3, 12)]
    moved = [
        one.timestamp()
        for one, after in itertools.pairwise(hours)
        if one.astimezone(place).utcoffset() != after.astimezone(place).utcoffset()
    ]
    for moment in moved:
        for kind in KINDS:
            follow(kind, zone, moment - 90_000, moment + 90_000)


def follow(kind: Kind, zone: str, from_s: float, to_s: float) -> None:
    period = period_of(kind, zone, from_s)
    while period.end_s < to_s:
        after = period_of(kind, zone, period.end_s)
        assert after.start_s == period.end_s < after.end_s
        middle = (after.start_s + after.end_s) / 2
        assert period_of(kind, zone, middle) == after == Period(*after)
        period = after


def test_a_zone_that_is_none_is_an_error() -> None:
    with pytest.raises(zoneinfo.ZoneInfoNotFoundError):
        period_of("DAY", "Europe/Nowhere", 0.0)
