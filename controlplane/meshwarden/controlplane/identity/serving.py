"""The control plane's own certificate: issued by its own authority, renewed before it ends.

Where who signs is away when the control plane starts, the one that an earlier run has kept serves, if it is still good,
until there is another.
"""

import asyncio
import base64
import json
import random
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_private_key
from opentelemetry.trace import TracerProvider

from meshwarden.certs.authority.kept import KeptFiles, KeptUnusable
from meshwarden.certs.authority.port import Authority, AuthorityUnavailable
from meshwarden.certs.authority.slot import Roots
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.csr import make_csr
from meshwarden.certs.error import UNREADABLE, CertsError
from meshwarden.certs.issue import LeafTemplate, control_plane_dns_name, region_dns_name
from meshwarden.certs.rotation import renew_at
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.certs.verify import verify_chain
from meshwarden.controlplane.audit.port import AuditLog, AuditUnavailable
from meshwarden.controlplane.identity.renewal import Renewals, leads_to_good, note_issued, until_due
from meshwarden.sdk.mtls.tls import server_context

LIFE = timedelta(hours=1)
RETRY_S = 5.0
KEPT = "svid"

log = structlog.get_logger()


class ServingIdentity:
    """Holds the TLS context of the present certificate; `context` is asked at each handshake."""

    def __init__(
        self,
        authority: Authority,
        trust_domain: str,
        region: str,
        *,
        audit: AuditLog,
        clock: Callable[[], datetime],
        rng: random.Random,
        provider: TracerProvider | None = None,
        kept: KeptFiles | None = None,
    ) -> None:
        """Has no certificate yet; keeps those that it gets in `kept`, None for nowhere."""
        self._kept = kept
        self._renewals = Renewals(provider)
        self._authority, self._audit, self._clock, self._rng = authority, audit, clock, rng
        names = (control_plane_dns_name(trust_domain), region_dns_name(trust_domain, region))
        self._template = LeafTemplate(SpiffeId.control_plane(trust_domain, region), LIFE, dns_names=names)
        self._context: ssl.SSLContext | None = None
        self._web_context: ssl.SSLContext | None = None
        self._svid: X509Svid | None = None
        self._due = clock()
        self._bundle: Bundle | None = None

    def context(self) -> ssl.SSLContext:
        """Returns the TLS context of the present certificate."""
        if self._context is None:
            raise RuntimeError("the serving identity is asked for before it is issued")
        return self._context

    def web_context(self) -> ssl.SSLContext:
        """Returns the same for HTTP/1.1."""
        if self._web_context is None:
            raise RuntimeError("the serving identity is asked for before it is issued")
        return self._web_context

    def svid(self) -> X509Svid | None:
        """Returns the present certificate; None before the first."""
        return self._svid

    def bundles(self) -> dict[str, Bundle]:
        """Returns what peers must lead to, {trust domain: bundle}."""
        return {} if self._bundle is None else {self._bundle.trust_domain: self._bundle}

    async def follow(self, roots: Roots) -> None:
        """The roots have changed: trusts those, and leaves one that is tainted or gone.

        Raises:
            CertsError: the authority can't sign now.
        """
        bundle = await self._authority.bundle()
        if self._svid is None:
            return
        if not leads_to_good(self._svid, bundle, roots):
            await self.issue()
        elif bundle is not self._bundle:
            self._take(self._svid, bundle)

    async def start(self) -> None:
        """Issues the first certificate, or takes the one that was kept, where who signs is away.

        Raises:
            CertsError: the authority can't sign now, and none was kept that is good.
        """
        try:
            await self.issue()
        except AuthorityUnavailable as away:
            try:
                await self._resume()
            except CertsError as error:
                raise AuthorityUnavailable(
                    f"{away}\nThe control plane has no certificate to show meanwhile: {error}. Start Vault, or unseal "
                    'it; with form = "upstream" and a `passphrase` under [authority] the next such start does without '
                    "for days"
                ) from None
            log.warning(
                "control plane certificate of before", serial=self._svid and self._svid.serial, reason=str(away)
            )

    async def _resume(self) -> None:
        """Takes the certificate that was kept.

        Raises:
            CertsError: it isn't good, or there is none.
        """
        svid = await asyncio.to_thread(self._read)
        bundle, roots = await self._authority.bundle(), await self._authority.roots()
        if self._clock() >= svid.not_after:
            raise KeptUnusable(f"the one that was kept has ended, {svid.not_after.isoformat()}")
        verify_chain(svid.chain_der(), {bundle.trust_domain: bundle}, self._clock())
        if svid.spiffe_id != self._template.spiffe_id:
            raise KeptUnusable(f"the one that was kept is {svid.spiffe_id}'s, this is {self._template.spiffe_id}")
        if not leads_to_good(svid, bundle, roots):
            raise KeptUnusable("the one that was kept leads to a root that is tainted")
        self._take(svid, bundle)
        self._due = self._clock()

    def _read(self) -> X509Svid:
        content = self._kept.read(KEPT) if self._kept is not None else None
        if content is None:
            raise KeptUnusable("none was kept by an earlier run")
        try:
            words = json.loads(content)
            chain = [x509.load_der_x509_certificate(base64.b64decode(one, validate=True)) for one in words["chain"]]
            key = load_der_private_key(base64.b64decode(words["key"], validate=True), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError("no key of ours")
            return X509Svid.of(chain, key)
        except (KeyError, AttributeError, RecursionError, *UNREADABLE):
            raise KeptUnusable("the one that was kept can't be read") from None

    def _keep(self, svid: X509Svid) -> None:
        if self._kept is None:
            return
        chain = [base64.b64encode(der).decode() for der in svid.chain_der()]
        words = {"v": 1, "chain": chain, "key": base64.b64encode(svid.key_der()).decode()}
        try:
            self._kept.write(KEPT, json.dumps(words).encode())
        except OSError as error:
            log.error("control plane certificate not kept", error=str(error))

    async def issue(self) -> None:
        """Issues the next certificate and takes it into use.

        Raises:
            CertsError: the authority can't sign now.
        """
        with self._renewals.next(self._svid):
            await self._issue()

    async def _issue(self) -> None:
        key = new_key()
        chain = await self._authority.sign(self._template, key.public_key(), self._clock(), make_csr(key))
        bundle = await self._authority.bundle()
        svid = X509Svid.of(chain, key)
        note_issued(svid)
        self._take(svid, bundle)
        self._due = renew_at(svid.not_before, svid.not_after, self._rng)
        fields = {"spiffe_id": str(svid.spiffe_id), "serial": svid.serial, "not_after": svid.not_after.isoformat()}
        log.info("control plane certificate issued", **fields)
        try:
            await self._audit.record("controlplane.issue", **fields)
        except AuditUnavailable as error:
            # It goes to nobody else, and a full disk must not close the door through which one learns of it.
            log.error("control plane certificate not audited", error=str(error), **fields)
        await asyncio.to_thread(self._keep, svid)

    def _take(self, svid: X509Svid, bundle: Bundle) -> None:
        said = svid.chain_pem(), svid.key_pem(), bundle.pem()
        self._context, self._web_context = server_context(*said), server_context(*said, protocol="http/1.1")
        self._svid, self._bundle = svid, bundle

    async def run(self) -> None:
        """Renews at half-life until cancelled. A failure is retried: nearly half of the life is left for that."""
        while True:
            if self._svid is not None:
                await until_due(self._svid.not_before, self._due, self._clock)
            try:
                await self.issue()
            except Exception as error:  # whatever an authority raises, the old certificate still serves
                log.error("control plane certificate not renewed", error=str(error))
                await asyncio.sleep(RETRY_S * self._rng.uniform(0.5, 1.5))
