"""Who may operate the mesh, and how far.

/identity/operator/mesh/<name>               OperatorRecord of an operator of the mesh
/identity/operator/tenant/<tenant>/<name>    OperatorRecord of one of a tenant's

Who logs in with a token of Vault is there as "vault-<name>", until the certificate of that login ends.

A certificate alone lets nobody operate: its name must be in the store, at each call. Only the control plane's own
operator, "local", whose certificate lies on its disk, has none and needs none.
"""

import contextlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Final

from cryptography import x509

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.csr import PublicKey, parse_csr
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import InvalidSpiffeId, Role, SpiffeId
from meshwarden.certs.verify import VerifiedPeer
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.identity.authorize import BY_CERTIFICATE, READING, TABLE, Denied, check_role
from meshwarden.controlplane.store.follow import Followed
from meshwarden.controlplane.store.port import ANY, Delete, Op, Put, Store
from meshwarden.sdk.mtls.peer import current_connection

OPERATORS: Final = "/identity/operator/"
LOCAL: Final = "local"
LOGIN: Final = "vault-"
"""How the names begin of those who log in; nobody else may be called so."""
TTL: Final = timedelta(hours=8)
# Logins that have ended, deleted at once by one that begins.
_DROPPED: Final = 16
MAX_OPERATORS: Final = 1000
"""How many the mesh has at most, and each tenant."""

_EDITING: Final = frozenset({"Apply", "Put", "Delete", "Remove", "Rollback"})
# What an operator does for itself, or what everybody may ask.
_ANY: Final = READING | {
    *("RenewOperator", "LoginOperator", "CreateSessionCode", "PreviewSession", "CreateSession", "DeleteSession"),
    *("Watch", "Check", "ServerReflectionInfo"),
}


class OperatorRole(IntEnum):
    """How far an operator goes; each has what the one before has."""

    VIEWER = 1
    EDITOR = 2
    ADMIN = 3


class UnknownOperator(Exception):
    """There is no such operator."""


class TooManyOperators(Exception):
    """There can be no more of them."""


@dataclass(frozen=True)
class OperatorRecord:
    """An operator, and who has said so."""

    tenant: str
    name: str
    role: OperatorRole
    # The life of each certificate.
    ttl: timedelta
    # A SPIFFE ID.
    by: str
    time: datetime
    # When a login ends; None for who operates until he is removed.
    until: datetime | None = None

    @property
    def key(self) -> str:
        """The store key."""
        return key_of(self.tenant, self.name)

    def encode(self) -> bytes:
        """Returns the bytes to store."""
        value = {"v": 1, "role": self.role.name, "ttl_s": int(self.ttl.total_seconds()), "by": self.by}
        value["time"] = self.time.isoformat()
        if self.until is not None:
            value["until"] = self.until.isoformat()
        return json.dumps(value).encode()

    @classmethod
    def decode(cls, key: str, value: bytes) -> "OperatorRecord":
        """Reads stored bytes.

        Raises:
            ValueError: they are no operator's.
        """
        try:
            tenant, name = _parse(key)
            words = json.loads(value)
            ttl, time = timedelta(seconds=int(words["ttl_s"])), datetime.fromisoformat(words["time"])
            until = datetime.fromisoformat(words["until"]) if "until" in words else None
            if until is not None and until.tzinfo is None:
                raise ValueError("until")
            return cls(tenant, name, OperatorRole[words["role"]], ttl, str(words["by"]), time, until)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"store key {key}: not an operator") from None


Entered = tuple[OperatorRecord, tuple[x509.Certificate, ...]]
"""Who was let in, and the certificate that it has."""


def key_of(tenant: str, name: str) -> str:
    """Returns the store key of an operator; an empty tenant is the mesh."""
    return f"{OPERATORS}tenant/{tenant}/{name}" if tenant else f"{OPERATORS}mesh/{name}"


def needed(method: str) -> OperatorRole:
    """Returns how far an operator must go for a method, "/meshwarden.v1.AdminService/GetStatus".

    What isn't known to change nothing, or to change resources alone, takes an admin.
    """
    name = method.rpartition("/")[2]
    if name in _ANY:
        return OperatorRole.VIEWER
    return OperatorRole.EDITOR if name in _EDITING else OperatorRole.ADMIN


