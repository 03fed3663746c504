"""Checks of what callers send."""

import re
from typing import Final

from meshwarden.examples.daena.error import Invalid

NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""Source: W3C Trace Context (Level 2) §3.2."""
_SHOWN: Final = 40


def name(field: str, value: str) -> str:
    """Returns a name of small letters, digits and hyphens.

    Raises:
        Invalid: it is none.
    """
    if NAME.fullmatch(value) is None:
        raise Invalid(f"{field}: {shown(value)}: give 1 to 63 small letters, digits and inner hyphens")
    return value


def text(field: str, value: str, max_bytes: int) -> str:
    """Returns a text that says something.

    Raises:
        Invalid: it is blank, or longer than `max_bytes` in UTF-8.
    """
    if not value.strip():
        raise Invalid(f"{field}: empty")
    size = len(value.encode())
    if size > max_bytes:
        raise Invalid(f"{field}: {size} bytes; at most {max_bytes} are taken")
    return value


def count(field: str, value: int, least: int, most: int) -> int:
    """Returns a number within its bounds.

    Raises:
        Invalid: it isn't.
    """
    if not least <= value <= most:
        raise Invalid(f"{field}: {value}; give {least} to {most}")
    return value


def traceparent(field: str, value: str) -> str:
    """Returns a traceparent, or the empty text.

    Raises:
        Invalid: it is neither.
    """
    if value and TRACEPARENT.fullmatch(value) is None:
        raise Invalid(f"{field}: {shown(value)}: no traceparent; leave it out")
    return value


def shown(value: str) -> str:
    """Returns a caller's text as an error shows it: escaped, and its beginning alone."""
    return ascii(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")
