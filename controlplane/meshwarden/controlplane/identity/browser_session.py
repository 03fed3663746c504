"""Sessions of browsers: each stands for the certificate of an operator that has asked for it.

An operator asks for a code, by its certificate; within a minute whoever brings the code may ask whose it is, and gets a
session by it, once. What a session may is decided at each call, by the chain that it stands for: it ends when that is
refused. Codes and sessions are in memory alone, by the hashes of what shows them, and are another control plane's
business never.

Source: OWASP Session Management Cheat Sheet (entropy, new identifier at login, idle and absolute timeouts).
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import grpc

from meshwarden.certs.verify import VerifiedPeer
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.rate import Limited, Pace, Rate, network_of

CODE_LIFE: Final = timedelta(seconds=60)
LIFE: Final = timedelta(hours=1)
IDLE: Final = timedelta(minutes=15)
CODES_EACH: Final = 4
SESSIONS_EACH: Final = 8
"""Of one operator; of more the oldest goes."""
MOST: Final = 4096
"""Of all operators: codes, and sessions."""
CODE_PACE: Final = Pace(0.5, 10)
"""Of one operator."""
BEGIN_PACE: Final = Pace(1.0, 20)
"""Of one address, good or bad."""
# 256 bits: nobody guesses one.
_BYTES: Final = 32
_AGAIN: Final = "`meshwarden console` opens another"


@dataclass(eq=False)
class BrowserSession:
    """One session; what shows it is known by nobody but the browser.

    Attributes:
        number: by which logs and audit events name it; it opens nothing.
        owner: the SPIFFE ID of the operator.
        chain_der: the chain that it stands for, DER, leaf first.
        until: when it ends at the latest.
    """

    number: str
    owner: str
    chain_der: tuple[bytes, ...] = field(repr=False)
    until: datetime
    _clock: Callable[[], datetime] = field(repr=False)
    _seen: datetime = field(repr=False)
    _calls: int = field(default=0, repr=False)
    _is_ended: bool = field(default=False, repr=False)

    def over(self) -> str:
        """Why its calls are taken no more; empty if they are."""
        now = self._clock()
        if self._is_ended:
            return f"the session was ended: {_AGAIN}"
        if now >= self.until:
            return f"the session has ended, as it was to: {_AGAIN}"
        if not self._calls and now - self._seen >= IDLE:
            return f"the session was not used for {IDLE.seconds // 60} minutes: {_AGAIN}"
        return ""

    @contextmanager
    def used(self) -> Iterator[None]:
        """Makes a call of it, which may last: meanwhile it is not idle."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._seen = self._clock()

    def end(self) -> None:
        """Ends it: its calls that go on end as well."""
        self._is_ended = True


@dataclass(frozen=True)
class Code:
    """What a code stands for.

    Attributes:
        owner: the SPIFFE ID of the operator.
        chain_der: the chain that a session by it would stand for, DER, leaf first.
        not_after: when the certificate ends.
        until: when the code ends.
    """

    owner: str
    chain_der: tuple[bytes, ...] = field(repr=False)
    not_after: datetime
    until: datetime


