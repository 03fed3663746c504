"""Denies: identities and certificates that are refused though a certificate is good, as the store keeps them.

/identity/deny/id/<SHA-256 of the SPIFFE ID>                   DenyRecord of an identity
/identity/deny/serial/<serial>/<SHA-256 of its SPIFFE ID>      DenyRecord of one certificate

A deny ends by itself when the last certificate that it names has ended. While an identity is denied nothing is issued
to it, so that there is no new one either.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from meshwarden.certs.deny import MAX_DENIES, Deny, InvalidDeny, last_end
from meshwarden.certs.issue import MAX_LEAF_TTL
from meshwarden.certs.spiffe_id import Role, SpiffeId
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.identity.record import RecordError
from meshwarden.controlplane.store.limit import MAX_OPS
from meshwarden.controlplane.store.port import ABSENT, Ambiguous, Conflict, Delete, Op, Put, Store, TooLarge
from meshwarden.sdk.tracing import own_span

DENIES: Final = "/identity/deny/"
BY_REGION: Final = "region "
"""What an author begins with that is another region."""
MAX_REASON: Final = 512
MAX_OF_TENANT: Final = 500
"""How many denies the operators of one tenant can have."""
ATTEMPTS: Final = 3


class NotDenied(Exception):
    """What is to be allowed isn't denied."""


class DeniedByMesh(Exception):
    """An operator of a tenant may not change what an operator of the mesh has denied."""


class DeniedElsewhere(Exception):
    """Another region has denied what is to be allowed."""


@dataclass(frozen=True)
class DenyRecord:
    """A deny with who, when and why."""

    deny: Deny
    reason: str
    # A SPIFFE ID, or the control plane's own word for what has denied it.
    by: str
    time: datetime

    @property
    def key(self) -> str:
        """The store key."""
        return key_of(self.deny)

    def encode(self) -> bytes:
        """Returns the bytes to store."""
        value = {
            "v": 1,
            "spiffe_id": self.deny.spiffe_id,
            "serial": self.deny.serial,
            "not_after": self.deny.not_after.isoformat(),
            "reason": self.reason,
            "by": self.by,
            "time": self.time.isoformat(),
        }
        return json.dumps(value).encode()

    @classmethod
    def decode(cls, key: str, value: bytes) -> "DenyRecord":
        """Reads stored bytes.

        Raises:
            RecordError: they are no deny's, or are under another's key.
        """
        try:
            words = json.loads(value)
            deny = Deny.of(words["spiffe_id"], words["serial"], datetime.fromisoformat(words["not_after"]))
            record = cls(deny, words["reason"], words["by"], datetime.fromisoformat(words["time"]))
            if deny.not_after.tzinfo is None or record.key != key:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, InvalidDeny):
            raise RecordError(f"store key {key}: not a deny") from None
        return record


def key_of(deny: Deny) -> str:
    """Returns the store key of a deny. SPIFFE IDs are longer than keys may be, so their digest stands there."""
    digest = hashlib.sha256(deny.spiffe_id.encode()).hexdigest()
    return f"{DENIES}serial/{deny.serial}/{digest}" if deny.serial else f"{DENIES}id/{digest}"


