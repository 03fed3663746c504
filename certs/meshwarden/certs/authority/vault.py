"""A root in Vault or OpenBao, which signs our issuing certificate through `<mount>/root/sign-intermediate`.

Vault sees one request in a few days, never a workload's; while it is away, the issuing certificate goes on signing. The
roots are what ends the chain that Vault gives.
"""

import asyncio
import random
from collections.abc import Callable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.authority.foreign import ForeignRoots
from meshwarden.certs.authority.issuing import IssuingAuthority
from meshwarden.certs.authority.port import AuthorityError, OnIssued
from meshwarden.certs.authority.vault_chain import read_chain
from meshwarden.certs.authority.vault_client import VaultClient
from meshwarden.certs.bundle import is_authority
from meshwarden.certs.issue import INTERMEDIATE_TTL, authority_name, name_text


class VaultAuthority(ForeignRoots, IssuingAuthority):
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
    ) -> None:
        super().__init__(trust_domain, clock, rng, on_issued)
        self._client = client
        self._mount = mount
        self._intermediate_ttl = intermediate_ttl
        self._subject = ""

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
    ) -> "VaultAuthority":
        """Connects and takes the first issuing certificate.

        Args:
            client: logs in; it is closed with the authority.
            trust_domain: whose authority it is.
            clock: the present, aware.
            mount: the path of the PKI engine.
            rng: spreads renewals.
            intermediate_ttl: the life of an issuing certificate.
            on_issued: told of each issuing certificate.

        Raises:
            AuthorityError: Vault can't be reached, refuses, or signs what is of no use.
        """
        authority = cls(client, mount, trust_domain, clock, rng or random.SystemRandom(), intermediate_ttl, on_issued)
        try:
            await authority.bundle()
        except BaseException:
            await authority.close()
            raise
        return authority

    @property
    def description(self) -> str:
        """Who signs, for people."""
        return f"vault: {self._subject or self._client.address} ({self._mount})"

    @property
    def fault(self) -> str:
        """What is wrong with Vault, or with our login; empty if nothing is. What is signed already holds meanwhile."""
        return self._client.fault or super().fault

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
        name = authority_name(self.trust_domain, "issuing", key.public_key())
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        request = {
            # Only the subject, which tells this issuing certificate from the one before it.
            "use_csr_values": False,
            "organization": "Meshwarden",
            "serial_number": name.rdns[-1].rfc4514_string().partition("=")[2],
            "max_path_length": 0,
            "ttl": f"{int(self._intermediate_ttl.total_seconds())}s",
            "uri_sans": f"spiffe://{self.trust_domain}",
            "exclude_cn_from_sans": True,
            "format": "pem",
        }
        answer = await self._client.call(
            f"{self._mount}/root/sign-intermediate",
            lambda client: client.secrets.pki.sign_intermediate(
                csr=csr.public_bytes(Encoding.PEM).decode(),
                common_name=f"issuing of {self.trust_domain}"[:64],
                extra_params=request,
                mount_point=self._mount,
            ),
        )
        chain = read_chain(answer["data"], self.description)
        if chain[0].public_key() != key.public_key() or not is_authority(chain[0]):
            raise AuthorityError(f"{self.description}: signed another key, or no authority")
        self._subject = name_text(chain[-1].subject)
        return chain, (chain[-1],)
