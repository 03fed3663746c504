"""Roots of our own on disk, their keys encrypted under a passphrase.

    <directory>/roots.json       which roots there are and in which state, how the passphrase becomes a key; sealed
    <directory>/<SHA-256>.crt    a root, PEM
    <directory>/<SHA-256>.key    its key, PKCS#8 PEM, encrypted; only of roots that sign or are to sign

All of them change together, or not at all (`files.publish`), and are 0600. scrypt makes a key of the passphrase; from
it come one that seals `roots.json`, so that nobody adds a root or takes a taint away who doesn't know the passphrase,
and the password of each private key: OpenSSL's own derivation for PKCS#8 is 2,048 rounds of PBKDF2, which a graphics
card guesses through.
"""

import asyncio
import contextlib
import fcntl
import hmac
import json
import os
import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from meshwarden.certs import files
from meshwarden.certs.authority import disk_single, slot
from meshwarden.certs.authority.memory import SIGNING, Held, LocalAuthority, Root
from meshwarden.certs.authority.port import AuthorityError, AuthorityLocked, AuthorityMissing, OnIssued, Secret
from meshwarden.certs.authority.slot import RootState, SlotState
from meshwarden.certs.bundle import is_authority
from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.issue import INTERMEDIATE_TTL, ROOT_TTL

# 64 MiB and about a tenth of a second (RFC 7914 §2).
SCRYPT_N: Final = 2**16
# What a file may ask of us: 1 GiB.
MAX_SCRYPT_N: Final = 2**20
MIN_PASSPHRASE: Final = 12
ROOTS: Final = "roots.json"
MAX_FILE_BYTES: Final = 64 * 1024
_FORMAT: Final = 1
_LOCK: Final = ".lock"


@dataclass(frozen=True)
class _Lock:
    """What a passphrase opens: the key made of it, and how it was made."""

    master: bytes = field(repr=False)
    n: int
    salt: bytes

    @classmethod
    def of(cls, passphrase: Secret, n: int, salt: bytes) -> "_Lock":
        derived = Scrypt(salt=salt, length=32, n=n, r=8, p=1).derive(passphrase.get_secret_value().encode())
        return cls(derived, n, salt)

    def password(self, fingerprint: str) -> bytes:
        """The password of a root's private key."""
        return hmac.digest(self.master, f"key {fingerprint}".encode(), "sha256").hex().encode()

    def seal(self, words: dict[str, Any]) -> str:
        """What nobody can say of these words without the passphrase."""
        text = json.dumps(words, sort_keys=True, separators=(",", ":"))
        return hmac.digest(self.master, f"roots {text}".encode(), "sha256").hex()


