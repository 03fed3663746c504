"""Each leaf is signed in Vault or OpenBao, through `<mount>/issuer/<id>/sign/<role>`: no key that signs ever leaves it.

Vault sees one request for each certificate, and while it is away nobody gets one. Who starts then knows the roots that
were kept. What it signs is held against what
was asked for, so a role that adds or drops anything is found at the first leaf.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable, OnIssued
from meshwarden.certs.authority.vault_chain import read_chain
from meshwarden.certs.authority.vault_client import VaultClient
from meshwarden.certs.authority.vault_memory import VaultMemory
from meshwarden.certs.authority.vault_roots import VaultRoots
from meshwarden.certs.authority.vault_slots import Issuer
from meshwarden.certs.csr import PublicKey, make_csr
from meshwarden.certs.issue import BACKDATING, IssueRefused, LeafTemplate, check_leaf, key_usage, leaf_name, name_text
from meshwarden.certs.spiffe_id import SpiffeId, check_trust_domain
from meshwarden.certs.svid import new_key

# Vault truncates both ends of a life to seconds, one after the other.
ROUNDING = timedelta(seconds=1)
# Who can't be served is told what the last failure was for so long, rather than made to wait for the next one.
PAUSE = timedelta(seconds=1)
# The role backdates all leaves alike.
MIN_TTL = 2 * BACKDATING
LOG = logging.getLogger(__name__)
_PURPOSES = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
_DIGITAL_SIGNATURE = key_usage(digital_signature=True)


class DirectVaultAuthority(VaultRoots):
    """An authority whose only key is in a PKI engine."""

    def __init__(
        self,
        client: VaultClient,
        mount: str,
        role: str,
        trust_domain: str,
        clock: Callable[[], datetime],
        on_issued: OnIssued | None = None,
        memory: VaultMemory | None = None,
    ) -> None:
        self.trust_domain = check_trust_domain(trust_domain)
        super().__init__(client, mount, trust_domain, clock, memory)
        self._role = role
        self._clock = clock
        self._on_issued = on_issued
        self._issuer: tuple[x509.Certificate, ...] = ()
        self._turn = asyncio.Lock()
        self._failure: tuple[datetime, AuthorityUnavailable] | None = None

    @classmethod
    async def open(
        cls,
        client: VaultClient,
        *,
        trust_domain: str,
        clock: Callable[[], datetime],
        mount: str = "pki",
        role: str = "meshwarden",
        on_issued: OnIssued | None = None,
        memory: VaultMemory | None = None,
    ) -> "DirectVaultAuthority":
        """Connects and has a leaf for nobody signed, so that a mistake in the role shows here.

        Args:
            client: logs in; it is closed with the authority.
            trust_domain: whose authority it is.
            clock: the present, aware.
            mount: the path of the PKI engine.
            role: the role of that engine, as deploy/vault/direct-role.json has it.
            on_issued: told of the certificate that Vault signs with, at start and when another takes its place.
            memory: what was kept; None keeps nothing.

        Raises:
            AuthorityError: Vault refuses, or signs what is of no use; or it is away, and no roots were kept.
        """
        authority = cls(client, mount, role, trust_domain, clock, on_issued, memory)
        try:
            if memory is not None:
                await asyncio.to_thread(memory.drop_issuer)  # of the other form
            away = await authority._begin()
            if away is None:
                await authority._by_signer(authority._try)
            else:
                authority._failure = clock(), away
        except BaseException:
            await authority.close()
            raise
        return authority

    @property
    def description(self) -> str:
        """Who signs, for people."""
        subject = name_text(self._kept.active.signer.root.subject) if self._kept is not None else self._client.address
        return f"vault, each leaf: {subject} ({self._mount}/sign/{self._role})"

    @property
    def fault(self) -> str:
        """What is wrong with Vault, or with our login; empty if nothing is."""
        return self._away or (str(self._failure[1]) if self._failure is not None else "")

    @property
    def _meanwhile(self) -> str:
        return "signing waits for it"

    def _returned(self) -> None:
        self._failure = None

    async def _try(self, signer: Issuer) -> None:
        probe, key = LeafTemplate(SpiffeId(self.trust_domain, "/probe"), MIN_TTL), new_key()
        try:
            await self._signed(signer, probe, key.public_key(), self._clock(), make_csr(key))
        except IssueRefused as error:
            raise AuthorityError(f"{self.description}: its role is of no use: {error}") from None

    async def sign_crl(self, revoked: Mapping[int, datetime], number: int, now: datetime) -> bytes:
        """Refuses: the key is Vault's, and Vault signs a list of what it has revoked itself."""
        raise AuthorityError(f"{self.description}: signs no list of ours; Vault's own is at /v1/{self._mount}/crl")

    async def sign(
        self, template: LeafTemplate, public_key: PublicKey, now: datetime, csr: bytes | None = None
    ) -> tuple[x509.Certificate, ...]:
        """Has a leaf signed; returns it with its intermediates, without the root. It needs the request."""
        if csr is None:
            raise IssueRefused(f"{template.spiffe_id}: Vault signs a request only, not a bare key")
        if template.ttl < MIN_TTL:
            raise IssueRefused(f"{template.spiffe_id}: TTL {template.ttl}: Vault's role needs {MIN_TTL} or more")
        self._raise_fresh_failure()
        try:
            leaf, issuer = await self._by_signer(lambda signer: self._signed(signer, template, public_key, now, csr))
        except AuthorityUnavailable as error:
            self._failure = self._clock(), error
            raise
        self._failure = None
        await self._meet(issuer)
        return leaf

    async def _signed(
        self, signer: Issuer, template: LeafTemplate, public_key: PublicKey, now: datetime, csr: bytes
    ) -> tuple[tuple[x509.Certificate, ...], tuple[x509.Certificate, ...]]:
        """Returns a leaf with its intermediates; and who has signed it, the root last."""
        chain = read_chain(await self._ask(signer, template, csr), self.description)
        if len(chain) < 2:
            raise AuthorityError(f"{self.description}: it signs what is a root itself")
        if chain[-1] != signer.root:
            raise AuthorityError(f"{self.description}: what it signs leads to another root than its issuer does")
        leaf = check_leaf(template, public_key, chain[:-1], chain[-1], now, ROUNDING)
        _check_profile(template, leaf[0])
        return leaf, chain[1:]

    async def _ask(self, signer: Issuer, template: LeafTemplate, csr: bytes) -> dict[str, object]:
        path = f"{self._mount}/issuer/{signer.id}/sign/{self._role}"
        request = {
            "csr": x509.load_der_x509_csr(csr).public_bytes(Encoding.PEM).decode(),
            "uri_sans": str(template.spiffe_id),
            "common_name": "".join(str(name.value) for name in leaf_name(template)),
            "alt_names": ",".join(template.dns_names),
            "ttl": f"{int((template.ttl - BACKDATING).total_seconds())}s",
            "exclude_cn_from_sans": True,
            "format": "pem",
        }
        answer = await self._client.call(path, lambda client: client.write_data(path, data=request))
        data: dict[str, object] = answer["data"]
        return data

    async def _meet(self, issuer: tuple[x509.Certificate, ...]) -> None:
        """Takes note of who signs; another than before is told before its first leaf leaves."""
        if issuer == self._issuer:
            return
        async with self._turn:
            if issuer == self._issuer:
                return
            if self._on_issued is not None:
                await self._on_issued(issuer)
            self._issuer = issuer
            LOG.info("Vault signs with %x until %s", issuer[0].serial_number, issuer[0].not_valid_after_utc)

    def _raise_fresh_failure(self) -> None:
        if self._failure is not None:
            time, error = self._failure
            if timedelta(0) <= self._clock() - time < PAUSE:
                raise type(error)(*error.args)

    async def run(self) -> None:
        """Keeps the login fresh until it is cancelled, and sees whether Vault is there."""
        while True:
            wait = await self._client.tend()
            if self._failure is not None and not self._client.fault:
                await self._try_again()
            await asyncio.sleep(wait.total_seconds())

    async def _try_again(self) -> None:
        """Sees whether it signs again, so that what has failed isn't told until somebody asks for a certificate."""
        try:
            await self._by_signer(self._try)
        except AuthorityError as error:
            LOG.info("Vault is there and signs nothing yet: %s", error)
        else:
            self._failure = None

    async def close(self) -> None:
        """Ends connections."""
        self._client.close()


def _check_profile(template: LeafTemplate, leaf: x509.Certificate) -> None:
    """Refuses what a role adds to, or takes from, what every leaf of ours says."""
    extensions = leaf.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    try:
        purposes = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        purposes = set()
    wrong = {
        "it has a subject that isn't asked for": leaf.subject != leaf_name(template),
        "it has names that aren't asked for": len(names) != 1 + len(template.dns_names),
        "its key usage isn't digitalSignature alone": usage != _DIGITAL_SIGNATURE,
        "its extended key usage isn't serverAuth and clientAuth": purposes != _PURPOSES,
    }
    found = [reason for reason, holds in wrong.items() if holds]
    if found:
        raise IssueRefused(f"{template.spiffe_id}: {found[0]}; see deploy/vault/direct-role.json")
