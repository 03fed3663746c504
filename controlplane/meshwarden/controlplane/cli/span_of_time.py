"""A span of time, as an option of a command takes it."""

import re
from typing import Any, Final

import click

_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class SpanOfTime(click.ParamType[float]):
    """A span of time, "50ms", "1.5s" or "2h", in seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads it."""
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(us|ms|s|m|h|d)", str(value))
        if found is None:
            self.fail(f"{value!r} is no span of time; write 50ms, 1.5s, 15m or 2h", param, ctx)
        seconds = float(found[1]) * _UNITS[found[2]]
        if seconds > 365 * 86_400:
            self.fail(f"{value!r} is more than a year", param, ctx)
        return seconds
