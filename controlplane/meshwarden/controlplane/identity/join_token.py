"""One-time tokens with which nodes join.

Whoever holds one is that node, so it lives minutes and is stored as a hash.
"""

import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog

from meshwarden.controlplane.identity.node_name import NODE_NAME
from meshwarden.controlplane.identity.record import TOKENS, RecordError, TokenRecord
from meshwarden.controlplane.store.port import ABSENT, Conflict, Delete, Op, Put, Store
from meshwarden.sdk.tracing import own_span

MAX_TTL = timedelta(minutes=10)
# The same token and key get the same answer for so long, so that a lost reply costs nothing.
REPEAT = timedelta(seconds=60)
# Used or ended tokens are kept a while: "used by another" tells an operator more than "unknown".
KEEP = timedelta(hours=1)
# Looked at whenever one is made, from where the last look ended: more than one, so that ended ones don't pile up.
SWEEP = 16
TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")

log = structlog.get_logger()


class InvalidToken(ValueError):
    """A token can't be made as asked for."""


class JoinTokens:
    """Makes and finds tokens. `NodeIdentity` uses one up, in the commit that makes its node."""

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._swept_to = ""

    async def create(self, node: str, ttl: timedelta = MAX_TTL, tenants: Sequence[str] = ()) -> str:
        """Makes a token of 256 bits for a node and returns it; it can't be had again.

        Args:
            node: the name that the node will have.
            ttl: how long it may be used, at most ten minutes.
            tenants: whose entries the node may serve; empty for any tenant's.

        Raises:
            InvalidToken: a name or the time isn't allowed.
            StoreError: it isn't stored.
        """
        for what, name in (("node", node), *(("tenant", tenant) for tenant in tenants)):
            if NODE_NAME.fullmatch(name) is None:
                raise InvalidToken(f"{what} {name[:100]!r}: use a-z, 0-9 and inner '-', at most 63")
        if not timedelta(0) < ttl <= MAX_TTL:
            raise InvalidToken(f"ttl {ttl}: give more than nothing and at most {MAX_TTL}")
        token = secrets.token_urlsafe(32)
        record = TokenRecord(digest(token), node, self._clock() + ttl, tenants=tuple(sorted(set(tenants))))
        revision = await self._store.commit([Put(record.key, record.encode(), ABSENT)])
        own_span.note_revision(revision, f"CREATED join token of node {node}")
        await self._sweep()
        return token

    async def find(self, token: str) -> tuple[TokenRecord, int] | None:
        """Returns a token's record and its revision, ended and used ones too."""
        if TOKEN.fullmatch(token) is None:
            return None
        # Looked up by its hash, so that the time of the look-up says nothing of the token.
        found, _ = await self._store.get(TOKENS + digest(token))
        if found is None:
            return None
        return TokenRecord.decode(found.key, found.value), found.revision

    async def _sweep(self) -> None:
        """Deletes those of the next few tokens that ended long ago."""
        page = await self._store.range(TOKENS, start=self._swept_to, limit=SWEEP)
        self._swept_to = page.next_key
        old: list[Op] = []
        for record in page.records:
            try:
                ended = TokenRecord.decode(record.key, record.value).expire_time + KEEP < self._clock()
            except RecordError as error:
                log.warning("token.unreadable", error=str(error))
                ended = True
            if ended:
                old.append(Delete(record.key, record.revision))
        if old:
            try:
                await self._store.commit(old)
            except Conflict:
                log.info("token.sweep_contended")  # another replica sweeps as well


def digest(token: str) -> str:
    """Returns what a token is stored as: SHA-256 in hexadecimal. 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()
