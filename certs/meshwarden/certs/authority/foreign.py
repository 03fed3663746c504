"""Roots that somebody else keeps: they are seen, and changed where they are."""

from datetime import datetime

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.authority.slot import RootRefused, Roots, RootState, SlotState


class ForeignRoots(Authority):
    """An authority that makes no roots of its own. The first of its bundle is the one that signs."""

    async def roots(self) -> Roots:
        """Returns the roots with their states: the one that signs, and those that did."""
        active, *old = (await self.bundle()).roots
        # Since when nobody says here: since it began, then.
        signing = RootState.of(active, SlotState.ACTIVE, active.not_valid_before_utc)
        return (signing, *(RootState.of(root, SlotState.OLD, root.not_valid_before_utc) for root in old))

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
