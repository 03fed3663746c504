"""What the private keys of JWT-SVIDs are encrypted by in the store: a key made of a passphrase.

/identity/jwt-seal   how the passphrase becomes a key (scrypt, RFC 7914), and what that must open
"""

import asyncio
import base64
import binascii
import contextlib
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from meshwarden.certs.authority.port import AuthorityLocked, Secret
from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.jose import thumbprint
from meshwarden.controlplane.identity.jwt_key import JwtKeyRecord
from meshwarden.controlplane.secrets.port import SecretAway
from meshwarden.controlplane.store.port import ABSENT, Ambiguous, Conflict, Put, Store

SEAL: Final = "/identity/jwt-seal"
# 64 MiB and about a tenth of a second.
SCRYPT_N: Final = 2**16
# What a record may ask of us: 1 GiB.
MAX_SCRYPT_N: Final = 2**20
_NONCE: Final = 12
_CHECK: Final = "check"

log = structlog.get_logger()
Passphrase = Callable[[], Awaitable[Secret]]
"""Reads the passphrase; raises SecretAway where that can't be now."""


@dataclass(frozen=True)
class JwtSeal:
    """Seals private keys, each for its own record."""

    trust_domain: str
    n: int
    salt: bytes
    _key: bytes = field(repr=False)

    @classmethod
    def new(cls, trust_domain: str, passphrase: Secret) -> "JwtSeal":
        """Makes one with a salt of its own."""
        return cls._of(trust_domain, passphrase, SCRYPT_N, secrets.token_bytes(16))

    @classmethod
    def _of(cls, trust_domain: str, passphrase: Secret, n: int, salt: bytes) -> "JwtSeal":
        derived = Scrypt(salt=salt, length=32, n=n, r=8, p=1).derive(passphrase.get_secret_value().encode())
        return cls(trust_domain, n, salt, derived)

    @classmethod
    async def take(cls, store: Store, trust_domain: str, passphrase: Secret) -> "JwtSeal":
        """Opens the seal of a store, or makes it.

        Raises:
            StoreError: the store doesn't answer.
            AuthorityLocked: the passphrase is another than the one of the seal that is there.
        """
        while True:
            stored, _ = await store.get(SEAL)
            # scrypt takes its time, and gives the loop to others meanwhile.
            if stored is not None:
                return await asyncio.to_thread(cls.decode, trust_domain, passphrase, stored.value)
            new = await asyncio.to_thread(cls.new, trust_domain, passphrase)
            with contextlib.suppress(Conflict, Ambiguous):  # what is there then is read
                await store.commit([Put(SEAL, new.encode(), ABSENT)])

    def encode(self) -> bytes:
        """Returns the bytes of the record from which whoever knows the passphrase has the same seal."""
        words = {"v": 1, "kdf": {"name": "scrypt", "n": self.n, "salt": self.salt.hex()}}
        return json.dumps(words | {"check": self._seal(_CHECK, b"")}).encode()

    @classmethod
    def decode(cls, trust_domain: str, passphrase: Secret, value: bytes) -> "JwtSeal":
        """Opens what was stored.

        Raises:
            AuthorityLocked: the passphrase is another, or the record is none.
        """
        try:
            words: dict[str, Any] = json.loads(value)
            n, salt, check = words["kdf"]["n"], bytes.fromhex(words["kdf"]["salt"]), words["check"]
            if words["kdf"]["name"] != "scrypt" or type(n) is not int or not 2 <= n <= MAX_SCRYPT_N or n & (n - 1):
                raise ValueError("no derivation that anybody can afford")
            seal = cls._of(trust_domain, passphrase, n, salt)
            if seal._open(_CHECK, check) == b"":
                return seal
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise AuthorityLocked(
            f"store key {SEAL}: the passphrase doesn't open the keys of JWT-SVIDs: see `jwt_passphrase`, or "
            "`passphrase` under [authority], and bring the old one back"
        )

    def seal(self, key: ec.EllipticCurvePrivateKey) -> str:
        """Returns a private key that only this seal opens."""
        der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        return self._seal(thumbprint(key.public_key()), der)

    def open(self, kid: str, sealed: str) -> ec.EllipticCurvePrivateKey | None:
        """Returns the private key of an id; None if that isn't what was sealed."""
        der = self._open(kid, sealed)
        if der is None:
            return None
        try:
            key = load_der_private_key(der, None)
        except UNREADABLE:
            return None
        return key if isinstance(key, ec.EllipticCurvePrivateKey) and thumbprint(key.public_key()) == kid else None

    def _seal(self, what: str, content: bytes) -> str:
        nonce = secrets.token_bytes(_NONCE)
        return base64.b64encode(nonce + AESGCM(self._key).encrypt(nonce, content, self._said(what))).decode("ascii")

    def _open(self, what: str, sealed: str) -> bytes | None:
        try:
            raw = base64.b64decode(sealed, validate=True)
            return AESGCM(self._key).decrypt(raw[:_NONCE], raw[_NONCE:], self._said(what))
        except (InvalidTag, ValueError, TypeError, binascii.Error):
            return None

    def _said(self, what: str) -> bytes:
        return f"meshwarden jwt-key {self.trust_domain} {what}".encode()


class JwtLock:
    """The seal of a store, once its passphrase can be read: where that lies in a Vault which is away, keys wait."""

    def __init__(self, store: Store, trust_domain: str, passphrase: Passphrase | None) -> None:
        """Is closed; without a passphrase it stays so."""
        self._store, self._trust_domain, self._passphrase = store, trust_domain, passphrase
        self.seal: JwtSeal | None = None
        """None while it is closed."""
        self.fault = ""
        """Why it could not be opened; empty if it is open, or there is no passphrase."""

    async def open(self) -> None:
        """Reads the passphrase and takes the seal, unless it is open.

        Raises:
            StoreError: the store doesn't answer.
            AuthorityLocked: the passphrase is another than the one of the seal that is there.
            SecretError: there is no passphrase where it should be.
        """
        if self.seal is not None or self._passphrase is None:
            return
        try:
            passphrase = await self._passphrase()
        except SecretAway as error:
            if not self.fault:
                log.warning("jwt_keys.not_opened", reason=str(error))
            self.fault = f"jwt_passphrase: keys of JWT-SVIDs are in memory alone until it can be read: {error}"
            return
        self.seal, self.fault = await JwtSeal.take(self._store, self._trust_domain, passphrase), ""

    def close(self, record: JwtKeyRecord, key: ec.EllipticCurvePrivateKey) -> JwtKeyRecord:
        """Returns the record with its private key sealed, if that can be."""
        return record if self.seal is None or record.sealed else replace(record, sealed=self.seal.seal(key))

    def is_late_for(self, record: JwtKeyRecord) -> bool:
        """Whether a record was made before it was open, and can be sealed now."""
        return self.seal is not None and not record.sealed
