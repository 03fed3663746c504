"""Who signs JWT-SVIDs: a key of each control plane process, in its memory alone, whose public half lies in the store.

/identity/jwt-key/<kid>   JwtKeyRecord

The store's keys together are the trust domain's JWT bundle, so that control planes that share a store publish each
other's. A key is published long before it signs, and for as long as anything that it has signed lasts:

    prepared at 1/2 of its predecessor's life ─▶ active at 5/6 ─▶ old, an hour

The first key of a process is active at once: agents learn of it as their sessions begin. A record is good for an hour
and extended by its process; of one that has ended, nothing is left an hour later.
"""

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, cast

import anyio
import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from meshwarden.certs.clock import Clock
from meshwarden.certs.csr import PublicKey
from meshwarden.certs.jose import InvalidJose, jwk, parse_jwk, thumbprint
from meshwarden.certs.jwt_bundle import JwtBundle, is_kid
from meshwarden.certs.jwt_svid import TTL, JwtSvid, JwtTemplate, sign_jwt_svid
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.audit.port import AuditLog, AuditUnavailable
from meshwarden.controlplane.identity.record import RecordError
from meshwarden.controlplane.store.port import ANY, Delete, Op, Put, Store, StoreError

KEYS: Final = "/identity/jwt-key/"
LIFE: Final = timedelta(days=7)
PREPARE_AT: Final = LIFE / 2
ACTIVATE_AT: Final = LIFE * 5 / 6
HOLD: Final = timedelta(hours=1)
"""How long a record is good."""
EXTEND: Final = timedelta(minutes=5)
# Of a process that starts again and again the oldest keys make room; whoever lives has extended its record since.
MAX_PUBLISHED: Final = 48
TICK_S: Final = 15.0
RETRY_S: Final = 1.0

log = structlog.get_logger()


@dataclass(frozen=True)
class JwtKeyRecord:
    """A published key."""

    kid: str
    public_key: PublicKey
    # Until when it proves anything, aware.
    end: datetime

    @property
    def key(self) -> str:
        """The store key."""
        return KEYS + self.kid

    def encode(self) -> bytes:
        """Returns the bytes to store."""
        return json.dumps({"v": 1, "jwk": jwk(self.public_key), "end": self.end.isoformat()}).encode()

    @classmethod
    def decode(cls, key: str, value: bytes) -> "JwtKeyRecord":
        """Reads stored bytes.

        Raises:
            RecordError: they are no key's.
        """
        try:
            words = json.loads(value)
            public_key, end, kid = parse_jwk(words["jwk"]), datetime.fromisoformat(words["end"]), key.removeprefix(KEYS)
            if public_key is not None and is_kid(kid) and end.tzinfo is not None:
                return cls(kid, public_key, end)
        except (ValueError, KeyError, TypeError, AttributeError, InvalidJose):
            pass
        raise RecordError(f"store key {key}: not a JWT key")


@dataclass(frozen=True)
class _Slot:
    """A key of ours."""

    kid: str
    key: ec.EllipticCurvePrivateKey
    begun: datetime


