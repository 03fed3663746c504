"""Our own bundle as other trust domains get it, with a sequence number that all control planes of a store agree on.

/identity/bundle   {"v": 1, "digest": SHA-256 of the content, "sequence": how often it has changed}
"""

import hashlib
import json
from datetime import timedelta
from typing import Final

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.bundle_document import TrustBundle, format_document
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.controlplane.identity.jwt_authority import JwtAuthority
from meshwarden.controlplane.store.port import ABSENT, Conflict, Put, Store

KEY: Final = "/identity/bundle"
REFRESH: Final = timedelta(minutes=5)
"""How often others are to look again. What is prepared is published days before it signs."""
_ATTEMPTS: Final = 5


class BundleDocument:
    """The document, made anew when something in it changes."""

    def __init__(self, store: Store, authority: Authority, jwt: JwtAuthority, trust_domain: str) -> None:
        self._store, self._authority, self._jwt, self._trust_domain = store, authority, jwt, trust_domain
        self._made: tuple[Bundle, JwtBundle, bytes] | None = None

    @property
    def jwt(self) -> JwtBundle:
        """The keys of our JWT-SVIDs."""
        return self._jwt.bundle()

    async def read(self) -> bytes:
        """Returns it as it is now.

        Raises:
            AuthorityError: the roots can't be had.
            StoreError: its number can't be.
        """
        roots, jwt = await self._authority.bundle(), self._jwt.bundle()
        if self._made is not None and self._made[0] is roots and self._made[1] is jwt:
            return self._made[2]
        content = TrustBundle(self._trust_domain, roots, jwt, None, REFRESH)
        digest = hashlib.sha256(format_document(content)).hexdigest()
        sequence = await self._sequence(digest)
        document = format_document(TrustBundle(self._trust_domain, roots, jwt, sequence, REFRESH))
        self._made = roots, jwt, document
        return document

    async def _sequence(self, digest: str) -> int:
        for _ in range(_ATTEMPTS):
            found, _ = await self._store.get(KEY)
            known = json.loads(found.value) if found is not None else {}
            sequence = int(known.get("sequence", 0))
            if known.get("digest") == digest:
                return sequence
            said = {"v": 1, "digest": digest, "sequence": sequence + 1}
            try:
                await self._store.commit(
                    [Put(KEY, json.dumps(said).encode(), found.revision if found is not None else ABSENT)]
                )
            except Conflict as error:
                failure = error  # another control plane has just published
            else:
                return sequence + 1
        raise failure