class DiskAuthority(LocalAuthority):
    """An authority whose roots are in a directory, which several processes of one machine may share."""

    def __init__(
        self,
        directory: Path,
        lock: _Lock,
        trust_domain: str,
        held: Held,
        clock: Callable[[], datetime],
        rng: random.Random,
        *,
        root_ttl: timedelta,
        intermediate_ttl: timedelta,
        on_issued: OnIssued | None,
    ) -> None:
        self._directory, self._opens = directory, lock
        ttls = {"root_ttl": root_ttl, "intermediate_ttl": intermediate_ttl}
        super().__init__(trust_domain, held, clock, rng, on_issued=on_issued, **ttls)

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
        root_ttl: timedelta = ROOT_TTL,
        intermediate_ttl: timedelta = INTERMEDIATE_TTL,
        on_issued: OnIssued | None = None,
    ) -> "DiskAuthority":
        """Opens the roots in a directory, or makes the first one there.

        Args:
            directory: where they are.
            passphrase: what their keys are encrypted under; 12 characters or more for a new directory.
            trust_domain: whose roots they are.
            clock: the present, aware.
            create: make a root if there is none.
            rng: spreads renewals.
            root_ttl: the life of roots that are made from now on.
            intermediate_ttl: the life of an issuing certificate.
            on_issued: told of each issuing certificate.

        Raises:
            AuthorityMissing: there is no root, and `create` is false.
            AuthorityLocked: the passphrase is wrong.
            AuthorityError: a file is missing, damaged, open to others or of another trust domain; or the root has
                ended.
        """

        def work() -> tuple[_Lock, Held]:
            if _is_empty(directory):
                if not create:
                    raise AuthorityMissing(
                        f"{directory}: no root here. If this mesh is new, make one with `create = true` under "
                        "[authority]; if it isn't, set state_dir to where its root is, or bring the directory back "
                        "from a backup"
                    )
                return _create(directory, passphrase, trust_domain, clock(), root_ttl)
            if disk_single.is_here(directory):
                _take_over(directory, passphrase, trust_domain, clock())
            words = _manifest(directory)
            lock = _Lock.of(passphrase, words["kdf"]["n"], bytes.fromhex(words["kdf"]["salt"]))
            return lock, _load(directory, words, lock, trust_domain)

        # scrypt takes its time, and gives the loop to others meanwhile.
        lock, held = await asyncio.to_thread(work)
        end = held.active.state.not_after
        if clock() >= end:
            raise AuthorityError(f"{directory}: the root has ended, {end.isoformat()}")
        return cls(
            directory,
            lock,
            trust_domain,
            held,
            clock,
            rng or random.SystemRandom(),
            root_ttl=root_ttl,
            intermediate_ttl=intermediate_ttl,
            on_issued=on_issued,
        )

    async def _commit(self, change: Callable[[Held], Held]) -> Held:
        def work() -> Held:
            with _alone(self._directory):
                held = change(self._read())
                _publish(self._directory, self._opens, self.trust_domain, held)
                return held

        return await asyncio.to_thread(work)

    async def _follow(self) -> None:
        held = await asyncio.to_thread(self._read)
        if held.generation > self._held.generation:
            self._adopt(held)

    def _read(self) -> Held:
        return _load(self._directory, _manifest(self._directory), self._opens, self.trust_domain)


def _is_empty(directory: Path) -> bool:
    """Whether nothing was ever published here; what a crash left before that doesn't count."""
    try:
        return all(path.name == _LOCK or (path.name.startswith("..") and path.is_dir()) for path in directory.iterdir())
    except FileNotFoundError:
        return True
    except OSError as error:
        raise AuthorityError(f"{directory}: {error.strerror}") from None


def _create(
    directory: Path, passphrase: Secret, trust_domain: str, now: datetime, ttl: timedelta
) -> tuple[_Lock, Held]:
    if len(passphrase.get_secret_value()) < MIN_PASSPHRASE:
        raise AuthorityError(f"{directory}: the passphrase of a new root needs {MIN_PASSPHRASE} characters or more")
    lock = _Lock.of(passphrase, SCRYPT_N, secrets.token_bytes(16))
    held = Held(1, (Root.new(trust_domain, SlotState.ACTIVE, now, ttl),))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AuthorityError(f"{directory}: no root could be made: {error.strerror}") from None
    with _alone(directory):
        if not _is_empty(directory):
            raise AuthorityError(f"{directory}: another process has just made a root here; start again")
        _publish(directory, lock, trust_domain, held)
    return lock, held


def _take_over(directory: Path, passphrase: Secret, trust_domain: str, now: datetime) -> None:
    """Keeps a root that was written before there could be several, as the one that signs."""
    with _alone(directory):
        if not (directory / ROOTS).exists():
            contents = tuple(_plain(directory / name) for name in disk_single.NAMES)
            certificate, key = disk_single.load(directory, contents, passphrase, trust_domain)
            held = Held(1, (Root(RootState.of(certificate, SlotState.ACTIVE, now), certificate, key),))
            lock = _Lock.of(passphrase, SCRYPT_N, secrets.token_bytes(16))
            _publish(directory, lock, trust_domain, held)
        try:
            disk_single.forget(directory)
        except OSError as error:
            raise AuthorityError(f"{error.filename}: {error.strerror}") from None