class JwtAuthority:
    """Signs the JWT-SVIDs of one trust domain. `open` it before it is asked for anything."""

    def __init__(self, store: Store, audit: AuditLog, clock: Clock, *, trust_domain: str, issuer: str = "") -> None:
        """Makes one.

        Args:
            store: where public keys are published.
            audit: told of each key.
            clock: the present, aware.
            trust_domain: whose identities it signs for.
            issuer: the `iss` of tokens, "https://oidc.mesh.example"; empty for none.
        """
        self._store, self._audit, self._clock = store, audit, clock
        self._trust_domain, self._issuer = trust_domain, issuer
        self._active: _Slot | None = None
        self._prepared: _Slot | None = None
        self._extended: dict[str, datetime] = {}
        self._records: dict[str, JwtKeyRecord] = {}
        self._bundle = JwtBundle(trust_domain)
        self._listeners: list[Callable[[], None]] = []

    def bundle(self) -> JwtBundle:
        """Returns the trust domain's JWT keys; the same object until they change."""
        return self._bundle

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back after each change of the bundle."""
        self._listeners.append(callback)

    def sign(self, spiffe_id: SpiffeId, audience: tuple[str, ...], now: datetime) -> JwtSvid:
        """Signs a token.

        Raises:
            InvalidJwtSvid: no token may have this audience.
        """
        active = self._active
        if active is None:
            raise RuntimeError("the JWT authority is asked before it is opened")
        return sign_jwt_svid(JwtTemplate(spiffe_id, audience, TTL, self._issuer), active.key, active.kid, now)

    async def open(self) -> None:
        """Takes its first key.

        Raises:
            StoreError: it can't be published.
        """
        self._active = await self._new_key()
        await self._load()

    async def run(self) -> None:
        """Rotates the key, and follows what others publish, until it is cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep)
            group.start_soon(self._follow)

    # -- our own keys

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tend()
            except StoreError as error:
                log.warning("jwt_key.not_tended", error=str(error))

    async def tend(self) -> None:
        """Prepares, activates and extends what is due, and drops what has ended.

        Raises:
            StoreError: the store doesn't answer.
        """
        now, active = self._clock(), self._active
        if active is None:
            return
        age = now - active.begun
        if self._prepared is None and age >= PREPARE_AT:
            self._prepared = await self._new_key()
        if self._prepared is not None and age >= ACTIVATE_AT:
            # The old one's record is extended no more, and outlives all that it has signed.
            self._active, self._prepared = self._prepared, None
            log.info("jwt_key.activated", kid=self._active.kid)
        for slot in (self._active, self._prepared):
            if slot is not None and not timedelta(0) <= now - self._extended[slot.kid] < EXTEND:
                await self._publish(slot, now)
        ended = [record for record in self._records.values() if record.end <= now]
        if ended:
            drops: list[Op] = [Delete(record.key, ANY) for record in ended]
            await self._store.commit(drops)
        self._settle()

    async def _new_key(self) -> _Slot:
        key, now = new_key(), self._clock()
        slot = _Slot(thumbprint(key.public_key()), key, now)
        await self._publish(slot, now)
        try:
            await self._audit.record("authority.jwt_key", kid=slot.kid)
        except AuditUnavailable as error:
            log.error("jwt_key.not_audited", kid=slot.kid, error=str(error))  # what it signs is recorded, or not given
        return slot

    async def _publish(self, slot: _Slot, now: datetime) -> None:
        record = JwtKeyRecord(slot.kid, slot.key.public_key(), now + HOLD)
        await self._store.commit([Put(record.key, record.encode(), ANY)])
        self._records[slot.kid] = record
        self._extended[slot.kid] = now
        self._settle()

    # -- all keys

    async def _follow(self) -> None:
        while True:
            try:
                at = await self._load()
                async with aclosing(cast("Any", self._store.watch(KEYS, after=at))) as batches:
                    async for batch in batches:
                        for event in batch.events:
                            self._put(event.key, event.value)
                        self._settle()
            except StoreError as error:
                log.info("jwt_keys.reread", reason=str(error))
            await asyncio.sleep(RETRY_S)

    async def _load(self) -> int:
        page = await self._store.range(KEYS)
        self._records = {}
        for record in page.records:
            self._put(record.key, record.value)
        self._settle()
        return page.revision

    def _put(self, key: str, value: bytes | None) -> None:
        if value is None:
            self._records.pop(key.removeprefix(KEYS), None)
            return
        try:
            record = JwtKeyRecord.decode(key, value)
        except RecordError as error:  # one that can't be read must not hide the others
            log.error("record.unreadable", key=key, reason=str(error))
        else:
            self._records[record.kid] = record

    def _settle(self) -> None:
        """Makes the bundle of what is good now."""
        now = self._clock()
        good = sorted((record for record in self._records.values() if record.end > now), key=lambda record: record.end)
        keys = {record.kid: record.public_key for record in good[-MAX_PUBLISHED:]}
        if keys == dict(self._bundle.keys):
            return
        self._bundle = JwtBundle.of(self._trust_domain, keys.items())
        for callback in self._listeners:
            callback()
