"""What is kept for a start while whoever signs is away: small files, each encrypted and bound to its name and owner.

    <directory>/<name>   an item
    <directory>/salt     where there is a passphrase: what scrypt (RFC 7914) makes their key of, together with it
    <directory>/key      where there is none: their key, made here, 0600

Under a passphrase nobody who reads the disk has any use of them, and nobody who writes it can put in others of his own.
A key that lies beside keeps those out who get one of the files; whoever may write here can make whatever they like, as
in the rest of the state directory. An older file that is put back is taken for what it was.

Errors: `KeptUnusable`, an item was changed, is of another owner or another key.
"""

import logging
import os
import secrets
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from meshwarden.certs.authority.port import AuthorityError, Secret
from meshwarden.certs.seal import KEY_BYTES, KeyFile, Seal, Unsealed

LOG = logging.getLogger(__name__)
MAX_BYTES: Final = 1 << 20
MIN_PASSPHRASE: Final = 12
# 64 MiB and about a tenth of a second.
SCRYPT_N: Final = 2**16
_MAGIC: Final = b"meshwarden-kept-1\n"
_PURPOSE: Final = b"meshwarden kept for a start"
_SALT_BYTES: Final = 16
_OTHERS: Final = 0o077


class KeptUnusable(AuthorityError):
    """What was kept can't be used; the message names the file and says why."""


class KeptFiles:
    """The files of one directory. Calls block."""

    def __init__(self, directory: Path, owner: str, passphrase: Secret | None = None) -> None:
        """Makes the directory, and its key or salt, unless they are there.

        Args:
            directory: holds them; of ours alone.
            owner: whose they are, a trust domain for one: what another has kept isn't read.
            passphrase: what they are encrypted under; None takes a key that lies beside.

        Raises:
            AuthorityError: the passphrase is too short, or the disk refuses.
        """
        self._directory, self._owner = directory, owner
        self.is_secret: Final = passphrase is not None
        """Whether what must not lie beside its own key may be kept."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._seal = Seal(self._own_key() if passphrase is None else self._derived(passphrase), _PURPOSE)
        except OSError as error:
            raise AuthorityError(f"{directory}: {error.strerror}") from None

    def read(self, name: str) -> bytes | None:
        """Returns an item; None if there is none.

        Raises:
            KeptUnusable: it isn't as it was kept, or was kept by another or under another key.
        """
        path = self._directory / name
        try:
            content = _read(path, MAX_BYTES + 1)
        except OSError as error:
            raise KeptUnusable(f"{path}: {error.strerror}") from None
        if content is None:
            return None
        if not content.startswith(_MAGIC) or len(content) > MAX_BYTES:
            raise KeptUnusable(f"{path}: is damaged, or of another version")
        try:
            return self._seal.open(content[len(_MAGIC) :], self._context(name))
        except Unsealed:
            raise KeptUnusable(
                f"{path}: was changed, is another trust domain's, or lies under another passphrase or key than now"
            ) from None

    def write(self, name: str, body: bytes) -> None:
        """Keeps an item in place of what is there; it is on disk when this returns.

        Raises:
            OSError: the disk refuses; what was there stands.
        """
        _write(self._directory / name, _MAGIC + self._seal.close(body, self._context(name)))

    def drop(self, name: str) -> None:
        """Takes an item away.

        Raises:
            OSError: the disk refuses.
        """
        (self._directory / name).unlink(missing_ok=True)

    def _context(self, name: str) -> bytes:
        return f"{name} of {self._owner}".encode()

    def _own_key(self) -> bytes:
        file = KeyFile(self._directory / "key")
        if file.is_new and file.is_kept:
            file.settle()
        return file.secret

    def _derived(self, passphrase: Secret) -> bytes:
        text = passphrase.get_secret_value()
        if len(text) < MIN_PASSPHRASE:
            raise AuthorityError(
                f"{self._directory}: `passphrase` under [authority] needs {MIN_PASSPHRASE} characters or more"
            )
        path = self._directory / "salt"
        salt = _read(path, _SALT_BYTES + 1)
        if salt is None or len(salt) != _SALT_BYTES:
            salt = secrets.token_bytes(_SALT_BYTES)
            _write(path, salt)
        return Scrypt(salt=salt, length=KEY_BYTES, n=SCRYPT_N, r=8, p=1).derive(text.encode())


def _read(path: Path, most: int) -> bytes | None:
    """The beginning of a file that is ours alone; None if there is none."""
    try:
        # Non-blocking: opening a pipe must not wait for who writes it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        stat = os.fstat(descriptor)
        if stat.st_uid != os.geteuid() or stat.st_mode & _OTHERS:
            raise KeptUnusable(f"{path}: others own it, or may read or write it; remove it")
        return file.read(most)


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
