"""What is deprecated says so in its answers: since when, until when it is served, and where to read more.

In the schema an RPC has `option deprecated = true`, and its comment a sentence with the days:

    // Deprecated since 2026-11-01, until 2027-11-01: use GetStatus.

Source: RFC 9745 (Deprecation), RFC 8594 (Sunset).
"""

import re
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final

DOCUMENT: Final = "/explorer/"
"""Where the API's document is read."""
_DAYS: Final = re.compile(r"Deprecated since ([0-9]{4}-[0-9]{2}-[0-9]{2})(?:, until ([0-9]{4}-[0-9]{2}-[0-9]{2}))?: ")


def headers(name: str, comment: str) -> tuple[tuple[str, str], ...]:
    """Returns the headers of a deprecated RPC's answers.

    Args:
        name: the RPC's.
        comment: what the schema says of it, in one line.

    Raises:
        ValueError: the comment doesn't say since when, or its end is before that.
    """
    found = _DAYS.search(comment)
    if found is None:
        raise ValueError(f'{name}: is deprecated; its comment must say "Deprecated since 2026-11-01: …" and what for')
    since = _day(found[1])
    said = [("deprecation", f"@{int(since.timestamp())}")]
    if found[2] is not None:
        until = _day(found[2])
        if until <= since:
            raise ValueError(f"{name}: is deprecated since {found[1]} and served until {found[2]}")
        said.append(("sunset", format_datetime(until, usegmt=True)))
    return *said, ("link", f'<{DOCUMENT}>; rel="deprecation"; type="text/html"')


def _day(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
