"""A stream of bytes under a passphrase: what nobody can read, change, cut or put together anew who doesn't know it.

    magic (16 bytes)   log2 of scrypt's N (1)   salt (16)   check (16)      the head
    pieces of at most 1 MiB, each with its tag (AES-256-GCM, 16 bytes)

A piece's nonce is its number and whether it is the last, and it is bound to the head: so none can be left out, moved or
taken from another file. The key is made of passphrase and salt by scrypt (RFC 7914) and used for one file; `check`
tells a wrong passphrase from damage.

Source: Hoang, Reyhanitabar, Rogaway, Vizár: "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance"
(CRYPTO 2015), §7: STREAM.
"""

import hmac
import secrets
from typing import IO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from meshwarden.certs.authority.port import Secret

MAGIC: Final = b"meshwarden-bak1\n"
PIECE: Final = 1 << 20
MIN_PASSPHRASE: Final = 12
# 64 MiB and about a tenth of a second; what a file may ask of us is 1 GiB.
LOG_N: Final = 16
MAX_LOG_N: Final = 20
_SALT: Final = 16
_CHECK: Final = 16
_TAG: Final = 16
_HEAD: Final = len(MAGIC) + 1 + _SALT + _CHECK


class SealError(Exception):
    """What is read isn't what was sealed; the message says why."""


def _keys(passphrase: Secret, log_n: int, salt: bytes) -> tuple[AESGCM, bytes]:
    derived = Scrypt(salt=salt, length=64, n=1 << log_n, r=8, p=1).derive(passphrase.get_secret_value().encode())
    return AESGCM(derived[:32]), hmac.digest(derived[32:], MAGIC + bytes([log_n]) + salt, "sha256")[:_CHECK]


def _nonce(number: int, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])


class SealedWriter:
    """Writes what it is given under a passphrase; without `finish` nothing of it can be read to its end."""

    def __init__(self, out: IO[bytes], passphrase: Secret) -> None:
        """Writes the head.

        Raises:
            SealError: the passphrase is too short.
        """
        if len(passphrase.get_secret_value()) < MIN_PASSPHRASE:
            raise SealError(f"the passphrase needs {MIN_PASSPHRASE} characters or more")
        salt = secrets.token_bytes(_SALT)
        self._cipher, check = _keys(passphrase, LOG_N, salt)
        self._out, self._head = out, MAGIC + bytes([LOG_N]) + salt + check
        self._left, self._number = bytearray(), 0
        out.write(self._head)

    def write(self, data: bytes) -> int:
        """Takes bytes."""
        self._left += data
        # The last piece is told from the others, so one that is full waits for what follows.
        while len(self._left) > PIECE:
            self._put(bytes(self._left[:PIECE]), is_last=False)
            del self._left[:PIECE]
        return len(data)

    def finish(self) -> None:
        """Writes the end."""
        self._put(bytes(self._left), is_last=True)

    def _put(self, piece: bytes, *, is_last: bool) -> None:
        self._out.write(self._cipher.encrypt(_nonce(self._number, is_last), piece, self._head))
        self._number += 1


class SealedReader:
    """Reads what a SealedWriter has written; gives nothing out that isn't as it was written."""

    def __init__(self, source: IO[bytes], passphrase: Secret) -> None:
        """Reads the head.

        Raises:
            SealError: it is none, or the passphrase is another.
        """
        head = source.read(_HEAD)
        if len(head) < _HEAD or not head.startswith(MAGIC) or not 1 <= head[len(MAGIC)] <= MAX_LOG_N:
            raise SealError("is damaged, or of another version")
        salt = head[len(MAGIC) + 1 : -_CHECK]
        self._cipher, check = _keys(passphrase, head[len(MAGIC)], salt)
        if not hmac.compare_digest(check, head[-_CHECK:]):
            raise SealError("the passphrase doesn't open it; if that is right, its beginning is damaged")
        self._source, self._head = source, head
        self._left, self._number, self._ended = bytearray(), 0, False
        # A piece with nothing behind it is the last.
        self._ahead = source.read(PIECE + _TAG)

    def read(self, size: int) -> bytes:
        """Returns as many bytes, fewer at the end alone.

        Raises:
            SealError: it was changed, or its end is missing.
        """
        while len(self._left) < size and not self._ended:
            self._take()
        given = bytes(self._left[:size])
        del self._left[:size]
        return given

    def drain(self) -> None:
        """Sees that it goes on as it was written to its end.

        Raises:
            SealError: it doesn't.
        """
        while not self._ended:
            self._left.clear()
            self._take()

    def _take(self) -> None:
        following = self._source.read(PIECE + _TAG)
        self._ended = not following
        try:
            self._left += self._cipher.decrypt(_nonce(self._number, self._ended), self._ahead, self._head)
        except InvalidTag:
            raise SealError("was changed, or its end is missing: take another backup") from None
        self._ahead, self._number = following, self._number + 1


def is_sealed(head: bytes) -> bool:
    """Whether a file that begins so is sealed."""
    return head.startswith(MAGIC)