class Operators:
    """Lets operators in by what the store says of them, and gives them certificates."""

    def __init__(
        self,
        authority: Authority,
        store: Store,
        audit: AuditLog,
        clock: Callable[[], datetime],
        *,
        trust_domain: str,
        denied: Callable[[SpiffeId], str] = lambda _: "",
    ) -> None:
        """Puts it together.

        Args:
            authority: signs certificates.
            store: keeps who operates.
            audit: learns of each change and each certificate.
            clock: the present, aware.
            trust_domain: ours.
            denied: says why an identity is denied; empty if it isn't.
        """
        self._authority, self._store, self._audit, self._clock = authority, store, audit, clock
        self._trust_domain, self._denied = trust_domain, denied
        self._followed = Followed(store, OPERATORS, OperatorRecord.decode)
        self.run = self._followed.run
        """Follows the store until it is cancelled; has started once all operators are known."""
        self.listen = self._followed.listen
        """Calls back when somebody operates, operates no more, or not so far."""

    def admit(self, peer: VerifiedPeer | None, method: str) -> None:
        """Lets a caller through to a method, or not; operators by what the store says.

        Raises:
            Denied: as `authorize.admit` does, for an operator that the store doesn't know, or not so far, and for a
                session that calls what takes a certificate.
        """
        identity = peer.spiffe_id if peer is not None else None
        check_role(identity, method)
        if identity is None or identity.role not in (Role.OPERATOR, Role.TENANT_OPERATOR):
            return
        connection = current_connection()
        _check(identity, self.role(identity), method, connection is not None and connection.session is not None)

    def role(self, identity: SpiffeId) -> OperatorRole:
        """Returns how far an operator goes.

        Raises:
            Denied: the store doesn't know it, or its login has ended.
        """
        if identity == SpiffeId.for_operator(self._trust_domain, LOCAL):
            return OperatorRole.ADMIN
        record = self._find(identity)
        if record is None:
            raise Denied(
                f"{identity}: operates this mesh no more, or never did; an admin can let it: meshwarden operator create"
            )
        if record.until is not None and self._clock() >= record.until:
            raise Denied(f"{identity}: the login has ended: meshwarden login")
        return record.role

    def methods(self, identity: SpiffeId, *, by_session: bool) -> list[str]:
        """Returns the methods that `admit` lets an operator through to, "/meshwarden.v1.AdminService/BanNode".

        Raises:
            Denied: the store doesn't know it, or its login has ended.
        """
        role, found = self.role(identity), []
        for method in TABLE:
            with contextlib.suppress(Denied):
                check_role(identity, method)
                _check(identity, role, method, by_session)
                found.append(method)
        return found

    def listed(self) -> list[OperatorRecord]:
        """The operators, the mesh's first, then each tenant's, by name."""
        return sorted(self._followed.items.values(), key=lambda record: (record.tenant, record.name))

    async def create(self, record: OperatorRecord, csr: bytes) -> tuple[x509.Certificate, ...]:
        """Lets somebody operate, or changes how far, and returns a certificate for it.

        Raises:
            TooManyOperators: the mesh or the tenant has as many as it can.
            Denied: the identity is denied.
            InvalidCsr: the request is refused; nothing is changed.
            AuthorityError: nobody can sign; nothing is changed.
            StoreError: it can't be stored.
        """
        public_key = parse_csr(csr)
        self._check_room(record)
        chain = await self._sign(record, public_key)
        revision = await self._store.commit([Put(record.key, record.encode(), ANY)])
        await self._record("operator.create", record, chain, role=record.role.name, by=record.by)
        await self._followed.wait_revision(revision)
        return chain

    async def enter(self, record: OperatorRecord, csr: bytes, about: Mapping[str, object]) -> Entered:
        """Lets somebody in who has logged in, until the certificate that it gives ends.

        Args:
            record: who, and how far.
            csr: whose key.
            about: what else of the login is recorded.

        Raises:
            TooManyOperators: the mesh or the tenant has as many as it can.
            Denied: the identity is denied.
            InvalidCsr: the request is refused.
            AuthorityError: nobody can sign.
            StoreError: it can't be stored.
        """
        public_key = parse_csr(csr)
        now = self._clock()
        items = self._followed.items.items()
        ended = [key for key, one in items if one.until is not None and one.until <= now and key != record.key]
        self._check_room(record, ended)
        chain = await self._sign(record, public_key)
        entered = replace(record, until=chain[0].not_valid_after_utc)
        drops: list[Op] = [Delete(key, ANY) for key in ended[:_DROPPED]]
        revision = await self._store.commit([Put(entered.key, entered.encode(), ANY), *drops])
        await self._record("operator.login", entered, chain, role=record.role.name, **about)
        await self._followed.wait_revision(revision)
        return entered, chain

    def _check_room(self, record: OperatorRecord, ended: Collection[str] = ()) -> None:
        others = [one for key, one in self._followed.items.items() if key != record.key and key not in ended]
        number = sum(one.tenant == record.tenant for one in others)
        if number >= MAX_OPERATORS:
            whose = f"tenant {record.tenant}" if record.tenant else "the mesh"
            raise TooManyOperators(f"{whose} has {number} operators already: remove some")

    async def renew(self, peer: VerifiedPeer | None, csr: bytes) -> tuple[OperatorRecord, tuple[x509.Certificate, ...]]:
        """Gives an operator its next certificate.

        Raises:
            Denied: the caller is no operator that the store knows, or is denied.
            InvalidCsr: the request is refused.
            AuthorityError: nobody can sign.
        """
        record = self._find(peer.spiffe_id) if peer is not None else None
        if record is None:
            raise Denied("only operators made by `meshwarden operator create` are given a next certificate")
        if record.until is not None:
            raise Denied("whoever has logged in logs in again: meshwarden login")
        chain = await self._sign(record, parse_csr(csr))
        await self._record("operator.renew", record, chain)
        return record, chain

    async def remove(self, tenant: str, name: str, by: str) -> None:
        """Lets an operator operate no more.

        Raises:
            UnknownOperator: there is no such one.
            StoreError: it can't be stored.
        """
        key = key_of(tenant, name)
        if key not in self._followed.items:
            whose = f"tenant {tenant}" if tenant else "the mesh"
            raise UnknownOperator(f"{whose} has no operator {name!r}; `meshwarden operator list` shows them")
        revision = await self._store.commit([Delete(key, ANY)])
        await self._audit.record("operator.remove", tenant=tenant, name=name, by=by)
        await self._followed.wait_revision(revision)

    def _find(self, identity: SpiffeId) -> OperatorRecord | None:
        if identity.trust_domain != self._trust_domain or identity.operator is None:
            return None
        return self._followed.items.get(key_of(identity.tenant or "", identity.operator))

    async def _sign(self, record: OperatorRecord, public_key: PublicKey) -> tuple[x509.Certificate, ...]:
        identity = SpiffeId.for_operator(self._trust_domain, record.name, record.tenant or None)
        if reason := self._denied(identity):
            raise Denied(f"{identity}: {reason}")
        return await self._authority.sign(LeafTemplate(identity, record.ttl), public_key, self._clock())

    async def _record(
        self, event: str, record: OperatorRecord, chain: tuple[x509.Certificate, ...], **fields: object
    ) -> None:
        leaf = chain[0]
        about = {"tenant": record.tenant, "name": record.name, "serial": f"{leaf.serial_number:x}"}
        await self._audit.record(event, **about, not_after=leaf.not_valid_after_utc.isoformat(), **fields)


def _check(identity: SpiffeId, role: OperatorRole, method: str, by_session: bool) -> None:
    """Checks an operator of a role for a method.

    Raises:
        Denied: the role does not go so far, or no session does.
    """
    if by_session and method in BY_CERTIFICATE:
        raise Denied(f"{method} takes the certificate itself: by a session nobody gets what outlives the session")
    wanted = needed(method)
    if role < wanted:
        raise Denied(f"{identity} may not call {method}: it is {_a(role)}, and that takes {_a(wanted)}")


def _parse(key: str) -> tuple[str, str]:
    """Returns (tenant, name) of a store key."""
    match key.removeprefix(OPERATORS).split("/"):
        case ["mesh", name]:
            tenant = ""
        case ["tenant", tenant, name] if tenant:
            pass
        case _:
            raise ValueError(key)
    try:
        SpiffeId.for_operator("any", name, tenant or None)
    except InvalidSpiffeId as error:
        raise ValueError(str(error)) from None
    return tenant, name


def _a(role: OperatorRole) -> str:
    return f"{'a' if role is OperatorRole.VIEWER else 'an'} {role.name.lower()}"
