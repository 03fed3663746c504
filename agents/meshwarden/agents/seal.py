"""The key that the cache and the node's own key are encrypted under, and the encryption.

    $CREDENTIALS_DIRECTORY/meshwarden-cache-key   given by systemd, which can seal it to a TPM
    <state_dir>/cache-key                         made here otherwise, 0600

Whoever reads the disk alone has no use of a cache whose key systemd gives. A key that lies beside its cache keeps those
out who get one of the two files: a backup of the cache, or a disk that was not erased in part.

Errors: `KeyUnusable`, what systemd gives is no key; `Unsealed`, something was not encrypted under this key.
"""

import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from meshwarden.agents.config import ConfigError

_log = structlog.get_logger()
CREDENTIAL: Final = "meshwarden-cache-key"
_KEY_BYTES: Final = 32
_MAX_CREDENTIAL_BYTES: Final = 4096
_NONCE_BYTES: Final = 12
_OTHERS: Final = 0o077


class KeyUnusable(ConfigError):
    """What was given as a key is none; the message says why and what to do."""


class Unsealed(Exception):
    """This was not encrypted under our key, or was changed since."""


class Seal:
    """Encrypts and opens, under one key. Source: NIST SP 800-38D; nonces are random, of which 2^32 may be."""

    def __init__(self, secret: bytes) -> None:
        """Takes a secret of 32 bytes or more."""
        key = HKDF(SHA256(), _KEY_BYTES, None, b"meshwarden agent cache").derive(secret)
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


def given_secret(directory: str | None) -> bytes | None:
    """The secret that systemd gives in its directory of credentials; None if it gives none.

    Raises:
        KeyUnusable: it gives something else.
    """
    if not directory:
        return None
    path = Path(directory) / CREDENTIAL
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_CREDENTIAL_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyUnusable(f"{path}: {error.strerror}") from None
    if not _KEY_BYTES <= len(content) <= _MAX_CREDENTIAL_BYTES:
        fix = f"head -c 32 /dev/urandom | systemd-creds encrypt --name={CREDENTIAL} - FILE"
        raise KeyUnusable(
            f"{path}: {_KEY_BYTES} to {_MAX_CREDENTIAL_BYTES} bytes are a key, this has {len(content)}: {fix}"
        )
    return content


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
        secret = secrets.token_bytes(_KEY_BYTES)
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
            _log.error("the cache's key is not kept; what is cached now is lost with this process", reason=str(error))
        return secret

    @staticmethod
    def _read(path: Path) -> bytes | None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                stat, content = os.fstat(descriptor), file.read(_KEY_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.error("the cache's key cannot be read", path=str(path), reason=str(error))
            return None
        if len(content) == _KEY_BYTES and not stat.st_mode & _OTHERS and stat.st_uid == os.geteuid():
            return content
        _log.error("the cache's key is not used: it is none, or others can read or have written it", path=str(path))
        return None


def seals(directory: str | None, path: Path) -> tuple[Seal, ...]:
    """Returns what opens the node's own key, that first which closes it; none if no key can be kept.

    Args:
        directory: of systemd's credentials.
        path: of our own key file, which is made if systemd gives no key.

    Raises:
        KeyUnusable: what systemd gives is no key.
    """
    given = given_secret(directory)
    if given is None:
        file = KeyFile(path)
        return (Seal(file.secret),) if file.is_kept else ()
    # What was closed before systemd gave one is closed anew.
    old = KeyFile.find(path)
    return (Seal(given), Seal(old)) if old is not None else (Seal(given),)
