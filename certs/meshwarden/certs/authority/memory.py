"""A root that ends with the process: for tests and for trying things out."""

import random
from collections.abc import Callable
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from meshwarden.certs.authority.issuing import IssuingAuthority
from meshwarden.certs.authority.port import AuthorityUnavailable, OnIssued
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import PrivateKey
from meshwarden.certs.issue import (
    INTERMEDIATE_TTL,
    ROOT_TTL,
    IssueRefused,
    IssuerKey,
    name_text,
    self_signed_root,
    sign_intermediate,
)
from meshwarden.certs.svid import new_key


class LocalAuthority(IssuingAuthority):
    """An authority whose root key is in this process."""

    def __init__(
        self,
        trust_domain: str,
        root: IssuerKey,
        clock: Callable[[], datetime],
        rng: random.Random,
        intermediate_ttl: timedelta = INTERMEDIATE_TTL,
        on_issued: OnIssued | None = None,
    ) -> None:
        super().__init__(trust_domain, clock, rng, on_issued)
        self._root = root
        self._intermediate_ttl = intermediate_ttl

    @property
    def description(self) -> str:
        """Who signs, for people."""
        return f"embedded: {name_text(self._root.root.subject)}"

    async def _sign_intermediate(
        self, key: ec.EllipticCurvePrivateKey, now: datetime
    ) -> tuple[tuple[x509.Certificate, ...], tuple[x509.Certificate, ...]]:
        try:
            chain = sign_intermediate(self.trust_domain, key.public_key(), self._root, now, self._intermediate_ttl)
        except IssueRefused as error:
            raise AuthorityUnavailable(f"{self.description}: {error}") from None
        return chain, (self._root.root,)


class MemoryAuthority(LocalAuthority):
    """An authority with a new root."""

    def __init__(
        self,
        trust_domain: str,
        clock: Callable[[], datetime] = utc_now,
        rng: random.Random | None = None,
        root_ttl: timedelta = ROOT_TTL,
        intermediate_ttl: timedelta = INTERMEDIATE_TTL,
        on_issued: OnIssued | None = None,
    ) -> None:
        """Makes a root for a trust domain."""
        key: PrivateKey = new_key()
        root = IssuerKey(key, (self_signed_root(trust_domain, key, clock(), root_ttl),))
        jitter = rng or random.Random()  # noqa: S311 - no secret
        super().__init__(trust_domain, root, clock, jitter, intermediate_ttl, on_issued)
