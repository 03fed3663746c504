"""A root of our own: its key lies on disk, encrypted under a passphrase.

    <directory>/root.crt   the root certificate, PEM
    <directory>/root.key   its key, PKCS#8 PEM, encrypted
    <directory>/root.kdf   how the passphrase becomes the key's password: scrypt's salt and cost, JSON

The directory appears whole or not at all; files are 0600. OpenSSL's own derivation for PKCS#8 is 2,048 rounds of
PBKDF2, which a graphics card guesses through; so the password under it is scrypt's.
"""

import asyncio
import errno
import json
import os
import random
import secrets
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from meshwarden.certs.authority.memory import LocalAuthority
from meshwarden.certs.authority.port import AuthorityError, AuthorityLocked, AuthorityMissing, OnIssued, Secret
from meshwarden.certs.bundle import is_authority
from meshwarden.certs.csr import PrivateKey
from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.issue import IssuerKey, self_signed_root
from meshwarden.certs.svid import new_key

# 64 MiB and about a tenth of a second (RFC 7914 §2).
SCRYPT_N = 2**16
# What a file may ask of us: 1 GiB.
MAX_SCRYPT_N = 2**20
MIN_PASSPHRASE = 12
NAMES = ("root.crt", "root.key", "root.kdf")


class DiskAuthority(LocalAuthority):
    """An authority whose root is in a directory."""

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        passphrase: Secret,
        trust_domain: str,
        clock: Callable[[], datetime],
        create: bool = False,
        rng: random.Random | None = None,
        on_issued: OnIssued | None = None,
    ) -> "DiskAuthority":
        """Opens the root in a directory, or makes a new one there.

        Args:
            directory: where it is.
            passphrase: what its key is encrypted under; 12 characters or more for a new root.
            trust_domain: whose root it is.
            clock: the present, aware.
            create: make a root if the directory isn't there.
            rng: spreads renewals.
            on_issued: told of each issuing certificate.

        Raises:
            AuthorityMissing: there is no root, and `create` is false.
            AuthorityLocked: the passphrase is wrong.
            AuthorityError: a file is missing, damaged, open to others or of another trust domain; or the root has
                ended.
        """
        # scrypt takes its time, and gives the loop to others meanwhile.
        root = await asyncio.to_thread(_open, directory, passphrase, trust_domain, clock(), create)
        return cls(trust_domain, root, clock, rng or random.SystemRandom(), on_issued=on_issued)


def _open(directory: Path, passphrase: Secret, trust_domain: str, now: datetime, create: bool) -> IssuerKey:
    if not directory.exists():
        if not create:
            raise AuthorityMissing(
                f"{directory}: no root here. If this mesh is new, make one with `create = true` under [authority]; "
                "if it isn't, set state_dir to where its root is, or bring the directory back from a backup"
            )
        _create(directory, passphrase, trust_domain, now)
    return _load(directory, passphrase, trust_domain, now)


def _create(directory: Path, passphrase: Secret, trust_domain: str, now: datetime) -> None:
    if len(passphrase.get_secret_value()) < MIN_PASSPHRASE:
        raise AuthorityError(f"{directory}: the passphrase of a new root needs {MIN_PASSPHRASE} characters or more")
    key = new_key()
    certificate = self_signed_root(trust_domain, key, now)
    salt = secrets.token_bytes(16)
    password = _password(passphrase, salt, SCRYPT_N)
    contents = (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password)),
        json.dumps({"kdf": "scrypt", "n": SCRYPT_N, "r": 8, "p": 1, "salt": salt.hex()}).encode(),
    )
    draft = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
    try:
        draft.mkdir(mode=0o700, parents=True)
        for name, content in zip(NAMES, contents, strict=True):
            fd = os.open(draft / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
        _sync(draft)
        os.rename(draft, directory)
        _sync(directory.parent)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise AuthorityError(f"{directory}: another process has just made a root here; start again") from None
        raise AuthorityError(f"{directory}: no root could be made: {error.strerror}") from None


def _load(directory: Path, passphrase: Secret, trust_domain: str, now: datetime) -> IssuerKey:
    try:
        certificate_pem, key_pem, kdf = (_read(directory / name) for name in NAMES)
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        words = json.loads(kdf)
        salt, cost = bytes.fromhex(words["salt"]), int(words["n"])
        if words["kdf"] != "scrypt" or not 2 <= cost <= MAX_SCRYPT_N or cost & (cost - 1):
            raise ValueError("unknown derivation")
    except OSError as error:
        raise AuthorityError(f"{error.filename}: {error.strerror}; bring it back from a backup") from None
    except (KeyError, *UNREADABLE):
        raise AuthorityError(f"{directory}: root.crt or root.kdf is damaged; bring it back from a backup") from None
    try:
        key = load_pem_private_key(key_pem, _password(passphrase, salt, cost))
    except UNREADABLE:
        raise AuthorityLocked(
            f"{directory / 'root.key'}: the passphrase doesn't open it; see `passphrase` under [authority]"
        ) from None
    return _checked(directory, certificate, key, trust_domain, now)


def _checked(
    directory: Path, certificate: x509.Certificate, key: object, trust_domain: str, now: datetime
) -> IssuerKey:
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) or not is_authority(certificate):
        raise AuthorityError(f"{directory}: holds no root that can sign")
    private: PrivateKey = key
    if private.public_key() != certificate.public_key():
        raise AuthorityError(f"{directory}: root.key isn't the key of root.crt; bring both back from one backup")
    owner = _trust_domain_of(certificate)
    if owner != trust_domain:
        raise AuthorityError(f"{directory}: is the root of {owner!r}, not of trust_domain = {trust_domain!r}")
    if now >= certificate.not_valid_after_utc:
        raise AuthorityError(f"{directory}: the root has ended, {certificate.not_valid_after_utc.isoformat()}")
    return IssuerKey(private, (certificate,))


def _trust_domain_of(certificate: x509.Certificate) -> str | None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0].removeprefix("spiffe://") if len(uris) == 1 else None


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if os.fstat(fd).st_mode & 0o077:
            raise AuthorityError(f"{path}: is open to others; chmod 600 it, and ask who has read it")
        return file.read(64 * 1024)


def _password(passphrase: Secret, salt: bytes, cost: int) -> bytes:
    derived = Scrypt(salt=salt, length=32, n=cost, r=8, p=1).derive(passphrase.get_secret_value().encode())
    return derived.hex().encode()


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
