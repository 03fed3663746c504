"""Encryption of what is kept on disk, and a key for it in a file of our own.

Errors: `Unsealed`, something was not encrypted under this key.
"""

import hashlib
import logging
import os
import secrets
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

LOG = logging.getLogger(__name__)
KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_OTHERS: Final = 0o077
_AGENT: Final = b"meshwarden agent cache"


class Unsealed(Exception):
    """This was not encrypted under our key, or was changed since."""


class Seal:
    """Encrypts and opens, under one key. Source: NIST SP 800-38D; nonces are random, of which 2^32 may be."""

    def __init__(self, secret: bytes, purpose: bytes = _AGENT) -> None:
        """Takes a secret of 32 bytes or more; what it closes for one purpose is opened for no other."""
        key = HKDF(SHA256(), KEY_BYTES, None, purpose).derive(secret)
        self._cipher = AESGCM(key)
        self.id: Final = hashlib.sha256(b"id" + key).hexdigest()[:16]
        """Names the key, and tells nothing of it."""

    def close(self, body: bytes, context: bytes) -> bytes:
        """Encrypts `body`, to be opened with the same `context` alone."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, body, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Returns what was encrypted.

        Raises:
            Unsealed: it was changed, or is of another key or context.
        """
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise Unsealed("it was not written under this key, or was changed since") from None


class KeyFile:
    """A key that we make ourselves, in a file.

    A new one has another name until all that there is was encrypted under it, so that whoever is interrupted goes on.
    """

    def __init__(self, path: Path) -> None:
        """Reads the key, or makes one."""
        self._path, self._draft = path, path.with_name(f"{path.name}.new")
        known = self._read(path)
        self.is_new: Final = known is None
        """Whether what is not encrypted yet is to be."""
        self.is_kept = True
        """Whether it outlasts this process."""
        self.secret: Final = known or self._read(self._draft) or self._make()

    @classmethod
    def find(cls, path: Path) -> bytes | None:
        """Returns the key that is there; None if there is none."""
        return cls._read(path)

    def settle(self) -> None:
        """All is encrypted under it.

        Raises:
            OSError: the disk refuses.
        """
        os.replace(self._draft, self._path)

    def _make(self) -> bytes:
        secret = secrets.token_bytes(KEY_BYTES)
        try:
            self._draft.unlink(missing_ok=True)
            descriptor = os.open(
                self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            with os.fdopen(descriptor, "wb") as file:
                file.write(secret)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self.is_kept = False
            LOG.error("%s: the key is not kept; what is kept under it is lost with this process: %s", self._path, error)
        return secret

    @staticmethod
    def _read(path: Path) -> bytes | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                stat, content = os.fstat(descriptor), file.read(KEY_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            LOG.error("%s: the key cannot be read: %s", path, error)
            return None
        if len(content) == KEY_BYTES and not stat.st_mode & _OTHERS and stat.st_uid == os.geteuid():
            return content
        LOG.error("%s: the key is not used: it is none, or others can read or have written it", path)
        return None
