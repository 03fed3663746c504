"""Short-lived operator certificates in a directory, for whoever may read it."""

import asyncio
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from opentelemetry.trace import TracerProvider

from meshwarden.certs import files
from meshwarden.certs.authority.port import Authority, AuthorityUnavailable
from meshwarden.certs.authority.slot import Roots
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.csr import make_csr
from meshwarden.certs.error import CertsError
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.rotation import renew_at
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import X509Svid, new_key
from meshwarden.controlplane.audit.port import AuditError, AuditLog
from meshwarden.controlplane.identity.renewal import Renewals, leads_to_good, note_issued, until_due

LIFE = timedelta(hours=1)
RETRY_S = 5.0

log = structlog.get_logger()


class OperatorCredential:
    """An operator's certificate, kept fresh as `tls.crt`, `tls.key` and `ca.crt`."""

    def __init__(
        self,
        authority: Authority,
        trust_domain: str,
        name: str,
        directory: Path,
        *,
        audit: AuditLog,
        clock: Callable[[], datetime],
        rng: random.Random,
        ttl: timedelta = LIFE,
        tenant: str | None = None,
        provider: TracerProvider | None = None,
    ) -> None:
        """Says whose it is and where it goes.

        Args:
            authority: signs it.
            trust_domain: whose operator.
            name: the operator's name.
            directory: where it is published; 0700, its files 0600.
            audit: learns of each certificate before it is published.
            clock: the present, aware.
            rng: spreads renewals.
            ttl: the life of each certificate.
            tenant: makes an operator of this tenant alone.
            provider: takes the spans of it; None for nowhere.

        Raises:
            InvalidSpiffeId: the name isn't allowed.
        """
        self._renewals = Renewals(provider)
        self._authority, self._directory, self._audit = authority, directory, audit
        self._clock, self._rng = clock, rng
        self._template = LeafTemplate(SpiffeId.for_operator(trust_domain, name, tenant), ttl)
        self._svid: X509Svid | None = None
        self._bundle: Bundle | None = None
        self._due = clock()

    async def start(self) -> None:
        """Issues the first certificate; where who signs is away, leaves what is published, which may have ended.

        Raises:
            CertsError: the authority refuses.
            AuditError: it can't be recorded.
            OSError: it can't be written.
        """
        try:
            await self.issue()
        except AuthorityUnavailable as error:
            await self._resume()
            kept = self._svid.serial if self._svid is not None else None
            log.warning("operator.not_issued", spiffe_id=str(self._template.spiffe_id), kept=kept, reason=str(error))

    async def _resume(self) -> None:
        """Takes what is published, if it is still good."""
        bundle, roots = await self._authority.bundle(), await self._authority.roots()
        try:
            svid = X509Svid.load(*await asyncio.to_thread(files.read, self._directory, "tls.crt", "tls.key"))
        except (OSError, CertsError):
            return
        is_ours = svid.spiffe_id == self._template.spiffe_id and leads_to_good(svid, bundle, roots)
        if is_ours and self._clock() < svid.not_after:
            await self._publish(svid, bundle)

    async def issue(self) -> X509Svid:
        """Issues the next certificate and publishes it.

        Raises:
            CertsError: the authority can't sign now.
            AuditError: it can't be recorded.
            OSError: it can't be written.
        """
        with self._renewals.next(self._svid):
            return await self._issue()

    async def _issue(self) -> X509Svid:
        key = new_key()
        chain = await self._authority.sign(self._template, key.public_key(), self._clock(), make_csr(key))
        bundle = await self._authority.bundle()
        svid = X509Svid.of(chain, key)
        note_issued(svid)
        fields = {"spiffe_id": str(svid.spiffe_id), "serial": svid.serial, "not_after": svid.not_after.isoformat()}
        await self._audit.record("operator.issue", directory=str(self._directory), **fields)
        await self._publish(svid, bundle)
        self._due = renew_at(svid.not_before, svid.not_after, self._rng)
        return svid

    async def _publish(self, svid: X509Svid, bundle: Bundle) -> None:
        content = {"tls.crt": svid.chain_pem(), "tls.key": svid.key_pem(), "ca.crt": bundle.pem()}
        await asyncio.to_thread(files.publish, self._directory, content)
        self._svid, self._bundle = svid, bundle

    async def follow(self, roots: Roots) -> None:
        """The roots have changed: publishes them, and leaves one that is tainted or gone.

        Raises:
            CertsError: the authority can't sign now.
            AuditError: it can't be recorded.
            OSError: it can't be written.
        """
        bundle = await self._authority.bundle()
        if self._svid is None:
            return
        if not leads_to_good(self._svid, bundle, roots):
            await self.issue()
        elif bundle is not self._bundle:
            await self._publish(self._svid, bundle)

    async def run(self) -> None:
        """Renews at half-life until cancelled. A failure is retried: nearly half of the life is left for that."""
        while True:
            if self._svid is not None:
                await until_due(self._svid.not_before, self._due, self._clock)
            try:
                await self.issue()
            except (CertsError, AuditError, OSError) as error:
                log.error("operator.not_renewed", spiffe_id=str(self._template.spiffe_id), error=str(error))
                await asyncio.sleep(RETRY_S * self._rng.uniform(0.5, 1.5))
