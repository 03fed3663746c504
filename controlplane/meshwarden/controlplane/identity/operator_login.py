"""Lets operators in by a token of Vault or OpenBao: for an hour at most, and as far as the configuration says.

The token is looked up and forgotten. What it makes is a certificate of the caller's own key; who is revoked in Vault
gets no other.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.identity.authorize import Denied
from meshwarden.controlplane.identity.node_name import NameTemplate, NoName
from meshwarden.controlplane.identity.operators import LOGIN, Entered, OperatorRecord, OperatorRole, Operators
from meshwarden.controlplane.identity.rate import Limited, Pace, Rate, network_of
from meshwarden.controlplane.identity.vault_token import VaultToken, VaultTokens

# What Vault's administrators alone can set: `metadata.` is the word of whoever has made a token.
FIELDS = ("entity_name", "entity_metadata.", "alias_name")
MAX_NAME = 63
# Of one address, good or bad.
PACE = Pace(1.0, 20)


@dataclass(frozen=True)
class Grant:
    """Whoever has the policy, or is the entity, operates so far."""

    role: OperatorRole
    # The tenant; empty for the mesh.
    tenant: str
    policy: str = ""
    entity: str = ""

    def fits(self, token: VaultToken) -> bool:
        """Whether a token has it."""
        return self.policy in token.policies if self.policy else token.values.get("entity_name") == self.entity


class OperatorLogin:
    """Judges tokens."""

    def __init__(
        self,
        tokens: VaultTokens,
        operators: Operators,
        audit: AuditLog,
        clock: Callable[[], datetime],
        *,
        grants: Sequence[Grant],
        mounts: Collection[str],
        name: NameTemplate,
        ttl: timedelta,
    ) -> None:
        """Puts it together.

        Args:
            tokens: looks them up.
            operators: lets in.
            audit: learns of whom it refuses.
            clock: the present, aware.
            grants: who operates how far.
            mounts: the auth methods whose logins count, {"userpass"}.
            name: makes the operator's name, of `FIELDS`.
            ttl: how long a login lasts.
        """
        self._tokens, self._operators, self._audit, self._clock = tokens, operators, audit, clock
        self._grants, self._name, self._ttl = tuple(grants), name, ttl
        self._logins = tuple(f"auth/{mount}/" for mount in mounts)
        self._of_address = Rate(PACE)

    async def run(self) -> None:
        """Keeps our own login at Vault good until it is cancelled."""
        await self._tokens.run()

    async def log_in(self, token: str, csr: bytes, tenant: str, address: str) -> Entered:
        """Lets the holder of a token in; returns how far, and the certificate.

        Args:
            token: the token.
            csr: the request for a certificate.
            tenant: whose operator he wants to be; empty for the mesh's.
            address: where he calls from.

        Raises:
            Limited: the address asks for too much.
            Denied: the token is no good, or doesn't let its holder operate.
            AuthorityError: Vault can't be asked, or nobody can sign.
            InvalidCsr: the request is refused.
            TooManyOperators: there are as many as there can be.
            StoreError: it can't be stored.
        """
        now, network = self._clock(), network_of(address)
        if wait_s := self._of_address.take(network, now):
            raise Limited(f"address {network}", "logins", PACE, wait_s)
        try:
            found = await self._tokens.look_up(token, self._login_of)
            record = self._record(found, tenant, now)
            return await self._operators.enter(record, csr, {"accessor": found.accessor, "address": address})
        except Denied as denied:
            self._audit.note("operator.login_denied", address=address, tenant=tenant, reason=str(denied))
            raise

    def _login_of(self, path: str) -> str:
        for login in self._logins:
            if path.startswith(login):
                return login
        known = ", ".join(f"{login}login" for login in self._logins)
        raise Denied(f"vault: the token comes from {path[:100]!r}; operators log in at {known}")

    def _record(self, token: VaultToken, tenant: str, now: datetime) -> OperatorRecord:
        roles = [grant.role for grant in self._grants if grant.tenant == tenant and grant.fits(token)]
        if not roles:
            of = f"tenant {tenant}" if tenant else "the mesh; if you are one of a tenant, say which"
            raise Denied(f"vault: nothing makes the token's holder an operator of {of}")
        try:
            name = LOGIN + self._name.name(token.values)
        except NoName as error:
            raise Denied(f"vault: the token names no operator: {error}") from None
        if len(name) > MAX_NAME:
            raise Denied(f"vault: the token names no operator: {name!r} is longer than {MAX_NAME}")
        return OperatorRecord(tenant, name, max(roles), self._ttl, token.path[:255], now.replace(microsecond=0))