class BrowserSessions:
    """All sessions of this control plane, and the codes by which they begin."""

    def __init__(
        self,
        audit: AuditLog,
        clock: Callable[[], datetime],
        random_text: Callable[[int], str] = secrets.token_urlsafe,
    ) -> None:
        """Has none yet.

        Args:
            audit: learns of each code, session and refusal.
            clock: the present, aware.
            random_text: makes what can't be guessed, of so many bytes.
        """
        self._audit, self._clock, self._random_text = audit, clock, random_text
        # {SHA-256 of what shows it: it}, the oldest first
        self._codes: dict[bytes, Code] = {}
        self._sessions: dict[bytes, BrowserSession] = {}
        self._code_rate, self._begin_rate = Rate(CODE_PACE), Rate(BEGIN_PACE)

    async def code(self, peer: VerifiedPeer, chain_der: tuple[bytes, ...], address: str) -> tuple[str, datetime]:
        """Makes a code for who shows a certificate; returns it and when it ends.

        Args:
            peer: who it is.
            chain_der: what was shown, DER, leaf first.
            address: where from.

        Raises:
            Limited: the operator asks for too many, or all operators have.
            AuditUnavailable: it can't be recorded.
        """
        now, owner = self._clock(), str(peer.spiffe_id)
        if wait_s := self._code_rate.take(owner, now):
            raise Limited(owner, "codes", CODE_PACE, wait_s)
        self._codes = {key: one for key, one in self._codes.items() if now < one.until}
        if len(self._codes) >= MOST:
            raise Limited("this mesh", "codes", CODE_PACE, CODE_LIFE.total_seconds())
        text = self._random_text(_BYTES)
        made = Code(owner, chain_der, peer.not_after, min(now + CODE_LIFE, peer.not_after))
        self._codes[_hash(text)] = made
        _keep(self._codes, owner, CODES_EACH)
        await self._audit.record("session.code", spiffe_id=owner, serial=peer.serial, address=address)
        return text, made.until

    def look(self, code: str, address: str) -> Code:
        """Returns what a code stands for, and leaves it as it is.

        Raises:
            Limited: the address tries too often.
            Denied: UNAUTHENTICATED: the code is none, is spent or has ended.
        """
        now, network = self._clock(), network_of(address)
        if wait_s := self._begin_rate.take(network, now):
            raise Limited(f"address {network}", "sessions", BEGIN_PACE, wait_s)
        found = self._codes.get(_hash(code))
        if found is None or now >= found.until:
            raise Denied(
                f"the code is spent, has ended or is none: {_AGAIN}", grpc.StatusCode.UNAUTHENTICATED, "no-code"
            )
        return found

    def until(self, code: Code) -> datetime:
        """When a session ends at the latest that a code begins now."""
        return min(self._clock() + LIFE, code.not_after)

    async def begin(self, code: str, address: str) -> tuple[str, BrowserSession]:
        """Begins a session by a code, which is spent; returns what shows the session, and it.

        Raises:
            Limited: the address tries too often, or there are as many sessions as there may be.
            Denied: UNAUTHENTICATED: the code is none, is spent or has ended.
            AuditUnavailable: it can't be recorded; the code is spent all the same.
        """
        now, found = self._clock(), self.look(code, address)
        del self._codes[_hash(code)]
        self._sessions = {key: one for key, one in self._sessions.items() if not one.over()}
        if len(self._sessions) >= MOST:
            raise Limited("this mesh", "sessions", BEGIN_PACE, IDLE.total_seconds())
        text, number = self._random_text(_BYTES), self._random_text(6)
        made = BrowserSession(number, found.owner, found.chain_der, self.until(found), self._clock, now)
        self._sessions[_hash(text)] = made
        for one in _keep(self._sessions, made.owner, SESSIONS_EACH):
            one.end()
            self._audit.note("session.end", spiffe_id=one.owner, session=one.number, reason="too many")
        fields = {"spiffe_id": made.owner, "session": number, "address": address, "until": made.until.isoformat()}
        await self._audit.record("session.begin", **fields)
        return text, made

    def find(self, text: str) -> BrowserSession | None:
        """Returns the session that something shows, be it over; None if there is none."""
        return self._sessions.get(_hash(text))

    async def end(self, session: BrowserSession) -> None:
        """Ends a session.

        Raises:
            AuditUnavailable: it can't be recorded; it has ended all the same.
        """
        session.end()
        self._sessions = {key: one for key, one in self._sessions.items() if one is not session}
        await self._audit.record("session.end", spiffe_id=session.owner, session=session.number, reason="log out")


def _hash(text: str) -> bytes:
    # Looked up by their hashes, so that how long it takes says nothing of those that there are.
    return hashlib.sha256(text.encode()).digest()


def _keep(held: "dict[bytes, Code] | dict[bytes, BrowserSession]", owner: str, most: int) -> list[BrowserSession]:
    """Drops an owner's oldest beyond so many; returns the sessions among them."""
    own = [key for key, one in held.items() if one.owner == owner]
    dropped = [held.pop(key) for key in own[: max(0, len(own) - most)]]
    return [one for one in dropped if isinstance(one, BrowserSession)]
