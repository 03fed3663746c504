"""The control plane's own certificate: issued by its own authority, renewed before it ends."""

import asyncio
import random
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from opentelemetry.trace import TracerProvider

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.authority.slot import Roots
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.csr import make_csr
from meshwarden.certs.issue import LeafTemplate, control_plane_dns_name, region_dns_name
from meshwarden.certs.rotation import renew_at
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.audit.port import AuditLog, AuditUnavailable
from meshwarden.controlplane.identity.renewal import Renewals, leads_to_good, note_issued, until_due
from meshwarden.sdk.mtls.tls import server_context

LIFE = timedelta(hours=1)
RETRY_S = 5.0

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
    ) -> None:
        self._renewals = Renewals(provider)
        self._authority, self._audit, self._clock, self._rng = authority, audit, clock, rng
        names = (control_plane_dns_name(trust_domain), region_dns_name(trust_domain, region))
        self._template = LeafTemplate(SpiffeId.control_plane(trust_domain, region), LIFE, dns_names=names)
        self._context: ssl.SSLContext | None = None
        self._svid: X509Svid | None = None
        self._due = clock()
        self._bundle: Bundle | None = None

    def context(self) -> ssl.SSLContext:
        """Returns the TLS context of the present certificate."""
        if self._context is None:
            raise RuntimeError("the serving identity is asked for before it is issued")
        return self._context

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

    def _take(self, svid: X509Svid, bundle: Bundle) -> None:
        self._context = server_context(svid.chain_pem(), svid.key_pem(), bundle.pem())
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
