"""Calls of browsers: a cookie in place of a certificate, and what is asked of who shows one.

A call that comes with a good cookie is, as far as all that follows can tell, a call on a connection that has shown the
certificate for which the session stands. Whoever does show a certificate is who that says, whatever the cookie.

Source: W3C Fetch Metadata Request Headers; OWASP CSRF Prevention Cheat Sheet; RFC 6454 (origin).
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from meshwarden.controlplane.api.rest.cookie import parse
from meshwarden.controlplane.api.rest.http import Exchange
from meshwarden.controlplane.api.rest.problem import HttpRefused
from meshwarden.controlplane.identity.browser_session import BrowserSession, BrowserSessions
from meshwarden.sdk.mtls.connection import Connection
from meshwarden.sdk.mtls.front import Front

BY_CODE: Final = frozenset(
    f"/meshwarden.v1.SessionService/{method}" for method in ("PreviewSession", "CreateSession", "DeleteSession")
)
"""What takes no session, be there one: it begins and ends them, and is for browsers alone."""
_SAFE_VERBS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Browsers:
    """Knows the calls that are made by sessions, of one front."""

    def __init__(self, sessions: BrowserSessions, front: Front) -> None:
        """Takes sessions for the certificates of `front`'s connections that have shown none."""
        self._sessions, self._front = sessions, front
        self._numbers = itertools.count(1)
        # {what `context.peer()` is: connection}, as long as the call lasts
        self._calls: dict[str, Connection] = {}

    def find(self, peer: str) -> Connection | None:
        """The connection of a call, by its `context.peer()`, with the chain of its session; None if it has none."""
        return self._calls.get(peer)

    @contextmanager
    def entered(self, exchange: Exchange) -> Iterator[BrowserSession | None]:
        """Has an exchange be its session's, if it shows a good one, while the context lasts."""
        text = parse(exchange.headers["cookie"]) if "cookie" in exchange.headers else None
        session = self._sessions.find(text) if text is not None else None
        connection = self._front.find(exchange.peer) if session is not None else None
        if session is None or session.over() or connection is None or connection.chain_der:
            yield None
            return
        # Else it would have to make room for whoever connects, as those do who prove nothing.
        self._front.own(exchange.peer, session.owner)
        real = exchange.peer
        exchange.peer = f"unix:session-{next(self._numbers)}"
        self._calls[exchange.peer] = replace(connection, chain_der=session.chain_der, session=session)
        try:
            with session.used():
                yield session
        finally:
            del self._calls[exchange.peer]
            exchange.peer = real


def check_origin(exchange: Exchange) -> None:
    """Has a browser change something only where a page of ours asks for it.

    A browser shows its certificate whoever's page it is that asks.

    Raises:
        HttpRefused: another's page asks.
    """
    if exchange.verb in _SAFE_VERBS:
        return
    site, origin = exchange.headers.get("sec-fetch-site", "same-origin"), exchange.headers.get("origin")
    if site not in ("same-origin", "none") or (origin is not None and origin != _own(exchange)):
        raise HttpRefused(HTTPStatus.FORBIDDEN, "pages of another origin change nothing here")


def check_page(exchange: Exchange) -> None:
    """Has a session be used by our own page alone, which a browser must say.

    A browser sends a cookie with what a page of another port of the same host asks for.

    Raises:
        HttpRefused: something else asks, or it can't be told who.
    """
    site, origin = exchange.headers.get("sec-fetch-site"), exchange.headers.get("origin")
    is_safe = exchange.verb in _SAFE_VERBS
    ours = ("same-origin", "none", None) if is_safe else ("same-origin", None)
    if site not in ours or (origin is not None and origin != _own(exchange)):
        raise HttpRefused(HTTPStatus.FORBIDDEN, "pages of another origin have no part in a session of ours")
    if is_safe:
        return
    if site is None and origin is None:
        text = "by a session nothing is changed by who doesn't say where it comes from (Origin or Sec-Fetch-Site)"
        raise HttpRefused(HTTPStatus.FORBIDDEN, text)
    # A form can't send it, and what can asks first where it comes from elsewhere.
    if exchange.verb != "DELETE" and "content-type" not in exchange.headers:
        raise HttpRefused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json, and say so in Content-Type")


def _own(exchange: Exchange) -> str:
    return f"https://{exchange.headers.get('host', '')}"