class Denies:
    """Denies and allows. What is in force is `DenyWatch`'s to know."""

    def __init__(self, store: Store, audit: AuditLog, clock: Callable[[], datetime]) -> None:
        self._store, self._audit, self._clock = store, audit, clock

    async def deny(
        self,
        ids: Iterable[str] = (),
        serials: Mapping[str, str] | None = None,
        until: datetime | None = None,
        reason: str = "",
        by: str = "the control plane",
    ) -> int:
        """Denies identities and certificates, all or none, and returns the store revision that has them.

        Args:
            ids: SPIFFE IDs of which every certificate is refused.
            serials: {serial number: the SPIFFE ID that its certificate bears, or empty if that isn't known}.
            until: when it ends; None for when the last certificate has ended that could have been issued by now.
            reason: why, for operators.
            by: who: a SPIFFE ID, or a word of ours.

        Raises:
            InvalidDeny: one of them is no SPIFFE ID or serial number, is a control plane's, or there are too many.
            DeniedByMesh: `by` is an operator of a tenant, and one of them is denied by the mesh already.
            StoreError: they can't be stored.
        """
        end = until if until is not None else last_end(MAX_LEAF_TTL, self._clock())
        denies = [Deny.of(spiffe_id, "", end) for spiffe_id in ids]
        denies += [Deny.of(spiffe_id, serial, end) for serial, spiffe_id in (serials or {}).items()]
        return await self.add(denies, reason, by)

    async def add(self, denies: Sequence[Deny], reason: str, by: str) -> int:
        """Stores denies, all or none; see `deny`."""
        records = {record.key: record for record in (self._record(deny, reason, by) for deny in denies)}
        if len(records) > MAX_OPS:
            raise TooLarge(f"{len(records)} denies at once; the limit is {MAX_OPS}")
        await self._check_room(records, by)
        revision = await self._change(records, by)
        own_span.note_revision(revision, f"DENIED {', '.join(str(record.deny) for record in records.values())}"[:500])
        for record in records.values():
            await self._audit.record("identity.deny", **_fields(record), by=by, reason=record.reason)
        return revision

    async def allow(self, targets: Sequence[tuple[str, str]], reason: str, by: str) -> int:
        """Takes denies back, all or none, and returns the store revision without them.

        Args:
            targets: (SPIFFE ID, serial number) as they were denied; either may be empty.
            reason: why, for the audit log.
            by: who, as in `deny`.

        Raises:
            InvalidDeny: one of them is no SPIFFE ID or serial number.
            NotDenied: one of them isn't denied.
            DeniedByMesh: `by` is an operator of a tenant, and the mesh has denied one of them.
            DeniedElsewhere: another region has denied one of them, and `by` isn't that.
            StoreError: it can't be stored.
        """
        wanted = {key_of(deny): deny for deny in (Deny.of(*target, self._clock()) for target in targets)}
        revision = await self._change(dict.fromkeys(wanted), by, {key: str(d) for key, d in wanted.items()})
        own_span.note_revision(revision, f"ALLOWED {', '.join(map(str, wanted.values()))}"[:500])
        for deny in wanted.values():
            fields = {"spiffe_id": deny.spiffe_id, "serial": deny.serial}
            await self._audit.record("identity.allow", **fields, by=by, reason=reason[:MAX_REASON])
        return revision

    async def _check_room(self, records: Mapping[str, DenyRecord], by: str) -> None:
        """Sees that the list stays of a size, and that no tenant fills it.

        Raises:
            InvalidDeny: it is full.
        """
        tenant = _tenant_of_operator(by)
        count = own = 0
        at, start = 0, ""
        while True:
            page = await self._store.range(DENIES, start=start, at=at, limit=1000)
            at, start = page.revision, page.next_key
            for record in page.records:
                if record.key not in records:
                    count += 1
                    own += tenant is not None and _author_tenant(record.key, record.value) == tenant
            if not start:
                break
        if count + len(records) > MAX_DENIES:
            raise InvalidDeny(f"{count} denies are there already, and at most {MAX_DENIES} can be: allow some, or wait")
        if tenant is not None and own + len(records) > MAX_OF_TENANT:
            raise InvalidDeny(
                f"the operators of tenant {tenant} have denied {own} already, and at most {MAX_OF_TENANT} can be: "
                "allow some, or wait"
            )

    def _record(self, deny: Deny, reason: str, by: str) -> DenyRecord:
        if deny.spiffe_id and not deny.serial and SpiffeId.parse(deny.spiffe_id).role is Role.CONTROL_PLANE:
            raise InvalidDeny(
                f"{deny}: is a control plane's own; what it has signed would stay. Replace the root instead"
            )
        if deny.not_after <= self._clock():
            raise InvalidDeny(f"{deny}: would have ended at {deny.not_after.isoformat()} already")
        return DenyRecord(deny, reason[:MAX_REASON], by, self._clock().replace(microsecond=0))

    async def _change(
        self, records: Mapping[str, DenyRecord | None], by: str, missing: Mapping[str, str] | None = None
    ) -> int:
        """Puts records, or deletes where there is None, if `by` may; each against what it has seen."""
        for _ in range(ATTEMPTS):
            ops: list[Op] = []
            for key, record in records.items():
                stored, _ = await self._store.get(key)
                if stored is not None:
                    known = DenyRecord.decode(key, stored.value)
                    if by.startswith(BY_REGION) and known.by != by:
                        continue  # it is denied by somebody else, and to be allowed by nobody else
                    _check_may(by, known, lifted=record is None)
                elif record is None:
                    raise NotDenied(f"{(missing or {}).get(key, key)}: is not denied")
                at = stored.revision if stored is not None else ABSENT
                ops.append(Delete(key, at) if record is None else Put(key, record.encode(), at))
            try:
                return await self._store.commit(ops) if ops else (await self._store.range(DENIES, limit=1)).revision
            except (Conflict, Ambiguous) as error:
                failure = error
        raise failure


def _check_may(by: str, record: DenyRecord, *, lifted: bool) -> None:
    """Sees that an operator of a tenant leaves alone what others than its own tenant's operators have denied.

    Raises:
        DeniedByMesh: it may not.
        DeniedElsewhere: nobody here may lift it.
    """
    if lifted and record.by.startswith(BY_REGION) and record.by != by:
        raise DeniedElsewhere(f"{record.deny}: was denied in {record.by}; allow it there")
    tenant = _tenant_of_operator(by)
    if tenant is not None and _tenant_of_operator(record.by) != tenant:
        raise DeniedByMesh(f"{record.deny}: was denied by {record.by}; an operator of the mesh must change it")


def _tenant_of_operator(by: str) -> str | None:
    """The tenant whose operator has done something; None if it was anybody else."""
    identity = SpiffeId.parse(by) if by.startswith("spiffe://") else None
    return identity.tenant if identity is not None and identity.role is Role.TENANT_OPERATOR else None


def _author_tenant(key: str, value: bytes) -> str | None:
    try:
        return _tenant_of_operator(DenyRecord.decode(key, value).by)
    except RecordError:
        return None


def _fields(record: DenyRecord) -> dict[str, str]:
    deny = record.deny
    return {"spiffe_id": deny.spiffe_id, "serial": deny.serial, "not_after": deny.not_after.isoformat()}
