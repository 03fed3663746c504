"""An authority of one region that trusts, beside its own roots, those of the other regions."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from cryptography import x509

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.authority.slot import Roots, SlotState
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.csr import PublicKey
from meshwarden.certs.issue import LeafTemplate
from meshwarden.controlplane.regions.trust import OtherRoot, RegionTrust


class RegionalAuthority:
    """Signs by its own roots alone. A root that is told by another region, too, is ours if we have it."""

    def __init__(self, own: Authority, others: RegionTrust) -> None:
        self._own, self._others = own, others
        self._made: tuple[Bundle, tuple[OtherRoot, ...]] | None = None
        self._bundle: Bundle | None = None
        # Ours, as they were seen last.
        self._roots: Roots = ()

    @property
    def description(self) -> str:
        """As of our own."""
        return self._own.description

    @property
    def fault(self) -> str:
        """As of our own; and that we rely on a root of which another region says that it has leaked."""
        if self._own.fault:
            return self._own.fault
        relied_on = {root.fingerprint: root.state for root in self._roots if root.state is not SlotState.TAINTED}
        for other in (root.state for root in self._others.roots):
            if other.state is SlotState.TAINTED and other.fingerprint in relied_on:
                return (
                    f"region {other.region} has tainted root {other.fingerprint[:16]}, which is "
                    f"{relied_on[other.fingerprint]} here: taint it here, too, with `meshwarden ca`"
                )
        return ""

    @property
    def fixed(self) -> str:
        """As of our own."""
        return self._own.fixed

    async def bundle(self) -> Bundle:
        """Returns the roots of all regions, ours first; the same object until one changes."""
        own, others = await self._own.bundle(), self._others.roots
        if self._bundle is None or self._made is None or self._made[0] is not own or self._made[1] is not others:
            roots = (*own.roots, *(other.certificate for other in others))
            revision = own.revision if self._bundle is None else max(own.revision, self._bundle.revision + 1)
            self._bundle, self._made = Bundle.of(own.trust_domain, roots, revision), (own, others)
        return self._bundle

    async def roots(self) -> Roots:
        """Returns the roots of all regions with their states, ours first."""
        own = self._roots = await self._own.roots()
        seen, others = {root.fingerprint for root in own}, []
        for other in self._others.roots:
            if other.state.fingerprint not in seen:
                seen.add(other.state.fingerprint)
                others.append(other.state)
        return (*own, *others)

    async def prepare(self, now: datetime) -> Roots:
        """As our own, with the others behind."""
        await self._own.prepare(now)
        return await self.roots()

    async def activate(self, fingerprint: str) -> Roots:
        """As our own, with the others behind."""
        await self._own.activate(fingerprint)
        return await self.roots()

    async def taint(self, fingerprint: str) -> Roots:
        """As our own, with the others behind."""
        await self._own.taint(fingerprint)
        return await self.roots()

    async def revoke(self, fingerprint: str) -> Roots:
        """As our own, with the others behind: a root that another region has is trusted until that revokes it, too."""
        await self._own.revoke(fingerprint)
        return await self.roots()

    async def sign_crl(self, revoked: Mapping[int, datetime], number: int, now: datetime) -> bytes:
        """As our own."""
        return await self._own.sign_crl(revoked, number, now)

    async def browser_root(self, names: Sequence[str]) -> x509.Certificate | None:
        """Of our own: another region proves itself to browsers by its own."""
        return await self._own.browser_root(names)

    async def sign(
        self, template: LeafTemplate, public_key: PublicKey, now: datetime, csr: bytes | None = None
    ) -> tuple[x509.Certificate, ...]:
        """As our own."""
        return await self._own.sign(template, public_key, now, csr)

    async def run(self) -> None:
        """As our own."""
        await self._own.run()

    async def close(self) -> None:
        """As our own."""
        await self._own.close()
