"""When a rule holds. Pure: the present is passed in, in seconds since 1970 (UTC).

Weekly hours are those of a zone's clocks. A time that these leave out is told by the clocks as they were before; one
that comes twice is the first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo

_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DAY_MINUTES: Final = 24 * 60
# Of the hours that have begun before today some go on; the same hours come again within a week.
_LOOK: Final = range(-1, 9)


@dataclass(frozen=True)
class Hours:
    """Hours that begin on some days of the week; `days` from Monday, 0, and the minutes since that day's midnight."""

    days: tuple[int, ...]
    start: int = 0
    end: int = _DAY_MINUTES

    def of(self, day: date, zone: ZoneInfo) -> tuple[float, float]:
        """When those of a day begin and end."""
        return _moment(day, self.start, zone), _moment(day, self.end, zone)

    def __str__(self) -> str:
        until = self.end if self.end <= _DAY_MINUTES else self.end - _DAY_MINUTES
        return f"{_span(self.days)} {_clock(self.start)} to {_clock(until)}"


@dataclass(frozen=True)
class Window:
    """A time in which a rule holds.

    Attributes:
        start_s: when it begins; None if it has always.
        end_s: when it ends; None if never.
        weekly: of that, these hours alone, if there are any.
        zone: the IANA name of the zone whose clocks these are of.
    """

    start_s: float | None = None
    end_s: float | None = None
    weekly: tuple[Hours, ...] = ()
    zone: str = "UTC"

    @classmethod
    def of(cls, said: Any) -> "Window":
        """What a `v1.TimeWindow` means."""
        weekly = tuple(_hours(one) for one in said.weekly)
        start_s = _seconds(getattr(said, "from")) if said.HasField("from") else None
        return cls(start_s, _seconds(said.until) if said.HasField("until") else None, weekly, said.time_zone or "UTC")

    def holds(self, at_s: float) -> bool:
        """Whether it is that time."""
        return self._is_within(at_s) and (
            not self.weekly or any(start_s <= at_s < end_s for start_s, end_s in self._spans(at_s))
        )

    def turn(self, at_s: float) -> float | None:
        """The next moment at which it may begin or end; None if it will do neither any more."""
        if self.end_s is not None and at_s >= self.end_s:
            return None
        if self.start_s is not None and at_s < self.start_s:
            return self.start_s
        found = [edge for span in self._spans(at_s) for edge in span] if self.weekly else []
        found += [self.end_s] if self.end_s is not None else []
        return min((edge for edge in found if edge > at_s), default=None)

    def ends(self, at_s: float) -> float | None:
        """When it ends that holds now; None if never."""
        last = at_s
        while (edge := self.turn(last)) is not None:
            if not self.holds(edge):
                return edge
            last = edge
            if edge - at_s > _LOOK.stop * 86_400:  # hours that follow each other without a gap
                return self.end_s
        return None

    def _is_within(self, at_s: float) -> bool:
        return (self.start_s is None or self.start_s <= at_s) and (self.end_s is None or at_s < self.end_s)

    def _spans(self, at_s: float) -> Iterator[tuple[float, float]]:
        zone = _zone(self.zone)
        today = datetime.fromtimestamp(at_s, zone).date()
        for offset in _LOOK:
            day = today + timedelta(days=offset)
            for hours in self.weekly:
                if day.weekday() in hours.days:
                    yield hours.of(day, zone)

    def __str__(self) -> str:
        said = [" and ".join(map(str, self.weekly)) + f" {self.zone}"] if self.weekly else []
        said += [f"from {_stamp(self.start_s)}"] if self.start_s is not None else []
        said += [f"until {_stamp(self.end_s)}"] if self.end_s is not None else []
        return ", ".join(said) or "always"


def moment(at_s: float, zone: str) -> str:
    """A moment for people, "2026-11-26 18:00 Europe/Berlin"."""
    return f"{datetime.fromtimestamp(at_s, _zone(zone)):%Y-%m-%d %H:%M} {zone}"


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _hours(said: Any) -> Hours:
    start, end = _minutes(getattr(said, "from")) or 0, _minutes(said.until) or _DAY_MINUTES
    days = tuple(sorted(day - 1 for day in said.days))
    return Hours(days, start, end if end > start else end + _DAY_MINUTES)


def _minutes(text: str) -> int | None:
    hours, _, minutes = text.partition(":")
    return int(hours) * 60 + int(minutes) if text else None


def _moment(day: date, minutes: int, zone: ZoneInfo) -> float:
    days, minutes = divmod(minutes, _DAY_MINUTES)
    moment = datetime.combine(day + timedelta(days=days), time(minutes // 60, minutes % 60), tzinfo=zone)
    return moment.timestamp()


def _seconds(stamp: Any) -> float:
    return float(stamp.seconds + stamp.nanos / 1e9)


def _stamp(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _span(days: tuple[int, ...]) -> str:
    if len(days) > 2 and days[-1] - days[0] == len(days) - 1:
        return f"{_DAYS[days[0]]} to {_DAYS[days[-1]]}"
    return ", ".join(_DAYS[day] for day in days)
