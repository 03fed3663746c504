"""A root in Vault or OpenBao, which signs our issuing certificate through `<mount>/root/sign-intermediate`.

Vault sees one request in a few days, never a workload's; while it is away, the issuing certificate goes on signing. The
roots are what ends the chain that Vault gives.
"""

import asyncio
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.authority.issuing import LOG, RETRY, IssuingAuthority
from meshwarden.certs.authority.port import AuthorityError, OnIssued, Secret
from meshwarden.certs.authority.vault_client import VaultClient
from meshwarden.certs.bundle import is_authority
from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.issue import INTERMEDIATE_TTL, authority_name, name_text

# How often it is seen whether Vault is there; a clock that jumps (a suspended machine) is noticed as soon.
LOOK = timedelta(seconds=10)


class VaultAuthority(IssuingAuthority):
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
        self._away = self._token_fault = ""

    @classmethod
    async def open(
        cls,
        *,
        address: str,
        token: Secret,
        trust_domain: str,
        clock: Callable[[], datetime],
        mount: str = "pki",
        ca_file: Path | None = None,
        namespace: str | None = None,
        rng: random.Random | None = None,
        intermediate_ttl: timedelta = INTERMEDIATE_TTL,
        on_issued: OnIssued | None = None,
    ) -> "VaultAuthority":
        """Connects and takes the first issuing certificate.

        Args:
            address: "https://vault:8200".
            token: the login.
            trust_domain: whose authority it is.
            clock: the present, aware.
            mount: the path of the PKI engine.
            ca_file: PEM of the authorities of Vault's TLS certificate; None takes the system's.
            namespace: the namespace of the engine.
            rng: spreads renewals.
            intermediate_ttl: the life of an issuing certificate.
            on_issued: told of each issuing certificate.

        Raises:
            AuthorityError: Vault can't be reached, refuses, or signs what is of no use.
        """
        client = VaultClient(address, token, ca_file=ca_file, namespace=namespace)
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
        """What is wrong with Vault, or with our token; empty if nothing is."""
        return self._away or self._token_fault or super().fault

    async def run(self) -> None:
        """Keeps the issuing certificate and the token fresh until it is cancelled, and sees whether Vault is there."""
        token_due: datetime | None = self._clock()
        while True:
            await self._refresh()
            self._away = await self._look()
            now = self._clock()
            if token_due is not None and now >= token_due:
                try:
                    life = await self._client.renew_token()
                    # A third of its life leaves time for Vault to come back.
                    token_due = None if life is None else now + life / 3
                    self._token_fault = ""
                except AuthorityError as error:
                    self._token_fault = str(error)
                    LOG.error("Vault token not renewed: %s", error)
                    token_due = now + RETRY
            wait = LOOK if token_due is None else max(timedelta(seconds=1), min(LOOK, token_due - now))
            await asyncio.sleep(wait.total_seconds())

    async def _look(self) -> str:
        """Why Vault could sign nothing now; empty if it could. What is signed already holds meanwhile."""
        try:
            said = await self._client.call("sys/seal-status", lambda client: client.sys.read_seal_status())
            if said["sealed"]:
                return f"{self._client.address}: Vault is sealed"
            # One that was revoked would else be found out when it is to be renewed, hours later.
            await self._client.call("auth/token/lookup-self", lambda client: client.auth.token.lookup_self())
        except AuthorityError as error:
            return str(error)
        return ""

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
        chain = self._chain(answer["data"], key)
        self._subject = name_text(chain[-1].subject)
        return chain, (chain[-1],)

    def _chain(self, data: dict[str, object], key: ec.EllipticCurvePrivateKey) -> tuple[x509.Certificate, ...]:
        """Reads the answer and puts its chain in order, the root last."""
        above = data.get("ca_chain") or [data.get("issuing_ca")]
        try:
            certificate = x509.load_pem_x509_certificate(str(data["certificate"]).encode())
            issuers = [x509.load_pem_x509_certificate(str(pem).encode()) for pem in above]  # type: ignore[attr-defined]
        except (KeyError, *UNREADABLE):
            raise AuthorityError(f"{self.description}: its answer holds no certificates") from None
        if certificate.public_key() != key.public_key() or not is_authority(certificate):
            raise AuthorityError(f"{self.description}: signed another key, or no authority")
        chain = [certificate]
        while chain[-1].issuer != chain[-1].subject:
            parent = next((issuer for issuer in issuers if issuer.subject == chain[-1].issuer), None)
            if parent is None or parent in chain:
                raise AuthorityError(
                    f"{self.description}: the chain ends at {name_text(chain[-1].issuer)!r}, which isn't a root; "
                    "import the root's certificate into the PKI engine"
                )
            chain.append(parent)
        return tuple(chain)
