"""The one port to a signing key."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from cryptography import x509

from meshwarden.certs.authority.slot import Roots
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.csr import PublicKey
from meshwarden.certs.error import CertsError
from meshwarden.certs.issue import LeafTemplate

OnIssued = Callable[[tuple[x509.Certificate, ...]], Awaitable[None]]
"""Told the chain of an issuing certificate, its root last, before that signs for anybody."""


class AuthorityError(CertsError):
    """The signing key can't be had or used; the message says what to do."""


class AuthorityLocked(AuthorityError):
    """The passphrase doesn't open the root key."""


class AuthorityMissing(AuthorityError):
    """There is no root, and none may be made."""


class AuthorityUnavailable(AuthorityError):
    """The upstream is away, and no issuing certificate of it lasts long enough.

    Attributes:
        wait_s: after how many seconds it is of use to ask again.
    """

    wait_s = 1.0


class Secret(Protocol):
    """A text that doesn't show itself; pydantic's SecretStr is one."""

    def get_secret_value(self) -> str:
        """Returns the text."""
        ...


class Authority(Protocol):
    """Signs leaves for one trust domain. The key never leaves the engine."""

    @property
    def description(self) -> str:
        """Who signs, for people: the kind of engine and the subject of the root."""
        ...

    @property
    def fault(self) -> str:
        """Why it could not go on for ever as it is: its upstream is away, a renewal failed; empty if it could."""
        ...

    @property
    def fixed(self) -> str:
        """Why it makes no roots, and what to do for another; empty if it makes some."""
        return ""

    async def bundle(self) -> Bundle:
        """Returns the trust domain's roots. The same object until they change.

        Raises:
            AuthorityError: they can't be had.
        """
        ...

    async def roots(self) -> Roots:
        """Returns the roots of the bundle with their states, in its order; exactly one is ACTIVE.

        Raises:
            AuthorityError: they can't be had.
        """
        ...

    async def prepare(self, now: datetime) -> Roots:
        """Makes a new root, which is trusted from now on and signs nothing yet; returns all.

        Raises:
            RootRefused: one is prepared already.
            AuthorityError: none can be made.
        """
        ...

    async def activate(self, fingerprint: str) -> Roots:
        """Has a prepared root sign from now on; the one that did is OLD and its key forgotten. Returns all.

        Raises:
            RootRefused: the fingerprint, or its beginning, is of no prepared root.
            AuthorityError: it can't be recorded.
        """
        ...

    async def taint(self, fingerprint: str) -> Roots:
        """Marks a root whose key others may have; returns all. It is trusted until it is revoked.

        Raises:
            RootRefused: it is the one that signs, or there is none such.
            AuthorityError: it can't be recorded.
        """
        ...

    async def revoke(self, fingerprint: str) -> Roots:
        """Takes a root out of the bundle; returns the others.

        Raises:
            RootRefused: it is the one that signs, or there is none such.
            AuthorityError: it can't be recorded.
        """
        ...

    async def sign_crl(self, revoked: Mapping[int, datetime], number: int, now: datetime) -> bytes:
        """Signs a list of revoked certificates by the key that signs leaves now; returns it in DER.

        Args:
            revoked: {serial number: when it was revoked}.
            number: grows with each list.
            now: the present, aware.

        Raises:
            AuthorityError: nobody can sign it.
        """
        ...

    async def browser_root(self, names: Sequence[str]) -> x509.Certificate | None:
        """Returns the root that signs as a browser may trust it: good for servers of these DNS names and no others.

        The same object until the root or the names change; None where the root's key is out of reach, in a Vault.
        """
        return None

    async def sign(
        self, template: LeafTemplate, public_key: PublicKey, now: datetime, csr: bytes | None = None
    ) -> tuple[x509.Certificate, ...]:
        """Signs a leaf; returns it with its intermediates, without the root.

        Args:
            template: what it says.
            public_key: whose it is.
            now: the present, aware.
            csr: what proves that key, in DER; who has the leaf signed elsewhere needs it, and uses nothing of it but
                the key.

        Raises:
            IssueRefused: the leaf isn't sound.
            AuthorityError: nobody can sign it.
        """
        ...

    async def run(self) -> None:
        """Keeps the issuing certificate, and the login to an upstream, fresh until it is cancelled."""
        ...

    async def close(self) -> None:
        """Forgets the keys and ends connections."""
        ...
