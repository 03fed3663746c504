"""Which hour, day or month it is somewhere, and when that begins and ends. Pure: the present is passed in.

Moments are seconds since 1970 (UTC). Periods of one kind follow each other without a gap and never overlap, whatever
the zone's clocks do: a day may have 23 or 25 hours, an hour of a zone that moves by half an hour may have half of one.
"""

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias
from zoneinfo import ZoneInfo

Kind: TypeAlias = Literal["HOUR", "DAY", "MONTH"]
_HOUR_S: Final = 3600.0


class Period(NamedTuple):
    """From its start up to its end, which is the start of the next."""

    start_s: float
    end_s: float


def period_of(kind: Kind, zone: str, at_s: float) -> Period:
    """The period of a moment.

    Args:
        kind: how long it is.
        zone: the IANA name of the zone whose clocks count.
        at_s: the moment.

    Raises:
        ZoneInfoNotFoundError: there is no such zone here.
    """
    place = _zone(zone)
    if kind == "HOUR":
        return _hour(place, at_s)
    today = datetime.fromtimestamp(at_s, place).date()
    first = today if kind == "DAY" else today.replace(day=1)
    if kind == "DAY":
        return _between(place, first, first + timedelta(days=1), at_s)
    return _between(place, first, (first + timedelta(days=31)).replace(day=1), at_s)


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _between(place: ZoneInfo, first: date, after: date, at_s: float) -> Period:
    start_s, end_s = _midnight(place, first), _midnight(place, after)
    # Clocks that are put back over midnight have the end of a day twice; it is over when it is over first.
    return Period(end_s, _midnight(place, after + (after - first))) if at_s >= end_s else Period(start_s, end_s)


def _midnight(place: ZoneInfo, day: date) -> float:
    """When a day begins: where there is no midnight, when clocks jump over it; where there are two, the first."""
    return datetime(day.year, day.month, day.day, tzinfo=place).timestamp()


def _hour(place: ZoneInfo, at_s: float) -> Period:
    offset_s = _offset_s(place, at_s)
    start_s = at_s // 1 - (at_s // 1 + offset_s) % _HOUR_S
    end_s = start_s + _HOUR_S
    if (_offset_s(place, start_s) - offset_s) % _HOUR_S:
        start_s = _moved(place, start_s, at_s)
    if (_offset_s(place, end_s) - offset_s) % _HOUR_S:
        end_s = _moved(place, at_s, end_s)
    return Period(start_s, end_s)


def _moved(place: ZoneInfo, before_s: float, after_s: float) -> float:
    """The second in which the zone's clocks are put to another time between two moments."""
    low, high = int(before_s // 1), int(-(-after_s // 1))
    offset_s = _offset_s(place, low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _offset_s(place, middle) == offset_s else (low, middle)
    return float(high)


def _offset_s(place: ZoneInfo, at_s: float) -> float:
    offset = datetime.fromtimestamp(at_s, UTC).astimezone(place).utcoffset()
    return offset.total_seconds() if offset is not None else 0.0
