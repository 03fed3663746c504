"""Roots whose keys are in this process: what memory and disk share, and roots that end with the process, for tests."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from meshwarden.certs.authority import slot
from meshwarden.certs.authority.issuing import IssuingAuthority
from meshwarden.certs.authority.port import AuthorityUnavailable, OnIssued
from meshwarden.certs.authority.slot import RootState, SlotState
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import PrivateKey
from meshwarden.certs.issue import (
    INTERMEDIATE_TTL,
    ROOT_TTL,
    IssueRefused,
    IssuerKey,
    browser_root,
    name_text,
    self_signed_root,
    sign_intermediate,
)
from meshwarden.certs.svid import new_key

SIGNING = (SlotState.PREPARED, SlotState.ACTIVE)


@dataclass(frozen=True)
class Root:
    """A root, its state, and its key for as long as it may sign."""

    state: RootState
    certificate: x509.Certificate
    key: PrivateKey | None = field(repr=False)

    @classmethod
    def new(cls, trust_domain: str, state: SlotState, now: datetime, ttl: timedelta) -> "Root":
        """Makes a root with a new key."""
        key: PrivateKey = new_key()
        certificate = self_signed_root(trust_domain, key, now, ttl)
        return cls(RootState.of(certificate, state, now), certificate, key)

    def moved(self, state: RootState) -> "Root":
        """Returns the root in another state."""
        return Root(state, self.certificate, self.key if state.state in SIGNING else None)


@dataclass(frozen=True)
class Held:
    """All roots, as of one change."""

    # Grows with each change.
    generation: int
    roots: tuple[Root, ...]

    @property
    def states(self) -> slot.Roots:
        """Their states, in their order."""
        return tuple(root.state for root in self.roots)

    @cached_property
    def active(self) -> Root:
        """The one that signs."""
        return next(root for root in self.roots if root.state.state is SlotState.ACTIVE)

    def moved(self, states: Sequence[RootState]) -> "Held":
        """Returns the roots in these states, without those that have none; keys that sign no more are forgotten."""
        known = {root.state.fingerprint: root for root in self.roots}
        return Held(self.generation + 1, tuple(known[state.fingerprint].moved(state) for state in states))


class LocalAuthority(IssuingAuthority):
    """An authority whose roots' keys are in this process."""

    def __init__(
        self,
        trust_domain: str,
        held: Held,
        clock: Callable[[], datetime],
        rng: random.Random,
        *,
        root_ttl: timedelta = ROOT_TTL,
        intermediate_ttl: timedelta = INTERMEDIATE_TTL,
        on_issued: OnIssued | None = None,
    ) -> None:
        super().__init__(trust_domain, clock, rng, on_issued)
        self._root_ttl, self._intermediate_ttl = root_ttl, intermediate_ttl
        self._changing = asyncio.Lock()
        # Of which root and for which names the one for browsers is.
        self._browsers: tuple[x509.Certificate, tuple[str, ...], x509.Certificate] | None = None
        self._adopt(held)

    @property
    def description(self) -> str:
        """Who signs, for people."""
        return f"embedded: {name_text(self._held.active.certificate.subject)}"

    async def bundle(self) -> Bundle:
        """Returns the trust domain's roots; the same object until they change."""
        return self._trusted

    async def roots(self) -> slot.Roots:
        """Returns the roots with their states."""
        await self._follow()
        return self._held.states

    async def browser_root(self, names: Sequence[str]) -> x509.Certificate | None:
        """Returns the root that signs, for browsers: good for these names alone."""
        root, asked = self._held.active, tuple(names)
        if root.key is None:
            return None
        if self._browsers is None or self._browsers[:2] != (root.certificate, asked):
            made = browser_root(IssuerKey(root.key, (root.certificate,)), asked)
            self._browsers = (root.certificate, asked, made)
        return self._browsers[2]

    async def prepare(self, now: datetime) -> slot.Roots:
        """Makes a new root, which is trusted from now on and signs nothing yet."""

        def change(held: Held) -> Held:
            slot.check_room(held.states)
            new = Root.new(self.trust_domain, SlotState.PREPARED, now, self._root_ttl)
            return Held(held.generation + 1, (*held.roots, new))

        return await self._change(change)

    async def activate(self, fingerprint: str) -> slot.Roots:
        """Has a prepared root sign from now on; the key of the one that did is forgotten."""
        return await self._change(lambda held: held.moved(slot.activated(held.states, fingerprint, self._clock())))

    async def taint(self, fingerprint: str) -> slot.Roots:
        """Marks a root whose key others may have."""
        return await self._change(lambda held: held.moved(slot.tainted(held.states, fingerprint, self._clock())))

    async def revoke(self, fingerprint: str) -> slot.Roots:
        """Takes a root out of the bundle."""
        return await self._change(lambda held: held.moved(slot.revoked(held.states, fingerprint)))

    async def _change(self, change: Callable[[Held], Held]) -> slot.Roots:
        async with self._changing:
            self._adopt(await self._commit(change))
        return self._held.states

    async def _commit(self, change: Callable[[Held], Held]) -> Held:
        """Makes a change last; returns what holds then.

        Raises:
            RootRefused: `change` refuses it.
            AuthorityError: it can't be made to last.
        """
        return change(self._held)

    async def _follow(self) -> None:
        """Takes in what others have changed."""

    def _adopt(self, held: Held) -> None:
        self._held = held
        certificates = [root.certificate for root in held.roots]
        bundle = Bundle.of(self.trust_domain, certificates, held.generation)
        if self._bundle is None or bundle.roots != self._bundle.roots:
            self._bundle = bundle
        self._trusted = self._bundle

    def _signs(self, root: x509.Certificate) -> bool:
        active = self._held.active.certificate
        return root is active or root == active

    def _trust(self, roots: Sequence[x509.Certificate]) -> None:
        """What is trusted is what is held, whatever has just signed."""

    async def _sign_intermediate(
        self, key: ec.EllipticCurvePrivateKey, now: datetime
    ) -> tuple[tuple[x509.Certificate, ...], tuple[x509.Certificate, ...]]:
        root = self._held.active
        if root.key is None:
            raise AuthorityUnavailable(f"{self.description}: its key is gone")
        issuer = IssuerKey(root.key, (root.certificate,))
        try:
            chain = sign_intermediate(self.trust_domain, key.public_key(), issuer, now, self._intermediate_ttl)
        except IssueRefused as error:
            raise AuthorityUnavailable(f"{self.description}: {error}") from None
        return chain, (root.certificate,)


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
        super().__init__(
            trust_domain,
            Held(1, (Root.new(trust_domain, SlotState.ACTIVE, clock(), root_ttl),)),
            clock,
            rng or random.Random(),  # noqa: S311 - no secret
            root_ttl=root_ttl,
            intermediate_ttl=intermediate_ttl,
            on_issued=on_issued,
        )
