"""Roots that somebody else keeps: they are seen, and changed where they are."""

from collections.abc import Callable
from datetime import datetime

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.authority.slot import RootRefused, Roots, RootState, SlotState


class ForeignRoots(Authority):
    """An authority that makes no roots of its own. The first of its bundle is the one that signs."""

    _clock: Callable[[], datetime]

    async def roots(self) -> Roots:
        """Returns the roots with their states: the one that signs, and those that did."""
        begun = self._clock()
        active, *old = (await self.bundle()).roots
        signing = RootState.of(active, SlotState.ACTIVE, begun)
        return (signing, *(RootState.of(root, SlotState.OLD, begun) for root in old))

    async def prepare(self, now: datetime) -> Roots:
        """Refuses to make a root."""
        raise self._not_ours()

    async def activate(self, fingerprint: str) -> Roots:
        """Refuses to have another root sign."""
        raise self._not_ours()

    async def taint(self, fingerprint: str) -> Roots:
        """Refuses to mark a root."""
        raise self._not_ours()

    async def revoke(self, fingerprint: str) -> Roots:
        """Refuses to take a root out of the bundle."""
        raise self._not_ours()

    def _not_ours(self) -> RootRefused:
        return RootRefused(f"{self.description}: its root is its upstream's; change it there")
