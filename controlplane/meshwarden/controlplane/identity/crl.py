"""The certificate revocation list of the certificates that are denied by their numbers."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.crl import CRL_LIFE
from meshwarden.controlplane.identity.deny_watch import DenyWatch

AGE: Final = CRL_LIFE / 2
"""A list is signed anew when it is asked for and older than this, so that whoever has it can use it as long again."""


class Crls:
    """Signs lists as they are asked for; however often that is, few are signed."""

    def __init__(self, authority: Authority, deny_watch: DenyWatch, clock: Callable[[], datetime]) -> None:
        self._authority, self._deny_watch, self._clock = authority, deny_watch, clock
        self._made: tuple[datetime, int, bytes] | None = None
        self._turn, self._number = asyncio.Lock(), 0

    async def get(self) -> bytes:
        """Returns the list in DER, good for five minutes at least.

        Raises:
            AuthorityError: nobody can sign it.
        """
        async with self._turn:
            now, revision = self._clock(), self._deny_watch.present.revision
            if self._made is None or self._made[1] != revision or not now - AGE < self._made[0] <= now:
                revoked = {int(r.deny.serial, 16): r.time for r in self._deny_watch.records() if r.deny.serial}
                # A number must grow with each list, also across starts, which time does.
                self._number = max(self._number + 1, int(now.timestamp() * 1000))
                made = await self._authority.sign_crl(revoked, self._number, now)
                self._made = now, revision, made
            return self._made[2]