def _plain(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}; bring it back from a backup") from None
    with os.fdopen(fd, "rb") as file:
        if os.fstat(fd).st_mode & 0o077:
            raise AuthorityError(f"{path}: is open to others; chmod 600 it, and ask who has read it")
        return file.read(MAX_FILE_BYTES)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keeps other processes from changing anything."""
    try:
        fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise AuthorityError(f"{directory}: can't be written: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _publish(directory: Path, lock: _Lock, trust_domain: str, held: Held) -> None:
    roots = [
        {"fingerprint": state.fingerprint, "state": state.state.value, "since": state.since.isoformat()}
        for state in held.states
    ]
    kdf = {"name": "scrypt", "n": lock.n, "salt": lock.salt.hex()}
    words = {
        "format": _FORMAT,
        "trust_domain": trust_domain,
        "generation": held.generation,
        "kdf": kdf,
        "roots": roots,
    }
    content = {ROOTS: json.dumps(words | {"seal": lock.seal(words)}, indent=1).encode()}
    for root in held.roots:
        name = root.state.fingerprint
        content[f"{name}.crt"] = root.certificate.public_bytes(Encoding.PEM)
        if root.key is not None:
            encryption = BestAvailableEncryption(lock.password(name))
            content[f"{name}.key"] = root.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    try:
        files.publish(directory, content)
    except OSError as error:
        raise AuthorityError(f"{directory}: can't be written: {error.strerror}") from None


def _manifest(directory: Path) -> dict[str, Any]:
    """Reads `roots.json`; its seal is still to be seen."""
    (content,) = _read(directory, ROOTS)
    try:
        words: dict[str, Any] = json.loads(content)
        cost = words["kdf"]["n"]
        bytes.fromhex(words["kdf"]["salt"])
        if words["format"] != _FORMAT or words["kdf"]["name"] != "scrypt" or not isinstance(cost, int):
            raise ValueError("of another version")
        if not 2 <= cost <= MAX_SCRYPT_N or cost & (cost - 1):
            raise ValueError("no derivation that anybody can afford")
    except (KeyError, TypeError, ValueError, RecursionError):
        raise _damaged(directory / ROOTS) from None
    return words


def _load(directory: Path, words: dict[str, Any], lock: _Lock, trust_domain: str) -> Held:
    said = dict(words)
    seal = said.pop("seal", None)
    if not isinstance(seal, str) or not hmac.compare_digest(seal.encode(), lock.seal(said).encode()):
        raise AuthorityLocked(
            f"{directory / ROOTS}: the passphrase doesn't open it, see `passphrase` under [authority]; if that is "
            "right, the file was changed by somebody else: bring the directory back from a backup"
        )
    # What follows was written by us.
    if words["trust_domain"] != trust_domain:
        raise AuthorityError(
            f"{directory}: is the root of {words['trust_domain']!r}, not of trust_domain = {trust_domain!r}"
        )
    roots = tuple(_root(directory, root, lock) for root in words["roots"])
    slot.active([root.state for root in roots])
    return Held(words["generation"], roots)


def _root(directory: Path, words: dict[str, str], lock: _Lock) -> Root:
    name, state = words["fingerprint"], SlotState(words["state"])
    signs = state in SIGNING
    contents = _read(directory, f"{name}.crt", *([f"{name}.key"] if signs else []))
    try:
        certificate = x509.load_pem_x509_certificate(contents[0])
    except UNREADABLE:
        raise _damaged(directory / f"{name}.crt") from None
    if slot.fingerprint_of(certificate) != name or not is_authority(certificate):
        raise _damaged(directory / f"{name}.crt")
    described = RootState.of(certificate, state, datetime.fromisoformat(words["since"]))
    if not signs:
        return Root(described, certificate, None)
    try:
        key = load_pem_private_key(contents[1], lock.password(name))
    except UNREADABLE:
        raise _damaged(directory / f"{name}.key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise _damaged(directory / f"{name}.key")
    if key.public_key() != certificate.public_key():
        raise AuthorityError(
            f"{directory / name}.key isn't the key of its root; bring the directory back from a backup"
        )
    return Root(described, certificate, key)


def _read(directory: Path, *names: str) -> tuple[bytes, ...]:
    for name in names:
        with contextlib.suppress(OSError):
            status = (directory / name).stat()
            if status.st_mode & 0o077:
                raise AuthorityError(f"{directory / name}: is open to others; chmod 600 it, and ask who has read it")
            if status.st_size > MAX_FILE_BYTES:
                raise _damaged(directory / name)
    try:
        return files.read(directory, *names)
    except OSError as error:
        where = error.filename or directory
        raise AuthorityError(f"{where}: {error.strerror or 'is missing'}; bring it back from a backup") from None


def _damaged(path: Path) -> AuthorityError:
    return AuthorityError(f"{path}: is damaged, or of another version; bring the directory back from a backup")
