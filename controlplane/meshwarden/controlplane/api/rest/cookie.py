"""The cookie that shows a session.

Its name has a browser take it from this host alone, with TLS, for all paths (`__Host-`); no script reads it, and it
goes with nothing that another site asks for.

Source: RFC 6265bis §4.1.3.2 (`__Host-`), §5.6.7 (SameSite); MDN, Set-Cookie.
"""

import re
from typing import Final

from meshwarden.controlplane.identity.browser_session import LIFE

NAME: Final = "__Host-meshwarden"
_REST: Final = "Path=/; Secure; HttpOnly; SameSite=Strict"
CLEARED: Final = f"{NAME}=; {_REST}; Max-Age=0"
"""Has a browser forget it."""
_VALUE: Final = re.compile(r"[A-Za-z0-9_-]{32,64}")


def cookie(text: str) -> str:
    """Returns the header that gives a browser what shows its session; when that ends is for us to say."""
    return f"{NAME}={text}; {_REST}; Max-Age={int(LIFE.total_seconds())}"


def parse(header: str) -> str | None:
    """Returns what shows a session out of a Cookie header; None if nothing does, or more than one thing."""
    found = [pair.strip().partition("=")[2] for pair in header.split(";") if pair.strip().partition("=")[0] == NAME]
    return found[0] if len(found) == 1 and _VALUE.fullmatch(found[0]) else None
