"""What every engine shares: leaves are signed by an issuing intermediate that lives in memory.

A root's key is used once in a few days. The issuing key is made anew on each start and at half of its life, and ends
with the process. While the upstream is away the present one goes on signing, never beyond its own end.
"""

import asyncio
import logging
import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from meshwarden.certs.authority.port import Authority, AuthorityError, AuthorityUnavailable, OnIssued
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.crl import sign_crl
from meshwarden.certs.csr import PublicKey
from meshwarden.certs.issue import IssueRefused, IssuerKey, LeafTemplate, issue_leaf, validity
from meshwarden.certs.rotation import renew_at
from meshwarden.certs.spiffe_id import SpiffeId, check_trust_domain
from meshwarden.certs.svid import new_key

RETRY = timedelta(seconds=30)
# `run` looks at the clock this often, so that a clock that jumps (a suspended machine) is noticed.
TICK = timedelta(seconds=30)
# Who can't be served is told what the last failure was for so long, rather than made to wait for the next one.
PAUSE = timedelta(seconds=5)
LOG = logging.getLogger(__name__)


class IssuingAuthority(Authority):
    """An authority whose engine signs intermediates. Engines fill in `_sign_intermediate` and `_roots`."""

    def __init__(
        self, trust_domain: str, clock: Callable[[], datetime], rng: random.Random, on_issued: OnIssued | None = None
    ) -> None:
        """Makes an authority for a trust domain; it takes its first issuing certificate when it is first asked.

        Args:
            trust_domain: the one that it signs for.
            clock: the present, aware.
            rng: spreads renewals.
            on_issued: told of each issuing certificate.
        """
        self.trust_domain = check_trust_domain(trust_domain)
        self._clock = clock
        self._rng = rng
        self._on_issued = on_issued
        self._lock = asyncio.Lock()
        self._issuer: IssuerKey | None = None
        self._bundle: Bundle | None = None
        # When the issuing certificate shall be renewed; moved on by each failure.
        self._due: datetime | None = None
        # The last failure to renew it, and when that was.
        self._failure: tuple[datetime, AuthorityError] | None = None

    @property
    @abstractmethod
    def description(self) -> str:
        """Who signs, for people."""

    @property
    def fault(self) -> str:
        """Why the issuing certificate was not renewed at the last try; empty if it was."""
        return self._not_renewed

    @property
    def _not_renewed(self) -> str:
        return str(self._failure[1]) if self._failure is not None else ""

    @abstractmethod
    async def _sign_intermediate(
        self, key: ec.EllipticCurvePrivateKey, now: datetime
    ) -> tuple[tuple[x509.Certificate, ...], tuple[x509.Certificate, ...]]:
        """Has the key's authority signed.

        Returns:
            Its chain, its root last; and all roots of the trust domain.

        Raises:
            AuthorityError: it can't be had.
        """

    async def bundle(self) -> Bundle:
        """Returns the trust domain's roots; the same object until they change, which takes a renewal."""
        if self._bundle is None:
            await self._ready(self._clock(), timedelta(0))
        if self._bundle is None:
            raise AuthorityUnavailable(f"{self.description}: no roots yet")
        return self._bundle

    async def sign(
        self, template: LeafTemplate, public_key: PublicKey, now: datetime, csr: bytes | None = None
    ) -> tuple[x509.Certificate, ...]:
        """Signs a leaf; returns it with its intermediates, without the root."""
        issuer = await self._ready(now, template.ttl)
        return issue_leaf(template, public_key, issuer, now)

    async def sign_crl(self, revoked: Mapping[int, datetime], number: int, now: datetime) -> bytes:
        """Signs a list; of certificates that an earlier issuing certificate has signed it says nothing."""
        return sign_crl(revoked, await self._ready(now, timedelta(0)), number, now)

    async def run(self) -> None:
        """Keeps the issuing certificate fresh until it is cancelled."""
        while True:
            await self._refresh()
            await asyncio.sleep(TICK.total_seconds())

    async def _refresh(self) -> None:
        try:
            await self._ready(self._clock(), timedelta(0))
        except AuthorityError as error:
            LOG.error("no issuing certificate: %s", error)

    async def close(self) -> None:
        """Forgets the issuing key."""
        self._issuer = None

    async def _ready(self, now: datetime, ttl: timedelta) -> IssuerKey:
        """Returns an issuer that outlives a leaf of this life, renewing it first if it is due or too near its end."""
        issuer = self._issuer
        # Only one caller renews; the others go on with what there is.
        if issuer is not None and self._covers(issuer, now, ttl) and (self._lock.locked() or not self._is_due(now)):
            return issuer
        async with self._lock:
            issuer = self._issuer
            covered = issuer is not None and self._covers(issuer, now, ttl)
            if issuer is not None and covered and not self._is_due(now):
                return issuer
            if not covered:
                self._raise_fresh_failure()
            try:
                issuer = await self._renew(now)
            except AuthorityError as error:
                self._due, self._failure = now + RETRY, (self._clock(), error)
                if issuer is None or not covered:
                    raise
                LOG.warning(
                    "issuing certificate not renewed, the present one lasts until %s: %s", issuer.not_after, error
                )
            if not self._signs(issuer.root):
                issuer = await self._renew(now)  # another root was activated meanwhile
            if not self._covers(issuer, now, ttl):
                end = issuer.not_after.isoformat()
                raise AuthorityUnavailable(
                    f"{self.description}: its issuing certificate ends {end}, before a certificate of {ttl} would; "
                    "renew the root, or raise the TTL that its PKI engine allows"
                )
            return issuer

    def _raise_fresh_failure(self) -> None:
        if self._failure is not None:
            time, error = self._failure
            if timedelta(0) <= self._clock() - time < PAUSE:
                raise type(error)(*error.args)

    def _is_due(self, now: datetime) -> bool:
        return self._due is None or now >= self._due

    def _signs(self, root: x509.Certificate) -> bool:
        """Whether issuing certificates are to come from this root."""
        return True

    def _covers(self, issuer: IssuerKey, now: datetime, ttl: timedelta) -> bool:
        # A clock that was set back is before the beginning of what was issued in its future.
        begun = issuer.certificate.not_valid_before_utc <= now < issuer.not_after
        return self._signs(issuer.root) and begun and validity(now, ttl)[1] <= issuer.not_after

    async def _renew(self, now: datetime) -> IssuerKey:
        key = new_key()
        chain, roots = await self._sign_intermediate(key, now)
        issuer = IssuerKey(key, chain)
        self._prove(issuer, now)
        if self._on_issued is not None:
            await self._on_issued(chain)
        self._trust(roots)
        self._issuer, self._failure = issuer, None
        certificate = issuer.certificate
        self._due = renew_at(certificate.not_valid_before_utc, issuer.not_after, self._rng)
        LOG.info("issuing certificate %x until %s", certificate.serial_number, issuer.not_after)
        return issuer

    def _trust(self, roots: Sequence[x509.Certificate]) -> None:
        """Takes what is trusted from now on."""
        revision = 1 if self._bundle is None else self._bundle.revision + 1
        bundle = Bundle.of(self.trust_domain, roots, revision)
        if self._bundle is None or bundle.roots != self._bundle.roots:
            self._bundle = bundle

    def _prove(self, issuer: IssuerKey, now: datetime) -> None:
        """Signs a leaf for nobody, so that an upstream's mistake shows here and not at the first workload."""
        template = LeafTemplate(SpiffeId(self.trust_domain, "/probe"), timedelta(seconds=1))
        try:
            issue_leaf(template, new_key().public_key(), issuer, now)
        except IssueRefused as error:
            raise AuthorityError(f"{self.description}: its issuing certificate is of no use: {error}") from None
