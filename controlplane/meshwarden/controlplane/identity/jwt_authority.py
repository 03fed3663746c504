"""Who signs JWT-SVIDs: keys that lie in the store, encrypted, for all control planes that share it.

/identity/jwt-key/<kid>   JwtKeyRecord

The store's keys together are the trust domain's JWT bundle. A key is published long before it signs, and for as long as
anything that it has signed lasts:

    prepared at 1/2 of its predecessor's life ─▶ active at 5/6 ─▶ old, an hour

The first key is active at once: agents learn of it as their sessions begin. Without a passphrase, or until it can be
read, a private key is in its process's memory alone, and each process has keys of its own. A record is good for an hour
and extended by whoever has its private key; of a process that has ended for good, nothing is left an hour later.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final, cast

import anyio
import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from meshwarden.certs.authority.port import AuthorityLocked
from meshwarden.certs.authority.slot import RootRefused, SlotState
from meshwarden.certs.clock import Clock
from meshwarden.certs.csr import PublicKey
from meshwarden.certs.jose import thumbprint
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.certs.jwt_svid import TTL, JwtSvid, JwtTemplate, sign_jwt_svid, token_id
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.audit.port import AuditLog, AuditUnavailable
from meshwarden.controlplane.identity import jwt_key
from meshwarden.controlplane.identity.jwt_key import BY_ITSELF, HOLD, KEYS, PREPARE_AT, SIGNING, JwtKeyRecord
from meshwarden.controlplane.identity.jwt_seal import SEAL, JwtLock, Passphrase
from meshwarden.controlplane.identity.record import RecordError
from meshwarden.controlplane.secrets.port import SecretError
from meshwarden.controlplane.store.port import ABSENT, Ambiguous, Conflict, Delete, Op, Put, Store, StoreError

# A record that has less than this left is extended, and one that has more than HOLD, as after a clock was set back.
LEAST: Final = HOLD * 11 / 12
# Of a process that starts again and again the oldest keys make room; whoever lives has extended its record since.
MAX_PUBLISHED: Final = 48
ATTEMPTS: Final = 3
TICK_S: Final = 15.0
RETRY_S: Final = 1.0
RETRY_LOCKED_S: Final = 5.0

log = structlog.get_logger()


class JwtAuthority:
    """Signs the JWT-SVIDs of one trust domain. `open` it before it is asked for anything."""

    def __init__(
        self,
        store: Store,
        audit: AuditLog,
        clock: Clock,
        *,
        trust_domain: str,
        issuer: str = "",
        passphrase: Passphrase | None = None,
    ) -> None:
        """Makes one.

        Args:
            store: where the keys are.
            audit: told of each key.
            clock: the present, aware.
            trust_domain: whose identities it signs for.
            issuer: the `iss` of tokens, "https://oidc.mesh.example"; empty for none.
            passphrase: reads what private keys are encrypted under; None keeps them in memory alone.
        """
        self._store, self._audit, self._clock = store, audit, clock
        self._trust_domain, self._issuer = trust_domain, issuer
        self._lock = JwtLock(store, trust_domain, passphrase)
        self._records: dict[str, tuple[JwtKeyRecord, int]] = {}
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self._signing: tuple[str, ec.EllipticCurvePrivateKey] | None = None
        self._bundle = JwtBundle(trust_domain)
        self._changing = asyncio.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._others: dict[str, PublicKey] = {}
        self._others_tainted: frozenset[str] = frozenset()
        self.tainted: frozenset[str] = frozenset()
        """The ids of those keys of the bundle that must not be relied on."""
        self.missing: Callable[[str], Mapping[str, str]] = lambda _: {}
        """The nodes that don't know a key, {which: why}: its activation waits for them, at most until a week ends."""

    @property
    def fault(self) -> str:
        """Why the passphrase is not read yet; empty if it is, or there is none."""
        return self._lock.fault

    def bundle(self) -> JwtBundle:
        """Returns the trust domain's JWT keys; the same object until they change."""
        return self._bundle

    def trust(self, keys: Mapping[str, PublicKey], tainted: Iterable[str]) -> None:
        """Publishes keys of others of this trust domain beside ours, in place of those of before."""
        self._others, self._others_tainted = dict(keys), frozenset(tainted)
        self._settle()

    def listen(self, callback: Callable[[], None]) -> None:
        """Calls back after each change of the bundle, and of what is tainted."""
        self._listeners.append(callback)

    def sign(self, spiffe_id: SpiffeId, audience: tuple[str, ...], now: datetime, node: str = "") -> JwtSvid:
        """Signs a token.

        Args:
            spiffe_id: whose it is.
            audience: for whom.
            now: the present, aware.
            node: the serial number, in hexadecimal, of the certificate that its node joined with.

        Raises:
            InvalidJwtSvid: no token may have this audience.
        """
        if self._signing is None:
            raise RuntimeError("the JWT authority is asked before it is opened")
        kid, key = self._signing
        template = JwtTemplate(spiffe_id, audience, TTL, self._issuer, token_id(node, secrets.token_bytes(8)))
        return sign_jwt_svid(template, key, kid, now)

    async def open(self) -> None:
        """Takes the key that signs, or makes the first.

        Raises:
            StoreError: it can't be had or published.
            AuthorityLocked: the passphrase doesn't open what is there.
            SecretError: there is no passphrase where it should be.
        """
        for attempt in range(ATTEMPTS):
            try:
                await self.tend()
                return
            except (Conflict, Ambiguous):  # another control plane has begun at the same moment
                if attempt + 1 == ATTEMPTS:
                    raise

    async def run(self) -> None:
        """Rotates the keys, and follows what others publish, until it is cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._keep)
            group.start_soon(self._follow)

    # -- for operators

    def records(self) -> Sequence[JwtKeyRecord]:
        """Returns the keys of the bundle, those first that have been there longest."""
        shown = [record for record, _ in self._records.values() if record.kid in self._bundle.keys]
        return sorted(shown, key=jwt_key.age)

    def slots(self) -> tuple[JwtKeyRecord | None, JwtKeyRecord | None]:
        """Returns which of the keys that we have signs, and which is prepared."""
        ours = sorted((record for record, _ in self._records.values() if record.kid in self._keys), key=jwt_key.age)
        return (
            next((record for record in reversed(ours) if record.state is SlotState.ACTIVE), None),
            next((record for record in ours if record.state is SlotState.PREPARED), None),
        )

    async def prepare(self, by: str, reason: str = "") -> None:
        """Publishes the next key.

        Raises:
            RootRefused: there is one already.
            StoreError: it isn't published.
        """
        async with self._changing:
            await self._load()
            await self._prepare(by, reason)

    async def activate(self, kid: str, by: str, reason: str = "", *, force: bool = False) -> None:
        """Has a prepared key sign; `force` if others may not know it yet.

        Raises:
            RootRefused: they may not, it isn't prepared, or is of another control plane.
            StoreError: the old one goes on signing.
        """
        async with self._changing:
            await self._load()
            chosen = jwt_key.find(self.records(), kid)
            if not force or chosen.state is not SlotState.PREPARED:
                jwt_key.refuse_early(chosen, self._clock(), self.missing(chosen.kid))
            if chosen.kid not in self._keys:
                raise RootRefused(
                    f"JWT key {chosen.kid[:16]} is in another control plane's memory: ask that, or set `jwt_passphrase`"
                )
            await self._activate(chosen, by, reason, forced=force)

    async def taint(self, kid: str, by: str, reason: str = "") -> None:
        """Marks a key as leaked: agents drop what it has signed.

        Raises:
            RootRefused: it is the one that signs, or there is none such.
            StoreError: it is not marked.
        """
        async with self._changing:
            await self._load()
            chosen = jwt_key.find(self.records(), kid)
            jwt_key.refuse_signing(chosen, "tainted")
            if chosen.state is not SlotState.TAINTED:
                await self._commit([chosen.moved(SlotState.TAINTED, self._clock())])
            await self._tell("taint", chosen.kid, by, reason)

    async def revoke(self, kid: str, by: str, reason: str = "") -> None:
        """Takes a key out of the bundle: nothing that it has signed is good any more.

        Raises:
            RootRefused: it is the one that signs, or there is none such.
            StoreError: it is still there.
        """
        async with self._changing:
            await self._load()
            chosen = jwt_key.find(self.records(), kid)
            jwt_key.refuse_signing(chosen, "revoked")
            await self._commit([], [chosen])
            await self._tell("revoke", chosen.kid, by, reason)

    # -- by itself

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(RETRY_LOCKED_S if self.fault else TICK_S)
            try:
                await self.tend()
            except (Conflict, Ambiguous) as error:  # another control plane was faster
                log.info("jwt_keys.reread", reason=str(error))
            except (StoreError, SecretError, AuthorityLocked) as error:
                log.warning("jwt_key.not_tended", error=str(error))

    async def tend(self) -> None:
        """Prepares, activates and extends what is due, and drops what has ended.

        Raises:
            StoreError: the store doesn't answer, or somebody else has changed something.
            AuthorityLocked: the passphrase doesn't open what is there.
            SecretError: there is no passphrase where it should be.
        """
        async with self._changing:
            await self._lock.open()
            await self._load()
            now = self._clock()
            if self.slots()[0] is None:
                await self._begin()
            lapsing = [record.extended(now) for record in self._lapsing()]
            await self._commit([self._lock.close(record, self._keys[record.kid]) for record in lapsing])
            active, waiting = self.slots()
            if active is not None and waiting is None and now >= active.begun + PREPARE_AT:
                await self._prepare(BY_ITSELF)
            elif (
                waiting is not None
                and now >= jwt_key.next_of(waiting, waiting=waiting, active=active)[1]
                and (not self.missing(waiting.kid) or active is None or now >= active.begun + jwt_key.LIFE)
            ):
                await self._activate(waiting, BY_ITSELF)
            ended = [record for record, _ in self._records.values() if record.end <= now]
            await self._commit([], ended)

    def _lapsing(self) -> list[JwtKeyRecord]:
        now = self._clock()
        ours = (record for record, _ in self._records.values() if record.kid in self._keys)
        return [record for record in ours if not LEAST < record.end - now <= HOLD or self._lock.is_late_for(record)]

    async def _begin(self) -> None:
        """Makes the first key; of those who begin at once, one does."""
        record = self._new(SlotState.ACTIVE)
        guard: list[Op] = []
        if self._lock.seal is not None:
            stored, _ = await self._store.get(SEAL)
            if stored is not None:  # written again, so that whoever else begins with it has a conflict
                guard = [Put(SEAL, stored.value, stored.revision)]
        await self._commit([record], guard=guard)
        await self._record("authority.jwt_key", kid=record.kid)

    async def _prepare(self, by: str, reason: str = "") -> None:
        active, waiting = self.slots()
        if waiting is not None:
            raise RootRefused(f"JWT key {waiting.kid[:16]} is prepared already: activate it, or revoke it")
        record = self._new(SlotState.PREPARED)
        # The one that signs is written too, so that two who prepare at once don't both.
        await self._commit([record] if active is None else [record, active.extended(self._clock())])
        await self._tell("prepare", record.kid, by, reason)

    async def _activate(self, chosen: JwtKeyRecord, by: str, reason: str = "", *, forced: bool = False) -> None:
        now = self._clock()
        olds = [
            record.moved(SlotState.OLD, now)
            for record, _ in self._records.values()
            if record.state is SlotState.ACTIVE and record.kid in self._keys
        ]
        await self._commit([*olds, chosen.moved(SlotState.ACTIVE, now)])
        log.info("jwt_key.activated", kid=chosen.kid)
        await self._tell("activate", chosen.kid, by, reason, forced=forced)

    def _new(self, state: SlotState) -> JwtKeyRecord:
        key, now = new_key(), self._clock()
        record = JwtKeyRecord(thumbprint(key.public_key()), key.public_key(), state, now, now, now + HOLD)
        self._keys[record.kid] = key
        return self._lock.close(record, key)

    async def _tell(self, act: str, kid: str, by: str, reason: str, **more: Any) -> None:
        await self._record(f"jwt_key.{act}", kid=kid, by=by, reason=reason, **more)

    async def _record(self, event: str, **fields: Any) -> None:
        try:
            await self._audit.record(event, **fields)
        except AuditUnavailable as error:  # what a key signs is recorded, or not given
            log.error("jwt_key.not_audited", event_name=event, error=str(error), **fields)

    # -- the store

    async def _commit(
        self, changed: Sequence[JwtKeyRecord], dropped: Sequence[JwtKeyRecord] = (), guard: Sequence[Op] = ()
    ) -> None:
        """Writes records that stand as we know them, all or none."""

        def known(record: JwtKeyRecord) -> int:
            return self._records[record.kid][1] if record.kid in self._records else ABSENT

        ops: list[Op] = [Put(record.key, record.encode(), known(record)) for record in changed]
        ops += [Delete(record.key, known(record)) for record in dropped]
        if ops:
            revision = await self._store.commit([*ops, *guard])
            for record in changed:
                self._put(record, revision)
            for record in dropped:
                self._records.pop(record.kid, None)
                self._keys.pop(record.kid, None)
        self._settle()

    async def _follow(self) -> None:
        while True:
            try:
                at = await self._load()
                async with aclosing(cast("Any", self._store.watch(KEYS, after=at))) as batches:
                    async for batch in batches:
                        for event in batch.events:
                            self._read(event.key, event.value, batch.revision)
                        self._settle()
            except StoreError as error:
                log.info("jwt_keys.reread", reason=str(error))
            await asyncio.sleep(RETRY_S)

    async def _load(self) -> int:
        page = await self._store.range(KEYS)
        self._records = {}
        for record in page.records:
            self._read(record.key, record.value, record.revision)
        self._keys = {kid: key for kid, key in self._keys.items() if kid in self._records}
        self._settle()
        return page.revision

    def _read(self, key: str, value: bytes | None, revision: int) -> None:
        kid = key.removeprefix(KEYS)
        if revision < self._records.get(kid, (None, 0))[1]:
            return  # a change of before what we know
        if value is None:
            self._records.pop(kid, None)
            self._keys.pop(kid, None)
            return
        try:
            self._put(JwtKeyRecord.decode(key, value), revision)
        except RecordError as error:  # one that can't be read must not hide the others
            log.error("record.unreadable", key=key, reason=str(error))

    def _put(self, record: JwtKeyRecord, revision: int) -> None:
        self._records[record.kid] = record, revision
        if record.state not in SIGNING:
            self._keys.pop(record.kid, None)
        elif record.kid not in self._keys and record.sealed and self._lock.seal is not None:
            key = self._lock.seal.open(record.kid, record.sealed)
            if key is None:
                log.error("jwt_key.sealed_otherwise", kid=record.kid)
            else:
                self._keys[record.kid] = key

    def _settle(self) -> None:
        """Makes the bundle of what is good now."""
        now, active = self._clock(), self.slots()[0]
        self._signing = (active.kid, self._keys[active.kid]) if active is not None else self._signing
        alive = (record for record, _ in self._records.values() if record.end > now)
        good = sorted(alive, key=lambda record: record.end)[-MAX_PUBLISHED:]
        keys = {**self._others, **{record.kid: record.public_key for record in good}}
        tainted = self._others_tainted | {record.kid for record in good if record.state is SlotState.TAINTED}
        if keys == dict(self._bundle.keys) and tainted == self.tainted:
            return
        if keys != dict(self._bundle.keys):
            self._bundle = JwtBundle.of(self._trust_domain, keys.items())
        self.tainted = tainted
        for callback in self._listeners:
            callback()
