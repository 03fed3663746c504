"""A root in Vault or OpenBao, which signs our issuing certificate through `<mount>/issuer/<id>/sign-intermediate`.

Vault sees one such request in a few days, never a workload's; while it is away, the issuing certificate goes on
signing. With a passphrase its key is kept, and signs for who starts while Vault is away.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.authority.issuing import RETRY, IssuingAuthority
from meshwarden.certs.authority.kept import KeptUnusable
from meshwarden.certs.authority.port import AuthorityError, AuthorityUnavailable, OnIssued
from meshwarden.certs.authority.vault_chain import read_chain
from meshwarden.certs.authority.vault_client import VaultClient
from meshwarden.certs.authority.vault_memory import VaultMemory
from meshwarden.certs.authority.vault_roots import VaultRoots
from meshwarden.certs.authority.vault_slots import Issuer
from meshwarden.certs.bundle import is_authority
from meshwarden.certs.issue import INTERMEDIATE_TTL, IssuerKey, authority_name, name_text
from meshwarden.certs.svid import new_key

# Of an issuing certificate that signs for nobody.
PROBE_TTL = timedelta(minutes=2)
LOG = logging.getLogger(__name__)


class VaultAuthority(VaultRoots, IssuingAuthority):
    """An authority whose root is in a PKI engine."""

    def __init__(
        self,
        client: VaultClient,
        mount: str,
        trust_domain: str,
        clock: Callable[[], datetime],
        rng: random.Random,
        intermediate_ttl: timedelta = INTERMEDIATE_TTL,
        on_issued: OnIssued | None = None,
        memory: VaultMemory | None = None,
    ) -> None:
        VaultRoots.__init__(self, client, mount, trust_domain, clock, memory)
        IssuingAuthority.__init__(self, trust_domain, clock, rng, on_issued)
        self._intermediate_ttl = intermediate_ttl

    @classmethod
    async def open(
        cls,
        client: VaultClient,
        *,
        trust_domain: str,
        clock: Callable[[], datetime],
        mount: str = "pki",
        rng: random.Random | None = None,
        intermediate_ttl: timedelta = INTERMEDIATE_TTL,
        on_issued: OnIssued | None = None,
        memory: VaultMemory | None = None,
    ) -> "VaultAuthority":
        """Connects and takes the first issuing certificate; where Vault is away, what was kept.

        Args:
            client: logs in; it is closed with the authority.
            trust_domain: whose authority it is.
            clock: the present, aware.
            mount: the path of the PKI engine.
            rng: spreads renewals.
            intermediate_ttl: the life of an issuing certificate.
            on_issued: told of each issuing certificate.
            memory: what was kept; None keeps nothing.

        Raises:
            AuthorityError: Vault refuses, or signs what is of no use; or it is away, and no roots were kept.
        """
        rng = rng or random.SystemRandom()
        authority = cls(client, mount, trust_domain, clock, rng, intermediate_ttl, on_issued, memory)
        try:
            away = await authority._begin()
            if away is None:
                await authority._ready(clock(), timedelta(0))
            else:
                await authority._recall_issuer(away)
        except BaseException:
            await authority.close()
            raise
        return authority

    @property
    def description(self) -> str:
        """Who signs, for people."""
        who = name_text(self._kept.active.signer.root.subject) if self._kept is not None else self._client.address
        return f"vault: {who} ({self._mount})"

    @property
    def fault(self) -> str:
        """What is wrong with Vault, or with our login; empty if nothing is. What is signed already holds meanwhile."""
        return self._away or self._not_renewed

    @property
    def _meanwhile(self) -> str:
        if self._issuer is None:
            return "signing waits for it"
        return f"the issuing key that was kept signs until {self._issuer.not_after.isoformat()}"

    async def _recall_issuer(self, away: AuthorityUnavailable) -> None:
        """Signs by the key that was kept, if one was that the root which signs has signed."""
        now = self._clock()
        self._failure, self._due = (now, away), now + RETRY
        if self._memory is None:
            return
        try:
            issuer = await asyncio.to_thread(self._memory.issuer)
            if issuer is not None:
                if not self._covers(issuer, now, timedelta(0)):
                    raise KeptUnusable("the issuing certificate that was kept has ended, or its root signs no more")
                self._prove(issuer, now)
        except AuthorityError as error:
            LOG.error("no issuing key from before: %s", error)
            return
        self._issuer = issuer

    def _returned(self) -> None:
        self._due, self._failure = None, None  # a key that was kept is replaced now

    async def _renew(self, now: datetime) -> IssuerKey:
        issuer = await super()._renew(now)
        if self._memory is not None:
            try:
                await asyncio.to_thread(self._memory.keep_issuer, issuer)
            except OSError as error:
                LOG.error("issuing key not kept: %s", error)
        return issuer

    async def run(self) -> None:
        """Keeps the issuing certificate and the login fresh until it is cancelled, and sees whether Vault is there."""
        while True:
            await self._refresh()
            wait = await self._client.tend()
            await asyncio.sleep(wait.total_seconds())

    async def close(self) -> None:
        """Forgets the issuing key and ends the connection; the token stays as it is."""
        await super().close()
        self._client.close()

    async def _sign_intermediate(
        self, key: ec.EllipticCurvePrivateKey, now: datetime
    ) -> tuple[tuple[x509.Certificate, ...], tuple[x509.Certificate, ...]]:
        chain = await self._by_signer(lambda signer: self._signed(key, signer, self._intermediate_ttl))
        return chain, (await self.bundle()).roots

    def _signs(self, root: x509.Certificate) -> bool:
        return self._kept is None or root == self._kept.active.signer.root

    def _trust(self, roots: Sequence[x509.Certificate]) -> None:
        """What is trusted is what the engine's issuers say, whatever has just signed."""

    async def _try(self, signer: Issuer) -> None:
        key = new_key()
        chain = await self._signed(key, signer, PROBE_TTL)
        self._prove(IssuerKey(key, chain), self._clock())
        if self._on_issued is not None:
            await self._on_issued(chain)

    async def _signed(
        self, key: ec.EllipticCurvePrivateKey, signer: Issuer, ttl: timedelta
    ) -> tuple[x509.Certificate, ...]:
        """Has an issuing certificate signed; returns its chain, its root last."""
        name = authority_name(self.trust_domain, "issuing", key.public_key())
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        request = {
            "csr": csr.public_bytes(Encoding.PEM).decode(),
            "common_name": f"issuing of {self.trust_domain}"[:64],
            # Only the subject, which tells this issuing certificate from the one before it.
            "use_csr_values": False,
            "organization": "Meshwarden",
            "serial_number": name.rdns[-1].rfc4514_string().partition("=")[2],
            "max_path_length": 0,
            "ttl": f"{int(ttl.total_seconds())}s",
            "uri_sans": f"spiffe://{self.trust_domain}",
            "exclude_cn_from_sans": True,
            "format": "pem",
        }
        path = f"{self._mount}/issuer/{signer.id}/sign-intermediate"
        answer = await self._client.call(path, lambda client: client.write_data(path, data=request))
        chain = read_chain(answer["data"], self.description)
        if chain[0].public_key() != key.public_key() or not is_authority(chain[0]):
            raise AuthorityError(f"{self.description}: signed another key, or no authority")
        if chain[-1] != signer.root:
            raise AuthorityError(f"{self.description}: what it signs leads to another root than its issuer does")
        return chain
